"""Results of a validation are used by the test that follows for the very same batches, and for no others."""

import copy
import pickle

import pytest
import torch
from anomalib.data import InferenceBatch

from anovl_plugin import AnoVLModel, MapScore
from anovl_plugin.components.runs.validated_results import ValidatedResults
from anovl_plugin.scoring.defect_names import DefectMatch
from anovl_plugin.torch_model import ScoredImages


@pytest.fixture
def model():
    return AnoVLModel("anovl-demo", class_name="brick")


def results(number: int = 2, side: int = 4) -> ScoredImages:
    scores = InferenceBatch(pred_score=torch.rand(number), anomaly_map=torch.rand(number, 1, side, side))
    return ScoredImages(scores, [None] * number)


def kept(model: AnoVLModel, images: torch.Tensor, index: torch.Tensor | None = None) -> ValidatedResults:
    store = ValidatedResults()
    store.keep(model, images, index, results())
    return store


def test_the_same_batch_has_the_same_results(model):
    images, store, expected = torch.rand(2, 3, 8, 8), ValidatedResults(), results()
    store.keep(model, images, None, expected)
    found = store.find(model, images.clone(), None)
    assert torch.equal(found.scores.pred_score, expected.scores.pred_score)
    assert torch.equal(found.scores.anomaly_map, expected.scores.anomaly_map)
    found.scores.anomaly_map.zero_()
    expected.scores.pred_score.zero_()
    again = store.find(model, images, None)
    assert again.scores.anomaly_map.any()
    assert again.scores.pred_score.any()


def test_matches_are_kept_and_counted(model):
    images, store = torch.rand(2, 3, 8, 8), ValidatedResults(max_bytes=200)
    match = DefectMatch(("rust",), torch.rand(1, 9, 1), (8, 8), (3, 3), None, 0.1)
    expected = results()._replace(matches=[match, None])
    store.keep(model, images, None, expected)
    assert store.find(model, images, None).matches == [match, None]
    store.clear()
    store.keep(model, images, None, expected._replace(matches=[match, match]))
    assert len(store) == 0


@pytest.mark.parametrize(
    "change",
    [
        lambda images: images + 1e-6,
        lambda images: images.flip(0),
        lambda images: images[:1],
        lambda images: images.double(),
        lambda images: images.view(2, 3, 4, 16),
    ],
)
def test_another_batch_has_none(model, change):
    images = torch.rand(2, 3, 8, 8)
    assert kept(model, images).find(model, change(images), None) is None


def test_other_classes_have_none(model):
    images, index = torch.rand(2, 3, 8, 8), torch.tensor([0, 1])
    store = kept(model, images, index)
    assert store.find(model, images, index) is not None
    assert store.find(model, images, index.flip(0)) is None
    assert store.find(model, images, None) is None


@pytest.mark.parametrize(
    "change",
    [
        lambda model: model.build_text_bank("wood"),
        lambda model: setattr(model, "image_score", MapScore()),
        lambda model: setattr(model, "tiles_per_side", 1),
        lambda model: next(model.image_tower.visual.parameters()).requires_grad_(requires_grad=False).add_(1),
    ],
)
def test_a_changed_model_has_none(model, change):
    images = torch.rand(2, 3, 8, 8)
    store = kept(model, images)
    assert store.find(model, images, None) is not None
    change(model)
    assert store.find(model, images, None) is None


def test_memory_is_limited(model):
    store, size = ValidatedResults(max_bytes=200), 2 * 4 + 2 * 16 * 4
    assert size <= store.max_bytes < 2 * size
    for _ in range(3):
        store.keep(model, torch.rand(2, 3, 8, 8), None, results())
    assert len(store) == 1
    store.clear()
    assert len(store) == 0


def test_copies_and_pickles_hold_no_results(model):
    store = kept(model, torch.rand(2, 3, 8, 8))
    assert len(copy.deepcopy(store)) == len(pickle.loads(pickle.dumps(store))) == 0  # noqa: S301, its own bytes
