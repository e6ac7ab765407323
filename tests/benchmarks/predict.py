"""Predicting a folder of small images: one by one, as anomalib reads a folder, and in batches."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import torch
from anomalib.data import PredictDataset
from torch.utils.data import DataLoader

from anovl_plugin import AnoVL
from anovl_plugin.demo import DemoSurfaces
from anovl_plugin.vision.architecture import DEMO_BACKBONE
from tests.benchmarks.measuring import in_turns, seconds_of
from tests.benchmarks.setting import Setting
from tests.benchmarks.table import Ratio
from tests.helpers.engine_runs import quiet_engine

COUNT, BATCH = 1000, 32


def write_folder(folder: Path, count: int) -> Path:
    """Write copies of the demo's bricks and return their folder."""
    data = DemoSurfaces(folder / "surfaces")
    data.setup()
    photographs, copies = data.test_data.samples["image_path"], folder / "photographs"
    copies.mkdir()
    for index in range(count):
        shutil.copy(photographs.iloc[index % len(photographs)], copies / f"{index:05d}.png")
    return copies


def in_batches(model: AnoVL, photographs: Path, batch: int) -> DataLoader:
    """Return the loader of docs/scale.md."""
    dataset = PredictDataset(photographs, transform=model.pre_processor.transform.transforms[0])
    return DataLoader(dataset, batch_size=batch, collate_fn=dataset.collate_fn)


def bench_predict(setting: Setting) -> Iterator[Ratio]:
    """Compare predicting a folder with predicting it in batches, and find the share of the model."""
    photographs = write_folder(setting.folder, COUNT)
    model = AnoVL(DEMO_BACKBONE, class_name="brick", visualizer=False)
    model.build_text_bank()
    engine, loader = quiet_engine(setting.folder / "predict"), in_batches(model, photographs, BATCH)
    times = in_turns(
        lambda: engine.predict(model, data_path=photographs, return_predictions=False),
        lambda: engine.predict(model, dataloaders=loader, return_predictions=False),
        setting.few(4),
        warm_up=False,
    )
    with torch.inference_mode():
        images = torch.rand(1, 3, *model.model.image_size)
        bare = seconds_of(lambda: [model.model(images) for _ in range(COUNT)])
    note = f"{times.first:.3g} s, of which the model {bare:.3g} s, against {times.second:.3g} s"
    what = f"`predict`, {COUNT:,} images of 128 pixels, {DEMO_BACKBONE}, one by one ÷ in batches of {BATCH}"
    yield Ratio(what, times.first / times.second, note=note, spread=times.spread)
