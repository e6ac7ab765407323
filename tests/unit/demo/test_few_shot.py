"""What the studies of reference images compute from scores."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from anovl_plugin.demo.studies import few_shot
from anovl_plugin.demo.studies.few_shot import measure, spread_over_images


def images_of(labels):
    masks = torch.zeros(len(labels), 8, 8, dtype=torch.bool)
    masks[:, 2:5, 2:5] = torch.tensor(labels)[:, None, None]
    return [few_shot.TestImage(torch.zeros(1, 3, 8, 8), mask, "") for mask in masks]


@pytest.mark.parametrize(
    ("names", "message"),
    [(None, "has no category, a folder that holds test/; give"), (["a", "b"], "no category 'b'; give")],
)
def test_missing_categories_are_an_error(names, message, tmp_path):
    (tmp_path / "a" / ("train" if names is None else "test")).mkdir(parents=True)
    with pytest.raises(SystemExit, match=message):
        list(few_shot.folder_categories(tmp_path, "object", names))


@given(st.lists(st.integers(-3, 60), min_size=6, max_size=12), st.floats(0.01, 100))
def test_figures_do_not_depend_on_the_scale_of_scores(levels, scale):
    labels = [at % 2 == 0 for at in range(len(levels))]
    scores = torch.tensor(levels) * scale
    maps = torch.rand(len(levels), 1, 8, 8, generator=torch.Generator().manual_seed(0))
    found = measure(images_of(labels), scores, maps)
    assert found.figures.image == pytest.approx(roc_auc_score(labels, scores), abs=1e-6)
    masks = torch.stack([image.mask for image in images_of(labels)])
    assert found.figures.pixel == pytest.approx(roc_auc_score(masks.flatten(), maps.flatten()), abs=1e-6)
    again = measure(images_of(labels), scores, 100 * maps - 20)
    assert again.figures == pytest.approx(found.figures, abs=1e-6)


def test_spread_is_that_of_drawn_images():
    draw = np.random.default_rng(0)
    scores = [(draw.normal(0.5, 1, size), draw.normal(0, 1, other)) for size, other in ((7, 12), (20, 9))]
    wins = [torch.from_numpy((abnormal[:, None] > normal).astype("float32")) for abnormal, normal in scores]
    means = []
    for _ in range(4000):
        areas = []
        for abnormal, normal in scores:
            higher, lower = draw.choice(abnormal, len(abnormal)), draw.choice(normal, len(normal))
            areas.append((higher[:, None] > lower).mean())
        means.append(np.mean(areas))
    assert spread_over_images(wins) == pytest.approx(np.std(means), rel=0.08)
    assert spread_over_images([torch.ones(3, 4)]) == pytest.approx(0, abs=1e-6)
