"""The text bank against the slow reference, and what no cast may change."""

from copy import deepcopy

import pytest
import torch
from torch.testing import assert_close

from anovl_plugin.text.prompts import prompt_ensemble
from anovl_plugin.text.text_bank import TextBank, state_embedding
from anovl_plugin.text.text_tower import TextTower
from anovl_plugin.vision.backbone import load_backbone
from tests.conftest import TINY
from tests.helpers import reference

WITHIN = {"atol": 1e-5, "rtol": 0}
CASTS = {
    "half": lambda module: module.half(),
    "bfloat16": lambda module: module.bfloat16(),
    "to(float64)": lambda module: module.to(torch.float64),
    "to(half) and back": lambda module: module.to(torch.float16).to(torch.float32),
    "to(cpu, half)": lambda module: module.to("cpu", torch.float16),
    "type": lambda module: module.type(torch.bfloat16),
}


@pytest.fixture(scope="module", params=TINY)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def tower(name, weights_of):
    loaded = load_backbone(name, weights_of(name))
    return TextTower(loaded.clip, loaded.tokenizer)


@pytest.fixture(scope="module")
def square_tower(weights_of):
    loaded = load_backbone("tiny-square", weights_of("tiny-square"))
    return TextTower(loaded.clip, loaded.tokenizer)


@pytest.fixture(scope="module")
def filled(square_tower):
    bank = TextBank(24, 924)
    bank.build(square_tower, prompt_ensemble("bottle"))
    return bank


def test_bank_equals_the_reference(name, tower, weights_of):
    states, prompts = reference.text_bank(name, weights_of(name), "bottle")
    bank = TextBank(states.shape[1], 924)
    bank.build(tower, prompt_ensemble("bottle"))
    assert bank.states.shape == (2, states.shape[1])
    assert bank.prompts.shape == (924, states.shape[1])
    assert_close(bank.states, states.float(), **WITHIN)
    assert_close(bank.prompts, prompts.float(), **WITHIN)


@pytest.mark.parametrize(("class_name", "domain"), [("leather", "auto"), ("metal_nut", "texture")])
def test_bank_of_other_classes_equals_the_reference(square_tower, weights_of, class_name, domain):
    states, prompts = reference.text_bank("tiny-square", weights_of("tiny-square"), class_name, domain)
    bank = TextBank(24, 924)
    bank.build(square_tower, prompt_ensemble(class_name, domain))
    assert_close(bank.states, states.float(), **WITHIN)
    assert_close(bank.prompts, prompts.float(), **WITHIN)


def test_rows_are_unit_vectors_normal_first(filled, square_tower):
    ensemble = prompt_ensemble("bottle")
    assert_close(filled.states.norm(dim=-1), torch.ones(2))
    assert_close(filled.prompts.norm(dim=-1), torch.ones(924))
    first = square_tower.encode([ensemble.normal[0], ensemble.abnormal[0]])
    assert_close(filled.prompts[[0, 462]], first / first.norm(dim=-1, keepdim=True), **WITHIN)


def test_state_embedding_averages_before_it_normalises():
    embeddings = torch.tensor([[3.0, 0.0], [0.0, 1.0]])
    assert_close(state_embedding(embeddings), torch.tensor([3.0, 1.0]) / 10**0.5)
    assert state_embedding(torch.randn(5, 2, 7, 4)).shape == (5, 2, 4)


def test_lengths_of_embeddings_weigh_in(square_tower, filled):
    embeddings = square_tower.encode(prompt_ensemble("bottle").normal)
    assert_close(filled.states[0], state_embedding(embeddings), **WITHIN)
    assert (filled.states[0] - state_embedding(filled.prompts[:462])).abs().max() > 1e-6


@pytest.mark.parametrize("cast", CASTS.values(), ids=CASTS.keys())
def test_no_cast_changes_a_bit_of_the_bank(filled, cast):
    for module in (deepcopy(filled), torch.nn.Sequential(torch.nn.Linear(2, 2), deepcopy(filled))):
        cast(module)
        bank = module if isinstance(module, TextBank) else module[1]
        assert bank.states.dtype == bank.prompts.dtype == torch.float32
        assert torch.equal(bank.states, filled.states)
        assert torch.equal(bank.prompts, filled.prompts)


def test_bank_follows_to_another_device(filled):
    moved = deepcopy(filled).to("meta")
    assert moved.states.device.type == moved.prompts.device.type == "meta"
    assert moved.states.dtype == torch.float32


def test_bank_travels_in_a_state_dict(filled):
    fresh = TextBank(24, 924)
    assert set(filled.state_dict()) == {"states", "prompts"}
    fresh.load_state_dict(filled.state_dict())
    assert torch.equal(fresh.states, filled.states)
    assert torch.equal(fresh.prompts, filled.prompts)


def test_autocast_does_not_reach_the_bank(filled, square_tower):
    bank = TextBank(24, 924)
    with torch.autocast("cpu", torch.bfloat16):
        bank.build(square_tower, prompt_ensemble("bottle"))
    assert torch.equal(bank.states, filled.states)


def test_building_takes_no_gradient(filled):
    assert not filled.states.requires_grad
    assert not list(filled.parameters())


def test_a_class_name_that_does_not_fit_is_an_error(square_tower):
    with pytest.raises(ValueError, match=r"^the prompt .* is longer than the 77 tokens .*; use a shorter class_name$"):
        TextBank(24, 924).build(square_tower, prompt_ensemble("rust " * 76))
