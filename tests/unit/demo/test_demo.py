"""The demo: synthetic surfaces, painted defects, the data module, and the package's small CLIP."""

import multiprocessing
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.random import default_rng
from skimage import data, io
from torch.testing import assert_close
from torchmetrics.functional.classification import binary_auroc

from anovl_plugin import AnoVL, AnoVLModel, load_backbone
from anovl_plugin.demo import DemoSurfaces, datamodule
from anovl_plugin.demo.datamodule import NUM_ABNORMAL, NUM_NORMAL, PHOTOGRAPHS, make_category
from anovl_plugin.demo.defects import DEFECT_KINDS, MIN_CONTRAST, MIN_SHARE, paint_defect
from anovl_plugin.demo.studies.surfaces import FAMILIES, draw_surface
from anovl_plugin.text.prompts import prompt_ensemble
from anovl_plugin.text.text_bank import TextTower
from anovl_plugin.vision.value_attention import original_forward, value_wise_forward

WEIGHTS = Path(datamodule.__file__).parent / "anovl-demo.safetensors"


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Return a folder with the images of all categories."""
    folder = tmp_path_factory.mktemp("surfaces")
    for category in PHOTOGRAPHS:
        DemoSurfaces(folder, category).prepare_data()
    return folder


def photograph(category):
    pixels = np.atleast_3d(getattr(data, PHOTOGRAPHS[category].loader)()).astype(np.float32) / 255
    return np.broadcast_to(pixels, (*pixels.shape[:2], 3))


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob("*.png"))}


def race(root, barrier):
    barrier.wait(timeout=300)
    DemoSurfaces(root, "wood").prepare_data()


@pytest.mark.parametrize("family", FAMILIES)
@given(seed=st.integers(0, 2**32), size=st.sampled_from([48, 96]))
@settings(max_examples=6)
def test_surfaces_are_images_that_depend_on_the_seed_alone(family, seed, size):
    image = draw_surface(family, size, default_rng(seed))
    assert image.dtype == np.float32
    assert image.shape == (size, size, 3)
    assert 0 <= image.min() <= image.max() <= 1
    np.testing.assert_array_equal(image, draw_surface(family, size, default_rng(seed)))
    assert not np.array_equal(image, draw_surface(family, size, default_rng(seed + 1)))


@given(kind=st.sampled_from(DEFECT_KINDS), seed=st.integers(0, 2**32), size=st.sampled_from([48, 96, 128]))
@settings(max_examples=60)
def test_masks_cover_exactly_the_pixels_that_changed(kind, seed, size):
    rng = default_rng(seed)
    image = rng.random((size, size, 3)).astype(np.float32) * np.float32(0.2) + np.float32(rng.uniform(0, 0.8))
    before = image.copy()
    abnormal, mask = paint_defect(image, kind, default_rng(seed))
    np.testing.assert_array_equal(image, before)
    assert (abnormal.dtype, mask.dtype) == (np.float32, np.bool_)
    assert 0 <= abnormal.min() <= abnormal.max() <= 1
    np.testing.assert_array_equal(abnormal[~mask], image[~mask])
    assert (abs(abnormal - image)[mask] > 1 / 255).any(-1).all()
    assert mask.mean() > MIN_SHARE
    again, mask_again = paint_defect(image, kind, default_rng(seed))
    np.testing.assert_array_equal(again, abnormal)
    np.testing.assert_array_equal(mask_again, mask)


@pytest.mark.parametrize("kind", DEFECT_KINDS)
@given(seed=st.integers(0, 2**32), level=st.floats(0, 1))
@settings(max_examples=20)
def test_defects_are_visible(kind, seed, level):
    image = np.full((96, 96, 3), level, np.float32)
    abnormal, mask = paint_defect(image, kind, default_rng(seed))
    # Cracks and holes are black, so they are hardly visible on a black surface, as in reality.
    if kind not in {"crack", "hole"} or level > 0.3:
        assert abs(abnormal - image).mean(-1)[mask].mean() >= MIN_CONTRAST


def test_unknown_kind_is_an_error():
    with pytest.raises(ValueError, match="kind is 'dent', but must be one of scratch, crack"):
        paint_defect(np.zeros((32, 32, 3), np.float32), "dent", default_rng(0))


def test_root_in_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert DemoSurfaces("~/surfaces").root == tmp_path / "surfaces"


def test_defaults_are_bricks_in_the_cache_of_anomalib():
    surfaces = DemoSurfaces()
    assert surfaces.name == "DemoSurfaces"
    assert surfaces.category == "brick"
    assert surfaces.root.name == f"DemoSurfaces-{datamodule.VERSION}"
    assert surfaces.num_workers == 0


@pytest.mark.parametrize("category", PHOTOGRAPHS)
def test_layout_is_that_of_mvtec_ad(category, root):
    home = root / category
    assert sorted(path.name for path in home.iterdir()) == ["ground_truth", "test", "train"]
    assert len(list((home / "train" / "good").iterdir())) == NUM_NORMAL["train"]
    assert len(list((home / "test").rglob("*.png"))) == NUM_NORMAL["test"] + len(DEFECT_KINDS) * NUM_ABNORMAL >= 40
    for kind in DEFECT_KINDS:
        for index in range(NUM_ABNORMAL):
            assert (home / "test" / kind / f"{index:03d}.png").exists()
            assert (home / "ground_truth" / kind / f"{index:03d}_mask.png").exists()


def test_subsets_have_all_images_and_their_masks(root):
    surfaces = DemoSurfaces(root, "grass")
    surfaces.setup()
    assert len(surfaces.train_data) == NUM_NORMAL["train"]
    assert len(surfaces.test_data) == NUM_NORMAL["test"] + len(DEFECT_KINDS) * NUM_ABNORMAL
    batch = next(iter(surfaces.test_dataloader()))
    assert batch.image.shape[1:] == (3, 128, 128)
    assert torch.equal(batch.gt_mask.flatten(1).any(1), batch.gt_label)


def test_images_are_the_same_in_every_folder(root, tmp_path):
    DemoSurfaces(tmp_path, "wood").setup()
    assert contents(tmp_path / "wood") == contents(root / "wood")


@pytest.mark.parametrize("category", PHOTOGRAPHS)
def test_written_masks_are_exact(category, root):
    pixels = photograph(category)
    for kind in DEFECT_KINDS:
        rng = datamodule.generator_of(category, kind, 0, datamodule.SEED)
        crop = datamodule.crop_photograph(pixels, PHOTOGRAPHS[category], "test", rng)
        abnormal = io.imread(root / category / "test" / kind / "000.png")
        mask = io.imread(root / category / "ground_truth" / kind / "000_mask.png")
        changed = (abnormal != (crop * 255).round().astype(np.uint8)).any(-1)
        np.testing.assert_array_equal(mask, changed.astype(np.uint8) * 255)
        assert abs(abnormal / 255 - crop).mean(-1)[changed].mean() >= MIN_CONTRAST


@pytest.mark.parametrize("category", PHOTOGRAPHS)
def test_train_and_test_parts_are_disjoint(category):
    source = PHOTOGRAPHS[category]
    height, width = photograph(category).shape[:2]
    for top, bottom, left, right in (source.train, source.test):
        assert 0 <= top <= bottom - source.crop <= bottom <= height
        assert 0 <= left <= right - source.crop <= right <= width
    (top, bottom, left, right), (other_top, other_bottom, other_left, other_right) = source.train, source.test
    assert bottom <= other_top or other_bottom <= top or right <= other_left or other_right <= left


@pytest.mark.slow
def test_two_processes_make_the_same_images(root, tmp_path):
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(2)
    other = context.Process(target=race, args=(tmp_path, barrier))
    other.start()
    race(tmp_path, barrier)
    other.join()
    assert other.exitcode == 0
    assert [path.name for path in tmp_path.iterdir()] == ["wood"]
    assert contents(tmp_path / "wood") == contents(root / "wood")


def test_finishing_second_is_not_an_error(root, tmp_path, monkeypatch):
    rename = Path.rename

    def slow_rename(self, target):
        rename(self, target)
        make_images_again()

    def make_images_again():
        monkeypatch.setattr(Path, "rename", rename)
        make_category(tmp_path, "wood")

    monkeypatch.setattr(Path, "rename", slow_rename)
    make_category(tmp_path, "wood")
    assert [path.name for path in tmp_path.iterdir()] == ["wood"]
    assert contents(tmp_path / "wood") == contents(root / "wood")


def test_interrupted_run_leaves_nothing_behind(tmp_path, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(datamodule, "paint_defect", stop)
    with pytest.raises(KeyboardInterrupt):
        make_category(tmp_path, "wood")
    assert not list(tmp_path.iterdir())


def test_weights_file_is_small():
    assert WEIGHTS.stat().st_size <= 9_000_000
    assert len(zlib.compress(WEIGHTS.read_bytes())) < 8_000_000


def test_backbone_embeds_the_tokens_of_the_prompts_and_few_others():
    demo = load_backbone("anovl-demo")
    assert demo.image_size == (96, 96)
    assert demo.visual.output_dim == 96
    vocabulary = demo.clip.token_embedding.weight
    used = TextTower(demo.clip, demo.tokenizer).tokenize(prompt_ensemble("brick", "texture").abnormal).unique()
    assert vocabulary[used].any(1).all()
    assert vocabulary.any(1).sum() < 1000


def test_scores_depend_on_the_text():
    model, images = AnoVLModel("anovl-demo", class_name="brick", domain="texture"), torch.rand(2, 3, 96, 96)
    brick = model(images)
    model.text_bank.state_embeddings = model.text_bank.state_embeddings.flip(0)
    swapped = model(images)
    assert_close(swapped.pred_score, 1 - brick.pred_score)
    assert_close(swapped.anomaly_map, 1 - brick.anomaly_map)
    model.build_text_bank("bottle")
    assert not torch.allclose(model(images).pred_score, brick.pred_score, atol=1e-4)


def aurocs(category, root, forwards, monkeypatch):
    """Yield image AUROC and pixel AUROC of a category for each path that patch tokens can come from."""
    model = AnoVL("anovl-demo", class_name=category, domain="texture")
    model.build_text_bank()
    surfaces = DemoSurfaces(root, category, eval_batch_size=100)
    surfaces.setup()
    (batch,) = surfaces.test_dataloader()
    images, masks = model.pre_processor.transform(batch.image, batch.gt_mask)
    for forward in forwards:
        monkeypatch.setattr("anovl_plugin.vision.image_tower.value_wise_forward", forward)
        found = model.model(images)
        pixels = binary_auroc(found.anomaly_map.flatten(), masks.flatten().int())
        yield torch.stack([binary_auroc(found.pred_score, batch.gt_label.int()), pixels])


@pytest.mark.slow
def test_demo_accuracy_is_high_and_needs_the_value_wise_path(root, monkeypatch):
    forwards = (value_wise_forward, lambda visual, images, depths: original_forward(visual, images))  # noqa: ARG005
    found = torch.stack([torch.stack(list(aurocs(c, root, forwards, monkeypatch))) for c in PHOTOGRAPHS])
    (image, pixel), (_, original_pixel) = found.mean(0).tolist()
    assert image >= 0.90
    assert pixel >= 0.92
    assert pixel > original_pixel
