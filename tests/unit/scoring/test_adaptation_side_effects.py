"""An adaptation changes nothing but its result: not its arguments, not the model."""

import copy
import gc

import pytest
import torch
from torch.nn.modules import module as torch_module

from anovl_plugin.scoring.adaptation import adapt_tokens
from anovl_plugin.torch_model import AnoVLModel
from tests.helpers.adaptations import KINDS, Watch, both_kinds, make_text_bank
from tests.helpers.random_tensors import noise


@both_kinds
@pytest.mark.parametrize("kept", [True, False])
def test_tokens_and_bank_are_left_as_they_were(kind, kept):
    tokens, bank = noise(3, 9, 24).requires_grad_(kept), make_text_bank()
    before = [tensor.detach().clone() for tensor in (tokens, bank.state_embeddings, bank.prompt_embeddings)]
    result = adapt_tokens(kind(), tokens, bank)
    assert not result.requires_grad
    assert tokens.requires_grad is kept
    for tensor, old in zip((tokens, bank.state_embeddings, bank.prompt_embeddings), before, strict=True):
        assert tensor.grad is None
        assert torch.equal(tensor.detach(), old)


def test_an_adaptation_that_writes_on_its_arguments_leaves_the_originals():
    tokens, bank = noise(3, 9, 24), make_text_bank()
    adapt_tokens(Watch(), tokens, bank)
    assert torch.equal(tokens, noise(3, 9, 24))
    assert torch.equal(bank.state_embeddings, make_text_bank().state_embeddings)
    assert torch.equal(bank.prompt_embeddings, make_text_bank().prompt_embeddings)


def count_of_tensors_with_gradient():
    gc.collect()
    # By type, because some objects are slow, or warn, when asked for their class.
    tensors = [each for each in gc.get_objects() if type(each) in {torch.Tensor, torch.nn.Parameter}]
    return sum(each.requires_grad for each in tensors)


def test_no_tensor_with_gradient_lives_on():
    tokens, bank = noise(3, 9, 24), make_text_bank()
    before = count_of_tensors_with_gradient()
    results = [adapt_tokens(kind(), tokens, bank) for kind in KINDS.values()]
    assert count_of_tensors_with_gradient() == before
    assert all(result.grad_fn is None for result in results)


# In a model


@pytest.fixture(scope="module")
def weights(weights_of):
    return "tiny-square", weights_of("tiny-square")


def hooks_of(model):
    kinds = [name for name in vars(model) if name.endswith("_hooks")]
    found = [len(getattr(module, name)) for module in model.modules() for name in kinds]
    shared = [name for name in vars(torch_module) if name.startswith("_global") and name.endswith("_hooks")]
    return found + [len(getattr(torch_module, name)) for name in shared]


@both_kinds
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_a_model_is_left_as_it_was(kind, mode, weights):
    model = AnoVLModel(weights[0], pretrained=weights[1], class_name="bottle", adaptation=kind(steps=2))
    before, hooks = copy.deepcopy(model.state_dict()), hooks_of(model)
    with mode():
        result = model(noise(3, 3, 32, 32))
    assert not result.anomaly_map.requires_grad
    assert not result.pred_score.requires_grad
    assert all(weight.grad is None and not weight.requires_grad for weight in model.parameters())
    assert hooks_of(model) == hooks
    assert set(before) == set(model.state_dict())
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]) if isinstance(value, torch.Tensor) else value == before[name]


@both_kinds
def test_the_tower_never_enters_the_graph(kind, weights):
    model = AnoVLModel(weights[0], pretrained=weights[1], class_name="bottle", adaptation=kind(steps=2))
    model.image_tower.requires_grad_()
    images = noise(2, 3, 32, 32).requires_grad_()
    result = model(images)
    assert images.grad is None
    assert not result.anomaly_map.requires_grad
    assert all(weight.grad is None for weight in model.parameters())


def test_a_model_gives_its_adaptation_tensors_outside_any_graph(weights):
    watch = Watch()
    model = AnoVLModel(weights[0], pretrained=weights[1], class_name="bottle", adaptation=watch)
    model.image_tower.requires_grad_()
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        model(noise(3, 3, 32, 32).requires_grad_())
    assert watch.sizes == [2, 1]
