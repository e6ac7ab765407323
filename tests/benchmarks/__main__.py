"""Speed and memory as ratios, measured side by side in one run: ``make bench``.

ViT-B-16-plus-240 with random weights, which cost what trained ones cost, at batch 8. Two things that are compared take
turns, so that whatever else the machine does falls on both; the ratio is that of their medians. Memory is measured in a
fresh process for each model. Where there is a GPU, what computes on tensors alone is measured on it, in float32 and in
half precision; the rest is the CPU's.
"""

import argparse
import logging
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import NamedTuple
from unittest.mock import patch

import open_clip
import torch
from anomalib.callbacks.timer import TimerCallback
from anomalib.deploy import OpenVINOInferencer
from anomalib.engine import Engine
from anomalib.models.image.patchcore.torch_model import PatchcoreModel
from anomalib.models.image.winclip.torch_model import WinClipModel
from rich.console import Console
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.benchmark import Timer

from anovl_plugin import (
    AnoVL,
    AnoVLModel,
    GlobalScore,
    PatchMemory,
    PatchSubspace,
    TextAdapter,
    TextBank,
    value_wise_forward,
)
from anovl_plugin.demo import DemoSurfaces
from anovl_plugin.scoring.adaptation import adapt_tokens
from anovl_plugin.text.prompts import prompt_ensemble
from anovl_plugin.text.text_bank import TextTower
from anovl_plugin.vision.backbone import DEFAULT_BACKBONE, load_backbone
from tests.benchmarks.growth import growth
from tests.benchmarks.measuring import Line, Times, in_process, in_turns, most_megabytes, ratio
from tests.helpers.tolerances import EXPORTED

BATCH = 8
# MVTec AD's bottles: 209 images of 32 × 32 patches, of which Patchcore keeps a tenth.
PATCHCORE_BANK = 209 * 32 * 32 // 10
CLASS_NAME = "bottle"


class Setting(NamedTuple):
    """Device, precision and CLIP to measure on.

    Attributes:
        weights: file of the CLIP's weights.
        rounds: how often each pair takes turns; slow pairs less often.
        device: where to compute.
        dtype: precision of towers and images.
    """

    weights: str
    rounds: int
    device: str
    dtype: torch.dtype

    def model(self, **options: object) -> AnoVLModel:
        """Return a model with a text bank."""
        model = AnoVLModel(pretrained=self.weights, class_name=CLASS_NAME, **options).eval().to(self.device)
        model.image_tower.to(self.dtype)
        return model

    def images(self, count: int, size: int = 240) -> Tensor:
        """Return images of noise."""
        return torch.rand(count, 3, size, size, device=self.device, dtype=self.dtype)


def write_weights(folder: Path) -> str:
    """Write random weights for the paper's CLIP and return the file's path."""
    path = folder / "random.safetensors"
    clip = open_clip.create_model(DEFAULT_BACKBONE)
    save_file({name: value.contiguous() for name, value in clip.state_dict().items()}, path)
    return str(path)


def make_winclip() -> WinClipModel:
    """Return anomalib's WinClip with random weights instead of downloaded ones."""
    create = open_clip.create_model_and_transforms

    def without_weights(name: str, **_: object) -> tuple:
        return create(name)

    with patch.object(open_clip, "create_model_and_transforms", without_weights):
        return WinClipModel(CLASS_NAME).eval()


@torch.inference_mode()
def bench_forward(setting: Setting) -> Iterator[Line]:
    """Compare the training-free map with plain image encoding, and WinClip with the training-free map."""
    model, images = setting.model(), setting.images(BATCH)
    times = in_turns(lambda: model(images), lambda: model.image_tower.visual(images), setting.rounds)
    yield ratio("training-free map ÷ plain image encoding", times, BATCH, "≤ 1.15")
    winclip = make_winclip().to(setting.device, setting.dtype)
    times = in_turns(lambda: winclip(images), lambda: model(images), 1)
    yield ratio("WinClip ÷ training-free map", times, BATCH, "≥ 10")


@torch.inference_mode()
def bench_patchcore(setting: Setting) -> Iterator[Line]:
    """Compare Patchcore, with the memory bank of a real category's size, with the training-free map."""
    patchcore = PatchcoreModel(layers=("layer2", "layer3"), backbone="wide_resnet50_2", pre_trained=False).eval()
    width = 512 + 1024
    patchcore.memory_bank = torch.rand(PATCHCORE_BANK, width)
    patchcore = patchcore.to(setting.device, setting.dtype)
    model, images, theirs = setting.model(), setting.images(BATCH), setting.images(BATCH, 256)
    times = in_turns(lambda: patchcore(theirs), lambda: model(images), max(1, setting.rounds // 3))
    yield ratio(f"Patchcore, {PATCHCORE_BANK:,} patches ÷ training-free map", times, BATCH)


@torch.inference_mode()
def bench_references(setting: Setting) -> Iterator[Line]:
    """Compare scoring with 4 reference images with scoring without, and measure their banks."""
    images, shots = setting.images(BATCH), [*setting.images(4).float()]
    zero_shot = setting.model()
    for part, goal in ((PatchSubspace(), "≤ 1.10"), (PatchMemory(), "≤ 1.25")):
        model = setting.model(references=part)
        model.build_reference_bank(shots)
        times = in_turns(lambda model=model: model(images), lambda: zero_shot(images), setting.rounds)
        size = sum(bank.num_bytes for bank in model.reference_banks) / 1e6
        yield ratio(f"{type(part).__name__}, 4 images, {size:.1f} MB ÷ zero-shot", times, BATCH, goal)


@torch.inference_mode()
def bench_prompts(setting: Setting) -> Iterator[Line]:
    """Compare encoding all prompts in a truncated context with encoding them in the full one."""
    loaded = load_backbone(DEFAULT_BACKBONE, setting.weights)
    tower = TextTower(loaded.clip.to(setting.device), loaded.tokenizer)
    prompts = [sentence for state in prompt_ensemble(CLASS_NAME) for sentence in state]
    times = in_turns(lambda: tower.encode(prompts), lambda: tower.encode(prompts, truncate_context=False), 1)
    yield ratio("prompts, cut context ÷ full, each", times, len(prompts), "≤ 0.25")


@torch.inference_mode()
def bench_views(setting: Setting) -> Iterator[Line]:
    """Compare the image score over the paper's views, and the map with it, with plain image encoding."""
    model, images = setting.model(image_score=GlobalScore("paper")), setting.images(BATCH)
    count = len(model.image_score.image_views)
    # As many plain passes as views, so that both sides last as long and average over the machine's moods alike.
    times = in_turns(lambda: model(images), lambda: [model.image_tower.visual(images) for _ in range(count)], 1)
    plain = Times(times.first, times.second / count, times.spread)
    yield ratio(f"{count} views and map ÷ plain image encoding", plain, BATCH, "≤ 22.5")


def adapt_naively(tokens: Tensor, bank: TextBank) -> Tensor:
    """Adapt image by image, as one would write it from the paper."""
    adapted = []
    for clean in tokens:
        layer = nn.Linear(clean.shape[-1], len(bank.prompt_embeddings), device=clean.device)
        optimizer = torch.optim.AdamW(layer.parameters(), lr=1e-3)

        def adapter(x: Tensor, layer: nn.Linear = layer) -> Tensor:
            return 0.5 * x + 0.5 * torch.tanh(layer(F.normalize(x, dim=-1))) @ bank.prompt_embeddings

        def probabilities(x: Tensor, adapter: Callable[[Tensor], Tensor] = adapter) -> Tensor:
            return (F.normalize(adapter(x), dim=-1) @ bank.state_embeddings.T).softmax(-1)

        for _ in range(5):
            clean_p, noisy_p = probabilities(clean), probabilities(clean + 0.055 * torch.randn_like(clean))
            entropy = -(clean_p * clean_p.log()).sum(-1).mean()
            loss = entropy - 0.5 * (noisy_p[:, 1].log().mean() + clean_p[:, 0].log().mean())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        adapted.append(adapter(clean).detach())
    return torch.stack(adapted)


def bench_adaptation(setting: Setting) -> Iterator[Line]:
    """Compare the text adapter with plain image encoding, and with a loop over images."""
    model, images = setting.model(), setting.images(2 * BATCH)
    adapter, count, bank = TextAdapter(), len(images), model.text_bank
    with torch.no_grad():
        tokens = value_wise_forward(model.image_tower.visual, images).patch_tokens.float()

    @torch.no_grad()
    def encode() -> Tensor:
        return model.image_tower.visual(images)

    times = in_turns(lambda: adapt_tokens(adapter, tokens, bank), encode, max(1, setting.rounds // 3))
    yield ratio("text adapter ÷ plain image encoding", times, count, "≤ 0.35")
    times = in_turns(
        lambda: adapt_naively(tokens, bank), lambda: adapt_tokens(adapter, tokens, bank), max(1, setting.rounds // 2)
    )
    goal = "≥ 10" if setting.device == "cuda" else "≥ 1.2"
    yield ratio(f"adapting image by image ÷ ours, batch {count}", times, count, goal)


@torch.inference_mode()
def bench_openvino(setting: Setting) -> Iterator[Line]:
    """Compare the exported model on OpenVINO with the same model in eager torch, on the CPU."""
    model = AnoVL(pretrained=setting.weights, class_name=CLASS_NAME).eval()
    path = model.to_openvino(Path(setting.weights).parent, input_size=model.model.image_size)
    inferencer = OpenVINOInferencer(path, device="CPU")
    images = torch.rand(BATCH, 3, *model.model.image_size)
    exported = inferencer.model(images.numpy())
    torch.testing.assert_close(torch.from_numpy(exported["anomaly_map"]), model(images).anomaly_map, **EXPORTED)
    times = in_turns(lambda: inferencer.model(images.numpy()), lambda: model(images), setting.rounds)
    yield ratio("OpenVINO ÷ eager torch, CPU, same map", times, BATCH, "≤ 0.8")


class TestStage(TimerCallback):
    """anomalib's own timer of the test stage, which keeps what it prints."""

    seconds = 0.0

    def on_test_end(self, *args: object, **kwargs: object) -> None:
        """Keep the seconds since the stage began."""
        self.seconds = time.time() - self.start
        super().on_test_end(*args, **kwargs)


def bench_test_stage(setting: Setting) -> Iterator[Line]:
    """Compare images a second in the test stage of ``anomalib test`` with those of the bare forward pass."""
    stage = TestStage()
    model = AnoVL(pretrained=setting.weights, class_name=CLASS_NAME)
    data = DemoSurfaces(eval_batch_size=BATCH)
    folder = Path(setting.weights).parent
    Engine(accelerator="cpu", default_root_dir=folder, callbacks=[stage]).test(model, datamodule=data, verbose=False)
    images = torch.rand(BATCH, 3, *model.model.image_size)
    with torch.inference_mode():
        threads = torch.get_num_threads()
        timer = Timer("model(images)", globals={"model": model.model, "images": images}, num_threads=threads)
        bare = median(timer.timeit(1).mean for _ in range(5)) / BATCH
    whole = stage.seconds / len(data.test_data)
    note = f"{whole:.3f} s against {bare:.3f} s an image"
    yield Line("test stage ÷ bare forward, images a second", bare / whole, "≥ 0.85", note)


def print_memory(kind: str, weights: str, batch: int) -> None:
    """Set up a model, run a batch and print the peak memory in MB."""
    adaptation = TextAdapter() if kind == "adapted" else None
    model = (
        make_winclip()
        if kind == "winclip"
        else AnoVLModel(pretrained=weights, class_name=CLASS_NAME, adaptation=adaptation)
    )
    images = torch.rand(batch, 3, 240, 240)
    with torch.inference_mode():
        print(most_megabytes(lambda: model(images)))  # noqa: T201 - the parent process reads it


def bench_memory(setting: Setting) -> Iterator[Line]:
    """Compare the memory of models, each in a process of its own."""

    def run(kind: str, batch: int = BATCH) -> float:
        return in_process("tests.benchmarks", "--memory", kind, "--weights", setting.weights, "--batch", batch)[-1]

    ours, theirs = run("anovl"), run("winclip")
    yield Line(
        "memory during inference, ours ÷ WinClip", ours / theirs, "≤ 0.60", f"{ours:.0f} MB against {theirs:.0f} MB"
    )
    count = 2 * BATCH
    adapted, free = run("adapted", count), run("anovl", count)
    megabytes = f"{adapted:.0f} MB against {free:.0f} MB, batch {count}"
    yield Line("text adapter's memory, MB an image", (adapted - free) / count, "≤ 16", megabytes)


# Parts that compute on tensors alone, and so run on a GPU as well.
ON_TENSORS = {
    "forward": bench_forward,
    "views": bench_views,
    "adaptation": bench_adaptation,
    "patchcore": bench_patchcore,
    "references": bench_references,
    "prompts": bench_prompts,
}
ON_CPU = {"test": bench_test_stage, "memory": bench_memory, "openvino": bench_openvino}
GROWTH = "growth"


def print_lines(console: Console, lines: Iterator[Line]) -> None:
    """Print lines as they come."""
    for line in lines:
        goal = f"goal {line.goal}" if line.goal else ""
        console.print(f"{line.what:<48}{line.ratio:>8.3f}   {goal:<14}{line.note}")


def main() -> None:
    """Measure everything and print one table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parts = [*ON_TENSORS, *ON_CPU, GROWTH]
    parser.add_argument("--rounds", type=int, default=9, help="how often each pair takes turns; slow pairs less often")
    parser.add_argument("--only", choices=parts, nargs="+", default=parts, help="what to measure")
    parser.add_argument("--memory", choices=["anovl", "adapted", "winclip"], help=argparse.SUPPRESS)
    parser.add_argument("--batch", type=int, default=BATCH, help=argparse.SUPPRESS)
    parser.add_argument("--weights", help=argparse.SUPPRESS)
    args = parser.parse_args()
    logging.disable(logging.WARNING)
    if args.memory:
        print_memory(args.memory, args.weights, args.batch)
        return
    console = Console(width=130)
    with tempfile.TemporaryDirectory() as name:
        weights = write_weights(Path(name))
        for device, dtype in settings():
            console.rule(f"{DEFAULT_BACKBONE}, batch {BATCH}, {dtype}, {device}, {torch.get_num_threads()} threads")
            setting = Setting(weights, args.rounds, device, dtype)
            for part, bench in ({**ON_TENSORS, **ON_CPU} if device == "cpu" else ON_TENSORS).items():
                if part in args.only:
                    print_lines(console, bench(setting))
        if GROWTH in args.only:
            console.rule("Growth: time an image, memory of a process")
            print_lines(console, growth(weights))


def settings() -> list[tuple[str, torch.dtype]]:
    """List devices and precisions to measure on."""
    on_gpu = [("cuda", torch.float32), ("cuda", torch.float16)] if torch.cuda.is_available() else []
    return [("cpu", torch.float32), *on_gpu]


if __name__ == "__main__":
    main()
