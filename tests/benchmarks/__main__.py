"""Speed and memory, measured side by side in one run: ``make bench``, and ``make bench-gpu`` for what needs a GPU.

ViT-B-16-plus-240 with random weights, which cost what trained ones cost. Two things that are compared take turns, so
that whatever else the machine does falls on both; the ratio is that of their medians. Memory and growth are measured in
processes of their own. A part that fails is named in the table, the others are measured, and the status is 1.
"""

import argparse
import logging
import os
import tempfile
from functools import partial
from pathlib import Path
from time import monotonic

import torch

from anovl_plugin.vision.architecture import DEMO_BACKBONE
from tests.benchmarks.command import bench_command
from tests.benchmarks.forward import bench_map, bench_patchcore, bench_views, bench_winclip
from tests.benchmarks.gpu import bench_compile, bench_half_precision, bench_peak_memory, bench_throughput, in_half
from tests.benchmarks.growth import bench_growth
from tests.benchmarks.machine import describe_machine
from tests.benchmarks.memory import bench_memory
from tests.benchmarks.precision import bench_openvino, bench_trainer_precision
from tests.benchmarks.predict import bench_predict
from tests.benchmarks.runs import run_parts
from tests.benchmarks.scoring import bench_adaptation, bench_prompts, bench_references
from tests.benchmarks.setting import Setting, write_weights
from tests.benchmarks.table import Failure, Growth, split_page, to_markdown, write_into

GROWTH = "growth"
SUITES = {
    "bench": {
        "map": bench_map,
        "winclip": bench_winclip,
        "views": bench_views,
        "adaptation": bench_adaptation,
        "references": bench_references,
        "prompts": bench_prompts,
        "patchcore": bench_patchcore,
        "precision": bench_trainer_precision,
        "openvino": bench_openvino,
        "command": bench_command,
        "predict": bench_predict,
        "memory": bench_memory,
    },
    "bench-gpu": {
        "map": bench_map,
        "views": bench_views,
        "adaptation": bench_adaptation,
        "references": bench_references,
        "half": bench_half_precision,
        "throughput": bench_throughput,
        "throughput-half": in_half(bench_throughput),
        "peak": bench_peak_memory,
        "command": bench_command,
        "compile": bench_compile,
    },
}


def main() -> int:
    """Measure, print and write; return the exit status."""
    args = parse_arguments()
    logging.disable(logging.WARNING)
    start = monotonic()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        # Text banks of random weights are of no use to anyone else.
        os.environ["ANOVL_CACHE"] = str(folder / "cache")
        setting = Setting(folder, args.rounds, device=args.device)
        if args.small:
            setting = setting._replace(backbone=DEMO_BACKBONE, batch=2, is_small=True)
        else:
            setting = setting._replace(weights=write_weights(folder))
        parts = {part: partial(bench, setting) for part, bench in SUITES[args.suite].items()}
        if args.suite == "bench" and not args.small:
            parts[GROWTH] = partial(bench_growth, setting.weights, args.plot)

        def report(rows: list) -> str:
            text = to_markdown(describe_machine((monotonic() - start) / 60), rows)
            return text + show_plot(args.plot, args.markdown) if any(isinstance(row, Growth) for row in rows) else text

        def keep(rows: list) -> None:
            if args.markdown is not None:
                write_into(args.markdown, args.suite, report(rows))

        rows = run_parts({part: run for part, run in parts.items() if part in (args.only or parts)}, keep)
        # The plot is there by now.
        keep(rows)
        print(f"\n{report(rows)}")  # noqa: T201
    return int(any(isinstance(row, Failure) for row in rows))


def show_plot(plot: Path | None, page: Path | None) -> str:
    """Return Markdown that shows the plot on a page, once both are there."""
    if plot is None or page is None or not plot.exists():
        return ""
    link = Path(os.path.relpath(plot, page.parent)).as_posix()
    return f"\n![Time over what grows, on logarithmic axes, with thin lines of the expected order]({link})\n"


def parse_arguments() -> argparse.Namespace:
    """Return the arguments."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--suite", choices=SUITES, default="bench", help="what to measure (default: bench)")
    parser.add_argument("--only", nargs="+", metavar="PART", help="parts of it; an unknown one lists all")
    parser.add_argument("--rounds", type=int, default=9, help="how often each pair takes turns; slow pairs less often")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="where to compute (default: cpu)")
    parser.add_argument("--small", action="store_true", help="use the small CLIP, to try whether everything runs")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="page to write into, between the suite's marks")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="PNG file for the plot of growth")
    args = parser.parse_args()
    known = [*SUITES[args.suite], GROWTH]
    if unknown := set(args.only or ()) - set(known):
        parser.error(f"there is no part {', '.join(sorted(unknown))}; choose from {', '.join(known)}")
    if args.markdown is not None:
        try:
            split_page(args.markdown, args.suite)
        except ValueError as error:
            parser.error(str(error))
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("there is no CUDA device; use --device cpu")
    return args


if __name__ == "__main__":
    raise SystemExit(main())
