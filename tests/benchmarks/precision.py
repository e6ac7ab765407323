"""Precisions, compilation and exports on the CPU, each as a share of the time of eager torch in float32."""

from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import openvino
import torch
from anomalib.deploy import CompressionType
from torch import Tensor

from anovl_plugin import AnoVL
from anovl_plugin.demo import DemoSurfaces
from tests.benchmarks.measuring import Line, in_turns, ratio

BATCHES = (8, 1)
# Images of the demo data, whose 45 test images calibrate int8_ptq.
SIDE = 128


def bench_trainer_precision(setting: Any) -> Iterator[Line]:
    """Compare ``--trainer.precision bf16-true`` and ``bf16-mixed``, and ``torch.compile``, with float32."""
    model = AnoVL(pretrained=setting.weights, class_name="bottle").eval()
    model.build_text_bank()
    half = deepcopy(model).to(torch.bfloat16)

    @torch.inference_mode()
    def mixed(images: Tensor) -> object:
        with torch.autocast("cpu", torch.bfloat16):
            return model(images)

    @torch.inference_mode()
    def whole(images: Tensor) -> object:
        return model(images)

    @torch.inference_mode()
    def true(images: Tensor) -> object:
        return half(images.to(torch.bfloat16))

    compiled = torch.compile(model.model)

    @torch.inference_mode()
    def fused(images: Tensor) -> object:
        return compiled(model.pre_processor(images))

    others = {"bf16-true": true, "bf16-mixed": mixed, "torch.compile, warm": fused}
    yield from _in_turns_with(whole, others, setting.rounds)


def bench_exports(setting: Any) -> Iterator[Line]:
    """Compare graphs on OpenVINO, by compression and precision, with eager torch in float32."""
    model = AnoVL(pretrained=setting.weights, class_name="bottle").eval()
    model.build_text_bank()
    folder, data = Path(setting.weights).parent, DemoSurfaces(eval_batch_size=1)
    core, others = openvino.Core(), {}
    for compression in (None, CompressionType.INT8, CompressionType.INT8_PTQ):
        name = "none" if compression is None else compression.value
        path = model.to_openvino(folder / name, "model", (SIDE, SIDE), compression, data)
        for hint in ("f32", "bf16"):
            graph = core.compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": hint})
            others[f"OpenVINO, {name}, {hint}"] = lambda images, graph=graph: graph(images.numpy())

    @torch.inference_mode()
    def whole(images: Tensor) -> object:
        return model(images)

    yield from _in_turns_with(whole, others, setting.rounds)


def _in_turns_with(
    whole: Callable[[Tensor], object], others: dict[str, Callable[[Tensor], object]], rounds: int
) -> Iterator[Line]:
    for batch in BATCHES:
        images = torch.rand(batch, 3, SIDE, SIDE)
        for name, other in others.items():
            times = in_turns(lambda other=other, images=images: other(images), lambda: whole(images), rounds)  # noqa: B023 - called at once
            yield ratio(f"{name} ÷ eager float32, batch {batch}", times, batch)
