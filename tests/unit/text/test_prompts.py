"""The prompts, word for word and in the published order."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anovl_plugin.text.prompts import Prompts, fill_phrase, prompt_ensemble
from tests.helpers import reference_model

# Written by hand from the published lists. A stands for the article of the phrase P, and X for the state and the class.
SHAPES = [
    "a cropped P of the X",
    "a cropped P of a X",
    "a close-up P of a X",
    "a close-up P of the X",
    "a bright P of a X",
    "a bright P of the X",
    "a dark P of the X",
    "a dark P of a X",
    "a jpeg corrupted P of a X",
    "a jpeg corrupted P of the X",
    "a blurry P of the X",
    "a blurry P of a X",
    "A P of a X",
    "A P of the X",
    "A P of a small X",
    "A P of the small X",
    "A P of a large X",
    "A P of the large X",
    "A P of the X for visual inspection",
    "A P of a X for visual inspection",
    "A P of the X for anomaly detection",
    "A P of a X for anomaly detection",
]
PHRASES = {
    "bottle": [("an", "industrial photo"), ("an", "industrial image"), ("a", "manufacturing image")],
    "leather": [("an", "industrial photo"), ("a", "textural photo"), ("a", "surface picture")],
}
NORMAL = {
    "bottle": [
        "normal bottle",
        "flawless bottle",
        "perfect bottle",
        "unblemished bottle",
        "bottle without flaw",
        "bottle without defect",
        "bottle without damage",
    ],
    "leather": [
        "normal leather",
        "flawless leather",
        "perfect leather",
        "unblemished leather",
        "leather without flaw",
        "leather without defect",
        "leather without damage",
    ],
}
ABNORMAL = {
    "bottle": [
        "damaged bottle",
        "abnormal bottle",
        "imperfect bottle",
        "blemished bottle",
        "bottle with flaw",
        "bottle with defect",
        "bottle with damage",
    ],
    "leather": [
        "damaged leather",
        "abnormal leather",
        "imperfect leather",
        "blemished leather",
        "leather with flaw",
        "leather with defect",
        "leather with damage",
    ],
}
AWKWARD_NAMES = [
    "a {} b",
    "{0}",
    "{name!r:>10}",
    "{",
    "}{",
    "100% cotton",
    "%s %(x)d",
    "two\nlines",
    "{article} {phrase}",
    r"\1",
]


def published_sentences(class_name, states):
    """Write the list out: phrase by phrase, shape by shape, and the state changes fastest."""
    sentences = []
    for article, phrase in PHRASES[class_name]:
        for shape in SHAPES:
            for state in states[class_name]:
                words = {"A": article, "P": phrase, "X": state}
                sentences.append(" ".join(words.get(word, word) for word in shape.split()))
    return sentences


@pytest.mark.parametrize("class_name", ["bottle", "leather"])
def test_ensemble_is_the_published_list_in_its_order(class_name):
    normal, abnormal = prompt_ensemble(class_name)
    assert normal == published_sentences(class_name, NORMAL)
    assert abnormal == published_sentences(class_name, ABNORMAL)
    assert len(normal) == len(abnormal) == 462


@pytest.mark.parametrize("domain", ["auto", "object", "texture"])
@pytest.mark.parametrize("class_name", ["bottle", "metal_nut", "wood", "macaroni1", "macaroni2", "pcb4", "a {} b"])
def test_ensemble_is_the_reference_one(class_name, domain):
    ensemble = prompt_ensemble(class_name, domain)
    assert ensemble.normal == reference_model.prompts(class_name, domain, "normal")
    assert ensemble.abnormal == reference_model.prompts(class_name, domain, "abnormal")


@pytest.mark.parametrize("class_name", ["bottle", "carpet"])
def test_prompts_are_distinct_and_have_no_full_stop(class_name):
    normal, abnormal = prompt_ensemble(class_name)
    assert len({*normal, *abnormal}) == 924
    assert not any(prompt.endswith(".") or "{" in prompt or "  " in prompt for prompt in (*normal, *abnormal))


@pytest.mark.parametrize(
    ("index", "sentence"),
    [
        (0, "a cropped industrial photo of the normal bottle"),
        (1, "a cropped industrial photo of the flawless bottle"),
        (7, "a cropped industrial photo of a normal bottle"),
        (153, "an industrial photo of a bottle without damage for anomaly detection"),
        (154, "a cropped industrial image of the normal bottle"),
        (461, "a manufacturing image of a bottle without damage for anomaly detection"),
    ],
)
def test_normal_sentence_stands_at_its_place(index, sentence):
    normal, abnormal = prompt_ensemble("bottle")
    assert normal[index] == sentence
    assert sentence not in abnormal


@pytest.mark.parametrize(
    ("index", "sentence"),
    [
        (0, "a cropped industrial photo of the damaged leather"),
        (126, "an industrial photo of the damaged leather for visual inspection"),
        (280, "a textural photo of the damaged leather for visual inspection"),
        (461, "a surface picture of a leather with damage for anomaly detection"),
    ],
)
def test_abnormal_sentence_of_a_texture_stands_at_its_place(index, sentence):
    normal, abnormal = prompt_ensemble("leather")
    assert abnormal[index] == sentence
    assert sentence not in normal


@pytest.mark.parametrize("class_name", ["carpet", "grid", "leather", "tile", "wood"])
def test_auto_domain_of_mvtec_textures_is_texture(class_name):
    assert Prompts.load().resolve_domain(class_name) == "texture"
    assert prompt_ensemble(class_name) == prompt_ensemble(class_name, "texture")
    assert not any("manufacturing" in prompt for prompt in prompt_ensemble(class_name).normal)


@pytest.mark.parametrize("class_name", ["bottle", "Wood", "wooden", "metal_nut", "macaroni1", "object"])
def test_auto_domain_of_everything_else_is_object(class_name):
    assert Prompts.load().resolve_domain(class_name) == "object"
    assert prompt_ensemble(class_name) == prompt_ensemble(class_name, "object")
    assert not any("surface" in prompt or "textural" in prompt for prompt in prompt_ensemble(class_name).normal)


def test_given_domain_overrules_the_class_name():
    assert Prompts.load().resolve_domain("leather", "object") == "object"
    assert Prompts.load().resolve_domain("bottle", "texture") == "texture"
    assert "a manufacturing image of a normal wood" in prompt_ensemble("wood", "object").normal


@pytest.mark.parametrize("class_name", ["macaroni1", "macaroni2"])
def test_numbered_macaroni_are_macaroni(class_name):
    assert prompt_ensemble(class_name) == prompt_ensemble("macaroni")
    assert "an industrial photo of a normal macaroni" in prompt_ensemble(class_name).normal


@pytest.mark.parametrize("class_name", ["metal_nut", "pcb1", "pipe_fryum", "Metal Nut", *AWKWARD_NAMES])
def test_other_names_stand_as_spelled(class_name):
    normal, abnormal = prompt_ensemble(class_name)
    bottle = prompt_ensemble("bottle")
    assert normal == [prompt.replace("bottle", class_name) for prompt in bottle.normal]
    assert abnormal == [prompt.replace("bottle", class_name) for prompt in bottle.abnormal]


@given(st.text(min_size=1).filter(str.strip))
def test_any_text_stands_as_spelled(class_name):
    normal = prompt_ensemble(class_name, "object").normal
    noun = {"macaroni1": "macaroni", "macaroni2": "macaroni"}.get(class_name, class_name)
    assert normal[0] == "a cropped industrial photo of the normal " + noun
    assert len(normal) == 462


@pytest.mark.parametrize(("phrase", "article"), [("industrial photo", "an"), ("surface picture", "a"), ("icon", "an")])
def test_article_goes_by_the_phrase(phrase, article):
    templates = [fill_phrase(template, phrase) for template in Prompts.load().templates]
    assert len(templates) == len(set(templates)) == 22
    assert [template.split()[0] for template in templates] == ["a"] * 12 + [article] * 10
