"""The text bank against the slow reference, and what no cast may change."""

from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from anovl_plugin.text.prompts import Prompts, prompt_ensemble
from anovl_plugin.text.text_bank import EMBEDDINGS, TextBank, build_text_banks, hash_prompts, state_embedding
from anovl_plugin.text.text_tower import PromptTooLongError, TextTower
from anovl_plugin.vision.backbone import load_backbone
from tests.helpers import reference_model
from tests.helpers.architectures import TINY

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
    bank = TextBank()
    bank.build(square_tower, "bottle")
    return bank


def test_bank_equals_the_reference(name, tower, weights_of):
    states, prompts = reference_model.text_bank(name, weights_of(name), "bottle")
    bank = TextBank()
    bank.build(tower, "bottle")
    assert bank.state_embeddings.shape == (2, states.shape[1])
    assert bank.prompt_embeddings.shape == (924, states.shape[1])
    assert_close(bank.state_embeddings, states.float(), **WITHIN)
    assert_close(bank.prompt_embeddings, prompts.float(), **WITHIN)


@pytest.mark.parametrize(("class_name", "domain"), [("leather", "auto"), ("metal_nut", "texture")])
def test_bank_of_other_classes_equals_the_reference(square_tower, weights_of, class_name, domain):
    states, prompts = reference_model.text_bank("tiny-square", weights_of("tiny-square"), class_name, domain)
    bank = TextBank()
    bank.build(square_tower, class_name, domain)
    assert_close(bank.state_embeddings, states.float(), **WITHIN)
    assert_close(bank.prompt_embeddings, prompts.float(), **WITHIN)


def test_rows_are_unit_vectors_normal_first(filled, square_tower):
    ensemble = prompt_ensemble("bottle")
    assert_close(filled.state_embeddings.norm(dim=-1), torch.ones(2))
    assert_close(filled.prompt_embeddings.norm(dim=-1), torch.ones(924))
    first = square_tower.encode([ensemble.normal[0], ensemble.abnormal[0]])
    assert_close(filled.prompt_embeddings[[0, 462]], first / first.norm(dim=-1, keepdim=True), **WITHIN)


def test_state_embedding_averages_before_it_normalizes():
    embeddings = torch.tensor([[3.0, 0.0], [0.0, 1.0]])
    assert_close(state_embedding(embeddings), torch.tensor([3.0, 1.0]) / 10**0.5)
    assert state_embedding(torch.randn(5, 2, 7, 4)).shape == (5, 2, 4)


def test_lengths_of_embeddings_weigh_in(square_tower, filled):
    embeddings = square_tower.encode(prompt_ensemble("bottle").normal)
    assert_close(filled.state_embeddings[0], state_embedding(embeddings), **WITHIN)
    assert (filled.state_embeddings[0] - state_embedding(filled.prompt_embeddings[:462])).abs().max() > 1e-6


@pytest.mark.parametrize("cast", CASTS.values(), ids=CASTS.keys())
def test_no_cast_changes_a_bit_of_the_bank(filled, cast):
    for module in (deepcopy(filled), torch.nn.Sequential(torch.nn.Linear(2, 2), deepcopy(filled))):
        cast(module)
        bank = module if isinstance(module, TextBank) else module[1]
        assert bank.state_embeddings.dtype == bank.prompt_embeddings.dtype == torch.float32
        assert torch.equal(bank.state_embeddings, filled.state_embeddings)
        assert torch.equal(bank.prompt_embeddings, filled.prompt_embeddings)


def test_bank_follows_to_another_device(filled):
    moved = deepcopy(filled).to("meta")
    assert moved.state_embeddings.device.type == moved.prompt_embeddings.device.type == "meta"
    assert moved.state_embeddings.dtype == torch.float32


def test_bank_travels_in_a_state_dict(filled):
    fresh = TextBank()
    assert not fresh.is_built
    assert set(filled.state_dict()) == {*EMBEDDINGS, "_extra_state"}
    fresh.load_state_dict(filled.state_dict())
    assert (fresh.class_name, fresh.domain) == ("bottle", "object")
    assert fresh.prompts_hash == hash_prompts(prompt_ensemble("bottle"))
    assert torch.equal(fresh.state_embeddings, filled.state_embeddings)
    assert torch.equal(fresh.prompt_embeddings, filled.prompt_embeddings)


def test_autocast_does_not_reach_the_bank(filled, square_tower):
    bank = TextBank()
    with torch.autocast("cpu", torch.bfloat16):
        bank.build(square_tower, "bottle")
    assert torch.equal(bank.state_embeddings, filled.state_embeddings)


def test_building_takes_no_gradient(filled):
    assert not filled.state_embeddings.requires_grad
    assert not list(filled.parameters())


@pytest.mark.parametrize(
    ("class_name", "change", "remedy"),
    [
        ("rust " * 76, {}, "use a shorter class_name"),
        ("01", {"nouns": {"01": "rust " * 76}}, "use a shorter noun for class_name '01'"),
        (
            "nut",
            {"abnormal_states": ["{} with " + "rust " * 76]},
            r"shorten its template 'a cropped industrial photo of the \{\}' or its state '\{\} with rust rust .*…",
        ),
        (
            "nut",
            {"defects": ["rust " * 76]},
            r"shorten its template 'a cropped industrial photo of the \{\}' or its state '\{\} with rust rust .*…",
        ),
        (
            "nut",
            {"templates": ["rust " * 76 + "{}"]},
            r"shorten its template 'rust .*… or its state 'normal \{\}'",
        ),
    ],
)
def test_what_makes_a_prompt_too_long_is_named(square_tower, class_name, change, remedy):
    prompts = Prompts.load({"extends": "paper", **change})
    message = rf"^the prompt '.* is longer than the 77 tokens this text tower reads; {remedy}$"
    with pytest.raises(PromptTooLongError, match=message) as caught:
        TextBank().build(square_tower, class_name, prompts=prompts)
    assert len(str(caught.value)) < 600


def test_the_class_that_makes_a_prompt_too_long_is_found(square_tower):
    prompts = Prompts.load({"extends": "paper", "nouns": {"b": "rust " * 76}})
    with pytest.raises(PromptTooLongError, match=r"use a shorter noun for class_name 'b'$"):
        build_text_banks(square_tower, ["a", "b"], prompts=prompts)


def test_the_hash_covers_every_sentence_and_its_place():
    ensemble = prompt_ensemble("bottle")
    swapped = ensemble._replace(normal=[*ensemble.normal[1:], ensemble.normal[0]])
    moved = ensemble._replace(normal=[*ensemble.normal, ensemble.abnormal[0]], abnormal=ensemble.abnormal[1:])
    assert len({hash_prompts(each) for each in (ensemble, swapped, moved, prompt_ensemble("nut"))}) == 4


def test_a_bank_knows_what_it_is_for(filled):
    assert filled.is_for("bottle", "auto")
    assert filled.is_for("bottle", "object")
    assert not filled.is_for("bottle", "texture")
    assert not filled.is_for("nut", "object")


def test_a_bank_is_for_its_very_sentences(square_tower, filled):
    other = Prompts.load({"extends": "paper", "defects": {"bottle": ["crack"], "nut": ["burr"]}})
    assert filled.is_for("bottle", "auto", Prompts.load())
    assert not filled.is_for("bottle", "auto", other)
    bank = TextBank()
    bank.build(square_tower, "bottle", prompts=other)
    assert bank.prompt_embeddings.shape == (462 + 528, 24)
    assert bank.prompts_hash == hash_prompts(other.ensemble("bottle"))
    assert bank.is_for("bottle", "object", other)
    assert not bank.is_for("bottle", "object")
    # What changes no sentence of the class changes no bank.
    assert bank.is_for("bottle", "auto", replace(other, defects={"*": ["crack"]}))


def test_a_bank_of_other_domains_knows_them(square_tower):
    prompts = Prompts.load({"extends": "paper", "domains": {"weld": ["x-ray picture"]}})
    bank = TextBank()
    bank.build(square_tower, "seam", prompts=prompts)
    assert bank.domain == "weld"
    assert bank.is_for("seam", "weld", prompts)


def test_several_banks_at_once_are_those_built_one_by_one(square_tower):
    names = ["bottle", "macaroni1", "leather", "macaroni2"]
    encoded, encode_text = [], square_tower.clip.encode_text
    square_tower.clip.encode_text = lambda tokens: encoded.append(len(tokens)) or encode_text(tokens)
    banks = build_text_banks(square_tower, names)
    # The two kinds of macaroni share all their sentences.
    assert sum(encoded) == 3 * 924
    for name, bank in zip(names, banks, strict=True):
        single = TextBank()
        single.build(square_tower, name)
        assert bank.get_extra_state() == single.get_extra_state()
        assert bank.is_for(name, "auto")
        assert_close(bank.state_embeddings, single.state_embeddings, atol=1e-6, rtol=0)
        assert_close(bank.prompt_embeddings, single.prompt_embeddings, atol=1e-6, rtol=0)


def test_a_copy_is_a_bank_of_its_own(filled):
    copied = filled.copy()
    copied.state_embeddings.zero_()
    assert copied.is_for("bottle", "object")
    assert filled.state_embeddings.abs().sum() > 1


def test_damaged_embeddings_are_an_error(square_tower, monkeypatch):
    monkeypatch.setattr(square_tower, "encode", lambda prompts: torch.full((len(prompts), 24), float("nan")))
    bank = TextBank()
    with pytest.raises(ValueError, match=r"^the text bank of 'bottle' holds NaN or infinite values, so the weights or"):
        bank.build(square_tower, "bottle")
    assert not bank.is_built


DEFECTS = Prompts.load({"extends": "paper", "defects": {"*": ["scratch"], "nut": ["missing part", "rust"]}})


def test_a_defect_has_the_embedding_of_its_sentences(square_tower):
    banks = build_text_banks(square_tower, ["nut", "bolt"], prompts=DEFECTS)
    assert [bank.defect_words for bank in banks] == [("scratch", "missing part", "rust"), ("scratch",)]
    for bank in banks:
        sentences = DEFECTS.defect_sentences(bank.class_name)
        assert tuple(sentences) == bank.defect_words
        expected = [reference_model.unit(square_tower.encode(each).double().mean(0)) for each in sentences.values()]
        assert_close(bank.defect_embeddings.double(), torch.stack(expected), **WITHIN)


def test_without_words_there_are_no_defect_embeddings(filled):
    assert filled.defect_words == ()
    assert filled.defect_embeddings.shape == (0, filled.state_embeddings.shape[1])


def test_defects_travel_in_a_state_dict_and_in_a_copy(square_tower):
    bank, fresh = TextBank(), TextBank()
    bank.build(square_tower, "nut", prompts=DEFECTS)
    fresh.load_state_dict(bank.state_dict())
    for other in (fresh, bank.copy(), deepcopy(bank).half()):
        assert other.defect_words == bank.defect_words
        assert torch.equal(other.defect_embeddings, bank.defect_embeddings)
        assert other.is_for("nut", "object", DEFECTS)


def test_the_same_sentences_with_other_words_make_another_bank(square_tower):
    as_state = Prompts.load({"extends": "paper", "add": {"abnormal_states": ["{} with rust"]}})
    as_defect = Prompts.load({"extends": "paper", "defects": ["rust"]})
    assert as_state.ensemble("nut") == as_defect.ensemble("nut")
    bank = TextBank()
    bank.build(square_tower, "nut", prompts=as_state)
    assert bank.is_for("nut", "auto", as_state)
    assert not bank.is_for("nut", "auto", as_defect)


def test_words_that_the_clip_does_not_tell_apart(weights_of):
    loaded = load_backbone("tiny-square", weights_of("tiny-square"))
    tower, bank = TextTower(loaded.clip, loaded.tokenizer), TextBank()
    bank.build(tower, "nut", prompts=DEFECTS)
    assert bank.indistinct_words() == []
    with torch.no_grad():
        for word in ("rust", "scratch"):
            loaded.clip.token_embedding.weight[loaded.tokenizer.encode(word)] = 0
    bank.build(tower, "nut", prompts=DEFECTS)
    assert bank.indistinct_words() == ["scratch", "rust"]
