"""What a user waits for: the whole of ``anomalib test``, and its test stage."""

from collections.abc import Iterator
from pathlib import Path
from statistics import mean
from time import perf_counter
from typing import NamedTuple

import torch
from lightning.pytorch import Callback
from torch import Tensor

from anovl_plugin import AnoVL
from anovl_plugin.demo import DemoSurfaces
from tests.benchmarks.measuring import seconds_of
from tests.benchmarks.setting import Setting
from tests.benchmarks.table import Ratio
from tests.helpers.engine_runs import quiet_engine

GOALS_OF_COMMAND = {True: "≤ 1.25", False: "≤ 1.12"}
GOALS_OF_STAGE = {True: "≥ 0.92", False: "≥ 0.97"}
WORDS = {True: "with pictures", False: "without pictures"}


class Clock(Callback):
    """Notes when a run begins to read its first image: the CLIP is loaded and the text bank built by then."""

    def __init__(self) -> None:
        self.started: float | None = None

    def on_validation_epoch_start(self, *_: object) -> None:
        """Start, unless it has started."""
        self.started = self.started or perf_counter()

    def on_test_epoch_start(self, *_: object) -> None:
        """Start, unless it has started."""
        self.started = self.started or perf_counter()


class Command:
    """Runs of one model on the demo's bricks, and the bare forward passes of the same images.

    Args:
        setting: CLIP and device.
        has_pictures: whether the runs draw.
        data: the images.
    """

    def __init__(self, setting: Setting, data: DemoSurfaces, *, has_pictures: bool) -> None:
        self.setting, self.data = setting, data
        self.model = setting.lightning_model(visualizer=has_pictures)
        self.model.build_text_bank()
        self.folder = setting.folder / f"command-{has_pictures}"

    def run(self, checkpoint: Path | None = None) -> float:
        """Return the seconds from the first image that is read to the return of the call.

        Args:
            checkpoint: checkpoint with thresholds, so that no validation runs first.
        """
        clock = Clock()
        engine = quiet_engine(self.folder, self.setting.device, callbacks=[clock])
        engine.test(self.model, datamodule=self.data, ckpt_path=checkpoint, verbose=False)
        assert clock.started is not None
        return perf_counter() - clock.started

    def checkpoint(self) -> Path:
        """Return the checkpoint of the last run."""
        return max(self.folder.rglob("*.ckpt"), key=lambda path: path.stat().st_mtime)


def preprocessed(model: AnoVL, data: DemoSurfaces, device: str) -> list[Tensor]:
    """Return the batches of the test images as the model gets them."""
    data.setup()
    return [model.pre_processor(batch.image).to(device) for batch in data.test_dataloader()]


@torch.inference_mode()
def bare_seconds(model: AnoVL, batches: list[Tensor]) -> float:
    """Return the seconds of one forward pass of each batch."""
    model.to(batches[0].device)
    return seconds_of(lambda: [model.model(batch) for batch in batches])


class Seconds(NamedTuple):
    """Mean seconds for all test images.

    Attributes:
        whole: of the whole command, after start-up.
        stage: of the test stage.
        bare: of the bare forward passes before and after each of the two.
    """

    whole: float
    stage: float
    bare: float


def measure(command: Command, batches: list[Tensor], rounds: int) -> Seconds:
    """Run the command, and its test stage alone, between bare forward passes."""
    bare_seconds(command.model, batches[:1])
    bare, whole, stage = [bare_seconds(command.model, batches)], [], []
    for _ in range(rounds):
        whole.append(command.run())
        bare.append(bare_seconds(command.model, batches))
        stage.append(command.run(command.checkpoint()))
        bare.append(bare_seconds(command.model, batches))
    return Seconds(mean(whole), mean(stage), mean(bare))


def bench_command(setting: Setting) -> Iterator[Ratio]:
    """Compare the whole command, and its test stage, with one bare forward pass of each test image."""
    for has_pictures, words in WORDS.items():
        data = DemoSurfaces(setting.folder / "surfaces", eval_batch_size=setting.batch)
        command = Command(setting, data, has_pictures=has_pictures)
        batches = preprocessed(command.model, data, setting.device)
        count = sum(map(len, batches))
        whole, stage, bare = measure(command, batches, setting.few(4))
        note = f"{whole / count:.3g} s against {bare / count:.3g} s an image"
        what = f"`anomalib test` {words} after start-up ÷ bare forward"
        yield Ratio(what, whole / bare, GOALS_OF_COMMAND[has_pictures], note)
        note = f"{count / stage:.3g} against {count / bare:.3g}"
        what = f"images a second, test stage {words} ÷ bare forward"
        yield Ratio(what, bare / stage, GOALS_OF_STAGE[has_pictures], note)
