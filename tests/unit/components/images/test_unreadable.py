"""Loaders that leave out what cannot be read."""

import re

import pytest
import torch
from anomalib.data import PredictDataset
from PIL import Image
from torch.utils.data import DataLoader, Dataset, Subset
from torchvision.transforms.v2 import Compose, Resize

from anovl_plugin import AntialiasedPreProcessor
from anovl_plugin.components.images.unreadable import (
    SurvivingItems,
    Unreadable,
    UnreadableImageError,
    UnreadableImages,
    explain,
)
from tests.helpers.image_datasets import write_images


class Numbers(Dataset):
    """Numbers, of which some cannot be read."""

    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> int:
        if index in {2, 4, 5}:
            msg = f"number {index} is broken\nand this is why"
            raise OSError(msg)
        return index


class FakeTrainer:
    """Says only whether this is a prediction."""

    def __init__(self, *, predicting: bool) -> None:
        self.predicting = predicting


def surviving(loader: DataLoader, on_error: str | None = "report", *, predicting: bool = True):
    callback = UnreadableImages(on_error)
    return callback, callback.change_loader(loader, FakeTrainer(predicting=predicting))


@pytest.mark.parametrize("options", [{}, {"num_workers": 2}, {"num_workers": 1, "multiprocessing_context": "spawn"}])
def test_the_others_are_read(options):
    callback, loader = surviving(DataLoader(Numbers(), batch_size=2, **options))
    assert [batch.tolist() for batch in loader] == [[0, 1], [3], [6, 7], [8, 9]]
    assert callback.found == [
        Unreadable(
            "",
            f"image {index} of Numbers cannot be read (OSError: number {index} is broken); save it again, or remove it",
        )
        for index in (2, 4, 5)
    ]


def test_the_first_is_named_and_stops():
    callback, loader = surviving(DataLoader(Numbers(), batch_size=2), "stop")
    batches = iter(loader)
    assert next(batches).tolist() == [0, 1]
    with pytest.raises(
        UnreadableImageError, match=r"^image 2 of Numbers cannot be read \(OSError: number 2 is broken\)"
    ):
        next(batches)
    assert not callback.found


@pytest.mark.parametrize(("on_error", "predicting", "stops"), [(None, True, False), (None, False, True)])
def test_default_depends_on_the_run(on_error, predicting, stops):
    _, loader = surviving(DataLoader(Numbers()), on_error, predicting=predicting)
    if stops:
        with pytest.raises(UnreadableImageError):
            list(loader)
    else:
        assert len(list(loader)) == 7


def test_loader_and_dataset_are_as_before_afterwards():
    given = DataLoader(Numbers(), batch_size=2)
    callback, loader = surviving(given)
    assert isinstance(loader, DataLoader)
    assert loader is not given
    assert type(given) is DataLoader
    callback._datasets[0].__dict__.pop("__getitems__")
    assert not vars(given.dataset)
    with pytest.raises(OSError, match="number 2 is broken"):
        list(given)


def test_dataset_that_reads_batches_is_asked_for_batches():
    calls = []

    class Batched(Numbers):
        def __getitems__(self, indices: list[int]) -> list[int]:
            calls.append(indices)
            return [self[index] for index in indices]

    _, loader = surviving(DataLoader(Batched(), batch_size=2))
    assert torch.cat(list(loader)).tolist() == [0, 1, 3, 6, 7, 8, 9]
    assert [0, 1] in calls
    assert [2] in calls


@pytest.mark.parametrize("make", [lambda data: DataLoader(data, batch_size=None), lambda _: DataLoader(iter_numbers())])
def test_loaders_without_batches_of_items_are_left_alone(make):
    loader = make(Numbers())
    assert surviving(loader)[1] is loader


def iter_numbers():
    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            return iter(range(3))

    return Stream()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", r"it is not an image"),
        (b"hello", r"it is not an image"),
        (None, r"it is no longer there"),
        ("cut", r"OSError: (?:image file is )?truncated|OSError: .*"),
    ],
    ids=["empty", "text", "vanished", "cut off"],
)
@pytest.mark.parametrize("is_part", [False, True])
def test_file_is_named(content, reason, is_part, tmp_path):
    write_images(tmp_path / "a", 3, seed=1)
    dataset = PredictDataset(tmp_path / "a")
    path = tmp_path / "a" / "001.png"
    if content is None:
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:2000] if content == "cut" else content)
    used = Subset(dataset, [2, 1, 0]) if is_part else dataset
    callback, loader = surviving(DataLoader(used, collate_fn=dataset.collate_fn))
    assert len(list(loader)) == 2
    ((found, text),) = callback.found
    assert found == str(path)
    assert text.startswith(f"{path} cannot be read (")
    assert text.endswith("); save it again, or remove it")
    assert "\n" not in text
    import re

    assert re.search(reason, text)


def test_a_strip_that_would_fill_the_memory_is_left_out(tmp_path):
    write_images(tmp_path / "a", 2, seed=1)
    Image.new("L", (500_000, 1)).save(tmp_path / "a" / "strip.png")
    dataset = PredictDataset(tmp_path / "a")
    callback = UnreadableImages("report")
    callback._pre_processor = AntialiasedPreProcessor(Compose([Resize(240), Resize(96)]))
    loader = callback.change_loader(DataLoader(dataset, collate_fn=dataset.collate_fn), FakeTrainer(predicting=True))
    assert len(list(loader)) == 2
    ((path, reason),) = callback.found
    assert path == str(tmp_path / "a" / "strip.png")
    assert re.match(r"\S+strip\.png: an image of 1 × 500000 pixels would be resized to", reason)


@pytest.mark.parametrize("workers", [0, 1])
def test_images_of_different_shapes_stay_apart_where_shapes_count(workers, tmp_path):
    for index, size in enumerate([(30, 20), (20, 20), (20, 20), (20, 20)]):
        Image.new("L", size).save(tmp_path / f"{index}.png")
    dataset = PredictDataset(tmp_path)
    dataset.image_filenames.sort()
    loader = DataLoader(dataset, batch_size=2, num_workers=workers, collate_fn=dataset.collate_fn)
    callback = UnreadableImages()
    callback._keep_shapes = True
    changed = callback.change_loader(loader, FakeTrainer(predicting=True))
    assert [tuple(batch.image.shape) for batch in changed] == [(1, 3, 20, 30), (1, 3, 20, 20), (2, 3, 20, 20)]
    with pytest.raises(
        TypeError, match=r"^images may have different shapes, so that the number of batches is not know"
    ):
        len(changed)
    callback._keep_shapes = False
    squashed = callback.change_loader(loader, FakeTrainer(predicting=True))
    assert [tuple(batch.image.shape) for batch in squashed] == [(2, 3, 20, 30), (2, 3, 20, 20)]
    assert len(squashed) == 2


def test_own_errors_that_name_the_file_are_kept():
    error = ValueError("a.tiff holds floats from 0 to 3; scale them\nmore")
    assert explain("a.tiff", error) == "a.tiff holds floats from 0 to 3; scale them"


def test_items_can_be_read_without_a_loader():
    assert SurvivingItems(Numbers(), None)([0, 1]) == [0, 1]
