"""Loading of a CLIP: what is taken, what is refused, and that every refusal says in one line what to do."""

import json
import logging
import os
import shutil
from pathlib import Path

import open_clip
import pytest
import torch
from huggingface_hub import constants
from open_clip.model import _build_vision_tower
from open_clip.version import __version__ as open_clip_version
from safetensors.torch import load_file, save_file

from anovl_plugin.vision.backbone import (
    BackboneError,
    check_visual,
    is_supported_config,
    load_backbone,
    supported_architectures,
)
from tests.conftest import ARCHITECTURES, TINY

OPENAI = (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)
VERSION = tuple(int(part) for part in open_clip_version.split(".")[:2])
# local-dir: came with open_clip 3.0; only `make test-oldest` runs an older one.
HAS_LOCAL_DIR = pytest.mark.skipif(VERSION < (3, 0), reason="open_clip reads local-dir: from 3.0 on")
# Before, open_clip's list of weights had no quick_gelu to compare with; only `make test-oldest` runs such a one.
KNOWS_ACTIVATIONS = pytest.mark.skipif(
    "quick_gelu" not in open_clip.get_pretrained_cfg("ViT-B-16", "openai"),
    reason="this open_clip does not say which activation weights were trained with",
)
WAYS_ON = (" pretrained to a .safetensors or .pt file", "HF_HOME", "backbone=anovl-demo")
REFUSED = ("RN50", "convnext_base", "ViT-B-16-SigLIP", "coca_ViT-B-32", "tiny-avgpool", "tiny-attnpool")


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
    loaded = load_backbone("anovl-demo", "not looked at")
    assert loaded.image_size == (96, 96)
    assert (loaded.mean, loaded.std) == OPENAI
    assert loaded.visual.proj.dtype == torch.float32
    assert loaded.visual.proj.isfinite().all()


def test_supported_architectures():
    names = supported_architectures()
    assert {"ViT-B-16-plus-240", "ViT-B-16", "ViT-L-14-336", "ViT-H-14-quickgelu", "anovl-demo", *TINY} <= set(names)
    assert not set(REFUSED) & set(names)


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


@pytest.mark.parametrize("name", REFUSED)
def test_other_towers_are_refused_by_name(name, square):
    message = error_of(name, square)
    assert message.startswith(f"backbone {name!r} (another kind of image tower) is not a vision transformer that")
    assert "supported: " in message
    assert "ViT-B-16-plus-240" in message


def test_an_unknown_name_is_refused(square):
    assert error_of("ViT-Z-99", square).startswith("backbone 'ViT-Z-99' (unknown to open_clip) is not")


@pytest.mark.parametrize("pretrained", [None, ""])
def test_no_weights_are_refused(pretrained):
    message = f"pretrained is {pretrained!r}, but 'ViT-B-32' needs weights: give a tag of open_clip's or a file"
    assert error_of("ViT-B-32", pretrained) == message


@pytest.mark.parametrize("pretrained", ["laion9b", "/nowhere/weights.pt"])
def test_an_unknown_tag_is_refused_with_the_known_ones(pretrained):
    message = error_of("ViT-B-16-plus-240", pretrained)
    assert message.startswith(f"pretrained is {pretrained!r}, which is neither a file nor one of the tags of")
    assert message.endswith(f"'ViT-B-16-plus-240': {open_clip.list_pretrained_tags_by_model('ViT-B-16-plus-240')}")


@KNOWS_ACTIVATIONS
def test_weights_of_another_activation_are_refused():
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
def test_weights_that_cannot_be_fetched_name_model_cause_and_ways_on(backbone):
    message = error_of(backbone, "laion2b_s34b_b79k")
    assert message.startswith(f"cannot load {backbone!r}")
    assert "cannot find the requested files in the local cache" in message
    assert all(way in message for way in WAYS_ON)
    assert ("set backbone to its architecture" in message) == backbone.startswith("hf-hub:")


def test_a_download_that_fails_names_the_default_weights(monkeypatch):
    def fail(*_, **__):
        msg = "no route\nto host."
        raise OSError(msg)

    monkeypatch.setattr(open_clip, "download_pretrained", fail)
    monkeypatch.setattr("open_clip.factory.download_pretrained", fail)
    message = error_of()
    assert message.startswith("cannot load 'ViT-B-16-plus-240' with weights 'laion400m_e32' (")
    assert "no route to host)" in message
    assert "backbone=anovl-demo" in message


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
@pytest.mark.parametrize("content", [b"", b"no weights", bytes(range(256)) * 40])
def test_a_corrupt_file_is_refused(tmp_path, suffix, content):
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(content)
    message = error_of("tiny-square", str(path))
    assert message.startswith(f"cannot load 'tiny-square' with weights {str(path)!r} (")
    assert all(way in message for way in WAYS_ON)


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_a_torn_file_is_refused(tmp_path, square, suffix):
    path = tmp_path / f"weights{suffix}"
    torch.save(load_file(square), path) if suffix == ".pt" else shutil.copy(square, path)
    path.write_bytes(path.read_bytes()[:-5000])
    assert error_of("tiny-square", str(path)).startswith("cannot load 'tiny-square'")


def test_weights_of_another_architecture_are_refused(weights_of, tmp_path):
    assert error_of("tiny-square", weights_of("tiny-wide")).startswith("cannot load 'tiny-square' with weights")
    assert "ls_1.gamma" in error_of("tiny-square", weights_of("tiny-layerscale"))
    save_file({"something": torch.zeros(1)}, tmp_path / "else.safetensors")
    assert error_of("tiny-square", str(tmp_path / "else.safetensors")).startswith("cannot load 'tiny-square'")


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_pt_file_is_read(tmp_path, square, wrapped):
    weights, path = load_file(square), tmp_path / "weights.pt"
    torch.save({"state_dict": weights} if wrapped else weights, path)
    assert torch.equal(load_backbone("tiny-square", str(path)).visual.proj, weights["visual.proj"])


class Malicious:
    """Makes a folder when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_a_pt_file_cannot_run_code(tmp_path, square):
    trap, path = tmp_path / "trap", tmp_path / "weights.pt"
    torch.save({**load_file(square), "extra": Malicious(trap)}, path)
    assert error_of("tiny-square", str(path)).startswith("cannot load 'tiny-square'")
    assert not trap.exists()
    torch.load(path, weights_only=False)
    assert trap.exists()  # the trap would have worked


def known_weights(monkeypatch, **configs):
    """Have open_clip know weights of tiny-square, by tag."""
    monkeypatch.setattr(open_clip, "list_pretrained_tags_by_model", lambda _: list(configs))
    monkeypatch.setattr(open_clip, "get_pretrained_cfg", lambda _, tag: configs.get(tag, {}))


def test_a_file_takes_the_normalisation_of_its_architecture(monkeypatch, caplog, square):
    own = {"mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)}
    known_weights(monkeypatch, first=own, second=own)
    loaded = load_backbone("tiny-square", square)
    assert (loaded.mean, loaded.std) == (own["mean"], own["std"])
    assert not caplog.text


def test_a_file_of_an_architecture_with_several_normalisations_warns(monkeypatch, caplog, square):
    known_weights(monkeypatch, first={"mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)}, second={})
    with caplog.at_level(logging.WARNING, "anovl_plugin"):
        loaded = load_backbone("tiny-square", square)
    assert (loaded.mean, loaded.std) == OPENAI
    assert "Weights of tiny-square are known with several normalisations" in caplog.text


@HAS_LOCAL_DIR
def test_a_local_folder_brings_weights_and_normalisation(tmp_path, square):
    source = local_folder(tmp_path, "tiny-square", square, mean=[0.1, 0.2, 0.3], std=[0.4, 0.5, 0.6])
    loaded = load_backbone(source, "not looked at")
    assert (loaded.mean, loaded.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert torch.equal(loaded.visual.proj, load_file(square)["visual.proj"])
    assert load_backbone(source, None, (48, 32)).image_size == (48, 32)


@HAS_LOCAL_DIR
@pytest.mark.parametrize("name", ["tiny-avgpool", "tiny-attnpool"])
def test_a_local_folder_with_another_tower_is_refused(tmp_path, weights_of, name):
    source = local_folder(tmp_path, name, weights_of(name))
    message = error_of(source)
    assert message.startswith(f"backbone {source!r} (VisionTransformer) is not a vision transformer that")


def test_a_local_folder_that_lacks_something_is_refused(tmp_path, square):
    assert error_of(f"local-dir:{tmp_path / 'none'}").startswith("cannot load 'local-dir:")
    assert error_of(f"local-dir:{tmp_path}").startswith("cannot load 'local-dir:")
    source = local_folder(tmp_path, "tiny-square", square)
    (tmp_path / "open_clip_model.safetensors").unlink()
    assert all(way in error_of(source) for way in WAYS_ON)
    assert error_of("local-dir:").startswith("cannot load 'local-dir:'")
    assert Path(square).is_file()
