"""The loss of the paper's adapters, and the cosine difference it is a function of, against the slow reference."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F
from torch.testing import assert_close

from anovl_plugin.scoring.adaptation import soft_label_loss
from anovl_plugin.scoring.scores import abnormality_margin, cosine_difference
from tests.helpers import reference_adaptation
from tests.helpers.adaptations import make_text_bank
from tests.helpers.random_tensors import noise
from tests.helpers.tolerances import EXACT, FLOAT32, FLOAT64


@pytest.mark.parametrize("length", [1e-3, 1.0, 1e3])
def test_cosine_difference_is_the_log_odds_of_the_reference(length):
    tokens, states = length * noise(7, 24).double(), make_text_bank().state_embeddings.double()
    p = reference_adaptation.probabilities(tokens, states)
    assert_close(cosine_difference(tokens, states), (p[:, 1] / p[:, 0]).log(), **FLOAT64)


def test_cosine_difference_is_the_difference_of_the_cosines():
    tokens, states = noise(2, 7, 24), make_text_bank().state_embeddings
    cosines = F.cosine_similarity(tokens[:, :, None], states, dim=-1)
    differences = cosine_difference(tokens, states)
    assert differences.shape == (2, 7)
    assert_close(differences, cosines[..., 1] - cosines[..., 0], **FLOAT32)
    assert_close(cosine_difference(tokens, states.flip(0)), -differences, **EXACT)


def test_opposite_states_differ_by_2():
    states = torch.tensor([[-1.0, 0.0], [1.0, 0.0]])
    assert_close(
        cosine_difference(torch.tensor([[3.0, 0.0], [-3.0, 0.0], [0.0, 3.0]]), states), torch.tensor([2.0, -2.0, 0.0])
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_a_zero_token_has_no_difference(dtype):
    tokens = torch.zeros(3, 24, dtype=dtype, requires_grad=True)
    differences = cosine_difference(tokens, make_text_bank().state_embeddings.to(dtype))
    assert differences.dtype == dtype
    assert torch.equal(differences, torch.zeros(3, dtype=dtype))
    differences.sum().backward()
    assert tokens.grad.isfinite().all()
    assert torch.equal(abnormality_margin(tokens, make_text_bank().state_embeddings), torch.zeros(3))


@settings(max_examples=30)
@given(seed=st.integers(0, 2**31), exponent=st.integers(-40, 15))
def test_differences_stay_in_their_range_at_any_length(seed, exponent):
    states = torch.tensor([[-1.0, 0.0], [1.0, 0.0]])
    differences = cosine_difference(10.0**exponent * noise(50, 2, seed=seed), states)
    assert differences.isfinite().all()
    assert (differences.abs() <= 2 + 1e-6).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_margins_are_float32_under_autocast(dtype):
    tokens, states = noise(5, 24), make_text_bank().state_embeddings
    expected = abnormality_margin(tokens, states)
    with torch.autocast("cpu", dtype):
        margins = abnormality_margin(tokens, states)
    assert margins.dtype == torch.float32
    assert torch.equal(margins, expected)


def probabilities_of(differences):
    return torch.stack([torch.zeros_like(differences), differences], dim=-1).softmax(-1)


@settings(max_examples=20)
@given(seed=st.integers(0, 2**31), size=st.sampled_from([1e-3, 0.1, 1.0, 2.0]), patches=st.integers(1, 9))
def test_loss_is_that_of_the_reference(seed, size, patches):
    clean, noisy = size * noise(2, 3, patches, seed=seed).double()
    pairs = zip(probabilities_of(clean), probabilities_of(noisy), strict=True)
    expected = torch.stack([reference_adaptation.loss(*pair) for pair in pairs])
    assert_close(soft_label_loss(clean, noisy), expected, **FLOAT64)
    assert_close(soft_label_loss(clean.float(), noisy.float()), expected.float(), atol=2e-6, rtol=0)


def test_loss_is_the_formula():
    clean, noisy = [0.3, -0.2], [0.5, 0.1]
    total = 0.0
    for one, other in zip(clean, noisy, strict=True):
        abnormal, noisy_abnormal = 1 / (1 + math.exp(-one)), 1 / (1 + math.exp(-other))
        entropy = -abnormal * math.log(abnormal) - (1 - abnormal) * math.log(1 - abnormal)
        total += entropy / 2 + 0.5 * (-math.log(noisy_abnormal) - math.log(1 - abnormal)) / 2
    loss = soft_label_loss(torch.tensor([clean]), torch.tensor([noisy]))
    assert_close(loss, torch.tensor([total]), **FLOAT32)


def test_loss_has_the_gradient_of_finite_differences():
    clean, noisy = noise(2, 3, 5).double()
    assert torch.autograd.gradcheck(soft_label_loss, (clean.requires_grad_(), noisy.requires_grad_()))


def test_loss_through_the_cosines_has_the_gradient_of_finite_differences():
    tokens, states = noise(2, 5, 24).double().requires_grad_(), make_text_bank().state_embeddings.double()
    corrupted = 0.055 * noise(2, 5, 24, seed=5).double()

    def loss(tokens):
        return soft_label_loss(cosine_difference(tokens, states), cosine_difference(tokens + corrupted, states))

    assert torch.autograd.gradcheck(loss, (tokens,))


@pytest.mark.parametrize("differences", [2.0, -2.0, 0.0, 80.0, -80.0])
def test_loss_is_finite_at_both_ends(differences):
    values = torch.full((1, 4), differences, requires_grad=True)
    loss = soft_label_loss(values, values)
    (slope,) = torch.autograd.grad(loss.sum(), values)
    assert loss.isfinite().all()
    assert slope.isfinite().all()
