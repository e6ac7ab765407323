"""The paper's two adapters against the slow reference: settings, independence and reproducibility."""

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F
from torch.testing import assert_close

from anovl_plugin.config import to_config
from anovl_plugin.scoring.adaptation import (
    Adaptation,
    LinearAdapter,
    ResidualAdapter,
    adapt_tokens,
    soft_label_loss,
)
from anovl_plugin.scoring.scores import cosine_difference
from anovl_plugin.text.text_bank import TextBank
from tests.helpers import reference_adaptation
from tests.helpers.adaptations import KINDS, both_kinds, make_text_bank
from tests.helpers.random_tensors import noise
from tests.helpers.tolerances import FLOAT32, REFERENCE

SIZES = [(1, 8, 3), (16, 24, 10), (5, 24, 924), (49, 64, 200)]
SEEDS = st.integers(0, 2**31)


def expected_of(kind, tokens, bank, **options):
    name = next(name for name, each in KINDS.items() if each is kind)
    images = [
        reference_adaptation.adapted(name, image, bank.state_embeddings, bank.prompt_embeddings, **options)
        for image in tokens
    ]
    return torch.stack(images)


def in_float64(kind, tokens, bank, **options):
    """Run an adapter in float64, from the weights that it draws in float32."""

    class Double(kind):
        def _initial(self, tokens, text_bank, generator):
            parts = super()._initial(tokens.float(), text_bank, generator)
            return [part.detach().double().requires_grad_() for part in parts]

    double = bank.copy()
    double.state_embeddings, double.prompt_embeddings = (
        double.state_embeddings.double(),
        double.prompt_embeddings.double(),
    )
    return Double(**options).adapt(tokens.double(), double)


# The formula


@both_kinds
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("length", [0.1, 1.0])
def test_adapted_tokens_equal_the_reference(kind, size, length):
    patches, width, num_prompts = size
    tokens, bank = length * noise(2, patches, width, seed=patches), make_text_bank(width, num_prompts)
    result = adapt_tokens(kind(), tokens, bank)
    assert result.dtype == torch.float32
    assert result.shape == tokens.shape
    assert (result - tokens).abs().max() > 0.1
    expected = expected_of(kind, tokens, bank)
    assert_close(result, expected.float(), atol=3e-5, rtol=0)
    assert_close(in_float64(kind, tokens, bank), expected, atol=1e-6, rtol=0)


@both_kinds
@pytest.mark.parametrize(
    "options",
    [
        {"steps": 1},
        {"steps": 9},
        {"learning_rate": 0.03},
        {"learning_rate": 0.0},
        {"noise_std": 0.0},
        {"noise_std": 0.5},
        {"seed": 7},
    ],
    ids=str,
)
def test_settings_reach_the_reference(kind, options):
    tokens, bank = noise(2, 9, 24), make_text_bank()
    result = adapt_tokens(kind(**options), tokens, bank)
    # Without noise, gradients are some 1e-12, and float32 leaves a share of AdamW's steps to chance.
    expected, within = expected_of(kind, tokens, bank, **options), 2e-4 if options == {"noise_std": 0.0} else 1e-5
    assert_close(result, expected.float(), atol=within, rtol=0)
    assert_close(in_float64(kind, tokens, bank, **options), expected, atol=1e-6, rtol=0)
    assert (result - adapt_tokens(kind(), tokens, bank)).abs().max() > 1e-5


@both_kinds
def test_defaults_are_those_of_the_paper(kind):
    assert kind() == kind(steps=5, learning_rate=1e-3, noise_std=0.055, seed=0, batch_size=4)


@both_kinds
def test_adaptation_lowers_the_loss(kind):
    # Without noise the loss is least where both states are equally likely, so start far from there.
    tokens, bank = noise(3, 16, 24), make_text_bank()
    bank.state_embeddings = torch.eye(2, 24)
    tokens[..., 1] += 6

    def losses(**options):
        differences = cosine_difference(adapt_tokens(kind(noise_std=0, **options), tokens, bank), bank.state_embeddings)
        return soft_label_loss(differences, differences)

    assert (losses(learning_rate=0.01, steps=50) < losses(learning_rate=0) - 1e-3).all()


def test_without_learning_a_linear_adapter_is_one_matrix():
    tokens, bank = noise(3, 16, 24), make_text_bank()
    weight, bias, _ = reference_adaptation.draw(24, (16, 24), 0, 0, 0)
    expected = 0.5 * tokens + 0.5 * (F.normalize(tokens, dim=-1) @ weight.float().T + bias.float())
    assert_close(adapt_tokens(LinearAdapter(learning_rate=0), tokens, bank), expected, **FLOAT32)


@both_kinds
def test_only_the_text_adapter_uses_the_prompts(kind):
    tokens, bank, other = noise(1, 4, 24), make_text_bank(), make_text_bank()
    other.prompt_embeddings = other.prompt_embeddings.flip(1)
    same = torch.equal(adapt_tokens(kind(), tokens, bank), adapt_tokens(kind(), tokens, other))
    assert same is (kind is LinearAdapter)


# The same in every run and every batch


@settings(max_examples=10)
@given(kind=st.sampled_from(list(KINDS.values())), seed=SEEDS, drawn=st.integers(0, 50), number=st.integers(1, 4))
def test_the_same_tokens_give_the_same_bits(kind, seed, drawn, number):
    tokens, bank = noise(number, 6, 16, seed=seed), make_text_bank(16)
    first = adapt_tokens(kind(seed=seed), tokens, bank)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(drawn)
        torch.rand(drawn)
        adapt_tokens(kind(seed=drawn), 2 * tokens, bank)
        assert torch.equal(adapt_tokens(kind(seed=seed), tokens.clone(), bank), first)


@both_kinds
def test_the_global_generator_is_left_alone(kind):
    state = torch.get_rng_state()
    adapt_tokens(kind(), noise(2, 6, 16), make_text_bank(16))
    assert torch.equal(torch.get_rng_state(), state)


@settings(max_examples=15)
@given(
    kind=st.sampled_from(list(KINDS.values())),
    seed=SEEDS,
    number=st.integers(1, 6),
    batch_size=st.integers(1, 8),
    order=st.randoms(use_true_random=False),
)
def test_a_result_does_not_depend_on_batch_order_or_neighbors(kind, seed, number, batch_size, order):
    tokens, bank, places = noise(number, 9, 24, seed=seed), make_text_bank(num_prompts=40), list(range(number))
    order.shuffle(places)
    together = adapt_tokens(kind(batch_size=batch_size), tokens[places], bank)
    for position, place in enumerate(places):
        alone = adapt_tokens(kind(), tokens[place : place + 1], bank)
        assert_close(together[position], alone[0], **REFERENCE)


@settings(max_examples=10)
@given(kind=st.sampled_from(list(KINDS.values())), seed=SEEDS, scale=st.sampled_from([0.0, 1e-3, 50.0]))
def test_an_unusual_neighbor_changes_nothing(kind, seed, scale):
    tokens, bank = noise(2, 9, 24, seed=seed), make_text_bank()
    beside = torch.stack([tokens[0], scale * tokens[1]])
    assert_close(adapt_tokens(kind(), beside, bank)[0], adapt_tokens(kind(), tokens[:1], bank)[0], **REFERENCE)


@both_kinds
def test_equal_images_get_equal_tokens(kind):
    tokens = noise(1, 9, 24).expand(5, -1, -1)
    result = adapt_tokens(kind(batch_size=3), tokens, make_text_bank())
    assert_close(result, result[:1].expand(5, -1, -1), **REFERENCE)


@settings(max_examples=10)
@given(kind=st.sampled_from(list(KINDS.values())), seeds=st.lists(SEEDS, min_size=2, max_size=2, unique=True))
def test_another_seed_gives_another_result(kind, seeds):
    tokens, bank = noise(1, 6, 16), make_text_bank(16)
    one, other = (adapt_tokens(kind(seed=seed), tokens, bank) for seed in seeds)
    assert (one - other).abs().max() > 1e-3


@both_kinds
def test_no_images_give_no_images(kind):
    assert adapt_tokens(kind(), torch.zeros(0, 6, 16), make_text_bank(16)).shape == (0, 6, 16)


@pytest.fixture(params=[torch.float16, torch.bfloat16, torch.float64], ids=str)
def other_dtype(request):
    torch.set_default_dtype(request.param)
    yield request.param
    torch.set_default_dtype(torch.float32)


@both_kinds
def test_the_default_dtype_changes_nothing(kind, other_dtype):
    assert torch.get_default_dtype() == other_dtype
    tokens = torch.ones(1, 9, 24, dtype=torch.float32)
    bank = TextBank()
    bank.state_embeddings, bank.prompt_embeddings = (torch.eye(rows, 24, dtype=torch.float32) for rows in (2, 10))
    result = adapt_tokens(kind(), tokens, bank)
    torch.set_default_dtype(torch.float32)
    assert torch.equal(result, adapt_tokens(kind(), tokens, bank))


# Settings


@both_kinds
def test_numpy_numbers_become_plain_numbers(kind):
    adapter = kind(np.int64(2), np.float32(0.5), np.float64(0.25), np.uint8(3), np.int32(1))
    assert adapter == kind(2, 0.5, 0.25, 3, 1)
    assert [type(value) for value in to_config(adapter)["init_args"].values()] == [int, float, float, int, int]


@both_kinds
def test_bounds_are_accepted(kind):
    smallest, largest = kind(1, 0, 0, 0, 1), kind(1, 100, 100, 2**63 - 1, 2**63 - 1)
    for adapter in (smallest, largest):
        assert adapt_tokens(adapter, noise(2, 3, 8), make_text_bank(8)).isfinite().all()


# Subclasses


@pytest.mark.parametrize("kind", [Adaptation, ResidualAdapter])
def test_an_abstract_adaptation_cannot_be_created(kind):
    with pytest.raises(TypeError, match=rf"abstract class {kind.__name__}"):
        kind()


def test_a_users_own_residual_adapter_is_tuned():
    @dataclasses.dataclass
    class Still(ResidualAdapter):
        def hidden_size(self, text_bank):
            return text_bank.state_embeddings.shape[-1]

        def decode(self, hidden, text_bank):  # noqa: ARG002
            return 0 * hidden

    tokens = noise(3, 9, 24)
    assert_close(adapt_tokens(Still(), tokens, make_text_bank()), 0.5 * tokens, **FLOAT32)
