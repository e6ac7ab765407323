"""A test scores each image once where validation and test see the same, and gives the same either way."""

import pytest
import torch
from torchvision.transforms.v2 import GaussianNoise

from anovl_plugin.components.runs.validated_results import ValidatedResults
from tests.helpers import image_datasets
from tests.helpers.engine_runs import quiet_engine, run_predict, run_test


@pytest.fixture
def scored(monkeypatch):
    """Return a list that grows by the number of images of each batch that a model scores."""
    from anovl_plugin import AnoVLModel

    numbers, forward = [], AnoVLModel.forward

    def count(model, images, *arguments):
        numbers.append(len(images))
        return forward(model, images, *arguments)

    monkeypatch.setattr(AnoVLModel, "forward", count)
    return numbers


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return image_datasets.write_mvtec(tmp_path_factory.mktemp("bottles"))


def bottles(root, **options):
    return image_datasets.MVTecAD(root, "bottle", eval_batch_size=4, num_workers=0, **options)


def test_images_are_scored_once_with_the_same_results(make, root, scored, tmp_path, monkeypatch):
    metrics = run_test(make(), tmp_path, bottles(root))
    assert scored == [4, 2]
    scored.clear()
    monkeypatch.setattr(ValidatedResults, "find", lambda *_: None)
    assert run_test(make(), tmp_path, bottles(root)) == metrics
    assert scored == [4, 2, 4, 2]


def test_other_pixels_are_scored_again(make, root, scored, tmp_path):
    torch.manual_seed(0)
    run_test(make(), tmp_path, bottles(root, test_augmentations=GaussianNoise()))
    assert scored == [4, 2, 4, 2]


def test_random_halves_are_scored_each(make, root, scored, tmp_path):
    run_test(make(), tmp_path, bottles(root, val_split_mode="from_test", seed=1))
    assert sum(scored) == 6


def test_results_do_not_outlive_the_test(make, root, scored, tmp_path):
    model = make()
    run_test(model, tmp_path, bottles(root))
    assert len(model._validated) == 0
    run_test(model, tmp_path, bottles(root))
    assert scored == [4, 2, 4, 2]
    scored.clear()
    quiet_engine(tmp_path).validate(model, datamodule=bottles(root))
    assert len(model._validated) == 0
    run_predict(model, tmp_path, datamodule=bottles(root))
    assert sum(scored) == 12
