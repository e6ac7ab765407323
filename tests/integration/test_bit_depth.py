"""Engine runs see images of more than 8 bits just like their 8-bit copies."""

import copy
import shlex
import warnings
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
import torch
from anomalib.data import Folder, ImageBatch, ImageItem, MVTecAD, PredictDataset
from anomalib.visualization import ImageVisualizer
from lightning.pytorch import Trainer
from PIL import Image
from torch.testing import assert_close
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Subset
from torchvision.transforms.v2 import CenterCrop, Compose, RandomCrop, RandomHorizontalFlip

from anovl_plugin import AnoVL
from anovl_plugin.components.images.bit_depth import FullBitDepth, with_full_bit_depth
from anovl_plugin.components.images.pre_processor import AntialiasedPreProcessor
from anovl_plugin.components.pictures.display_copies import BatchEndCallback
from tests.helpers.commands import run
from tests.helpers.deep_images import gray_levels, write_16_bit_png
from tests.helpers.engine_runs import Predictions, gather, quiet_engine, run_predict, run_test
from tests.helpers.image_datasets import visa, write_folder, write_mvtec
from tests.helpers.tolerances import FLOAT32, METRIC


@pytest.fixture
def make(weights_of):
    def make(**options) -> AnoVL:
        return AnoVL(
            "tiny-square",
            pretrained=weights_of("tiny-square"),
            **({"visualizer": False, "class_name": "nut"} | options),
        )

    return make


def widen(root: Path) -> Path:
    """Replace all images below a folder, except masks, with 16-bit copies."""
    for path in sorted(root.rglob("*.png")):
        if not {"ground_truth", "mask", "Masks"} & set(path.parts):
            pixels = cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB)
            # Every second file is gray, which anomalib reads as white.
            gray = int(path.stem) % 2 == 1
            cv2.imwrite(str(path), pixels[..., 0] if gray else cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR))
            path.with_suffix(".8bit").write_bytes(path.read_bytes())
            write_16_bit_png(path, (pixels[..., 0] if gray else pixels).astype(np.uint16) * 257)
    return root


def narrow(root: Path) -> Path:
    """Restore the 8-bit originals."""
    for path in root.rglob("*.8bit"):
        path.rename(path.with_suffix(".png"))
    return root


def assert_close_runs(actual: Predictions, expected: Predictions) -> None:
    assert_close(actual.score, expected.score, **FLOAT32)
    assert_close(actual.map, expected.map, **FLOAT32)
    assert torch.equal(actual.label, expected.label)
    # A test that sees only white images would agree, too.
    assert expected.map.flatten(1).std(1).min() > 1e-4


def write_copies(folder: Path) -> tuple[Path, Path]:
    """Write images of one size to two folders, with more than 8 bits and with 8, and return the folders."""
    deep, plain = folder / "deep", folder / "plain"
    deep.mkdir()
    plain.mkdir()
    color, gray = gray_levels(50, 40, 3), gray_levels(50, 40)
    write_16_bit_png(deep / "0.png", color.astype(np.uint16) * 257)
    write_16_bit_png(deep / "1.png", gray.astype(np.uint16) * 257)
    tifffile.imwrite(deep / "2.tiff", gray.astype(np.uint16) * 257)
    tifffile.imwrite(deep / "3.tiff", (gray / 255).astype(np.float32))
    tifffile.imwrite(deep / "4.tiff", gray / 255)
    tifffile.imwrite(deep / "5.tiff", (color / 255).astype(np.float32), photometric="rgb")
    tifffile.imwrite(deep / "6.tiff", gray.astype(np.uint32) * 16843009)
    Image.fromarray(color).save(deep / "7.png")
    for index, pixels in enumerate([color, gray, gray, gray, gray, color, gray, color]):
        Image.fromarray(pixels).save(plain / f"{index}.png")
    return deep, plain


@pytest.fixture
def copies(tmp_path):
    return write_copies(tmp_path)


def in_order(folder: Path) -> PredictDataset:
    dataset = PredictDataset(folder)
    dataset.image_filenames.sort()
    return dataset


def test_predict_on_a_path(make, copies, tmp_path):
    deep, plain = (quiet_engine(tmp_path).predict(make(), data_path=path, return_predictions=True) for path in copies)
    deep, plain = (sorted(found, key=lambda batch: Path(batch.image_path[0]).stem) for found in (deep, plain))
    assert [Path(batch.image_path[0]).parent for batch in deep] == [copies[0]] * 8
    assert_close_runs(gather(deep), gather(plain))


@pytest.mark.parametrize("workers", [0, 2])
def test_predict_on_loaders(make, copies, workers, tmp_path):
    found = []
    for folder in copies:
        dataset = in_order(folder)
        loader = DataLoader(
            dataset, batch_size=3, num_workers=workers, collate_fn=dataset.collate_fn, persistent_workers=workers > 0
        )
        if workers and folder == copies[0]:
            # Workers that started earlier must not keep reading files the old way.
            dataset.image_filenames, whole = dataset.image_filenames[-1:], dataset.image_filenames
            list(loader)
            dataset.image_filenames = whole
        found.append(run_predict(make(), tmp_path, dataloaders=loader))
        assert "__getitems__" not in vars(dataset)
    assert_close_runs(*found)


@pytest.mark.parametrize("wrap", [lambda it: Subset(it, [7, 1, 4]), lambda it: ConcatDataset([it, Subset(it, [2])])])
def test_predict_on_parts_of_datasets(make, copies, wrap, tmp_path):
    found = []
    for folder in copies:
        dataset = in_order(folder)
        loader = DataLoader(wrap(dataset), batch_size=4, collate_fn=dataset.collate_fn)
        found.append(run_predict(make(), tmp_path, dataloaders=[loader]))
    assert_close_runs(*found)


DATAMODULES = {
    "mvtec": (write_mvtec, lambda root, **options: MVTecAD(root, "bottle", **options)),
    "folder": (
        lambda root: write_folder(root, masks=True),
        lambda root, **options: Folder(
            "nuts",
            root=root,
            normal_dir="good",
            abnormal_dir="bad",
            mask_dir="mask",
            val_split_mode="same_as_test",
            seed=0,
            **options,
        ),
    ),
    "unlabeled_pixels": (
        lambda root: write_folder(root, masks=False),
        lambda root, **options: Folder(
            "nuts",
            root=root,
            normal_dir="good",
            abnormal_dir="bad",
            val_split_mode="same_as_test",
            seed=0,
            **options,
        ),
    ),
}


@pytest.mark.parametrize("name", DATAMODULES)
def test_test_and_predict_on_data_modules(make, name, tmp_path):
    write, load = DATAMODULES[name]
    root = widen(write(tmp_path / "data"))
    results = []
    for change in (lambda: root, lambda: narrow(root)):
        change()
        options = {"eval_batch_size": 4, "num_workers": 0}
        metrics = run_test(make(), tmp_path, load(root, **options))
        found = run_predict(make(), tmp_path, datamodule=load(root, **options))
        results.append((metrics, found))
    (deep_metrics, deep), (metrics, plain) = results
    assert deep_metrics == pytest.approx(metrics, **METRIC)
    assert_close_runs(deep, plain)


def test_validation_sets_the_same_thresholds(make, tmp_path):
    root, thresholds = widen(write_mvtec(tmp_path / "data")), []
    for _ in range(2):
        model = make()
        datamodule = MVTecAD(root, "bottle", eval_batch_size=2, num_workers=1)
        quiet_engine(tmp_path).validate(model, datamodule=datamodule, verbose=False)
        thresholds.append(torch.stack([model.post_processor.image_threshold, model.post_processor.pixel_threshold]))
        narrow(root)
    assert_close(*thresholds, **FLOAT32)


def test_visa(make, tmp_path):
    root, metrics = tmp_path / "data", []
    datamodule = visa(root)
    datamodule.prepare_data()
    widen(datamodule.split_root)
    for _ in range(2):
        metrics.append(run_test(make(), tmp_path, copy.deepcopy(datamodule)))
        narrow(datamodule.split_root)
    assert metrics[0] == pytest.approx(metrics[1], **METRIC)


@pytest.mark.parametrize(
    "augmentations", [CenterCrop(24), Compose([RandomCrop(24), RandomHorizontalFlip()])], ids=["fixed", "random"]
)
def test_augmentations_see_the_right_pixels(augmentations, tmp_path):
    root, items = widen(write_mvtec(tmp_path / "data")), []
    for _ in range(2):
        datamodule = MVTecAD(root, "bottle", augmentations=augmentations, num_workers=0)
        datamodule.setup()
        callback = FullBitDepth()
        loader = callback.change_loader(datamodule.test_dataloader(), quiet_trainer())
        torch.manual_seed(7)
        items.append(next(iter(loader)))
        narrow(root)
    assert_close(items[0].image, items[1].image, **FLOAT32)
    assert_close(items[0].gt_mask, items[1].gt_mask)
    assert torch.equal(items[0].gt_label, items[1].gt_label)
    assert items[0].image_path == items[1].image_path
    assert items[0].mask_path == items[1].mask_path


def quiet_trainer() -> Trainer:
    return Trainer(accelerator="cpu", devices=1, logger=False, enable_checkpointing=False)


def test_batches_of_several_shapes(copies):
    deep, plain = copies
    write_16_bit_png(deep / "8.png", gray_levels(30, 90).astype(np.uint16) * 257)
    Image.fromarray(gray_levels(30, 90)).save(plain / "8.png")
    batches = []
    for folder in copies:
        dataset = in_order(folder)
        loader = DataLoader(dataset, batch_size=9, collate_fn=dataset.collate_fn)
        batches.append(next(iter(FullBitDepth().change_loader(loader, quiet_trainer()))))
    assert_close(batches[0].image, batches[1].image, **FLOAT32)


@pytest.mark.parametrize(
    ("values", "error"),
    [
        (np.array([[0.0, 1.5]]).repeat(40, 0).repeat(20, 1), r"3\.tiff holds floats from 0 to 1\.5"),
        (np.full((40, 40), np.nan, np.float32), r"3\.tiff holds floats from nan to nan"),
        (np.full((40, 40), 4000, np.int32), r"3\.tiff holds 32-bit integers up to 4000"),
        (np.full((40, 40), -1, np.int16), r"3\.tiff holds negative integers"),
    ],
)
@pytest.mark.parametrize("workers", [0, 1])
def test_a_run_ends_with_the_name_of_a_bad_file(make, values, error, workers, tmp_path):
    write_folder(tmp_path / "data", masks=False)
    tifffile.imwrite(tmp_path / "data" / "bad" / "3.tiff", values)
    datamodule = Folder(
        "nuts",
        root=tmp_path / "data",
        normal_dir="good",
        abnormal_dir="bad",
        val_split_mode="same_as_test",
        num_workers=workers,
        eval_batch_size=3,
    )
    with pytest.raises(ValueError, match=error):
        quiet_engine(tmp_path).predict(make(on_error="stop"), datamodule=datamodule)
    assert "__getitems__" not in vars(datamodule.test_data)
    with pytest.raises(ValueError, match=error):
        quiet_engine(tmp_path).predict(make(on_error="stop"), data_path=tmp_path / "data" / "bad" / "3.tiff")


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_strip_that_would_fill_the_memory_is_named(make, dtype, tmp_path):
    """anomalib's data modules resize in the loader; images of a path are resized by the callback."""
    root = write_folder(tmp_path / "data", masks=False)
    cv2.imwrite(str(root / "bad" / "3.png"), np.full((1, 500_000), np.iinfo(dtype).max, dtype))
    datamodule = Folder(
        "nuts", root=root, normal_dir="good", abnormal_dir="bad", val_split_mode="same_as_test", num_workers=0
    )
    error = r"bad/3\.png: an image of 1 × 500000 pixels would be resized to \d+ × \d+, which is more than"
    for data in ({"datamodule": datamodule}, {"data_path": root / "bad" / "3.png"}):
        with pytest.raises(ValueError, match=error):
            quiet_engine(tmp_path).predict(make(tiles_per_side=1, on_error="stop"), **data)


def test_synthetic_defects_on_misread_images(make, tmp_path):
    root = widen(write_folder(tmp_path / "data", masks=False))
    datamodule = Folder("nuts", root=root, normal_dir="good", val_split_mode="synthetic", num_workers=0, seed=0)
    with pytest.raises(ValueError, match=r"synthetic defects on images of 8 bits only, and \S+good\S+\.png has more"):
        quiet_engine(tmp_path).validate(make(), datamodule=datamodule)


class Own(Dataset):
    """A user's dataset, which reads files in its own way."""

    def __init__(self, paths: list) -> None:
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> ImageItem:
        pixels = torch.from_numpy(cv2.imread(str(self.paths[index]), -1) / np.float32(65535))
        return ImageItem(image=pixels.expand(3, -1, -1), image_path=str(self.paths[index]))


def test_datasets_that_read_files_themselves_are_left_alone(make, tmp_path):
    paths = [tmp_path / "0.png", tmp_path / "1.png"]
    for path in paths:
        write_16_bit_png(path, gray_levels(30, 30).astype(np.uint16) * 257)
    loader = DataLoader(Own(paths), batch_size=1, collate_fn=ImageBatch.collate)
    with pytest.warns(UserWarning, match=r"0\.png has more than 8 bits a channel and is read by Own") as caught:
        found = run_predict(make(), tmp_path, dataloaders=loader)
    assert len(own_warnings(caught)) == 1
    assert_close_runs(found, run_predict(make(), tmp_path, data_path=paths[0].parent))


def own_warnings(caught: list) -> list[str]:
    texts = [str(warning.message) for warning in caught]
    return [text for text in texts if any(word in text for word in ("orientation tag", "brightest", "read by"))]


def test_one_warning_about_rotated_files(make, tmp_path):
    write_mvtec(tmp_path / "data")
    exif = Image.Exif()
    exif[274] = 6
    good = tmp_path / "data" / "bottle" / "test" / "good"
    for path in sorted(good.iterdir())[1:]:
        Image.open(path).save(path, exif=exif)
    datamodule = MVTecAD(tmp_path / "data", "bottle", eval_batch_size=2, num_workers=0)
    with pytest.warns(UserWarning, match=r"good/001\.png is rotated only by an EXIF orientation tag") as caught:
        run_test(make(), tmp_path, datamodule)
    assert len(own_warnings(caught)) == 1


def test_one_warning_about_dark_files(make, tmp_path):
    for index in range(2):
        write_16_bit_png(tmp_path / f"{index}.png", gray_levels(30, 30).astype(np.uint16) * 16)
    with pytest.warns(UserWarning, match=r"the brightest value in \S+\.png is 4080 of 65535") as caught:
        run_predict(make(), tmp_path, data_path=tmp_path)
    assert len(own_warnings(caught)) == 1


def test_no_warning_about_ordinary_files(make, copies, tmp_path):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for folder in copies:
            run_predict(make(), tmp_path, data_path=folder)
    assert not own_warnings(caught)


def assert_same_pictures(actual: list[Path], expected: list[Path]) -> None:
    for pair in zip(actual, expected, strict=True):
        one, other = (np.asarray(Image.open(path), np.int16) for path in pair)
        # A map that differs by 1e-7 may move a color by a level, an edge of a mask by a pixel.
        assert np.mean(np.abs(one - other) > 2) < 1e-3


@pytest.mark.parametrize("size", [1, 3])
def test_pictures_show_the_right_image(make, copies, size, tmp_path):
    for folder in copies:
        dataset = in_order(folder)
        loader = DataLoader(dataset, batch_size=size, collate_fn=dataset.collate_fn)
        model = make(visualizer=ImageVisualizer(output_dir=tmp_path / "pictures"))
        found = quiet_engine(tmp_path).predict(model, dataloaders=loader, return_predictions=True)
        assert [path for batch in found for path in batch.image_path] == [str(path) for path in dataset.image_filenames]
    pictures = {folder.name: sorted((tmp_path / "pictures" / folder.name).iterdir()) for folder in copies}
    assert [path.name for path in pictures["deep"]] == [path.name for path in in_order(copies[0]).image_filenames]
    assert_same_pictures(*pictures.values())


def test_pictures_of_a_test_keep_their_places(make, tmp_path):
    root = widen(write_mvtec(tmp_path / "data"))
    model = make(visualizer=ImageVisualizer(output_dir=tmp_path / "pictures"))
    run_test(model, tmp_path, MVTecAD(root, "bottle", eval_batch_size=4, num_workers=0))
    drawn, tested = tmp_path / "pictures", root / "bottle" / "test"
    assert sorted(path.relative_to(drawn) for path in drawn.rglob("*.png")) == sorted(
        path.relative_to(tested) for path in tested.rglob("*.png")
    )


def test_copies_are_made_around_a_visualizer_only():
    pre_processor, visualizer = AntialiasedPreProcessor(), ImageVisualizer()
    first, lend, *given, restore = with_full_bit_depth([pre_processor, visualizer])
    assert given == [pre_processor, visualizer]
    assert [type(callback) for callback in (first, lend, restore)] == [FullBitDepth, BatchEndCallback, BatchEndCallback]
    first, *given = with_full_bit_depth([pre_processor])
    assert isinstance(first, FullBitDepth)
    assert given == [pre_processor]


def test_command_line(copies, tmp_path):
    """As a user types it, in a process of its own."""
    deep, plain = copies
    options = "--model AnoVL --model.backbone anovl-demo --trainer.accelerator cpu"
    options += " --model.visualizer anomalib.visualization.ImageVisualizer"
    pictures = []
    for folder in (deep, plain):
        root = tmp_path / f"results-{folder.name}"
        done = run(shlex.split(f"anomalib predict {options} --data {folder} --default_root_dir {root}"), tmp_path)
        assert done.returncode == 0, done.stderr[-2000:]
        pictures.append(sorted(root.rglob("images/*/*.*")))
    assert [path.name for path in pictures[0]] == sorted(path.name for path in deep.iterdir())
    assert_same_pictures(*pictures)
