"""The visualizer, and the threads that draw for it."""

import itertools
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from anomalib.data import ImageBatch
from PIL import Image

from anovl_plugin import ResultVisualizer, ZeroShotPostProcessor
from anovl_plugin.components.images.file_names import FileNames
from anovl_plugin.components.pictures.picture_pool import PicturePool, write_picture
from tests.helpers.image_datasets import write_images


@pytest.fixture
def batch(tmp_path):
    write_images(tmp_path / "in", 6, seed=1)
    maps = torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    return ImageBatch(
        image=torch.zeros(6, 3, 8, 8),
        image_path=[str(tmp_path / "in" / f"00{index}.png") for index in range(6)],
        anomaly_map=maps,
        pred_mask=maps > 0.5,
        pred_score=maps.amax((1, 2, 3)),
        pred_label=torch.tensor([True, False] * 3),
    )


def draw(visualizer: ResultVisualizer, batch: ImageBatch, root: Path, times: int = 1) -> list[Path]:
    names = FileNames()
    names.folder = Path(batch.image_path[0]).parents[1]
    trainer = SimpleNamespace(default_root_dir=str(root), callbacks=[names])
    module = SimpleNamespace(post_processor=ZeroShotPostProcessor(), class_names_of=lambda batch: ["nut"] * len(batch))
    for index in range(times):
        visualizer.on_predict_batch_end(trainer, module, batch, batch, index)
    visualizer.on_predict_end(trainer, module)
    return sorted(path for path in root.rglob("*") if path.is_file())


def test_threads_draw_the_same_as_one(batch, tmp_path):
    several = draw(ResultVisualizer(field_size=(64, 64), threads=4), batch, tmp_path / "several")
    one = draw(ResultVisualizer(field_size=(64, 64), threads=1), batch, tmp_path / "one")
    assert [path.relative_to(tmp_path / "one").as_posix() for path in one] == [f"images/in/00{i}.png" for i in range(6)]
    assert [path.read_bytes() for path in several] == [path.read_bytes() for path in one]


def test_pictures_of_items_and_batches(batch):
    visualizer = ResultVisualizer(field_size=(64, 64))
    pictures = visualizer.visualize(batch)
    assert [picture.size for picture in pictures] == [pictures[0].size] * 6
    item = next(iter(batch))
    for one in (visualizer.visualize(item), visualizer(item.to_numpy() if hasattr(item, "to_numpy") else item)):
        np.testing.assert_array_equal(np.asarray(one), np.asarray(pictures[0]))


def test_files_of_16_bits_look_like_those_of_8(batch):
    visualizer = ResultVisualizer(field_size=(64, 64))
    expected = np.asarray(visualizer.visualize(batch)[0])
    path = batch.image_path[0]
    cv2.imwrite(path, cv2.imread(path).astype(np.uint16) * 257)
    np.testing.assert_array_equal(np.asarray(visualizer.visualize(batch)[0]), expected)


def test_folder_of_ones_own(batch, tmp_path):
    drawn = draw(ResultVisualizer(field_size=(64, 64), output_dir=tmp_path / "own"), batch, tmp_path / "run")
    assert not drawn
    assert len(list((tmp_path / "own" / "in").iterdir())) == 6


def test_folder_in_the_home_folder(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert str(ResultVisualizer(output_dir="~/pictures").output_dir) == "/home/me/pictures"


def test_next_run_draws_into_its_own_folder(batch, tmp_path):
    visualizer = ResultVisualizer(field_size=(64, 64))
    for run in ("v0", "v1"):
        assert len(draw(visualizer, batch, tmp_path / run)) == 6


def test_picture_of_a_file_that_is_gone(batch, tmp_path):
    Path(batch.image_path[2]).unlink()
    assert len(draw(ResultVisualizer(field_size=(64, 64)), batch, tmp_path / "run")) == 6


def test_characters_that_the_font_lacks_are_named_once(batch, tmp_path, caplog):
    batch.explanation = ["crack 瓶 0.61", "", "瓶子", "", "", ""]
    draw(ResultVisualizer(field_size=(64, 64)), batch, tmp_path / "run", times=2)
    advice = "set the visualizer's text_config to a font that has them, {font: FILE}."
    assert caplog.messages == [f"Pictures cannot show 瓶; {advice}", f"Pictures cannot show 子; {advice}"]


def test_disk_that_is_full(batch, tmp_path, monkeypatch):
    delays = itertools.count()

    def fail(*arguments, **_):
        Path(arguments[1]).write_bytes(b"half")
        time.sleep(0.1 * next(delays))  # The first error comes while others are still written.
        msg = "No space left on device"
        raise OSError(msg)

    monkeypatch.setattr(Image.Image, "save", fail)
    with pytest.raises(OSError, match="No space left"):
        draw(ResultVisualizer(field_size=(64, 64)), batch, tmp_path / "run", times=2)
    assert not [path for path in (tmp_path / "run").rglob("*") if path.is_file()]


def test_an_interrupt_leaves_whole_pictures(batch, tmp_path):
    visualizer = ResultVisualizer(field_size=(64, 64), threads=2)
    names = FileNames()
    names.folder = tmp_path
    trainer = SimpleNamespace(default_root_dir=str(tmp_path / "run"), callbacks=[names])
    visualizer.on_test_batch_end(trainer, SimpleNamespace(), batch, batch, 0)
    visualizer.on_exception(trainer, SimpleNamespace(), KeyboardInterrupt())
    written = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert all(path.suffix == ".png" for path in written)
    for path in written:
        Image.open(path).load()


def test_few_pictures_are_pending():
    running, peak, lock = 0, 0, threading.Lock()
    pool = PicturePool(2)
    started = []

    def work(index: int) -> None:
        nonlocal running, peak
        with lock:
            running += 1
            peak = max(peak, running)
        time.sleep(0.01)
        with lock:
            running -= 1
        started.append(index)

    for index in range(20):
        pool.submit(work, index)
        assert len(pool._pending) <= 4
    pool.finish()
    assert sorted(started) == list(range(20))
    assert peak <= 2


def test_an_error_is_raised_by_a_later_picture():
    pool = PicturePool(1)

    def submit_many() -> None:
        for _ in range(100):
            pool.submit(time.sleep, 0.01)

    pool.submit(int, "x")
    with pytest.raises(ValueError, match="invalid literal"):
        submit_many()


def test_pictures_that_have_begun_are_whole_before_an_error_is_raised():
    begun, gate, ended = threading.Event(), threading.Event(), []

    def go_on() -> None:
        begun.set()
        gate.wait()
        time.sleep(0.1)
        ended.append(1)

    def fail() -> None:
        begun.wait()
        gate.set()
        msg = "full"
        raise OSError(msg)

    pool = PicturePool(2)
    pool.submit(fail)
    pool.submit(go_on)
    gate.wait()
    with pytest.raises(OSError, match="full"):
        pool.finish()
    assert ended


def test_picture_replaces_an_older_one(tmp_path):
    for value in (1, 2):
        write_picture(Image.new("L", (2, 2), value), tmp_path / "a" / "b.png")
    assert Image.open(tmp_path / "a" / "b.png").getpixel((0, 0)) == 2
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["b.png"]


@pytest.mark.parametrize(
    ("arguments", "kind", "said"),
    [
        ({"threads": 0}, ValueError, r"^threads is 0, but must be a whole number from 1 to 64$"),
        ({"threads": True}, TypeError, r"^threads is True, but must be a whole number from 1 to 64$"),
        ({"threads": 2.0}, TypeError, r"^threads is 2.0, but must be a whole number from 1 to 64$"),
        (
            {"fields": ["mask"]},
            ValueError,
            r"^fields has \['mask'\], but must list some of image, gt_mask, pred_mask, anom",
        ),
        ({"fields": "image"}, TypeError, r"^fields has 'image', but must list some"),
        (
            {"overlay_fields": ["image"]},
            TypeError,
            r"^overlay_fields is \['image'\], but must list pairs such as \(image",
        ),
        ({"overlay_fields": 3}, TypeError, r"^overlay_fields is 3, but must list pairs"),
        (
            {"overlay_fields": [("image", ["x"])]},
            ValueError,
            r"^overlay_fields has \['x'\], but must list some of image",
        ),
        (
            {"overlay_fields": [("x", ["image"])]},
            ValueError,
            r"^overlay_fields has \['x'\], but must list some of image",
        ),
        (
            {"field_size": (15, 100)},
            ValueError,
            r"^field_size is \(15, 100\), but must be a width and a height from 16 to",
        ),
        ({"field_size": (100, 8193)}, ValueError, r"^field_size is \(100, 8193\)"),
        ({"field_size": 256}, TypeError, r"^field_size is 256, but must be a width and a height"),
        ({"field_size": (1.5, 100)}, TypeError, r"^field_size is \(1.5, 100\)"),
        (
            {"fields_config": {"image": {}}},
            ValueError,
            r"^fields_config is \{'image': \{\}\}, but has no settings h",
        ),
        (
            {"overlay_fields_config": {"mask": {}}},
            ValueError,
            r"^overlay_fields_config is \{'mask': \{\}\}, but must be a mapping with some of pred_mask, gt_mask, ano",
        ),
        (
            {"overlay_fields_config": {"gt_mask": {"hue": 3}}},
            ValueError,
            r"^overlay_fields_config of gt_mask is \{'hue': 3\}, but must be a mapping with some of color, alp",
        ),
        (
            {"overlay_fields_config": {"gt_mask": {"color": (0, 0, 256)}}},
            ValueError,
            r"^color in overlay_fields_config of gt_mask is \(0, 0, 256\), but must be red, green and blue, each fr",
        ),
        (
            {"overlay_fields_config": {"pred_mask": {"mode": "dots"}}},
            ValueError,
            r"^mode in overlay_fields_config of pred_mask is 'dots', but must be contour or fill$",
        ),
        (
            {"overlay_fields_config": {"anomaly_map": {"alpha": float("nan")}}},
            ValueError,
            r"^alpha in overlay_fields_config of anomaly_map is nan, but must be an opacity from 0 to 1$",
        ),
        (
            {"text_config": "big"},
            TypeError,
            r"^text_config is 'big', but must be a mapping with some of enable, font",
        ),
        ({"text_config": {"enable": 1}}, ValueError, r"^enable in text_config is 1, but must be true or false$"),
        (
            {"text_config": {"size": 3}},
            ValueError,
            r"^size in text_config is 3, but must be a whole number of pixels",
        ),
        (
            {"text_config": {"font": "/nowhere/font.ttf"}},
            ValueError,
            r"^font in text_config is '/nowhere/font.ttf', but must be a TrueType file$",
        ),
    ],
)
def test_invalid_settings(arguments, kind, said):
    with pytest.raises(kind, match=said):
        ResultVisualizer(**arguments)
