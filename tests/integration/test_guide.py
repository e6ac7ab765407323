"""The page "From first prediction to production" runs from top to bottom and prints what it shows."""

import re
import shlex
from typing import NamedTuple

import pytest

from tests.helpers.commands import GUIDE, run


class Step(NamedTuple):
    """A block of code of the page, and the lines of output that it shows below, if any."""

    language: str
    code: str
    output: str


def steps() -> list[Step]:
    blocks = re.findall(r"```(bash|python)\n(.*?)```(?:\n\n```text\n(.*?)```)?", GUIDE.read_text(), re.DOTALL)
    return [Step(*block) for block in blocks]


def words(line: str) -> list[object]:
    """Split a line of output into words, and numbers that may be rounded differently elsewhere."""
    parts = re.findall(r"[\w.]+", line)
    return [pytest.approx(float(part), abs=0.01) if re.fullmatch(r"\d+\.\d+", part) else part for part in parts]


def printed(line: str) -> list[object]:
    return [float(part) if re.fullmatch(r"\d+\.\d+", part) else part for part in re.findall(r"[\w.]+", line)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Run the page in a folder, and compare the output of each block with the page."""
    folder = tmp_path_factory.mktemp("guide")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRUST_REMOTE_CODE", "1")
        for step in steps():
            commands = step.code.splitlines() if step.language == "bash" else [shlex.join(["python", "-c", step.code])]
            for command in commands:
                done = run(shlex.split(command), folder)
                assert done.returncode == 0, f"{command}\n{done.stderr[-2000:]}"
            found = [printed(line) for line in done.stdout.splitlines()]
            for line in step.output.splitlines():
                assert words(line) in found, f"{line}\nis not in\n{done.stdout[-2000:]}"
    return folder


def test_page_has_its_steps():
    assert [step.language for step in steps()] == ["bash", "bash", "python", "bash", "bash", "bash", "python"]
    assert [bool(step.output) for step in steps()] == [False, False, True, True, False, False, True]


def test_pictures_are_written(folder):
    # The runs without a checkpoint (crack) and with it (hole) have folders of their own.
    pictures = [path.parent.name for path in (folder / "results" / "AnoVL").glob("v*/images/*/*.png")]
    assert {name: pictures.count(name) for name in set(pictures)} == {"crack": 5, "hole": 5}


def test_files_are_as_small_as_the_page_says(folder):
    results = folder / "results"
    (checkpoint,) = results.rglob("*.ckpt")
    assert 300_000 < checkpoint.stat().st_size < 450_000
    for kind in ("openvino", "onnx", "torch"):
        size = sum(path.stat().st_size for path in (results / "weights" / kind).iterdir())
        assert 4_000_000 < size < 5_500_000
