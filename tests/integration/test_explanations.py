"""Explanations in engine runs: the words for defects, for each image and each region, in all ways to run a model."""

import shutil
from pathlib import Path

import pytest
import torch
from anomalib.data import ImageBatch
from lightning.pytorch import Callback
from torch.testing import assert_close

from anovl_plugin import AnoVL, AnoVLModel, LinearAdapter, describe
from anovl_plugin.demo import DemoSurfaces
from anovl_plugin.scoring.description import explain
from anovl_plugin.scoring.regions import find_regions
from tests.helpers.engine_runs import quiet_engine
from tests.helpers.tolerances import FLOAT32, HALF_PRECISION

# Words that the small CLIP knows, so that it can tell them apart.
WORDS = {"extends": "paper", "defects": {"*": ["paint", "plastic", "rope"], "gravel": ["felt"]}}


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    root = tmp_path_factory.mktemp("photos")
    DemoSurfaces(root, "brick").prepare_data()
    return root / "brick" / "test" / "hole"


def brick_model(**settings) -> AnoVL:
    defaults = {"class_name": "brick", "domain": "texture", "prompts": WORDS, "visualizer": False}
    return AnoVL("anovl-demo", **defaults | settings)


def predict(model, root, photos, **trainer):
    return quiet_engine(root, **trainer).predict(model, data_path=photos, return_predictions=True)


@pytest.mark.parametrize("settings", [{}, {"tiles_per_side": 2}, {"image_size": (64, 96)}], ids=str)
def test_every_image_and_region_is_explained(settings, photos, tmp_path):
    batches = predict(brick_model(**settings), tmp_path, photos)
    assert len(batches) == 5
    assert any(batch.pred_mask.any() for batch in batches)
    for batch in batches:
        (description,), (found,) = describe(batch), find_regions(batch.pred_mask, batch.anomaly_map)
        assert [named.region for named in description.regions] == found.regions
        assert sum(region.area for region in found.regions) == int(batch.pred_mask.sum())
        for shares in (description.shares, *(named.shares for named in description.regions)):
            assert set(shares) == {"paint", "plastic", "rope"}
            assert sum(shares.values()) == pytest.approx(1)
        assert batch.explanation == [explain(description.shares)]
        assert [item.explanation for item in batch] == batch.explanation


def test_shares_are_those_of_the_tokens_in_the_region(photos, tmp_path):
    """Without tiles, from the torch model's own tokens, by hand."""
    model = brick_model()
    batch = predict(model, tmp_path, photos)[0]
    (description,) = describe(batch)
    region, shares = description.regions[0]
    with torch.no_grad():
        tokens = torch.nn.functional.normalize(model.model.image_tower(batch.image).patch_tokens[0], dim=-1)
    # Patches are 8 × 8 pixels.
    inside = (find_regions(batch.pred_mask, batch.anomaly_map)[0].labels == 1).float()
    counts = inside.view(12, 8, 12, 8).sum((1, 3)).flatten()
    assert int(counts.sum()) == region.area
    mean = (counts / counts.sum()) @ tokens
    bank = model.model.text_bank
    expected = (mean @ bank.defect_embeddings.T / model.model.image_tower.temperature).softmax(0)
    assert_close(torch.tensor([shares[word] for word in bank.defect_words]), expected, **FLOAT32)


class Recorder(Callback):
    """Keeps what a visualizer would see, and then the batches."""

    def __init__(self) -> None:
        self.batches: list[ImageBatch] = []

    def on_test_batch_end(self, trainer: object, pl_module: object, outputs: ImageBatch, *args: object) -> None:
        del trainer, pl_module, args
        self.batches.append(outputs)


def test_pictures_of_a_test_run_can_show_explanations(photos, tmp_path):
    model, recorder = brick_model(evaluator=False, class_name="gravel"), Recorder()
    configure = model.configure_callbacks
    model.configure_callbacks = lambda: [*configure(), recorder]
    quiet_engine(tmp_path).test(model, datamodule=DemoSurfaces(photos.parents[2], "brick"), verbose=False)
    (first, second) = recorder.batches
    for batch in (first, second):
        assert len(batch.explanation) == len(batch)
        assert [explain(description.shares) for description in describe(batch)] == batch.explanation
    assert set(describe(first)[0].shares) == {"paint", "plastic", "rope", "felt"}


def test_without_words_nothing_is_explained_but_regions_are_found(photos, tmp_path):
    batches = predict(brick_model(prompts=None), tmp_path, photos)
    assert all(batch.explanation is None for batch in batches)
    (description,) = describe(batches[0])
    assert description.shares == description.regions[0].shares == {}
    assert description.regions[0].region == find_regions(batches[0].pred_mask, batches[0].anomaly_map)[0].regions[0]


def test_without_masks_the_highest_pixels_are_explained(photos, tmp_path):
    for batch in predict(brick_model(post_processor=False), tmp_path, photos):
        (description,) = describe(batch)
        assert description.regions == []
        assert batch.explanation == [explain(description.shares)]
        assert batch.explanation[0]


def test_adaptation_changes_masks_but_not_what_a_region_is_called(photos, tmp_path):
    plain = predict(brick_model(), tmp_path, photos)
    adapted = predict(brick_model(adaptation=LinearAdapter(steps=2)), tmp_path, photos)
    for one, other in zip(plain, adapted, strict=True):
        assert not torch.equal(one.anomaly_map, other.anomaly_map)
        other.anomaly_map, other.pred_mask = one.anomaly_map, one.pred_mask
        assert describe(other) == describe(one)


@pytest.mark.parametrize("precision", ["16-true", "bf16-mixed"])
def test_half_precision_gives_the_same_shares(precision, photos, tmp_path):
    single = predict(brick_model(), tmp_path, photos)
    half = predict(brick_model(), tmp_path, photos, precision=precision)
    for one, other in zip(single, half, strict=True):
        other.anomaly_map, other.pred_mask = one.anomaly_map, one.pred_mask
        for word, share in describe(other)[0].shares.items():
            assert share == pytest.approx(describe(one)[0].shares[word], abs=HALF_PRECISION["atol"])


def test_a_checkpoint_explains_as_the_model_that_wrote_it(photos, tmp_path):
    model, engine = brick_model(), quiet_engine(tmp_path)
    engine.test(model, datamodule=DemoSurfaces(photos.parents[2], "brick"), verbose=False)
    expected = [batch.explanation for batch in predict(model, tmp_path, photos)]
    loaded = AnoVL.load_from_checkpoint(engine.trainer.checkpoint_callback.best_model_path, visualizer=False)
    assert loaded.model.text_bank.defect_words == ("paint", "plastic", "rope")
    assert [batch.explanation for batch in predict(loaded, tmp_path, photos)] == expected
    fresh, path = AnoVL("anovl-demo", visualizer=False), engine.trainer.checkpoint_callback.best_model_path
    batches = quiet_engine(tmp_path).predict(fresh, data_path=photos, ckpt_path=path, return_predictions=True)
    assert [batch.explanation for batch in batches] == expected


def test_each_class_has_words_of_its_own(photos, tmp_path):
    for name in ("brick", "gravel"):
        shutil.copytree(photos, tmp_path / "products" / name)
    paths = sorted((tmp_path / "products").rglob("*.png"))
    settings = {"class_name": {"brick": "brick", "gravel": "gravel"}}
    batches = predict(brick_model(**settings), tmp_path, tmp_path / "products")
    assert len(batches) == len(paths) == 10
    alone = {name: predict(brick_model(class_name=name), tmp_path, photos) for name in ("brick", "gravel")}
    for batch in batches:
        path = Path(batch.image_path[0])
        same = alone[path.parent.name][int(path.stem)]
        assert describe(batch) == describe(same)
        assert batch.explanation == same.explanation
        assert ("felt" in describe(batch)[0].shares) == (path.parent.name == "gravel")


def test_a_batch_of_several_classes_is_matched_image_by_image():
    model = AnoVLModel("anovl-demo", prompts={"extends": "paper", "defects": {"gravel": ["felt", "paint"]}})
    model.build_text_banks(["brick", "gravel"], "texture")
    images = torch.rand(4, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    scores, matches = model.predict(images, model.text_banks.index(["gravel", "brick", "gravel", "brick"]))
    assert [None if match is None else match.words for match in matches] == [("felt", "paint"), None] * 2
    model.build_text_bank("gravel", "texture")
    alone = model.predict(images[[0, 2]])
    assert_close(
        torch.stack([match.cosines for match in alone.matches]), torch.stack([m.cosines for m in matches[::2]])
    )
    assert_close(scores.anomaly_map[[0, 2]], alone.scores.anomaly_map)


def test_words_that_cannot_be_told_apart_are_warned_of(caplog):
    model = brick_model(prompts={"extends": "paper", "defects": ["paint", "scratch", "crack"]})
    with caplog.at_level("WARNING"):
        model.build_text_bank()
    assert "does not tell 'scratch', 'crack' apart, so no defect can be named; use other words" in caplog.text


def test_the_torch_model_predicts_what_it_returns():
    model = AnoVLModel("anovl-demo", class_name="brick", domain="texture", prompts=WORDS)
    images = torch.rand(3, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    scores, matches = model.predict(images)
    assert torch.equal(scores.anomaly_map, model(images).anomaly_map)
    assert [match.cosines.shape for match in matches] == [(1, 144, 3)] * 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda batch: setattr(batch, "anomaly_map", None),
            r"^the batch has no anomaly_map, so it cannot be described",
        ),
        (lambda batch: setattr(batch, "pred_mask", batch.pred_mask[..., :9]), r"^masks have the shape .*, but maps"),
    ],
)
def test_a_batch_that_cannot_be_described(change, message, photos, tmp_path):
    batch = predict(brick_model(), tmp_path, photos)[0]
    change(batch)
    with pytest.raises(ValueError, match=message):
        describe(batch)
