"""Raw anomaly maps as files."""

from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from anomalib.data import ImageBatch

from anovl_plugin.components.images.file_names import FileNames
from anovl_plugin.components.results.raw_maps import RawMaps


def write(file_format: str, root: Path, *, validating: bool = False) -> tuple[torch.Tensor, list[Path]]:
    maps = torch.rand(2, 1, 5, 7)
    batch = ImageBatch(
        image=torch.zeros(2, 3, 5, 7),
        anomaly_map=maps,
        image_path=[str(root / "in" / name) for name in ("a.png", "b.jpg")],
    )
    names = FileNames()
    names.folder = root
    trainer = SimpleNamespace(default_root_dir=str(root / "run"), callbacks=[names], validating=validating)
    RawMaps(file_format).end_batch(trainer, SimpleNamespace(), batch)
    return maps[:, 0], sorted(path for path in (root / "run").rglob("*") if path.is_file())


@pytest.mark.parametrize("file_format", ["png", "npy"])
def test_maps_can_be_read_again(file_format, tmp_path):
    maps, written = write(file_format, tmp_path)
    names = ["a.png", "b.jpg.png"] if file_format == "png" else ["a.png.npy", "b.jpg.npy"]
    assert [path.relative_to(tmp_path / "run" / "maps" / "in").as_posix() for path in written] == names
    for path, expected in zip(written, maps.numpy(), strict=True):
        if file_format == "png":
            levels = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
            assert levels.dtype == np.uint16
            np.testing.assert_allclose(levels / 65535, expected, atol=0.5 / 65535 + 1e-7)
        else:
            np.testing.assert_array_equal(np.load(path), expected)


def test_a_validation_writes_none(tmp_path):
    assert not write("png", tmp_path, validating=True)[1]
