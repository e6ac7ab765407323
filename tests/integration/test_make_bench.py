"""What ``make bench-gpu`` measures runs through on the CPU with a small CLIP."""

import os
import subprocess
import sys

from tests.helpers.commands import ROOT


def bench(page, *arguments):
    command = [sys.executable, "-m", "tests.benchmarks", "--small", "--rounds", "1", "--markdown", str(page)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    return subprocess.run(
        [*command, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )


def test_the_whole_suite_for_gpus_runs_on_the_cpu(tmp_path):
    done = bench(tmp_path / "gpu.md", "--suite", "bench-gpu", "--device", "cpu")
    assert done.returncode == 0, done.stderr[-2000:]
    text = (tmp_path / "gpu.md").read_text()
    for what in ("map ÷", "views", "adapter", "image by image", "PatchMemory", "bfloat16 ÷", "torch.compile"):
        assert what in text, what
    for what in ("batch 1, float32", "batch 2, bfloat16", "peak memory", "stage with pictures", "stage without"):
        assert what in text, what
    assert "failed" not in text


def test_a_failing_part_fails_the_run_and_keeps_the_results(tmp_path):
    # WinClip takes no images of the small CLIP's size.
    done = bench(tmp_path / "bench.md", "--only", "winclip", "map")
    assert done.returncode == 1, done.stderr[-2000:]
    text = (tmp_path / "bench.md").read_text()
    assert "| winclip | " in text
    assert "| training-free map ÷ plain image encoding | " in text


def test_an_unknown_part_is_an_error(tmp_path):
    done = bench(tmp_path / "bench.md", "--only", "nonsense")
    assert done.returncode == 2
    assert "there is no part nonsense; choose from map, winclip" in done.stderr
