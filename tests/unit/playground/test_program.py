"""The program before it serves anything: what is wrong is said in one line."""

import asyncio
import socket
import subprocess
import sys

import pytest

from anovl_plugin.playground import server
from anovl_plugin.playground.__main__ import main
from anovl_plugin.playground.server import LocalOnly, PortError, be_quiet, find_port, launch


@pytest.fixture(autouse=True)
def _unchanged(monkeypatch):
    """Leave signals, warnings and the environment as they are, and let Gradio be there."""
    monkeypatch.setattr("signal.signal", lambda *_: None)
    monkeypatch.setattr("warnings.simplefilter", lambda *_: None)
    monkeypatch.setattr("anovl_plugin.playground.__main__.be_quiet", lambda *_: None)
    monkeypatch.setattr("anovl_plugin.playground.__main__.find_spec", lambda _: True)


@pytest.fixture
def taken():
    with socket.socket() as other:
        other.bind((server.HOST, 0))
        other.listen()
        yield other.getsockname()[1]


def line_of(capsys):
    output = capsys.readouterr()
    assert output.out == ""
    (line,) = output.err.splitlines()
    return line


def test_without_gradio_the_program_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setattr("anovl_plugin.playground.__main__.find_spec", lambda _: None)
    assert main([]) == 2
    assert line_of(capsys) == (
        'python -m anovl_plugin.playground: error: Gradio is missing; run pip install "anovl_plugin[playground]"'
    )


def test_port_in_use_is_named(taken, capsys):
    assert main(["--port", str(taken)]) == 2
    assert f"error: port {taken} cannot be used (Address already in use); give another with --port" in line_of(capsys)


def test_wrong_numbers_are_no_ports(capsys):
    assert main(["--port", "70000"]) == 2
    assert "error: port 70000 is not from 0 to 65535; give another with --port" in line_of(capsys)


@pytest.mark.parametrize("has_folder", [False, True])
def test_wrong_folder_is_named(tmp_path, capsys, monkeypatch, has_folder):
    monkeypatch.setitem(sys.modules, "anovl_plugin.playground.page", type(sys)("page"))
    for name in ("STYLE", "build_page", "theme"):
        setattr(sys.modules["anovl_plugin.playground.page"], name, None)
    path = tmp_path / "photos"
    if has_folder:
        path.mkdir()
    assert main([str(path), "--port", "0"]) == 2
    assert ("holds no image" if has_folder else "there is no file or folder") in line_of(capsys)


def test_wrong_folder_for_copies_is_named(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "anovl_plugin.playground.page", type(sys)("page"))
    for name in ("STYLE", "build_page", "theme"):
        setattr(sys.modules["anovl_plugin.playground.page"], name, None)
    file = tmp_path / "file"
    file.touch()
    assert main([str(tmp_path), "--port", "0", "--keep", str(file / "kept")]) == 2
    assert line_of(capsys).endswith(f"error: keep is '{file}/kept', but '{file}' is a file; give a folder")
    # The superuser may write anywhere.
    monkeypatch.setattr("os.access", lambda *_: False)
    assert main([str(tmp_path), "--port", "0", "--keep", str(tmp_path / "kept")]) == 2
    assert f"but '{tmp_path}' cannot be written to; give another folder" in line_of(capsys)
    assert not (tmp_path / "kept").exists()


def test_free_ports_are_found():
    port = find_port(0)
    assert find_port(port) == port


def test_port_that_is_taken_later_is_named(taken):
    class Page:
        def launch(self, **_):
            msg = "Cannot find empty port\nin range"
            raise OSError(msg)

    with pytest.raises(PortError, match=r"^port \d+ cannot be used \(Cannot find empty port in range\); give another"):
        launch(Page(), taken)


def test_nothing_is_reported_or_shared(monkeypatch):
    for name in ("GRADIO_ANALYTICS_ENABLED", "HF_HUB_DISABLE_TELEMETRY", "GRADIO_TEMP_DIR", "NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "before")
    be_quiet("uploads")
    import os

    assert os.environ["GRADIO_ANALYTICS_ENABLED"] == "False"
    assert os.environ["HF_HUB_DISABLE_TELEMETRY"] == "1"
    assert os.environ["NO_PROXY"] == "before,127.0.0.1"
    given = {}

    class Page:
        def launch(self, **options):
            given.update(options)
            return None, "http://127.0.0.1:1/", None

    assert launch(Page(), 1) == "http://127.0.0.1:1/"
    assert given["server_name"] == "127.0.0.1"
    assert not any(given[name] for name in ("share", "inbrowser", "mcp_server", "ssr_mode", "enable_monitoring"))


@pytest.mark.parametrize(
    ("host", "status"),
    [
        (b"127.0.0.1:7860", 200), (b"localhost:7860", 200), (b"127.0.0.1", 200),
        (b"evil.example:7860", 403), (b"127.0.0.1.evil.example", 403), (b"", 403),
    ],
)  # fmt: skip
def test_only_this_machine_is_answered(host, status):
    async def app(scope, receive, send):
        del scope, receive
        await send({"type": "http.response.start", "status": 200, "headers": []})

    sent = []

    async def send(message):
        await asyncio.sleep(0)
        sent.append(message)

    asyncio.run(LocalOnly(app)({"type": "http", "headers": [(b"host", host)]}, None, send))
    assert sent[0]["status"] == status
    if status == 200:
        (policy,) = (value for name, value in sent[0]["headers"] if name == b"content-security-policy")
        assert b"default-src 'self'" in policy
        assert b"http" not in policy


def test_package_does_not_import_gradio():
    code = "import sys, anovl_plugin, anovl_plugin.playground.__main__; print('gradio' in sys.modules)"
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
