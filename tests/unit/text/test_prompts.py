"""The sentences of the text side, word for word."""

import pytest

from anovl_plugin.text.prompts import prompt_ensemble, resolve_domain, templates_for
from tests.helpers import reference

PLAIN = "an industrial photo of a"


@pytest.mark.parametrize("domain", ["auto", "object", "texture"])
@pytest.mark.parametrize("class_name", ["bottle", "metal_nut", "wood", "macaroni1", "macaroni2", "pcb4", "a {} b"])
def test_ensemble_is_the_reference_one(class_name, domain):
    ensemble = prompt_ensemble(class_name, domain)
    assert ensemble.normal == reference.prompts(class_name, domain, "normal")
    assert ensemble.abnormal == reference.prompts(class_name, domain, "abnormal")


@pytest.mark.parametrize("class_name", ["bottle", "carpet"])
def test_ensemble_has_462_different_prompts_a_state_without_full_stop(class_name):
    normal, abnormal = prompt_ensemble(class_name)
    assert len(normal) == len(abnormal) == 462
    assert len({*normal, *abnormal}) == 924
    assert not any(prompt.endswith(".") or "{" in prompt or "  " in prompt for prompt in (*normal, *abnormal))


@pytest.mark.parametrize(
    "sentence",
    [
        "a cropped industrial photo of the normal bottle",
        "a close-up manufacturing image of a flawless bottle",
        "a jpeg corrupted industrial image of the unblemished bottle",
        "an industrial image of a perfect bottle",
        "a manufacturing image of the small bottle without flaw",
        "an industrial photo of a large bottle without defect",
        "industrial photo of the bottle without damage for visual inspection",
        "manufacturing image of a normal bottle for anomaly detection",
    ],
)
def test_ensemble_holds_this_normal_sentence(sentence):
    ensemble = prompt_ensemble("bottle")
    assert sentence in ensemble.normal
    assert sentence not in ensemble.abnormal


@pytest.mark.parametrize(
    "sentence",
    [
        "a blurry industrial photo of a damaged leather",
        "a bright textural photo of the abnormal leather",
        "a dark surface picture of a imperfect leather",
        "a surface picture of the blemished leather",
        "a textural photo of a large leather with flaw",
        "an industrial photo of the small leather with defect",
        "surface picture of the leather with damage for anomaly detection",
    ],
)
def test_ensemble_holds_this_abnormal_sentence_of_a_texture(sentence):
    ensemble = prompt_ensemble("leather")
    assert sentence in ensemble.abnormal
    assert sentence not in ensemble.normal


@pytest.mark.parametrize("class_name", ["carpet", "grid", "leather", "tile", "wood"])
def test_auto_takes_the_textures_of_mvtec_for_textures(class_name):
    assert resolve_domain(class_name) == "texture"
    assert prompt_ensemble(class_name) == prompt_ensemble(class_name, "texture")
    assert not any("manufacturing" in prompt for prompt in prompt_ensemble(class_name).normal)


@pytest.mark.parametrize("class_name", ["bottle", "Wood", "wooden", "metal_nut", "macaroni1", "object"])
def test_auto_takes_everything_else_for_an_object(class_name):
    assert resolve_domain(class_name) == "object"
    assert prompt_ensemble(class_name) == prompt_ensemble(class_name, "object")
    assert not any("surface" in prompt or "textural" in prompt for prompt in prompt_ensemble(class_name).normal)


def test_a_given_domain_overrules_the_class_name():
    assert resolve_domain("leather", "object") == "object"
    assert resolve_domain("bottle", "texture") == "texture"
    assert f"{PLAIN} normal wood" in prompt_ensemble("wood", "object").normal
    assert "a manufacturing image of a normal wood" in prompt_ensemble("wood", "object").normal


@pytest.mark.parametrize("class_name", ["macaroni1", "macaroni2"])
def test_numbered_macaroni_are_macaroni(class_name):
    assert prompt_ensemble(class_name) == prompt_ensemble("macaroni")
    assert f"{PLAIN} normal macaroni" in prompt_ensemble(class_name).normal


@pytest.mark.parametrize("class_name", ["metal_nut", "pcb1", "pipe_fryum", "Metal Nut"])
def test_other_names_stand_as_spelled(class_name):
    normal, abnormal = prompt_ensemble(class_name)
    assert f"{PLAIN} normal {class_name}" in normal
    assert all(class_name in prompt for prompt in (*normal, *abnormal))


@pytest.mark.parametrize(("phrase", "article"), [("industrial photo", "an"), ("surface picture", "a"), ("icon", "an")])
def test_article_goes_by_the_phrase(phrase, article):
    templates = templates_for(phrase)
    assert len(templates) == len(set(templates)) == 22
    assert templates[12] == f"{article} {phrase} of a {{}}"
    assert templates == reference.sentences("{}", phrase)


@pytest.mark.parametrize("class_name", ["", " ", "\t\n"])
def test_an_empty_class_name_is_refused(class_name):
    with pytest.raises(ValueError, match=r"class_name is .*, but must name what the images show, e\.g\. 'bottle'"):
        prompt_ensemble(class_name)


@pytest.mark.parametrize("domain", ["Object", "", "textures", None])
def test_an_unknown_domain_is_refused(domain):
    message = f"domain is {domain!r}, but must be one of 'auto', 'object', 'texture'"
    with pytest.raises(ValueError, match=message):
        resolve_domain("bottle", domain)
    with pytest.raises(ValueError, match=message):
        prompt_ensemble("bottle", domain)
