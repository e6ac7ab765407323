"""What ``make bench-gpu`` measures runs through on the CPU with a small CLIP, and a part may fail."""

import logging
import sys

import pytest

from tests.benchmarks import __main__ as benchmarks
from tests.benchmarks.table import Ratio


@pytest.fixture
def bench(monkeypatch, tmp_path):
    """Return a function that runs a suite with the small CLIP and returns its status and its page."""

    def run(*arguments: str) -> tuple[int, str]:
        page = tmp_path / "page.md"
        words = ["benchmarks", "--small", "--rounds", "1", "--markdown", str(page), *arguments]
        monkeypatch.setattr(sys, "argv", words)
        return benchmarks.main(), page.read_text(encoding="utf-8")

    yield run
    logging.disable(logging.NOTSET)


def test_the_whole_suite_for_gpus_runs_on_the_cpu(bench):
    status, text = bench("--suite", "bench-gpu", "--device", "cpu")
    assert status == 0, text
    for what in ("map ÷", "views", "adapter", "image by image", "PatchMemory", "bfloat16 ÷", "torch.compile"):
        assert what in text, what
    for what in ("batch 1, float32", "batch 2, bfloat16", "peak memory", "stage with pictures", "stage without"):
        assert what in text, what
    assert "failed" not in text


def test_a_failing_part_fails_the_run_and_keeps_the_results(bench, monkeypatch):
    def broken(_: object):
        yield Ratio("before", 1)
        msg = "no memory"
        raise RuntimeError(msg)

    monkeypatch.setitem(benchmarks.SUITES, "bench", {"broken": broken, "map": lambda _: iter([Ratio("after", 1)])})
    status, text = bench()
    assert status == 1
    assert "| broken | RuntimeError: no memory |" in text
    assert text.index("| before |") < text.index("| after |")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only", "nonsense"], "there is no part nonsense; choose from map, winclip"),
        (["--markdown", "README.md"], "README.md has no <!-- begin bench -->"),
    ],
)
def test_wrong_arguments_are_errors_before_anything_is_measured(arguments, message, bench, capsys):
    with pytest.raises(SystemExit) as ended:
        bench(*arguments)
    assert ended.value.code == 2
    assert message in capsys.readouterr().err
