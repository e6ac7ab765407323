"""Loading of a CLIP: what is accepted, what is not, and that every error says in one line what to do."""

import json
import logging
import shutil
from pathlib import Path

import open_clip
import pytest
import torch
from huggingface_hub import constants
from open_clip.model import _build_vision_tower
from safetensors.torch import load_file, save_file

from anovl_plugin.vision.backbone import (
    BackboneError,
    build_visual,
    check_visual,
    is_supported_config,
    load_backbone,
    supported_architectures,
)
from tests.conftest import ARCHITECTURES, TINY

OPENAI = (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)
VERSION = tuple(int(part) for part in open_clip.__version__.split(".")[:2])
# The tokenizer of a local folder came with open_clip 3.0; only `make test-oldest` runs an older one.
HAS_LOCAL_DIR = pytest.mark.skipif(VERSION < (3, 0), reason="open_clip reads local-dir: from 3.0 on")
# Before, open_clip's list of weights had no quick_gelu to compare with; only `make test-oldest` runs such a one.
KNOWS_ACTIVATIONS = pytest.mark.skipif(
    "quick_gelu" not in open_clip.get_pretrained_cfg("ViT-B-16", "openai"),
    reason="this open_clip does not say which activation weights were trained with",
)
WAYS_OUT = (" pretrained to a .safetensors or .pt file", "HF_HOME", "backbone=anovl-demo")
UNSUPPORTED = ("RN50", "convnext_base", "ViT-B-16-SigLIP", "coca_ViT-B-32", "tiny-avgpool", "tiny-attnpool")


@pytest.fixture
def square(weights_of):
    return weights_of("tiny-square")


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """Have no network and nothing in the caches."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "empty"))


def error_of(*args, kind=BackboneError, **settings):
    """Give the message that loading fails with."""
    with pytest.raises(kind) as caught:
        load_backbone(*args, **settings)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 600
    return message


def local_folder(folder, name, weights, **preprocess):
    config = {"model_cfg": json.loads((ARCHITECTURES / f"{name}.json").read_text()), "preprocess_cfg": preprocess}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    shutil.copy(weights, folder / "open_clip_model.safetensors")
    return f"local-dir:{folder}"


@pytest.mark.parametrize("name", TINY)
def test_towers_are_frozen_and_hold_the_weights_of_the_file(name, weights_of):
    loaded = load_backbone(name, weights_of(name))
    weights = load_file(weights_of(name))
    towers = {f"visual.{key}": value for key, value in loaded.visual.state_dict().items()} | loaded.clip.state_dict()
    assert towers.keys() == weights.keys()
    assert all(torch.equal(towers[key], weights[key]) for key in weights)
    for tower in (loaded.visual, loaded.clip):
        assert not tower.training
        assert not any(weight.requires_grad for weight in tower.parameters())
    assert not hasattr(loaded.clip, "visual")
    assert loaded.image_size == tuple(loaded.visual.image_size)
    assert (loaded.mean, loaded.std) == OPENAI
    assert loaded.tokenizer(["rust"]).shape == (1, 77)


def test_demo_brings_its_own_weights():
    loaded = load_backbone("anovl-demo")
    assert loaded.image_size == (96, 96)
    assert (loaded.mean, loaded.std) == OPENAI
    assert loaded.visual.proj.dtype == torch.float32
    assert loaded.visual.proj.isfinite().all()


def test_supported_architectures():
    names = supported_architectures()
    assert {"ViT-B-16-plus-240", "ViT-B-16", "ViT-L-14-336", "ViT-H-14-quickgelu", "anovl-demo", *TINY} <= set(names)
    assert not set(UNSUPPORTED) & set(names)


@pytest.mark.parametrize("name", [name for name in open_clip.list_models() if "ViT" in name])
def test_configuration_and_tower_tell_the_same(name):
    config = open_clip.get_model_config(name)
    if "timm_model_name" in config["vision_cfg"] or "multimodal_cfg" in config:
        assert not is_supported_config(config)
        return
    with torch.device("meta"):
        visual = _build_vision_tower(config["embed_dim"], config["vision_cfg"] | {"layers": 1})
    if is_supported_config(config):
        check_visual(visual, name)
    else:
        with pytest.raises(BackboneError):
            check_visual(visual, name)


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_other_towers_are_an_error_by_name(name, square):
    message = error_of(name, square)
    assert message.startswith(f"backbone {name!r} (another kind of image tower) is not a vision transformer that")
    assert "use one of ViT-B-16-plus-240, ViT-B-16," in message
    assert "supported_architectures()" in message


def test_an_unknown_name_is_an_error(square):
    assert error_of("ViT-Z-99", square).startswith("backbone 'ViT-Z-99' (unknown to open_clip) is not")


@pytest.mark.parametrize("pretrained", [None, ""])
def test_no_weights_are_an_error(pretrained):
    message = f"pretrained is {pretrained!r}, but 'ViT-B-32' needs weights: set it to an open_clip tag or a file"
    assert error_of("ViT-B-32", pretrained) == message


@pytest.mark.parametrize("pretrained", ["laion9b", "/nowhere/weights.pt"])
def test_an_unknown_tag_is_an_error_with_the_known_ones(pretrained):
    message = error_of("ViT-B-16-plus-240", pretrained)
    known = ", ".join(open_clip.list_pretrained_tags_by_model("ViT-B-16-plus-240"))
    assert (
        message == f"pretrained is {pretrained!r}, which is neither a file nor a tag of 'ViT-B-16-plus-240' ({known})"
    )


@KNOWS_ACTIVATIONS
def test_weights_of_another_activation_are_an_error():
    message = "the weights 'openai' were trained with another activation than 'ViT-B-16' has; use 'ViT-B-16-quickgelu'"
    assert error_of("ViT-B-16", "openai") == message


@KNOWS_ACTIVATIONS
def test_weights_of_another_activation_name_an_architecture_that_exists():
    names, mismatches = set(open_clip.list_models()), 0
    for name, tag in open_clip.list_pretrained():
        config, weights = open_clip.get_model_config(name), open_clip.get_pretrained_cfg(name, tag)
        wanted = weights.get("quick_gelu")
        if is_supported_config(config) and wanted is not None and wanted != config.get("quick_gelu", False):
            assert error_of(name, tag).rpartition("use ")[2].strip("'") in names
            mismatches += 1
    assert mismatches


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("backbone", ["ViT-B-32", "hf-hub:laion/CLIP-ViT-B-32-laion2B-s34B-b79K"])
def test_weights_that_cannot_be_fetched_name_model_cause_and_ways_out(backbone):
    message = error_of(backbone, *([] if backbone.startswith("hf-hub:") else ["laion2b_s34b_b79k"]))
    assert message.startswith(f"cannot load {backbone!r}")
    assert "(FileNotFoundError: Failed to download file (open_clip_" in message
    assert all(way in message for way in WAYS_OUT)
    assert ("set backbone to its architecture" in message) == backbone.startswith("hf-hub:")


def test_a_download_that_fails_names_the_default_weights(monkeypatch):
    def fail(*_, **__):
        msg = "no route\nto host."
        raise OSError(msg)

    monkeypatch.setattr(open_clip, "download_pretrained", fail)
    message = error_of()
    assert message.startswith("cannot load 'ViT-B-16-plus-240' with weights 'laion400m_e32' (")
    assert "no route to host)" in message
    assert "backbone=anovl-demo" in message


def test_weights_of_another_architecture_are_an_error(weights_of, tmp_path):
    start = "the weights are not those of 'tiny-square': "
    assert error_of("tiny-square", weights_of("tiny-wide")).startswith(start)
    assert "ls_1.gamma" in error_of("tiny-square", weights_of("tiny-layerscale"))
    save_file({"logit_scale": torch.zeros(()), "something": torch.zeros(1)}, tmp_path / "else.safetensors")
    assert error_of("tiny-square", str(tmp_path / "else.safetensors")).startswith(start)


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_pt_file_is_read(tmp_path, square, wrapped):
    weights, path = load_file(square), tmp_path / "weights.pt"
    torch.save({"state_dict": weights} if wrapped else weights, path)
    assert torch.equal(load_backbone("tiny-square", str(path)).visual.proj, weights["visual.proj"])


def known_weights(monkeypatch, **configs):
    """Have open_clip know weights of tiny-square, by tag."""
    monkeypatch.setattr(open_clip, "list_pretrained_tags_by_model", lambda _: list(configs))
    monkeypatch.setattr(open_clip, "get_pretrained_cfg", lambda _, tag: configs.get(tag, {}))


def test_a_file_takes_the_normalization_of_its_architecture(monkeypatch, caplog, square):
    own = {"mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)}
    known_weights(monkeypatch, first=own, second=own)
    loaded = load_backbone("tiny-square", square)
    assert (loaded.mean, loaded.std) == (own["mean"], own["std"])
    assert not caplog.text


def test_a_file_of_an_architecture_with_several_normalizations_warns(monkeypatch, caplog, square):
    known_weights(monkeypatch, first={"mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)}, second={})
    with caplog.at_level(logging.WARNING, "anovl_plugin"):
        loaded = load_backbone("tiny-square", square)
    assert (loaded.mean, loaded.std) == OPENAI
    assert "Weights of tiny-square are known with several normalizations" in caplog.text


@HAS_LOCAL_DIR
def test_a_local_folder_brings_weights_and_normalization(tmp_path, square):
    source = local_folder(tmp_path, "tiny-square", square, mean=[0.1, 0.2, 0.3], std=[0.4, 0.5, 0.6])
    loaded = load_backbone(source)
    assert (loaded.mean, loaded.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert torch.equal(loaded.visual.proj, load_file(square)["visual.proj"])
    assert load_backbone(source, None, (48, 32)).image_size == (48, 32)


@HAS_LOCAL_DIR
@pytest.mark.parametrize("name", ["tiny-avgpool", "tiny-attnpool"])
def test_a_local_folder_with_another_tower_is_an_error(tmp_path, weights_of, name):
    source = local_folder(tmp_path, name, weights_of(name))
    message = error_of(source)
    assert message.startswith(f"backbone {source!r} (another kind of image tower) is not a vision transformer that")


def test_a_local_folder_that_lacks_something_is_an_error(tmp_path, square):
    assert error_of(f"local-dir:{tmp_path / 'none'}").endswith("but there is no such folder")
    assert error_of("local-dir:").endswith("but there is no such folder")
    assert "but the folder has no open_clip_config.json; use a folder that open_clip wrote" in error_of(
        f"local-dir:{tmp_path}"
    )
    source = local_folder(tmp_path, "tiny-square", square)
    (tmp_path / "open_clip_model.safetensors").unlink()
    assert error_of(source).endswith("but the folder has no weights (.safetensors, .bin or .pth)")
    shutil.copy(square, tmp_path / "weights.safetensors")
    for content in ("{", "[]", "{}", '{"model_cfg": {"embed_dim": 16}}'):
        (tmp_path / "open_clip_config.json").write_text(content)
        assert "open_clip_config.json of 'local-dir:" in error_of(source)
        assert "is damaged or incomplete" in error_of(source)


@pytest.mark.parametrize("backbone", ["anovl-demo", "hf-hub:OWNER/NAME", "local-dir:somewhere"])
def test_weights_beside_a_source_that_brings_its_own_are_an_error(backbone):
    message = f"pretrained is 'other.pt', but {backbone!r} brings its own weights; leave it out"
    assert error_of(backbone, "other.pt") == message


@pytest.mark.parametrize("backbone", [None, 16, b"ViT-B-16", ["ViT-B-16"], True])
def test_a_backbone_that_is_not_a_string_is_an_error(backbone):
    assert error_of(backbone, kind=TypeError).startswith(
        f"backbone is {backbone!r}, but must be a string: an architecture"
    )


@pytest.mark.parametrize("pretrained", [16, b"openai", ["openai"], True])
def test_weights_that_are_not_a_string_are_an_error(pretrained):
    message = error_of("ViT-B-16", pretrained, kind=TypeError)
    assert message.startswith(f"pretrained is {pretrained!r}, but must be a string: an open_clip tag, or the path")


def test_a_path_is_accepted_for_weights(square):
    assert load_backbone("tiny-square", Path(square)).fingerprint == load_backbone("tiny-square", square).fingerprint


@pytest.mark.parametrize("name", TINY)
def test_one_tower_alone_is_that_of_the_whole(name, weights_of):
    both = load_backbone(name, weights_of(name))
    image = load_backbone(name, weights_of(name), text=False)
    text = load_backbone(name, weights_of(name), image=False)
    assert image.clip is image.tokenizer is text.visual is text.fingerprint is None
    assert image.fingerprint == both.fingerprint
    assert image.temperature == text.temperature == both.temperature
    for one, other in ((image.visual, both.visual), (text.clip, both.clip)):
        state, expected = one.state_dict(), other.state_dict()
        assert state.keys() == expected.keys()
        assert all(torch.equal(state[key], expected[key]) for key in state)


def test_the_fingerprint_covers_weights_architecture_and_normalization(square, tmp_path, monkeypatch):
    expected = load_backbone("tiny-square", square).fingerprint
    assert load_backbone("tiny-square", square, (48, 24)).fingerprint == expected
    weights = load_file(square)
    weights["visual.positional_embedding"][3, 3] += 1e-3
    save_file(weights, tmp_path / "other.safetensors")
    found = {expected, load_backbone("tiny-square", str(tmp_path / "other.safetensors")).fingerprint}
    weights = load_file(square)
    for change in ({"heads": 1}, {"quick_gelu": True}):
        config = json.loads((ARCHITECTURES / "tiny-square.json").read_text())
        if "heads" in change:
            config["vision_cfg"]["head_width"] = config["vision_cfg"]["width"]
        else:
            config["quick_gelu"] = True
        name = f"tiny-{next(iter(change))}"
        (tmp_path / f"{name}.json").write_text(json.dumps(config))
        open_clip.add_model_config(tmp_path / f"{name}.json")
        found.add(load_backbone(name, square).fingerprint)
    known_weights(monkeypatch, first={"mean": (0.5, 0.5, 0.5)})
    found.add(load_backbone("tiny-square", square).fingerprint)
    assert len(found) == 5


def test_a_tower_is_built_without_weights_from_plain_data(square):
    loaded = load_backbone("tiny-square", square, (48, 24))
    spec = json.loads(json.dumps(loaded.spec._asdict()))
    visual = build_visual(spec["config"], (48, 24))
    visual.load_state_dict(loaded.visual.state_dict())
    images = torch.rand(2, 3, 48, 24)
    assert torch.equal(visual(images), loaded.visual(images))
    assert not visual.training
