"""Test-time adaptation against the slow reference, and what it promises whoever calls it."""

import dataclasses
import gc
import math
import re
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F
from torch.nn.modules import module as torch_module
from torch.testing import assert_close

import anovl_plugin
from anovl_plugin.scoring.adaptation import (
    Adaptation,
    LinearAdapter,
    ResidualAdapter,
    TextAdapter,
    adapt_tokens,
    adaptation_config,
    read_adaptation,
    soft_label_loss,
)
from anovl_plugin.scoring.scores import cosine_difference
from anovl_plugin.text.text_bank import TextBank
from anovl_plugin.torch_model import AnoVLModel
from tests.helpers import reference_adaptation

WITHIN = {"atol": 1e-5, "rtol": 0}
KINDS = {"text": TextAdapter, "linear": LinearAdapter}
SIZES = [(1, 8, 3), (16, 24, 10), (5, 24, 924), (49, 64, 200)]
SEEDS = st.integers(0, 2**31)
both = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)


@dataclasses.dataclass
class Center(Adaptation):
    """A user's own: takes the mean of an image's tokens away."""

    strength: float = 1.0
    note: str | None = None

    def adapt(self, tokens, text_bank):
        assert text_bank.state_embeddings.shape == (2, tokens.shape[-1])
        return tokens - self.strength * tokens.mean(1, keepdim=True)


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
class Reshape(Adaptation):
    """Gives one token too few."""

    def adapt(self, tokens, text_bank):  # noqa: ARG002
        return tokens[:, 1:]


@dataclasses.dataclass
class Watch(Adaptation):
    """Notes under which conditions it is called, and writes on all it is given."""

    batch_size: int = 2

    def __post_init__(self):
        self.sizes = []

    def adapt(self, tokens, text_bank):
        assert torch.is_grad_enabled()
        assert not torch.is_inference_mode_enabled()
        assert not torch.is_autocast_enabled("cpu")
        for tensor in (tokens, text_bank.state_embeddings, text_bank.prompt_embeddings):
            assert tensor.dtype == torch.float32
            assert tensor.grad_fn is None
            assert not tensor.requires_grad
            assert not tensor.is_inference()
        self.sizes.append(len(tokens))
        scale = torch.ones((), requires_grad=True)
        result = scale * tokens * text_bank.state_embeddings[1]
        result.square().sum().backward()
        for tensor in (tokens, text_bank.state_embeddings, text_bank.prompt_embeddings):
            tensor.zero_()
        return result


class Plain(Adaptation):
    """No dataclass."""

    def adapt(self, tokens, text_bank):  # noqa: ARG002
        return tokens


@dataclasses.dataclass
class Holder(Center):
    """A dataclass with a setting that is no plain data."""

    weights: list = dataclasses.field(default_factory=list)


def noise(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def bank_of(width=24, num_prompts=10, seed=1):
    """Give a bank whose vectors are as close to each other as a CLIP's own are."""
    base, bank = noise(width, seed=seed), TextBank(width, num_prompts)
    bank.state_embeddings = F.normalize(torch.stack([base, base + 0.1 * noise(width, seed=seed + 1)]), dim=-1)
    bank.prompt_embeddings = F.normalize(base + noise(num_prompts, width, seed=seed + 2), dim=-1)
    return bank


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


# The loss


@pytest.mark.parametrize("length", [1e-3, 1.0, 1e3])
def test_log_odds_are_those_of_the_reference(length):
    tokens, states = length * noise(7, 24).double(), bank_of().state_embeddings.double()
    p = reference_adaptation.probabilities(tokens, states)
    assert_close(cosine_difference(tokens, states), (p[:, 1] / p[:, 0]).log(), atol=1e-12, rtol=0)


def test_log_odds_are_the_difference_of_the_cosines():
    tokens, states = noise(2, 7, 24), bank_of().state_embeddings
    cosines = F.cosine_similarity(tokens[:, :, None], states, dim=-1)
    odds = cosine_difference(tokens, states)
    assert odds.shape == (2, 7)
    assert_close(odds, cosines[..., 1] - cosines[..., 0], atol=1e-6, rtol=0)
    assert_close(cosine_difference(tokens, states.flip(0)), -odds, atol=0, rtol=0)


def test_log_odds_of_opposite_states_reach_2():
    states = torch.tensor([[-1.0, 0.0], [1.0, 0.0]])
    assert_close(
        cosine_difference(torch.tensor([[3.0, 0.0], [-3.0, 0.0], [0.0, 3.0]]), states), torch.tensor([2.0, -2.0, 0.0])
    )


def probabilities_of(odds):
    return torch.stack([torch.zeros_like(odds), odds], dim=-1).softmax(-1)


@settings(max_examples=20, deadline=None)
@given(seed=SEEDS, size=st.sampled_from([1e-3, 0.1, 1.0, 2.0]), patches=st.integers(1, 9))
def test_loss_is_that_of_the_reference(seed, size, patches):
    clean, noisy = size * noise(2, 3, patches, seed=seed).double()
    pairs = zip(probabilities_of(clean), probabilities_of(noisy), strict=True)
    expected = torch.stack([reference_adaptation.loss(*pair) for pair in pairs])
    assert_close(soft_label_loss(clean, noisy), expected, atol=1e-12, rtol=0)
    assert_close(soft_label_loss(clean.float(), noisy.float()), expected.float(), atol=2e-6, rtol=0)


def test_loss_is_the_formula():
    clean, noisy = [0.3, -0.2], [0.5, 0.1]
    total = 0.0
    for one, other in zip(clean, noisy, strict=True):
        abnormal, noisy_abnormal = 1 / (1 + math.exp(-one)), 1 / (1 + math.exp(-other))
        entropy = -abnormal * math.log(abnormal) - (1 - abnormal) * math.log(1 - abnormal)
        total += entropy / 2 + 0.5 * (-math.log(noisy_abnormal) - math.log(1 - abnormal)) / 2
    loss = soft_label_loss(torch.tensor([clean]), torch.tensor([noisy]))
    assert_close(loss, torch.tensor([total]), atol=1e-6, rtol=0)


def test_loss_has_the_gradient_of_finite_differences():
    clean, noisy = noise(2, 3, 5).double()
    assert torch.autograd.gradcheck(soft_label_loss, (clean.requires_grad_(), noisy.requires_grad_()))


def test_loss_through_the_odds_has_the_gradient_of_finite_differences():
    tokens, states = noise(2, 5, 24).double().requires_grad_(), bank_of().state_embeddings.double()
    corrupted = 0.055 * noise(2, 5, 24, seed=5).double()

    def loss(tokens):
        return soft_label_loss(cosine_difference(tokens, states), cosine_difference(tokens + corrupted, states))

    assert torch.autograd.gradcheck(loss, (tokens,))


@pytest.mark.parametrize("odds", [2.0, -2.0, 0.0, 80.0, -80.0])
def test_loss_is_finite_at_both_ends(odds):
    values = torch.full((1, 4), odds, requires_grad=True)
    loss = soft_label_loss(values, values)
    (slope,) = torch.autograd.grad(loss.sum(), values)
    assert loss.isfinite().all()
    assert slope.isfinite().all()


# The adapters


@both
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("length", [0.1, 1.0])
def test_adapted_tokens_equal_the_reference(kind, size, length):
    patches, width, num_prompts = size
    tokens, bank = length * noise(2, patches, width, seed=patches), bank_of(width, num_prompts)
    result = adapt_tokens(kind(), tokens, bank)
    assert result.dtype == torch.float32
    assert result.shape == tokens.shape
    assert (result - tokens).abs().max() > 0.1
    expected = expected_of(kind, tokens, bank)
    assert_close(result, expected.float(), atol=3e-5, rtol=0)
    assert_close(in_float64(kind, tokens, bank), expected, atol=1e-6, rtol=0)


@both
@pytest.mark.parametrize(
    "options",
    [
        {"steps": 1},
        {"steps": 9},
        {"learning_rate": 0.03},
        {"learning_rate": 0.0},
        {"noise": 0.0},
        {"noise": 0.5},
        {"seed": 7},
    ],
    ids=str,
)
def test_settings_reach_the_reference(kind, options):
    tokens, bank = noise(2, 9, 24), bank_of()
    renamed = {"spread" if name == "noise" else name: value for name, value in options.items()}
    result = adapt_tokens(kind(**options), tokens, bank)
    # Without noise, gradients are some 1e-12, and float32 leaves a share of AdamW's steps to chance.
    expected, within = expected_of(kind, tokens, bank, **renamed), 2e-4 if options == {"noise": 0.0} else 1e-5
    assert_close(result, expected.float(), atol=within, rtol=0)
    assert_close(in_float64(kind, tokens, bank, **options), expected, atol=1e-6, rtol=0)
    assert (result - adapt_tokens(kind(), tokens, bank)).abs().max() > 1e-5


@both
def test_defaults_are_those_of_the_paper(kind):
    assert kind() == kind(steps=5, learning_rate=1e-3, noise=0.055, seed=0, batch_size=4)


@both
def test_adaptation_lowers_the_loss(kind):
    # Without noise the loss is least where both states are equally likely, so start far from there.
    tokens, bank = noise(3, 16, 24), bank_of()
    bank.state_embeddings = torch.eye(2, 24)
    tokens[..., 1] += 6

    def losses(**options):
        odds = cosine_difference(adapt_tokens(kind(noise=0, **options), tokens, bank), bank.state_embeddings)
        return soft_label_loss(odds, odds)

    assert (losses(learning_rate=0.01, steps=50) < losses(learning_rate=0) - 1e-3).all()


def test_without_learning_a_linear_adapter_is_one_matrix():
    tokens, bank = noise(3, 16, 24), bank_of()
    weight, bias, _ = reference_adaptation.draw(24, (16, 24), 0, 0, 0)
    expected = 0.5 * tokens + 0.5 * (F.normalize(tokens, dim=-1) @ weight.float().T + bias.float())
    assert_close(adapt_tokens(LinearAdapter(learning_rate=0), tokens, bank), expected, atol=1e-6, rtol=0)


@both
def test_only_the_text_adapter_looks_at_the_prompts(kind):
    tokens, bank, other = noise(1, 4, 24), bank_of(), bank_of()
    other.prompt_embeddings = other.prompt_embeddings.flip(1)
    same = torch.equal(adapt_tokens(kind(), tokens, bank), adapt_tokens(kind(), tokens, other))
    assert same is (kind is LinearAdapter)


# The same whenever, wherever and in whatever company


@settings(max_examples=10, deadline=None)
@given(kind=st.sampled_from(list(KINDS.values())), seed=SEEDS, drawn=st.integers(0, 50), number=st.integers(1, 4))
def test_the_same_tokens_give_the_same_bits(kind, seed, drawn, number):
    tokens, bank = noise(number, 6, 16, seed=seed), bank_of(16)
    first = adapt_tokens(kind(seed=seed), tokens, bank)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(drawn)
        torch.rand(drawn)
        adapt_tokens(kind(seed=drawn), 2 * tokens, bank)
        assert torch.equal(adapt_tokens(kind(seed=seed), tokens.clone(), bank), first)


@both
def test_the_global_generator_is_left_alone(kind):
    state = torch.get_rng_state()
    adapt_tokens(kind(), noise(2, 6, 16), bank_of(16))
    assert torch.equal(torch.get_rng_state(), state)


@settings(max_examples=15, deadline=None)
@given(
    kind=st.sampled_from(list(KINDS.values())),
    seed=SEEDS,
    number=st.integers(1, 6),
    batch_size=st.integers(1, 8),
    order=st.randoms(use_true_random=False),
)
def test_a_result_does_not_depend_on_batch_order_or_neighbours(kind, seed, number, batch_size, order):
    tokens, bank, places = noise(number, 9, 24, seed=seed), bank_of(num_prompts=40), list(range(number))
    order.shuffle(places)
    together = adapt_tokens(kind(batch_size=batch_size), tokens[places], bank)
    for position, place in enumerate(places):
        alone = adapt_tokens(kind(), tokens[place : place + 1], bank)
        assert_close(together[position], alone[0], **WITHIN)


@settings(max_examples=10, deadline=None)
@given(kind=st.sampled_from(list(KINDS.values())), seed=SEEDS, scale=st.sampled_from([0.0, 1e-3, 50.0]))
def test_a_strange_neighbour_changes_nothing(kind, seed, scale):
    tokens, bank = noise(2, 9, 24, seed=seed), bank_of()
    beside = torch.stack([tokens[0], scale * tokens[1]])
    assert_close(adapt_tokens(kind(), beside, bank)[0], adapt_tokens(kind(), tokens[:1], bank)[0], **WITHIN)


@both
def test_equal_images_get_equal_tokens(kind):
    tokens = noise(1, 9, 24).expand(5, -1, -1)
    result = adapt_tokens(kind(batch_size=3), tokens, bank_of())
    assert_close(result, result[:1].expand(5, -1, -1), **WITHIN)


@settings(max_examples=10, deadline=None)
@given(kind=st.sampled_from(list(KINDS.values())), seeds=st.lists(SEEDS, min_size=2, max_size=2, unique=True))
def test_another_seed_gives_another_result(kind, seeds):
    tokens, bank = noise(1, 6, 16), bank_of(16)
    one, other = (adapt_tokens(kind(seed=seed), tokens, bank) for seed in seeds)
    assert (one - other).abs().max() > 1e-3


@both
def test_no_images_give_no_images(kind):
    assert adapt_tokens(kind(), torch.zeros(0, 6, 16), bank_of(16)).shape == (0, 6, 16)


# Modes and precisions of torch


@both
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_a_mode_changes_no_bit(kind, mode):
    expected = adapt_tokens(kind(), noise(3, 9, 24), bank_of())
    with mode():
        result = adapt_tokens(kind(), noise(3, 9, 24), bank_of())
    assert not result.requires_grad
    assert torch.equal(result, expected)


@both
def test_what_inference_mode_made_can_be_adapted_outside(kind):
    with torch.inference_mode():
        tokens, bank = noise(3, 9, 24), bank_of()
    assert tokens.is_inference()
    assert bank.state_embeddings.is_inference()
    assert torch.equal(adapt_tokens(kind(), tokens, bank), adapt_tokens(kind(), noise(3, 9, 24), bank_of()))


@both
def test_autocast_changes_no_bit(kind):
    tokens, bank = noise(3, 9, 24), bank_of()
    with torch.autocast("cpu", torch.bfloat16):
        result = adapt_tokens(kind(), tokens, bank)
        assert torch.is_autocast_enabled("cpu")
    assert result.dtype == torch.float32
    assert torch.equal(result, adapt_tokens(kind(), tokens, bank))


@both
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_tokens_of_another_precision_are_adapted_in_float32(kind, dtype):
    tokens, bank = noise(3, 9, 24).to(dtype), bank_of()
    result = adapt_tokens(kind(), tokens, bank)
    assert result.dtype == torch.float32
    assert torch.equal(result, adapt_tokens(kind(), tokens.float(), bank))


@pytest.fixture(params=[torch.float16, torch.bfloat16, torch.float64], ids=str)
def other_dtype(request):
    torch.set_default_dtype(request.param)
    yield request.param
    torch.set_default_dtype(torch.float32)


@both
def test_the_default_dtype_changes_nothing(kind, other_dtype):
    assert torch.get_default_dtype() == other_dtype
    tokens = torch.ones(1, 9, 24, dtype=torch.float32)
    bank = TextBank(24, 10)
    bank.state_embeddings, bank.prompt_embeddings = (torch.eye(rows, 24, dtype=torch.float32) for rows in (2, 10))
    result = adapt_tokens(kind(), tokens, bank)
    torch.set_default_dtype(torch.float32)
    assert torch.equal(result, adapt_tokens(kind(), tokens, bank))


def test_an_adaptation_may_take_gradients_and_write_on_its_copies():
    tokens, bank, watch = noise(5, 9, 24), bank_of(), Watch(batch_size=5)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        result = adapt_tokens(watch, tokens.half(), bank)
    assert watch.sizes == [5]
    assert_close(result, tokens.half().float() * bank.state_embeddings[1], atol=0, rtol=0)


@pytest.mark.parametrize(("batch_size", "sizes"), [(1, [1] * 5), (2, [2, 2, 1]), (5, [5]), (8, [5])])
def test_batch_size_bounds_what_is_adapted_at_once(batch_size, sizes):
    watch = Watch(batch_size)
    adapt_tokens(watch, noise(5, 9, 24), bank_of())
    assert watch.sizes == sizes


# Nothing is left behind


@both
@pytest.mark.parametrize("kept", [True, False])
def test_tokens_and_bank_are_left_as_they_were(kind, kept):
    tokens, bank = noise(3, 9, 24).requires_grad_(kept), bank_of()
    before = [tensor.detach().clone() for tensor in (tokens, bank.state_embeddings, bank.prompt_embeddings)]
    result = adapt_tokens(kind(), tokens, bank)
    assert not result.requires_grad
    assert tokens.requires_grad is kept
    for tensor, old in zip((tokens, bank.state_embeddings, bank.prompt_embeddings), before, strict=True):
        assert tensor.grad is None
        assert torch.equal(tensor.detach(), old)


def test_an_adaptation_that_writes_on_its_arguments_harms_no_one():
    tokens, bank = noise(3, 9, 24), bank_of()
    adapt_tokens(Watch(), tokens, bank)
    assert torch.equal(tokens, noise(3, 9, 24))
    assert torch.equal(bank.state_embeddings, bank_of().state_embeddings)
    assert torch.equal(bank.prompt_embeddings, bank_of().prompt_embeddings)


def count_of_tensors_with_gradient():
    gc.collect()
    # By type, for some objects are slow, or loud, when they are asked for their class.
    tensors = [each for each in gc.get_objects() if type(each) in {torch.Tensor, torch.nn.Parameter}]
    return sum(each.requires_grad for each in tensors)


def test_no_tensor_with_gradient_lives_on():
    tokens, bank = noise(3, 9, 24), bank_of()
    before = count_of_tensors_with_gradient()
    results = [adapt_tokens(kind(), tokens, bank) for kind in KINDS.values()]
    assert count_of_tensors_with_gradient() == before
    assert all(result.grad_fn is None for result in results)


@pytest.fixture(scope="module")
def weights(weights_of):
    return "tiny-square", weights_of("tiny-square")


def hooks_of(model):
    kinds = [name for name in vars(model) if name.endswith("_hooks")]
    found = [len(getattr(module, name)) for module in model.modules() for name in kinds]
    shared = [name for name in vars(torch_module) if name.startswith("_global") and name.endswith("_hooks")]
    return found + [len(getattr(torch_module, name)) for name in shared]


@both
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_a_model_is_left_as_it_was(kind, mode, weights):
    model = AnoVLModel(*weights, class_name="bottle", adaptation=kind(steps=2))
    before, hooks = {name: tensor.clone() for name, tensor in model.state_dict().items()}, hooks_of(model)
    with mode():
        result = model(noise(3, 3, 32, 32))
    assert not result.anomaly_map.requires_grad
    assert not result.pred_score.requires_grad
    assert all(weight.grad is None and not weight.requires_grad for weight in model.parameters())
    assert hooks_of(model) == hooks
    assert set(before) == set(model.state_dict())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@both
def test_the_tower_never_enters_the_graph(kind, weights):
    model = AnoVLModel(*weights, class_name="bottle", adaptation=kind(steps=2))
    model.visual.requires_grad_()
    images = noise(2, 3, 32, 32).requires_grad_()
    result = model(images)
    assert images.grad is None
    assert not result.anomaly_map.requires_grad
    assert all(weight.grad is None for weight in model.parameters())


def test_a_model_gives_its_adaptation_tensors_outside_of_any_graph(weights):
    watch = Watch()
    model = AnoVLModel(*weights, class_name="bottle", adaptation=watch)
    model.visual.requires_grad_()
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        model(noise(3, 3, 32, 32).requires_grad_())
    assert watch.sizes == [2, 1]


# What cannot be adapted


def spoiled(message):
    return pytest.warns(RuntimeWarning, match=rf"^{re.escape(message)}$")


@settings(max_examples=15, deadline=None)
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
        result = adapt_tokens(Spoil(value, batch_size), tokens, bank_of(8))
    assert len(caught) == 1
    expected = torch.where(torch.tensor(marks)[:, None, None], tokens, tokens + 1)
    assert torch.equal(result, expected)


@both
@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_tokens_that_are_not_finite_spoil_no_other_image(kind, value, batch_size):
    tokens, bank = noise(4, 9, 24), bank_of()
    sound = adapt_tokens(kind(batch_size=batch_size), tokens, bank)
    tokens[2, 4, 7] = value
    with spoiled("the adaptation of 1 of 4 images is not finite; their maps are training-free") as caught:
        result = adapt_tokens(kind(batch_size=batch_size), tokens, bank)
    assert len(caught) == 1
    assert_close(result[2], tokens[2], atol=0, rtol=0, equal_nan=True)
    others = [0, 1, 3]
    assert_close(result[others], sound[others], **WITHIN)


@both
def test_what_is_finite_warns_of_nothing(kind):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        adapt_tokens(kind(), noise(3, 9, 24), bank_of())
        adapt_tokens(kind(), torch.zeros(1, 9, 24), bank_of())


def test_another_shape_is_refused():
    message = r"^Reshape made tokens of shape \(3, 8, 24\) from \(3, 9, 24\); it must keep the shape$"
    with pytest.raises(ValueError, match=message):
        adapt_tokens(Reshape(), noise(3, 9, 24), bank_of())


@both
@pytest.mark.parametrize(
    ("name", "value", "least"),
    [
        ("steps", 0, 1),
        ("steps", -3, 1),
        ("steps", 1.5, 1),
        ("steps", "5", 1),
        ("learning_rate", -1e-3, None),
        ("learning_rate", math.inf, None),
        ("learning_rate", math.nan, None),
        ("learning_rate", "fast", None),
        ("noise", -0.1, None),
        ("noise", math.inf, None),
        ("noise", math.nan, None),
        ("seed", -1, 0),
        ("seed", 2**70, 0),
        ("batch_size", 0, 1),
        ("batch_size", -8, 1),
        ("batch_size", True, 1),
    ],
)
def test_settings_out_of_their_range_are_refused(kind, name, value, least):
    wanted = "a finite number of at least 0" if least is None else f"a whole number of at least {least}"
    message = rf"^{name} of {kind.__name__} is {value!r}, but must be {wanted}$"
    with pytest.raises(ValueError, match=message):
        kind(**{name: value})


@pytest.mark.parametrize("kind", [Adaptation, ResidualAdapter])
def test_an_adaptation_must_say_how_to_adapt(kind):
    with pytest.raises(TypeError, match=rf"abstract class {kind.__name__}"):
        kind()


# From and to plain data

ADAPTATIONS = [TextAdapter(), LinearAdapter(3, 0.1, 0.0, 12, 1), Center(0.5, "mine"), Center()]


@pytest.mark.parametrize("adaptation", ADAPTATIONS, ids=repr)
def test_what_is_written_can_be_read(adaptation):
    config = adaptation_config(adaptation)
    assert set(config) == {"class_path", "init_args"}
    assert config["init_args"] == dataclasses.asdict(adaptation)
    read = read_adaptation(config)
    assert type(read) is type(adaptation)
    assert read == adaptation
    assert adaptation_config(read) == config


@pytest.mark.parametrize("adaptation", [None, *ADAPTATIONS], ids=repr)
def test_an_adaptation_is_read_as_it_is(adaptation):
    assert read_adaptation(adaptation) is adaptation


def test_no_adaptation_is_written_as_none():
    assert adaptation_config(None) is None


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("TextAdapter", TextAdapter()),
        ("anovl_plugin.TextAdapter", TextAdapter()),
        ("anovl_plugin.scoring.adaptation.LinearAdapter", LinearAdapter()),
        ("Center", Center()),
        (f"{__name__}.Center", Center()),
        ({"class_path": "Center"}, Center()),
        ({"class_path": "Center", "init_args": None}, Center()),
        ({"class_path": f"{__name__}.Center", "init_args": {"strength": 0.5}}, Center(0.5)),
        ({"class_path": "anovl_plugin.LinearAdapter", "init_args": {"steps": 2, "seed": 3}}, LinearAdapter(2, seed=3)),
    ],
    ids=str,
)
def test_ways_to_name_an_adaptation(given, expected):
    read = read_adaptation(given)
    assert type(read) is type(expected)
    assert read == expected


def test_reading_leaves_the_dictionary_as_it_was():
    given = {"class_path": "TextAdapter", "init_args": {"steps": 2}}
    read_adaptation(given)
    assert given == {"class_path": "TextAdapter", "init_args": {"steps": 2}}


@pytest.mark.parametrize(
    "given",
    [
        "Nope",
        "",
        "nope.TextAdapter",
        "anovl_plugin.scoring.adaptation.Nope",
        "anovl_plugin.TextBank",
        "anovl_plugin.scoring.adaptation.soft_label_loss",
        "math.pi",
        {},
        {"init_args": {"steps": 2}},
        {"class_path": "Nope"},
        {"class_path": None},
        {"class_path": 3},
        {"class_path": "TextAdapter", "steps": 2},
        5,
        TextAdapter,
        "..X",
    ],
    ids=str,
)
def test_what_is_no_class_path_is_refused(given):
    message = f"adaptation is {given!r}, but must be the class path of an Adaptation, such as anovl_plugin.TextAdapter"
    with pytest.raises(ValueError, match=rf"^{re.escape(message)}$"):
        read_adaptation(given)


@pytest.mark.parametrize(
    ("path", "arguments", "reason"),
    [
        ("TextAdapter", {"pace": 2}, r".*unexpected keyword argument 'pace'"),
        ("Center", {"force": 2}, r".*unexpected keyword argument 'force'"),
        ("ResidualAdapter", {}, r"Can't instantiate abstract class ResidualAdapter"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(path, arguments, reason):
    message = rf"^{path} does not take the arguments {re.escape(str(arguments))}: {reason}"
    with pytest.raises(ValueError, match=message):
        read_adaptation({"class_path": path, "init_args": arguments})


def test_settings_out_of_their_range_are_refused_when_read():
    with pytest.raises(ValueError, match=r"^steps of LinearAdapter is 0, but must be a whole number of at least 1$"):
        read_adaptation({"class_path": "LinearAdapter", "init_args": {"steps": 0}})


def test_what_is_no_dataclass_cannot_be_written():
    message = r"^Plain is no dataclass, so its settings cannot be saved; put @dataclass above it$"
    with pytest.raises(TypeError, match=message):
        adaptation_config(Plain())


@pytest.mark.parametrize("value", [[1], {"a": 1}, (), torch.ones(1)], ids=str)
def test_settings_that_are_no_plain_data_cannot_be_written(value):
    message = f"weights of Holder is {value!r}, but a setting must be a number, a string or None"
    with pytest.raises(TypeError, match=rf"^{re.escape(message)}$"):
        adaptation_config(Holder(weights=value))


# A user's own


def test_a_users_own_adaptation_is_applied():
    tokens = noise(3, 9, 24)
    expected = tokens - 0.5 * tokens.mean(1, keepdim=True)
    assert_close(adapt_tokens(Center(0.5), tokens, bank_of()), expected, atol=1e-6, rtol=0)


def test_a_users_own_residual_adapter_is_tuned():
    @dataclasses.dataclass
    class Still(ResidualAdapter):
        def outputs(self, text_bank):
            return text_bank.state_embeddings.shape[-1]

        def finish(self, hidden, text_bank):  # noqa: ARG002
            return 0 * hidden

    tokens = noise(3, 9, 24)
    assert_close(adapt_tokens(Still(), tokens, bank_of()), 0.5 * tokens, atol=1e-6, rtol=0)


def test_adaptations_are_public():
    public = (anovl_plugin.Adaptation, anovl_plugin.LinearAdapter, anovl_plugin.TextAdapter)
    assert public == (Adaptation, LinearAdapter, TextAdapter)
