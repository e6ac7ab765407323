"""The memory of models, each in a process of its own."""

import argparse
import json
import logging
from collections.abc import Iterator
from pathlib import Path

import torch

from anovl_plugin import TextAdapter
from tests.benchmarks.measuring import in_process, most_megabytes
from tests.benchmarks.setting import Setting, make_winclip
from tests.benchmarks.table import Ratio


def bench_memory(setting: Setting) -> Iterator[Ratio]:
    """Compare the peak memory of inference with WinClip's, and find what the text adapter adds."""

    def run(kind: str, batch: int) -> float:
        return in_process("tests.benchmarks.memory", kind, setting.weights, batch)

    ours, theirs = run("anovl", setting.batch), run("winclip", setting.batch)
    note = f"{ours:,.0f} MB against {theirs:,.0f} MB"
    yield Ratio("memory during inference, ours ÷ WinClip", ours / theirs, "≤ 0.60", note)
    count = 2 * setting.batch
    adapted, free = run("adapted", count), run("anovl", count)
    # Less than the noise of the system is none.
    each = max(0.0, adapted - free) / count
    note = f"{adapted:,.0f} MB against {free:,.0f} MB"
    yield Ratio(f"text adapter's memory, an image of a batch of {count}", each, "≤ 16", note, unit="MB")


def main() -> None:
    """Set up a model, run a batch and print the peak memory in MB."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kind", choices=["anovl", "adapted", "winclip"])
    parser.add_argument("weights")
    parser.add_argument("batch", type=int)
    args = parser.parse_args()
    logging.disable(logging.WARNING)
    setting = Setting(Path(args.weights).parent, 1, weights=args.weights, batch=args.batch)
    adaptation = TextAdapter() if args.kind == "adapted" else None
    model = make_winclip() if args.kind == "winclip" else setting.model(adaptation=adaptation)
    images = setting.images(args.batch)
    with torch.inference_mode():
        print(json.dumps(most_megabytes(lambda: model(images))))  # noqa: T201 - the parent process reads it


if __name__ == "__main__":
    main()
