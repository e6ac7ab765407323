"""Speed and memory as ratios, measured side by side in one run: ``make bench``.

Everything runs on the CPU with ViT-B-16-plus-240 and random weights, which cost what trained ones cost, at batch 8 in
float32. Two things that are compared take turns, so that whatever else the machine does falls on both; the ratio is
that of their medians. Memory is measured in a fresh process for each model.
"""

import argparse
import logging
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import NamedTuple
from unittest.mock import patch

import open_clip
import torch
from anomalib.callbacks.timer import TimerCallback
from anomalib.engine import Engine
from anomalib.models.image.winclip.torch_model import WinClipModel
from rich.console import Console
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.benchmark import Timer

from anovl_plugin import AnoVL, AnoVLModel, TextAdapter, TextBank, value_wise_forward
from anovl_plugin.adaptation import adapt_tokens
from anovl_plugin.backbone import DEFAULT_BACKBONE, load_backbone
from anovl_plugin.demo import DemoSurfaces
from anovl_plugin.prompts import prompt_ensemble
from anovl_plugin.text_bank import TextTower

BATCH = 8
CLASS_NAME = "bottle"


class Line(NamedTuple):
    """One line of the result.

    Attributes:
        what: what is divided by what.
        ratio: the ratio.
        goal: what it is meant to be.
        note: the measured values behind it.
    """

    what: str
    ratio: float
    goal: str
    note: str


def write_weights(folder: Path) -> str:
    """Write random weights for the paper's CLIP and give the file's path."""
    path = folder / "random.safetensors"
    clip = open_clip.create_model(DEFAULT_BACKBONE)
    save_file({name: value.contiguous() for name, value in clip.state_dict().items()}, path)
    return str(path)


def make_winclip() -> WinClipModel:
    """Make anomalib's WinClip with random weights in the place of those that it would download."""
    create = open_clip.create_model_and_transforms

    def without_weights(name: str, **_: object) -> tuple:
        return create(name)

    with patch.object(open_clip, "create_model_and_transforms", without_weights):
        return WinClipModel(CLASS_NAME).eval()


def medians(first: Callable[[], object], second: Callable[[], object], rounds: int) -> tuple[float, float]:
    """Time two calls in turns, each warmed up by torch's timer, and give the median seconds of both."""
    timers = [Timer("call()", globals={"call": call}, num_threads=torch.get_num_threads()) for call in (first, second)]
    seconds: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds):
        for timer, times in zip(timers, seconds, strict=True):
            times.append(timer.timeit(1).mean)
    return median(seconds[0]), median(seconds[1])


@torch.inference_mode()
def bench_forward(weights: str, rounds: int) -> Iterator[Line]:
    """Compare the training-free map with plain image encoding, and WinClip with the training-free map."""
    model = AnoVLModel(pretrained=weights, class_name=CLASS_NAME).eval()
    images = torch.rand(BATCH, 3, *model.image_size)
    ours, plain = medians(lambda: model(images), lambda: model.visual(images), rounds)
    seconds = f"{ours / BATCH:.3f} s against {plain / BATCH:.3f} s an image"
    yield Line("training-free map ÷ plain image encoding", ours / plain, "≤ 1.15", seconds)
    winclip = make_winclip()
    theirs, ours = medians(lambda: winclip(images), lambda: model(images), 1)
    seconds = f"{theirs / BATCH:.2f} s against {ours / BATCH:.2f} s an image"
    yield Line("WinClip ÷ training-free map", theirs / ours, "≥ 10", seconds)


@torch.inference_mode()
def bench_prompts(weights: str, _: int) -> Iterator[Line]:
    """Compare encoding all prompts in the context cut to the longest with encoding them in the whole one."""
    loaded = load_backbone(DEFAULT_BACKBONE, weights)
    tower = TextTower(loaded.clip, loaded.tokenizer)
    prompts = [sentence for state in prompt_ensemble(CLASS_NAME) for sentence in state]
    cut, full = medians(lambda: tower.encode(prompts), lambda: tower.encode(prompts, cut_context=False), 1)
    yield Line(f"{len(prompts)} prompts, cut context ÷ full", cut / full, "≤ 0.25", f"{cut:.1f} s against {full:.1f} s")


@torch.inference_mode()
def bench_views(weights: str, _: int) -> Iterator[Line]:
    """Compare the image score over the paper's views, and the map with it, with plain image encoding."""
    model = AnoVLModel(pretrained=weights, class_name=CLASS_NAME, image_views="paper").eval()
    images = torch.rand(BATCH, 3, *model.image_size)
    count = model.num_views
    # As many plain passes as views, so that both sides last as long and average over the machine's moods alike.
    ours, plain = medians(lambda: model(images), lambda: [model.visual(images) for _ in range(count)], 1)
    seconds = f"{ours / BATCH:.2f} s against {count} × {plain / count / BATCH:.3f} s an image"
    yield Line(f"{count} views and map ÷ plain image encoding", count * ours / plain, "≤ 22.5", seconds)


def adapt_naively(tokens: Tensor, bank: TextBank) -> Tensor:
    """Adapt image by image, as one would write it from the paper."""
    adapted = []
    for clean in tokens:
        layer = nn.Linear(clean.shape[-1], len(bank.prompts))
        optimizer = torch.optim.AdamW(layer.parameters(), lr=1e-3)

        def adapter(x: Tensor, layer: nn.Linear = layer) -> Tensor:
            return 0.5 * x + 0.5 * torch.tanh(layer(F.normalize(x, dim=-1))) @ bank.prompts

        def probabilities(x: Tensor, adapter: Callable[[Tensor], Tensor] = adapter) -> Tensor:
            return (F.normalize(adapter(x), dim=-1) @ bank.states.T).softmax(-1)

        for _ in range(5):
            clean_p, noisy_p = probabilities(clean), probabilities(clean + 0.055 * torch.randn_like(clean))
            entropy = -(clean_p * clean_p.log()).sum(-1).mean()
            loss = entropy - 0.5 * (noisy_p[:, 1].log().mean() + clean_p[:, 0].log().mean())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        adapted.append(adapter(clean).detach())
    return torch.stack(adapted)


def bench_adaptation(weights: str, rounds: int) -> Iterator[Line]:
    """Compare the text adapter with plain image encoding, and with a loop over images."""
    model = AnoVLModel(pretrained=weights, class_name=CLASS_NAME).eval()
    images = torch.rand(2 * BATCH, 3, *model.image_size)
    adapter, count, bank = TextAdapter(), len(images), model.text_bank
    with torch.no_grad():
        tokens = value_wise_forward(model.visual, images).local

    @torch.no_grad()
    def encode() -> Tensor:
        return model.visual(images)

    ours, plain = medians(lambda: adapt_tokens(adapter, tokens, bank), encode, max(1, rounds // 3))
    seconds = f"{ours / count:.3f} s against {plain / count:.3f} s an image"
    yield Line("text adapter ÷ plain image encoding", ours / plain, "≤ 0.35", seconds)
    naive, ours = medians(
        lambda: adapt_naively(tokens, bank), lambda: adapt_tokens(adapter, tokens, bank), max(1, rounds // 2)
    )
    seconds = f"{naive / count:.3f} s against {ours / count:.3f} s an image"
    yield Line(f"adapting image by image ÷ ours, batch {count}", naive / ours, "≥ 1.2", seconds)


class TestStage(TimerCallback):
    """anomalib's own timer of the test stage, which keeps what it prints."""

    seconds = 0.0

    def on_test_end(self, *args: object, **kwargs: object) -> None:
        """Keep the seconds since the stage began."""
        self.seconds = time.time() - self.start
        super().on_test_end(*args, **kwargs)


def bench_test_stage(weights: str, _: int) -> Iterator[Line]:
    """Compare images a second in the test stage of ``anomalib test`` with those of the bare forward pass."""
    stage = TestStage()
    model = AnoVL(pretrained=weights, class_name=CLASS_NAME)
    data = DemoSurfaces(eval_batch_size=BATCH)
    folder = Path(weights).parent
    Engine(accelerator="cpu", default_root_dir=folder, callbacks=[stage]).test(model, datamodule=data, verbose=False)
    count = len(data.test_data)
    images = torch.rand(BATCH, 3, *model.model.image_size)
    with torch.inference_mode():
        threads = torch.get_num_threads()
        timer = Timer("model(images)", globals={"model": model.model, "images": images}, num_threads=threads)
        bare = median(timer.timeit(1).mean for _ in range(5)) / BATCH
    whole = stage.seconds / count
    yield Line(
        "test stage ÷ bare forward, images a second", bare / whole, "≥ 0.85", f"{whole:.3f} s against {bare:.3f} s"
    )


def resident_megabytes() -> float:
    """Read how much memory this process holds, as Linux tells it."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def print_memory(kind: str, weights: str, batch: int) -> None:
    """Set a model up, run a batch and print the most memory that was held meanwhile, in MB."""
    adaptation = TextAdapter() if kind == "adapted" else None
    model = (
        make_winclip()
        if kind == "winclip"
        else AnoVLModel(pretrained=weights, class_name=CLASS_NAME, adaptation=adaptation)
    )
    images, highest, done = torch.rand(batch, 3, 240, 240), [0.0], threading.Event()

    def watch() -> None:
        while not done.wait(0.01):
            highest[0] = max(highest[0], resident_megabytes())

    watcher = threading.Thread(target=watch)
    watcher.start()
    with torch.inference_mode():
        model(images)
    done.set()
    watcher.join()
    print(highest[0])  # noqa: T201 - the parent process reads it


def bench_memory(weights: str, _: int) -> Iterator[Line]:
    """Compare the memory of models, each in a process of its own."""

    def run(kind: str, batch: int = BATCH) -> float:
        command = [
            sys.executable,
            "-m",
            "tests.benchmarks",
            "--memory",
            kind,
            "--weights",
            weights,
            "--batch",
            str(batch),
        ]
        return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])

    ours, theirs = run("anovl"), run("winclip")
    yield Line(
        "memory during inference, ours ÷ WinClip", ours / theirs, "≤ 0.60", f"{ours:.0f} MB against {theirs:.0f} MB"
    )
    count = 2 * BATCH
    adapted, free = run("adapted", count), run("anovl", count)
    megabytes = f"{adapted:.0f} MB against {free:.0f} MB, batch {count}"
    yield Line("text adapter's memory, MB an image", (adapted - free) / count, "≤ 16", megabytes)


PARTS = {
    "forward": bench_forward,
    "views": bench_views,
    "adaptation": bench_adaptation,
    "test": bench_test_stage,
    "memory": bench_memory,
    "prompts": bench_prompts,
}


def main() -> None:
    """Measure everything and print one table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9, help="how often each pair takes turns; slow pairs less often")
    parser.add_argument("--only", choices=PARTS, nargs="+", default=list(PARTS), help="what to measure")
    parser.add_argument("--memory", choices=["anovl", "adapted", "winclip"], help=argparse.SUPPRESS)
    parser.add_argument("--batch", type=int, default=BATCH, help=argparse.SUPPRESS)
    parser.add_argument("--weights", help=argparse.SUPPRESS)
    args = parser.parse_args()
    logging.disable(logging.WARNING)
    if args.memory:
        print_memory(args.memory, args.weights, args.batch)
        return
    console = Console(width=120)
    console.print(f"{DEFAULT_BACKBONE}, batch {BATCH}, float32, CPU, {torch.get_num_threads()} threads")
    with tempfile.TemporaryDirectory() as name:
        weights = write_weights(Path(name))
        for part in args.only:
            for line in PARTS[part](weights, args.rounds):
                console.print(f"{line.what:<44}{line.ratio:>8.3f}   goal {line.goal:<8}{line.note}")


if __name__ == "__main__":
    main()
