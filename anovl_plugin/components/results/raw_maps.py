"""Raw anomaly maps as files, on request."""

from pathlib import Path
from typing import Literal

import cv2
import numpy as np
from anomalib.data import ImageBatch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from anovl_plugin.components.images.file_names import FileNames, with_suffix
from anovl_plugin.components.results.whole_file import whole_file
from anovl_plugin.components.runs.each_stage import EachStage

MapFormat = Literal["png", "npy"]


class RawMaps(EachStage):
    """Writes the anomaly map of each test or prediction image to ``maps`` in the folder of the run.

    Args:
        file_format: ``png`` for 16-bit PNG files, in which 65535 is a score of 1, or ``npy`` for NumPy files of
            float32. Maps have the size that the model works at.
    """

    def __init__(self, file_format: MapFormat) -> None:
        self._format = file_format

    def end_batch(self, trainer: Trainer, pl_module: LightningModule, batch: ImageBatch) -> None:
        """Write the maps of a batch."""
        del pl_module
        if trainer.validating or batch.anomaly_map is None:
            return
        names, folder = FileNames.of(trainer), Path(trainer.default_root_dir) / "maps"
        maps = batch.anomaly_map.detach().as_subclass(Tensor).float().cpu().numpy()
        for path, anomaly_map in zip(batch.image_path or [], maps, strict=True):
            target = folder / with_suffix(names.name_of(path), f".{self._format}")
            write_map(target, anomaly_map.reshape(anomaly_map.shape[-2:]))


def write_map(path: Path, anomaly_map: np.ndarray) -> None:
    """Write a map, so that the file appears when it is whole.

    Args:
        path: File with the suffix ``.png`` or ``.npy``.
        anomaly_map: Scores in [0, 1], shape (H, W).
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as unfinished, unfinished.open("wb") as file:
        if path.suffix == ".npy":
            np.save(file, anomaly_map.astype(np.float32))
        else:
            levels = np.rint(anomaly_map.clip(0, 1) * 65535).astype(np.uint16)
            file.write(cv2.imencode(".png", levels)[1].tobytes())
