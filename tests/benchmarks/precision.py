"""Precisions of trainers and of exported graphs on the CPU, against eager torch in float32."""

from collections.abc import Iterator
from typing import Any

import openvino
import torch
from anomalib.deploy import CompressionType
from torch import Tensor

from anovl_plugin.demo import DemoSurfaces
from tests.benchmarks.measuring import in_turns
from tests.benchmarks.setting import Setting
from tests.benchmarks.table import Ratio, ratio
from tests.helpers.tolerances import EXPORTED

# Of the demo data, whose test images calibrate a graph.
SIZE = (128, 128)
# What is exported, in which precision it runs, and what part of the time of eager torch it is meant to take.
EXPORTS = [
    (None, "f32", "≤ 0.8"),
    (None, "bf16", "≤ 0.5"),
    (CompressionType.INT8, "f32", ""),
    (CompressionType.INT8_PTQ, "f32", "≤ 0.5"),
]


@torch.inference_mode()
def bench_trainer_precision(setting: Setting) -> Iterator[Ratio]:
    """Compare ``--trainer.precision bf16-true`` and ``bf16-mixed`` with float32."""
    full, half = setting.model(), setting._replace(dtype=torch.bfloat16).model()
    images = setting.images(setting.batch)

    def true() -> object:
        return half(images.to(torch.bfloat16))

    def mixed() -> object:
        with torch.autocast("cpu", torch.bfloat16):
            return full(images)

    for name, call in (("bf16-true", true), ("bf16-mixed", mixed)):
        times = in_turns(call, lambda: full(images), setting.few(2))
        yield ratio(f"{name} ÷ float32", times, len(images))


@torch.inference_mode()
def bench_openvino(setting: Setting) -> Iterator[Ratio]:
    """Compare exported graphs with eager torch; in float32, they give the same map."""
    model = setting.lightning_model().eval()
    model.build_text_bank()
    core, images = openvino.Core(), torch.rand(setting.batch, 3, *SIZE)
    for compression, precision, goal in EXPORTS:
        name = "float weights" if compression is None else compression.value
        data = DemoSurfaces(eval_batch_size=1)
        path = model.to_openvino(setting.folder / name, "model", SIZE, compression, data)
        graph = core.compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": precision})

        def run(graph: Any = graph) -> Tensor:
            return torch.from_numpy(graph(images.numpy())["anomaly_map"])

        if (compression, precision) == (None, "f32"):
            torch.testing.assert_close(run(), model(images).anomaly_map, **EXPORTED)
        times = in_turns(run, lambda: model(images), setting.few(2))
        yield ratio(f"OpenVINO, {name}, {precision} ÷ eager torch, float32", times, len(images), goal)
