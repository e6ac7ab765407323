"""The whole model against the slow reference, and what it promises whoever calls it."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from anovl_plugin.torch_model import AnoVLModel, NonFiniteImageError
from anovl_plugin.vision.backbone import load_backbone
from tests.helpers import reference_model
from tests.helpers.architectures import TINY
from tests.helpers.random_tensors import images_for
from tests.helpers.tolerances import HALF_PRECISION, REFERENCE


@pytest.fixture(scope="module")
def square(weights_of):
    """Return a model that no test changes."""
    return AnoVLModel("tiny-square", pretrained=weights_of("tiny-square"), class_name="bottle")


@pytest.fixture
def own(weights_of):
    """Return a model without a class that tests may change."""
    return AnoVLModel("tiny-square", pretrained=weights_of("tiny-square"))


@pytest.mark.parametrize("name", TINY)
def test_scores_and_maps_equal_the_reference(name, weights_of):
    model = AnoVLModel(name, pretrained=weights_of(name), class_name="bottle")
    images = images_for(model, 2)
    result = model(images)
    scores, maps = reference_model.published_probabilities(name, weights_of(name), images, "bottle")
    assert result.pred_score.dtype == result.anomaly_map.dtype == torch.float32
    assert_close(result.pred_score, reference_model.displayed(scores, name, weights_of(name)).float(), **REFERENCE)
    assert_close(result.anomaly_map, reference_model.displayed(maps, name, weights_of(name)).float(), **REFERENCE)


@pytest.mark.parametrize(("class_name", "domain"), [("leather", "auto"), ("metal_nut", "texture")])
def test_class_and_domain_reach_the_prompts(own, weights_of, class_name, domain):
    own.build_text_bank(class_name, domain)
    images, source = images_for(own, 1), ("tiny-square", weights_of("tiny-square"))
    scores, maps = reference_model.published_probabilities(*source, images, class_name, domain)
    result = own(images)
    assert_close(result.pred_score, reference_model.displayed(scores, *source).float(), **REFERENCE)
    assert_close(result.anomaly_map, reference_model.displayed(maps, *source).float(), **REFERENCE)


def test_shapes_and_range(square):
    result = square(images_for(square, 3))
    assert result.pred_score.shape == (3,)
    assert result.anomaly_map.shape == (3, 1, 32, 32)
    for values in (result.pred_score, result.anomaly_map):
        assert ((values > 0) & (values < 1)).all()


def test_model_says_how_images_must_be_prepared(square, weights_of):
    loaded = load_backbone("tiny-square", weights_of("tiny-square"))
    assert (square.image_size, square.mean, square.std) == (loaded.image_size, loaded.mean, loaded.std)


def test_another_image_size_reaches_the_map(weights_of):
    model = AnoVLModel("tiny-square", pretrained=weights_of("tiny-square"), class_name="bottle", image_size=(48, 24))
    assert model(images_for(model, 1)).anomaly_map.shape == (1, 1, 48, 24)


def test_second_class_rebuilds_the_bank(own, weights_of):
    own.build_text_bank("bottle")
    first, score = own.text_bank.state_embeddings.clone(), own(images_for(own, 1)).pred_score
    own.build_text_bank("leather")
    assert (own.text_bank.class_name, own.text_bank.domain) == ("leather", "texture")
    assert (own.text_bank.state_embeddings - first).abs().max() > 1e-4
    assert (own(images_for(own, 1)).pred_score - score).abs().max() > 1e-7
    fresh = AnoVLModel("tiny-square", pretrained=weights_of("tiny-square"), class_name="leather")
    assert torch.equal(own.text_bank.state_embeddings, fresh.text_bank.state_embeddings)
    assert torch.equal(own.text_bank.prompt_embeddings, fresh.text_bank.prompt_embeddings)


def test_second_domain_rebuilds_the_bank(own):
    own.build_text_bank("bottle", "object")
    first = own.text_bank.state_embeddings.clone()
    own.build_text_bank("bottle", "texture")
    assert (own.text_bank.state_embeddings - first).abs().max() > 1e-4


def test_same_class_does_not_rebuild_the_bank(own, replace_loading):
    own.build_text_bank("bottle")
    states = own.text_bank.state_embeddings

    def fail(*_, **__):
        pytest.fail("the CLIP was loaded again")

    replace_loading(fail)
    assert not own.build_text_bank("bottle")
    assert own.text_bank.state_embeddings is states


def test_the_clip_is_loaded_once_and_the_text_tower_alone_for_another_class(own, replace_loading):
    calls = []

    def load(*arguments, image=True, text=True):
        calls.append((image, text))
        return load_backbone(*arguments, image=image, text=text)

    replace_loading(load)
    assert not own.is_loaded
    own.build_text_bank("bottle")
    own(images_for(own, 1))
    assert calls == [(True, True)]
    visual = own.image_tower.visual
    own.build_text_bank("leather")
    assert calls == [(True, True), (False, True)]
    assert own.image_tower.visual is visual


def test_the_state_dict_holds_the_image_tower_the_bank_and_what_they_are(own):
    own.build_text_bank("bottle")
    assert set(own.state_dict()) == {f"image_tower.visual.{key}" for key in own.image_tower.visual.state_dict()} | {
        "image_tower._extra_state",
        "text_banks.0._extra_state",
        "text_banks.0.state_embeddings",
        "text_banks.0.prompt_embeddings",
        "text_banks.0.defect_embeddings",
    }
    assert not own._text_tower.is_loaded
    assert {id(weight) for weight in own.parameters()} == {id(weight) for weight in own.image_tower.visual.parameters()}


def test_the_state_dict_of_another_class_replaces_the_bank(own, square):
    own.build_text_bank("leather")
    own.load_state_dict(square.state_dict())
    assert own.text_bank.class_name == "bottle"
    assert torch.equal(own.text_bank.state_embeddings, square.text_bank.state_embeddings)


@pytest.mark.parametrize("name", ["state_embeddings", "prompt_embeddings"])
def test_a_state_dict_with_a_damaged_bank_is_an_error(name, own, square):
    state = {
        key: value.clone() if isinstance(value, torch.Tensor) else value for key, value in square.state_dict().items()
    }
    state[f"text_banks.0.{name}"][0, 0] = float("nan")
    own.load()
    with pytest.raises(ValueError, match=r"^the text bank of 'bottle' in the checkpoint holds NaN or infinite values"):
        own.load_state_dict(state)


def test_nothing_is_trained(square):
    assert not any(weight.requires_grad for weight in square.parameters())
    images = images_for(square, 1).requires_grad_()
    assert not square(images).anomaly_map.requires_grad


def test_a_class_that_fails_leaves_the_last_one_in_place(own):
    own.build_text_bank("bottle")
    states = own.text_bank.state_embeddings.clone()
    with pytest.raises(ValueError, match="use a shorter class_name"):
        own.build_text_bank("rust " * 80)
    with pytest.raises(ValueError, match="class_name is ' '"):
        own.build_text_bank(" ")
    assert own.text_bank.class_name == "bottle"
    assert torch.equal(own.text_bank.state_embeddings, states)
    own.build_text_bank("leather")
    assert own.text_bank.class_name == "leather"


def test_without_a_class_nothing_is_scored(own):
    with pytest.raises(RuntimeError, match=r"^the model has no text bank yet; set class_name or call build_text_bank"):
        own(images_for(own, 1))


@pytest.mark.parametrize("size", [(40, 32), (32, 40), (16, 64)])
def test_images_of_another_size_are_an_error(square, size):
    message = rf"^images are \({size[0]}, {size[1]}\) pixels, but the model takes \(32, 32\); resize them$"
    with pytest.raises(ValueError, match=message):
        square(torch.zeros(1, 3, *size))


@pytest.mark.parametrize("class_name", [None, "bottle"])
def test_an_unknown_domain_is_an_error_before_anything_is_loaded(class_name):
    with pytest.raises(ValueError, match="domain is 'wood', but must be one of"):
        AnoVLModel("anovl-demo", class_name=class_name, domain="wood")


@settings(max_examples=8)
@given(seed=st.integers(0, 2**31), number=st.integers(1, 5), order=st.randoms(use_true_random=False))
def test_a_result_does_not_depend_on_its_neighbors_or_its_place(square, seed, number, order):
    images, places = images_for(square, number, seed), list(range(number))
    order.shuffle(places)
    together = square(images[places])
    for position, place in enumerate(places):
        alone = square(images[place : place + 1])
        assert_close(together.pred_score[position], alone.pred_score[0], **REFERENCE)
        assert_close(together.anomaly_map[position], alone.anomaly_map[0], **REFERENCE)


@settings(max_examples=5)
@given(seed=st.integers(0, 2**31), number=st.integers(1, 4))
def test_the_same_batch_gives_the_same_bits(square, seed, number):
    images = images_for(square, number, seed)
    first = square(images)
    square(images_for(square, 2, seed + 1))
    second = square(images.clone())
    assert torch.equal(first.pred_score, second.pred_score)
    assert torch.equal(first.anomaly_map, second.anomaly_map)


def test_inference_mode_gives_the_same_bits(square):
    images = images_for(square, 2)
    with torch.inference_mode():
        inside = square(images)
    assert torch.equal(inside.pred_score, square(images).pred_score)
    assert torch.equal(inside.anomaly_map, square(images).anomaly_map)


def test_a_class_set_up_in_inference_mode_can_be_used_and_changed_outside(own):
    with torch.inference_mode():
        own.build_text_bank("bottle")
        own(images_for(own, 1))
    own(images_for(own, 1))
    own.build_text_bank("leather")
    own.half().float()
    assert own.text_bank.state_embeddings.dtype == torch.float32


def test_autocast_gives_float32_close_to_the_full_precision(square):
    images = images_for(square, 4)
    with torch.autocast("cpu", torch.bfloat16):
        result = square(images)
    assert result.pred_score.dtype == result.anomaly_map.dtype == torch.float32
    full = square(images)
    assert_close(result.pred_score, full.pred_score, **HALF_PRECISION)
    assert_close(result.anomaly_map, full.anomaly_map, **HALF_PRECISION)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_model_in_half_precision_gives_float32(own, square, dtype):
    own.build_text_bank("bottle")
    own.to(dtype)
    images = images_for(own, 4)
    result, full = own(images.to(dtype)), square(images)
    assert own.image_tower.visual.proj.dtype == dtype
    assert result.pred_score.dtype == result.anomaly_map.dtype == torch.float32
    assert_close(result.pred_score, full.pred_score, **HALF_PRECISION)
    assert_close(result.anomaly_map, full.anomaly_map, **HALF_PRECISION)
    own.build_text_bank("leather")
    assert own.text_bank.state_embeddings.dtype == torch.float32


BAD_IMAGES = {
    "integers": (
        torch.zeros(1, 3, 32, 32, dtype=torch.uint8),
        TypeError,
        r"^images are torch\.uint8, but must be a floating",
    ),
    "booleans": (
        torch.zeros(1, 3, 32, 32, dtype=torch.bool),
        TypeError,
        r"^images are torch\.bool, but must be a floating",
    ),
    "complex": (torch.zeros(1, 3, 32, 32, dtype=torch.cfloat), TypeError, r"^images are torch\.complex64, but must be"),
    "an array": (np.zeros((1, 3, 32, 32), np.float32), TypeError, "^images are ndarray, but must be a floating-point"),
    "one image": (
        torch.zeros(3, 32, 32),
        ValueError,
        r"^images have the shape \(3, 32, 32\), but must have \(batch, 3,",
    ),
    "gray": (torch.zeros(1, 1, 32, 32), ValueError, r"^images have the shape \(1, 1, 32, 32\), but must have"),
    "channels last": (torch.zeros(1, 32, 32, 3), ValueError, r"^images have the shape \(1, 32, 32, 3\), but must have"),
    "empty": (torch.zeros(1, 3, 0, 32), ValueError, r"^images have the shape \(1, 3, 0, 32\), but must have"),
}


@pytest.mark.parametrize("case", BAD_IMAGES)
def test_what_is_not_a_batch_of_images_is_an_error(case, square):
    images, error, message = BAD_IMAGES[case]
    with pytest.raises(error, match=message) as caught:
        square(images)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e38])
@pytest.mark.parametrize("options", [{}, {"image_score": "map"}, {"tiles_per_side": 1}])
def test_pixels_that_give_no_finite_score_are_an_error_that_says_which_image(value, options, weights_of):
    model = AnoVLModel("tiny-square", pretrained=weights_of("tiny-square"), class_name="bottle", **options)
    images = images_for(model, 3)
    images[1, 0, 5, 5] = value
    with pytest.raises(
        NonFiniteImageError, match=r"^images \[1\] of the batch give scores that are not finite"
    ) as caught:
        model(images)
    assert caught.value.indices == [1]
