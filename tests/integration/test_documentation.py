"""Every command in the README, the docs and the configs works."""

import re
import runpy
import shlex
import subprocess
import sys

import pytest

from tests.helpers.commands import GUIDE, ROOT, ReadingCLI, run

PAGES = [
    ROOT / "README.md",
    *sorted({*(ROOT / "docs").glob("*.md")} - {GUIDE}),
    *sorted((ROOT / "configs").glob("*.yaml")),
]


def shown_commands() -> list[str]:
    """Collect the lines of shell blocks, and those of the headers of configs, without their comments."""
    lines = []
    for page in PAGES:
        text = page.read_text()
        blocks = re.findall(r"```bash\n(.*?)```", text, re.DOTALL) if page.suffix == ".md" else [text]
        pattern = r"^(?:#\s+)?((?:anomalib|make|python|pip) .*?)\s*(?:#.*)?$"
        lines += [match for block in blocks for match in re.findall(pattern, block, re.MULTILINE)]
    return sorted(set(lines))


COMMANDS = shown_commands()
PROGRAMS = sorted(
    {name for page in PAGES for name in re.findall(r"`(python -m anovl_plugin\.[\w.]+)", page.read_text())}
)
# These need nothing but the package, so they are run; for the others, anomalib must understand the arguments.
OF_BENCHMARK = [command for command in COMMANDS if command.startswith("anomalib benchmark ")]
OF_ANOMALIB = [command for command in COMMANDS if command.startswith("anomalib ") and command not in OF_BENCHMARK]
RUN = [command for command in OF_ANOMALIB if "anovl-demo" in command or "configs/demo" in command]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    return tmp_path


def test_commands_are_found():
    assert {"make demo", "make test", "pip install ."} <= set(COMMANDS)
    assert sum(command.startswith("anomalib ") for command in COMMANDS) >= 3


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("make ")])
def test_make_has_the_target(command):
    done = subprocess.run(["make", "-n", *command.split()[1:]], cwd=ROOT, capture_output=True, text=True, check=False)  # noqa: S607
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("command", sorted({*OF_ANOMALIB} - {*RUN}))
def test_anomalib_understands_the_command(command, monkeypatch):
    monkeypatch.chdir(ROOT)
    _, subcommand, *_ = words = shlex.split(command)
    config = ReadingCLI(words[1:], run=False).config[subcommand]
    assert config.model.class_path.rsplit(".", 1)[-1] == "AnoVL"


@pytest.mark.parametrize("command", OF_BENCHMARK)
def test_benchmarks_have_their_file(command):
    # They have no other arguments; tests/integration/test_benchmark.py runs them.
    assert (ROOT / command.removeprefix("anomalib benchmark --config ")).is_file()


@pytest.mark.parametrize("command", RUN)
def test_commands_that_need_only_the_package_run(command, folder):
    # The first exactly as users do, who start a Python for each command.
    done = run(shlex.split(command), folder, warm=command != RUN[0])
    assert done.returncode == 0, done.stderr[-2000:]
    assert "image_AUROC" in done.stdout
    assert len(list((folder / "results").rglob("images/*/*.png"))) >= 40


@pytest.mark.parametrize("command", PROGRAMS)
def test_programs_explain_themselves(command, monkeypatch, capsys):
    module = command.removeprefix("python -m ")
    monkeypatch.setattr(sys, "argv", [module, "--help"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module(module, run_name="__main__")
    assert ended.value.code == 0
    assert "usage:" in capsys.readouterr().out


def test_programs_are_found():
    assert {f"python -m anovl_plugin.demo.studies.{name}" for name in ("train", "evaluate", "ablation")} <= set(
        PROGRAMS
    )
