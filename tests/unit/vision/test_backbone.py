"""Loading of a CLIP: both towers or one, with the weights of the file, and what identifies it."""

import json
import logging
import math
from copy import deepcopy

import open_clip
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

from anovl_plugin.vision import backbone as module
from anovl_plugin.vision.backbone import (
    BackboneError,
    BackboneSpec,
    build_visual,
    fingerprint,
    load_backbone,
    read_spec,
    resize_positions,
)
from tests.helpers.architectures import TINY
from tests.helpers.tolerances import EXACT

OPENAI = (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)
OWN = ((0.5, 0.4, 0.3), (0.25, 0.2, 0.1))


@pytest.fixture
def square(weights_of):
    return weights_of("tiny-square")


def towers_of(loaded):
    return {f"visual.{key}": value for key, value in loaded.visual.state_dict().items()} | loaded.clip.state_dict()


@pytest.mark.parametrize("name", TINY)
def test_towers_are_frozen_and_hold_the_weights_of_the_file(name, weights_of):
    loaded = load_backbone(name, weights_of(name))
    weights, towers = load_file(weights_of(name)), towers_of(loaded)
    assert towers.keys() == weights.keys()
    assert all(torch.equal(towers[key], weights[key]) for key in weights)
    for tower in (loaded.visual, loaded.clip):
        assert not any(each.training for each in tower.modules())
        assert not any(weight.requires_grad for weight in tower.parameters())
        assert all(weight.dtype == torch.float32 for weight in tower.parameters())
    assert not hasattr(loaded.clip, "visual")
    assert loaded.image_size == loaded.spec.image_size == tuple(loaded.visual.image_size)
    assert (loaded.mean, loaded.std) == (loaded.spec.mean, loaded.spec.std) == OPENAI
    assert loaded.temperature == pytest.approx(math.exp(-weights["logit_scale"]))
    assert loaded.tokenizer(["rust"]).shape == (1, 77)


@pytest.mark.parametrize("name", TINY)
def test_towers_give_what_open_clips_own_give(name, weights_of):
    loaded, clip = load_backbone(name, weights_of(name)), open_clip.create_model(name)
    clip.load_state_dict(load_file(weights_of(name)))
    clip.eval().requires_grad_(requires_grad=False)
    images, tokens = torch.randn(2, 3, *loaded.image_size), loaded.tokenizer(["rust", "a photo of a bottle"])
    assert_close(loaded.visual(images), clip.encode_image(images), **EXACT)
    assert_close(loaded.clip.encode_text(tokens), clip.encode_text(tokens), **EXACT)


@pytest.mark.parametrize("name", TINY)
def test_each_side_needs_only_its_own_weights(name, weights_of, tmp_path):
    weights, both = load_file(weights_of(name)), load_backbone(name, weights_of(name))
    images = {key: value for key, value in weights.items() if key.startswith("visual.")}
    scale = {"logit_scale": weights["logit_scale"]}
    save_file(images | scale, tmp_path / "image.safetensors")
    save_file({key: value for key, value in weights.items() if key not in images}, tmp_path / "text.safetensors")
    image = load_backbone(name, tmp_path / "image.safetensors", text=False)
    text = load_backbone(name, tmp_path / "text.safetensors", image=False)
    assert (image.clip, image.tokenizer, text.visual, text.fingerprint) == (None, None, None, None)
    assert_close(image.visual.state_dict(), both.visual.state_dict(), **EXACT)
    assert_close(text.clip.state_dict(), both.clip.state_dict(), **EXACT)
    assert text.tokenizer(["rust"]).equal(both.tokenizer(["rust"]))
    assert image.fingerprint == both.fingerprint
    for part in (image, text):
        assert part[3:6] == both[3:6]  # spec, image size, temperature
    with pytest.raises(BackboneError, match="missing visual"):
        load_backbone(name, tmp_path / "text.safetensors")
    with pytest.raises(BackboneError, match=r"missing (text\.)?positional_embedding"):
        load_backbone(name, tmp_path / "image.safetensors")


def test_weights_are_read_once(monkeypatch, square):
    read, paths = module.read_weights, []
    monkeypatch.setattr(module, "read_weights", lambda path: paths.append(path) or read(path))
    load_backbone("tiny-square", square)
    assert len(paths) == 1


def test_loading_leaves_the_random_state(square):
    state = torch.random.get_rng_state()
    load_backbone("tiny-square", square)
    build_visual(read_spec("tiny-square", square).config, (32, 32))
    assert torch.random.get_rng_state().equal(state)


def test_loading_within_inference_mode_and_other_defaults(square):
    expected = towers_of(load_backbone("tiny-square", square))
    with torch.inference_mode():
        loaded = load_backbone("tiny-square", square, (64, 32))
        empty = build_visual(loaded.spec.config, (32, 32))
    assert not any(weight.is_inference() for weight in (*towers_of(loaded).values(), *empty.parameters()))
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"):
            loaded, empty = load_backbone("tiny-square", square), build_visual(loaded.spec.config, (32, 32))
    finally:
        torch.set_default_dtype(torch.float32)
    assert_close(towers_of(loaded), expected, **EXACT)
    assert_close(loaded.clip.attn_mask, torch.full((77, 77), -torch.inf).triu(1))
    assert all((weight.dtype, weight.device.type) == (torch.float32, "cpu") for weight in empty.parameters())


def test_demo_brings_its_own_weights():
    loaded = load_backbone("anovl-demo")
    assert loaded.image_size == (96, 96)
    assert (loaded.mean, loaded.std) == OPENAI
    assert loaded.visual.proj.dtype == torch.float32
    assert loaded.visual.proj.isfinite().all()
    assert load_backbone("anovl-demo", None, text=False).fingerprint == loaded.fingerprint


# The spec.


def test_spec_is_plain_data_and_needs_no_weights(monkeypatch, square):
    monkeypatch.setattr(module, "read_weights", lambda _: pytest.fail("weights were read"))
    spec = read_spec("tiny-wide", square)
    assert spec.image_size == (32, 48)
    assert (spec.mean, spec.std) == OPENAI
    assert set(spec.config) == {"embed_dim", "vision_cfg", "quick_gelu"}
    assert json.loads(json.dumps(spec.config)) == spec.config
    assert spec.patch_size == (16, 16)
    assert read_spec("tiny-quickgelu", square).config["quick_gelu"] is True


def known_weights(monkeypatch, **configs):
    """Make open_clip list configurations of weights by tag."""
    monkeypatch.setattr(open_clip, "list_pretrained_tags_by_model", lambda _: list(configs))
    monkeypatch.setattr(open_clip, "get_pretrained_cfg", lambda _, tag: configs.get(tag, {}))


def test_a_file_takes_the_normalization_of_its_architecture(monkeypatch, caplog, square):
    own = {"mean": OWN[0], "std": OWN[1]}
    known_weights(monkeypatch, first=own, second=own)
    loaded = load_backbone("tiny-square", square)
    assert (loaded.mean, loaded.std) == OWN
    assert not [record for record in caplog.records if record.name.startswith("anovl_plugin")]


def test_a_file_of_an_architecture_with_several_normalizations_warns_once(monkeypatch, caplog, square):
    known_weights(monkeypatch, first={"mean": OWN[0], "std": OWN[1]}, second={})
    with caplog.at_level(logging.WARNING, "anovl_plugin"):
        loaded = load_backbone("tiny-square", square)
        load_backbone("tiny-square", square, image=False)
        read_spec("tiny-square", square)
    assert (loaded.mean, loaded.std) == OPENAI
    assert caplog.text.count("The weights known for tiny-square use different normalizations") == 1


def test_a_tag_takes_its_own_normalization(monkeypatch, square):
    known_weights(monkeypatch, first={"mean": OWN[0], "std": OWN[1]}, second={})
    monkeypatch.setattr(open_clip, "download_pretrained", lambda _: square)
    assert load_backbone("tiny-square", "first", text=False).spec[2:] == OWN
    assert load_backbone("tiny-square", "second", text=False).spec[2:] == OPENAI


# The fingerprint.


@pytest.fixture
def loaded(square):
    return load_backbone("tiny-square", square, text=False)


@pytest.mark.parametrize("name", TINY)
def test_fingerprint_is_the_same_for_all_image_sizes(name, weights_of):
    own = load_backbone(name, weights_of(name), text=False)
    other = load_backbone(name, weights_of(name), (64, 96), text=False)
    assert own.fingerprint == other.fingerprint == fingerprint(own.visual, own.spec)
    assert len(own.fingerprint) == 16
    assert int(own.fingerprint, 16)


@pytest.mark.parametrize("name", ["proj", "positional_embedding", "transformer.resblocks.2.ln_1.bias"])
def test_fingerprint_covers_every_weight(loaded, name):
    visual = deepcopy(loaded.visual)
    visual.get_parameter(name).data.view(-1)[-1] += 1e-3
    assert fingerprint(visual, loaded.spec) != loaded.fingerprint


@pytest.mark.parametrize(
    "change",
    [{"quick_gelu": True}, {"head_width": 16}, {"norm_kwargs": {"eps": 1e-3}}, {"act_kwargs": {"approximate": "tanh"}}],
)
def test_fingerprint_covers_what_no_weight_shows(loaded, change):
    config = deepcopy(loaded.spec.config)
    (config if "quick_gelu" in change else config["vision_cfg"]).update(change)
    try:
        visual = build_visual(config, (32, 32))
    except BackboneError:
        if change.keys() & {"norm_kwargs", "act_kwargs"}:
            pytest.skip("this open_clip has no such setting")
        raise
    visual.load_state_dict(loaded.visual.state_dict())
    assert fingerprint(visual, loaded.spec) != loaded.fingerprint


def test_fingerprint_covers_sizes_and_normalization(loaded):
    for change in ({"image_size": (16, 64)}, {"mean": OWN[0]}, {"std": OWN[1]}):
        assert fingerprint(loaded.visual, loaded.spec._replace(**change)) != loaded.fingerprint
    config = json.loads(json.dumps(loaded.spec.config))
    again = BackboneSpec(config, (32, 32), tuple(OPENAI[0]), tuple(OPENAI[1]))
    assert fingerprint(loaded.visual, again) == loaded.fingerprint


# The architecture alone.


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize("size", [None, (64, 96)])
def test_an_empty_tower_takes_the_weights_of_a_loaded_one(name, size, weights_of):
    loaded = load_backbone(name, weights_of(name), size, text=False)
    visual = build_visual(json.loads(json.dumps(loaded.spec.config)), loaded.image_size)
    images = torch.randn(1, 3, *loaded.image_size)
    assert visual(images).isnan().all()
    assert not any(each.training for each in visual.modules())
    assert not any(weight.requires_grad for weight in visual.parameters())
    visual.load_state_dict(loaded.visual.state_dict())
    assert (visual.image_size, visual.grid_size) == (loaded.visual.image_size, loaded.visual.grid_size)
    assert_close(visual(images), loaded.visual(images), **EXACT)


def test_an_empty_tower_of_another_kind_is_an_error(loaded):
    with pytest.raises(BackboneError, match=r"\(another kind of image tower\) is not a vision transformer"):
        build_visual({**loaded.spec.config, "vision_cfg": {"timm_model_name": "resnet50"}}, (32, 32))
    with pytest.raises(BackboneError, match=r"^cannot build the image tower of .* \(TypeError: .*\)$"):
        build_visual({**loaded.spec.config, "vision_cfg": {"color": 3}}, (32, 32))
    with pytest.raises(BackboneError, match=r"^backbone 'of the given configuration' \(another kind"):
        build_visual({}, (32, 32))
    with pytest.raises(ValueError, match="must be multiples of the patches"):
        build_visual(loaded.spec.config, (32, 33))


def test_resizing_a_loaded_tower_is_loading_it_resized(loaded, square):
    resize_positions(loaded.visual, (48, 64), "tiny-square")
    other = load_backbone("tiny-square", square, (48, 64), text=False)
    assert_close(loaded.visual.state_dict(), other.visual.state_dict(), **EXACT)


# Parts from other packages.


def test_a_text_tower_that_needs_another_package_is_named(monkeypatch, square):
    configuration = {"text_cfg": {"hf_model_name": "roberta-base", "hf_tokenizer_name": "roberta-base"}}
    original = open_clip.get_model_config
    monkeypatch.setattr(open_clip, "get_model_config", lambda name: original(name) and original(name) | configuration)
    assert load_backbone("tiny-square", square, text=False).visual is not None
    with pytest.raises(BackboneError, match=r"^cannot build the text tower of 'tiny-square' \(\w+: .*\)$") as caught:
        load_backbone("tiny-square", square)
    assert "\n" not in str(caught.value)


def test_a_tokenizer_that_cannot_be_loaded_is_named(monkeypatch, square):
    def fail(_):
        msg = "no route\nto host."
        raise OSError(msg)

    monkeypatch.setattr(open_clip, "get_tokenizer", fail)
    with pytest.raises(
        BackboneError, match=r"^cannot load the tokenizer of 'tiny-square' \(OSError: no route to host\)$"
    ):
        load_backbone("tiny-square", square)
    load_backbone("tiny-square", square, text=False)
