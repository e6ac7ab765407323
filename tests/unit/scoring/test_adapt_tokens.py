"""What adapt_tokens guarantees to an adaptation, and what it requires of one."""

import dataclasses
import math
import re
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

import anovl_plugin
from anovl_plugin.scoring.adaptation import Adaptation, adapt_tokens
from tests.helpers.adaptations import KINDS, Center, Watch, both_kinds, make_text_bank
from tests.helpers.random_tensors import noise
from tests.helpers.tolerances import EXACT, FLOAT32, REFERENCE


@dataclasses.dataclass
class Spoil(Adaptation):
    """Adds 1, and puts ``value`` in the middle of each image whose first number is above 100."""

    value: float = math.nan
    batch_size: int = 2

    def adapt(self, tokens, text_bank):  # noqa: ARG002
        spoiled = tokens + 1
        spoiled[tokens[:, 0, 0] > 100, tokens.shape[1] // 2, 0] = self.value
        return spoiled


@dataclasses.dataclass
class Return(Adaptation):
    """Returns what a function makes of the tokens."""

    function: object = None

    def adapt(self, tokens, text_bank):  # noqa: ARG002
        return self.function(tokens)


def test_a_users_own_adaptation_is_applied():
    tokens = noise(3, 9, 24)
    expected = tokens - 0.5 * tokens.mean(1, keepdim=True)
    assert_close(adapt_tokens(Center(0.5), tokens, make_text_bank()), expected, **FLOAT32)


# Modes and precisions of torch


@both_kinds
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_a_mode_changes_no_bit(kind, mode):
    expected = adapt_tokens(kind(), noise(3, 9, 24), make_text_bank())
    with mode():
        result = adapt_tokens(kind(), noise(3, 9, 24), make_text_bank())
    assert not result.requires_grad
    assert torch.equal(result, expected)


@both_kinds
def test_what_inference_mode_made_can_be_adapted_outside(kind):
    with torch.inference_mode():
        tokens, bank = noise(3, 9, 24), make_text_bank()
    assert tokens.is_inference()
    assert bank.state_embeddings.is_inference()
    assert torch.equal(adapt_tokens(kind(), tokens, bank), adapt_tokens(kind(), noise(3, 9, 24), make_text_bank()))


@both_kinds
def test_autocast_changes_no_bit(kind):
    tokens, bank = noise(3, 9, 24), make_text_bank()
    with torch.autocast("cpu", torch.bfloat16):
        result = adapt_tokens(kind(), tokens, bank)
        assert torch.is_autocast_enabled("cpu")
    assert result.dtype == torch.float32
    assert torch.equal(result, adapt_tokens(kind(), tokens, bank))


@both_kinds
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_tokens_of_another_precision_are_adapted_in_float32(kind, dtype):
    tokens, bank = noise(3, 9, 24).to(dtype), make_text_bank()
    result = adapt_tokens(kind(), tokens, bank)
    assert result.dtype == torch.float32
    assert torch.equal(result, adapt_tokens(kind(), tokens.float(), bank))


def test_an_adaptation_may_take_gradients_and_write_on_its_copies():
    tokens, bank, watch = noise(5, 9, 24), make_text_bank(), Watch(batch_size=5)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        result = adapt_tokens(watch, tokens.half(), bank)
    assert watch.sizes == [5]
    assert_close(result, tokens.half().float() * bank.state_embeddings[1], **EXACT)


@pytest.mark.parametrize(("batch_size", "sizes"), [(1, [1] * 5), (2, [2, 2, 1]), (5, [5]), (8, [5])])
def test_batch_size_bounds_what_is_adapted_at_once(batch_size, sizes):
    watch = Watch(batch_size)
    adapt_tokens(watch, noise(5, 9, 24), make_text_bank())
    assert watch.sizes == sizes


# Results that are not finite


def spoiled(message):
    return pytest.warns(RuntimeWarning, match=rf"^{re.escape(message)}$")


@settings(max_examples=15)
@given(
    marks=st.lists(st.booleans(), min_size=1, max_size=6).filter(any),
    value=st.sampled_from([math.nan, math.inf, -math.inf]),
    batch_size=st.integers(1, 8),
)
def test_an_image_that_cannot_be_adapted_keeps_its_tokens(marks, value, batch_size):
    tokens = noise(len(marks), 5, 8)
    tokens[torch.tensor(marks), 0, 0] = 101.0
    message = f"the adaptation of {sum(marks)} of {len(marks)} images is not finite; their maps are training-free"
    with spoiled(message) as caught:
        result = adapt_tokens(Spoil(value, batch_size), tokens, make_text_bank(8))
    assert len(caught) == 1
    expected = torch.where(torch.tensor(marks)[:, None, None], tokens, tokens + 1)
    assert torch.equal(result, expected)


@both_kinds
@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_tokens_that_are_not_finite_spoil_no_other_image(kind, value, batch_size):
    tokens, bank = noise(4, 9, 24), make_text_bank()
    plain = adapt_tokens(kind(batch_size=batch_size), tokens, bank)
    tokens[2, 4, 7] = value
    with spoiled("the adaptation of 1 of 4 images is not finite; their maps are training-free") as caught:
        result = adapt_tokens(kind(batch_size=batch_size), tokens, bank)
    assert len(caught) == 1
    assert_close(result[2], tokens[2], **EXACT, equal_nan=True)
    others = [0, 1, 3]
    assert_close(result[others], plain[others], **REFERENCE)


@both_kinds
def test_what_is_finite_warns_of_nothing(kind):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        adapt_tokens(kind(), noise(3, 9, 24), make_text_bank())
        adapt_tokens(kind(), torch.zeros(1, 9, 24), make_text_bank())


def test_a_result_beyond_float32_is_not_finite():
    tokens = noise(2, 9, 24)
    with spoiled("the adaptation of 2 of 2 images is not finite; their maps are training-free"):
        result = adapt_tokens(Return(lambda tokens: 1e200 * tokens.double()), tokens, make_text_bank())
    assert torch.equal(result, tokens)


# Results that cannot be scored

WANTED = "Return.adapt must return a floating-point tensor of shape (2, 9, 24) on cpu, but returned "


@pytest.mark.parametrize(
    ("function", "error", "returned"),
    [
        (lambda _: None, TypeError, "None"),
        (lambda tokens: tokens.numpy(), TypeError, "a ndarray"),
        (lambda tokens: (tokens, tokens), TypeError, "a tuple"),
        (list, TypeError, "a list"),
        (lambda tokens: tokens.int(), TypeError, "torch.int32"),
        (lambda tokens: tokens > 0, TypeError, "torch.bool"),
        (lambda tokens: tokens.to(torch.complex64), TypeError, "torch.complex64"),
        (lambda tokens: tokens[:, 1:], ValueError, "shape (2, 8, 24)"),
        (lambda tokens: tokens[..., :1], ValueError, "shape (2, 9, 1)"),
        (lambda tokens: tokens[:1], ValueError, "shape (1, 9, 24)"),
        (lambda tokens: tokens.mean(), ValueError, "shape ()"),
        (lambda tokens: tokens.resize_(2, 4, 24), ValueError, "shape (2, 4, 24)"),
        (lambda tokens: tokens.to("meta"), ValueError, "a tensor on meta"),
    ],
)
def test_a_result_that_cannot_be_scored_is_an_error(function, error, returned):
    with pytest.raises(error, match=f"^{re.escape(WANTED + returned)}$"):
        adapt_tokens(Return(function), noise(2, 9, 24), make_text_bank())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_result_of_another_precision_becomes_float32(dtype):
    tokens = noise(2, 9, 24)
    result = adapt_tokens(Return(lambda tokens: tokens.to(dtype)), tokens, make_text_bank())
    assert torch.equal(result, tokens.to(dtype).float())


def test_a_result_made_in_inference_mode_is_accepted():
    tokens = noise(2, 9, 24)
    result = adapt_tokens(Return(torch.inference_mode()(lambda tokens: tokens + 1)), tokens, make_text_bank())
    assert not result.is_inference()
    assert torch.equal(result, tokens + 1)


def test_what_an_adaptation_writes_to_its_text_bank_does_not_reach_the_next_part():
    tokens, bank = noise(5, 9, 24), make_text_bank()
    assert torch.equal(adapt_tokens(Watch(2), tokens, bank), adapt_tokens(Watch(5), tokens, bank))


@pytest.mark.parametrize(
    ("value", "error"),
    [(0, ValueError), (-1, ValueError), (2**63, ValueError)]
    + [(value, TypeError) for value in (True, 2.0, "2", None, [2], math.nan)],
    ids=repr,
)
def test_a_batch_size_that_is_not_a_number_of_images_is_an_error(value, error):
    message = rf"^batch_size of Watch is {re.escape(repr(value))}, but must be a whole number of at least 1"
    with pytest.raises(error, match=message):
        adapt_tokens(Watch(value), noise(5, 9, 24), make_text_bank())


def test_a_batch_size_may_be_a_numpy_integer():
    watch = Watch(np.int64(2))
    adapt_tokens(watch, noise(5, 9, 24), make_text_bank())
    assert watch.sizes == [2, 2, 1]


@pytest.mark.parametrize("error", [RuntimeError("of its own\nmaking"), KeyError("x"), KeyboardInterrupt()], ids=repr)
def test_an_error_of_the_adaptation_itself_passes_unchanged(error):
    def fail(_):
        raise error

    with pytest.raises(type(error)) as caught:
        adapt_tokens(Return(fail), noise(2, 9, 24), make_text_bank())
    assert caught.value is error


def test_adaptations_are_public():
    assert anovl_plugin.Adaptation is Adaptation
    assert anovl_plugin.TextAdapter is KINDS["text"]
    assert anovl_plugin.LinearAdapter is KINDS["linear"]
