"""Scores against the slow reference, in every precision, and what the shown probability must keep."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score
from torch.nn import functional as F
from torch.testing import assert_close

from anovl_plugin.scoring.scores import abnormality_margin, margin_map, to_probability, to_unit_range
from tests.helpers import reference_model
from tests.helpers.random_tensors import noise
from tests.helpers.tolerances import FLOAT32

GRIDS = [((4, 4), (32, 32)), ((2, 3), (32, 48)), ((1, 5), (8, 33)), ((3, 1), (24, 8)), ((15, 15), (40, 50))]


def states_of(width, seed=1):
    """Return two directions about as close to each other as a CLIP's state embeddings."""
    base = noise(width, seed=seed)
    return F.normalize(torch.stack([base, base + 0.1 * noise(width, seed=seed + 1)]), dim=-1)


@pytest.mark.parametrize("length", [1e-3, 1.0, 1e3])
def test_margin_is_the_reference_probability_less_a_half(length):
    features, states = length * noise(2, 7, 24), states_of(24)
    expected = torch.tensor([[reference_model.p_abnormal(token, states) for token in row] for row in features])
    margins = abnormality_margin(features, states)
    assert margins.dtype == torch.float32
    assert_close(0.5 + margins, expected, **FLOAT32)


def test_margin_is_the_softmax_of_the_cosines():
    features, states = noise(5, 24).double(), states_of(24).double()
    cosines = F.cosine_similarity(features[:, None], states[None], dim=-1)
    expected = cosines.softmax(-1)[:, 1] - 0.5
    assert_close(abnormality_margin(features, states).double(), expected, atol=1e-7, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_inputs_are_compared_in_float32(dtype):
    features, states = noise(6, 24).to(dtype), states_of(24)
    margins = abnormality_margin(features, states)
    assert margins.dtype == torch.float32
    assert torch.equal(margins, abnormality_margin(features.float(), states))


def test_autocast_does_not_touch_the_scores():
    features, states = noise(3, 16, 24), states_of(24)
    margins = abnormality_margin(features, states)
    grid = margin_map(margins, (4, 4), (32, 32))
    shown = to_probability(grid, 0.01)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(abnormality_margin(features, states), margins)
        assert torch.equal(margin_map(margins, (4, 4), (32, 32)), grid)
        assert torch.equal(to_probability(grid, 0.01), shown)
    assert shown.dtype == grid.dtype == margins.dtype == torch.float32


@pytest.mark.parametrize(("grid_size", "image_size"), GRIDS)
def test_map_is_the_reference_map(grid_size, image_size):
    margins = 0.1 * noise(2, grid_size[0] * grid_size[1])
    expected = torch.stack([reference_model.smooth_map(row, grid_size, image_size) for row in margins.tolist()])
    result = margin_map(margins, grid_size, image_size)
    assert result.shape == (2, 1, *image_size)
    assert_close(result[:, 0].double(), expected, atol=1e-7, rtol=0)


def test_mean_repeats_the_border_and_corners_are_aligned():
    margins = torch.tensor([[0.9, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]])
    result = margin_map(margins, (3, 3), (5, 5))[0, 0]
    assert_close(result[0, 0], torch.tensor(0.4))  # the corner counts 4 times of 9
    assert_close(result[0, 2], torch.tensor(0.2))
    assert_close(result[2, 2], torch.tensor(0.1))
    assert_close(result[4, 4], torch.tensor(0.0))
    assert_close(result[0, 1], torch.tensor(0.3))


def test_a_constant_map_stays_constant():
    assert_close(margin_map(torch.full((1, 12), 0.25), (3, 4), (30, 17)), torch.full((1, 1, 30, 17), 0.25))


@pytest.mark.parametrize("unit", [0.01, 0.07, 1.0])
def test_probabilities_are_the_formula(unit):
    margins = noise(200) * 0.1
    expected = [0.5 + m / (2 * (abs(m) + unit)) for m in margins.tolist()]
    assert_close(to_probability(margins, unit).double(), torch.tensor(expected, dtype=torch.float64), **FLOAT32)


@settings(max_examples=10)
@given(steps=st.lists(st.integers(-100_000, 100_000), min_size=2, max_size=200, unique=True))
def test_probabilities_are_strictly_increasing(steps):
    margins = torch.tensor(sorted(steps), dtype=torch.float64).div(1e6).float()
    assert (to_probability(margins, 0.01).diff() > 0).all()
    assert (to_probability(margins.double(), 0.01).diff() > 0).all()


@pytest.mark.parametrize("unit", [0.01, 0.07])
def test_probabilities_stay_inside_0_and_1_and_keep_a_half(unit):
    margins = torch.tensor([-0.5, -0.25, -1e-9, 0.0, 1e-9, 0.25, 0.5])
    shown = to_probability(margins, unit)
    assert ((shown > 0) & (shown < 1)).all()
    assert shown[3] == 0.5
    assert_close(to_probability(torch.tensor(unit), unit), torch.tensor(0.75))


def test_swapped_states_give_the_complement():
    features, states = noise(2, 16, 24), states_of(24)
    margins, swapped = abnormality_margin(features, states), abnormality_margin(features, states.flip(0))
    assert torch.equal(swapped, -margins)
    shown = to_probability(margin_map(margins, (4, 4), (32, 32)), 0.01)
    complement = to_probability(margin_map(swapped, (4, 4), (32, 32)), 0.01)
    assert_close(complement, 1 - shown, **FLOAT32)


@settings(max_examples=10)
@given(seed=st.integers(0, 2**31))
def test_shown_map_ranks_pixels_as_the_published_map_does(seed):
    features, states = noise(1, 16, 24, seed=seed), states_of(24, seed=seed % 1000)
    shown = (
        to_probability(margin_map(abnormality_margin(features, states), (4, 4), (32, 32)), 0.01)
        .flatten()
        .double()
        .numpy()
    )
    published = reference_model.smooth_map(
        [reference_model.p_abnormal(token, states) for token in features[0]], (4, 4), (32, 32)
    )
    published = published.flatten().numpy()
    mask = np.random.default_rng(seed).random(1024) < 0.3
    # Two pixels that float32 cannot tell apart may swap ranks, which changes the area by 5e-6.
    assert abs(roc_auc_score(mask, shown) - roc_auc_score(mask, published)) <= 2e-5
    order = np.argsort(published, kind="stable")
    gaps = np.diff(published[order]) > 1e-7
    assert (np.diff(shown[order])[gaps] > 0).all()


@pytest.mark.parametrize("number", [15, 17, 0])
def test_patches_that_do_not_fill_the_grid_are_an_error(number):
    with pytest.raises(ValueError, match=rf"^{number} patches do not fill a grid of 4 × 4$"):
        margin_map(torch.zeros(1, number), (4, 4), (32, 32))


@pytest.mark.parametrize("unit", [0, 0.0, -0.01])
def test_a_temperature_that_is_not_positive_is_an_error(unit):
    with pytest.raises(ValueError, match=rf"^temperature is {unit}, but must be a finite number above 0$"):
        to_probability(torch.zeros(1), unit)


def test_unit_range_keeps_the_order_of_neighbors():
    scores = torch.tensor([-100.0, 0.001, 60.0])
    scores, _ = torch.cat([scores, torch.nextafter(scores, torch.full_like(scores, torch.inf))]).sort()
    scaled = to_unit_range(scores)
    assert bool((scaled.diff() > 0).all())
    assert (scaled[0], scaled[-1]) == (0, 1)


def test_unit_range_of_equal_scores_is_finite():
    torch.testing.assert_close(to_unit_range(torch.full((3,), 7.0)), torch.zeros(3, dtype=torch.float64))
