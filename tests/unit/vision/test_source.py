"""Where a CLIP comes from, and that every request that cannot work ends in one line that says what to do."""

import json
import shutil
from pathlib import Path

import open_clip
import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file
from torch.testing import assert_close

from anovl_plugin.vision import source
from anovl_plugin.vision.backbone import (
    BackboneError,
    check_source,
    is_supported_config,
    load_backbone,
    read_spec,
    supported_architectures,
)
from tests.helpers.architectures import ARCHITECTURES, TINY
from tests.helpers.tolerances import EXACT

OPENAI = (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)
# Earlier versions list no quick_gelu to compare with; only `make test-oldest` runs such a version.
KNOWS_ACTIVATIONS = pytest.mark.skipif(
    "quick_gelu" not in open_clip.get_pretrained_cfg("ViT-B-16", "openai"),
    reason="this open_clip does not say which activation weights were trained with",
)
DEFAULT = "laion400m_e32"
HUB = "hf-hub:laion/CLIP-ViT-B-32-laion2B-s34B-b79K"
UNSUPPORTED = ("RN50", "convnext_base", "ViT-B-16-SigLIP", "coca_ViT-B-32", "tiny-avgpool", "tiny-attnpool")
COLORS = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}


@pytest.fixture
def square(weights_of):
    return weights_of("tiny-square")


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """Work offline with empty caches; return the folder of the hub's cache."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def error_of(*args, kind=BackboneError, check=check_source, **settings):
    """Return the message that a request fails with, the same before and while loading."""
    messages = set()
    for call in (check, load_backbone):
        with pytest.raises(kind) as caught:
            call(*args, **settings)
        messages.add(str(caught.value))
    (message,) = messages
    assert "\n" not in message
    assert len(message) < 600
    return message


def write_export(folder, name, weights=None, filename="open_clip_model.safetensors", **preprocessing):
    """Write a folder as open_clip exports it."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {"model_cfg": json.loads((ARCHITECTURES / f"{name}.json").read_text()), "preprocess_cfg": preprocessing}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    if weights is not None:
        torch.save(load_file(weights), folder / filename) if filename.endswith("bin") else shutil.copy(
            weights, folder / filename
        )
    return f"local-dir:{folder}"


def write_repository(cache, name, architecture, weights=None, **preprocessing):
    """Write a repository into the hub's cache, as if it had been downloaded."""
    folder = cache / f"models--{name.replace('/', '--')}"
    write_export(folder / "snapshots" / "1a", architecture, weights, "open_clip_pytorch_model.bin", **preprocessing)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("1a")
    return f"hf-hub:{name}"


# Requests that are valid.


def test_valid_requests_come_back_as_strings(tmp_path, square):
    folder = write_export(tmp_path, "tiny-square", square)
    assert check_source("ViT-B-16-plus-240", DEFAULT) == ("ViT-B-16-plus-240", DEFAULT)
    assert check_source("tiny-square", square) == check_source("tiny-square", Path(square)) == ("tiny-square", square)
    for backbone in ("anovl-demo", HUB, folder):
        assert check_source(backbone, DEFAULT) == check_source(backbone, None) == (backbone, DEFAULT)


def test_supported_architectures():
    names = supported_architectures()
    assert {"ViT-B-16-plus-240", "ViT-B-16", "ViT-L-14-336", "ViT-H-14-quickgelu", "anovl-demo", *TINY} <= set(names)
    assert not set(UNSUPPORTED) & set(names)


# Requests that are not.


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_other_towers_are_named(name, square):
    message = error_of(name, square)
    assert message.startswith(f"backbone {name!r} (another kind of image tower) is not a vision transformer that")
    assert "supported: ViT-B-16-plus-240, " in message


@pytest.mark.parametrize("name", ["ViT-Z-99", "", " ", "x" * 10_000])
def test_unknown_architectures(name, square):
    message = error_of(name, square)
    assert " (unknown to open_clip) is not a vision transformer that value-wise attention can run on; supp" in message
    assert message.startswith(f"backbone '{name[:20]}")
    assert message.endswith("see anovl_plugin.vision.backbone.supported_architectures()")


@pytest.mark.parametrize("pretrained", [None, "", "  "])
def test_no_weights(pretrained):
    message = f"pretrained is {pretrained!r}, but 'ViT-B-32' needs weights: an open_clip tag or a weights file"
    assert error_of("ViT-B-32", pretrained) == message


@pytest.mark.parametrize("pretrained", ["laion9b", "/nowhere/weights.pt", "\0", "x" * 10_000, Path(__file__).parent])
def test_unknown_tags(pretrained):
    message = error_of("ViT-B-16-plus-240", pretrained)
    assert message.startswith(f"pretrained is {str(pretrained)[:20]!r}"[:-1])
    assert message.endswith(
        "which is neither a file nor one of the tags of 'ViT-B-16-plus-240': laion400m_e31, laion400m_e32"
    )


def test_unknown_tags_of_architectures_with_many_or_none():
    tags = open_clip.list_pretrained_tags_by_model("ViT-B-32")
    assert error_of("ViT-B-32", "laion9b").endswith(f": {', '.join(tags[:8])} and {len(tags) - 8} more")
    assert error_of("tiny-square", "laion9b").endswith("one of the tags of 'tiny-square': there are none")


@KNOWS_ACTIVATIONS
def test_weights_of_another_activation():
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


@pytest.mark.parametrize("pretrained", ["openai", "weights.pt", "", Path("weights.pt")])
@pytest.mark.parametrize("name", ["anovl-demo", HUB, "local-dir:folder"])
def test_weights_for_what_brings_its_own(name, pretrained):
    message = f"pretrained is {str(pretrained)!r}, but backbone {name!r} brings its own weights; omit pretrained"
    assert error_of(name, pretrained).startswith(message)


@pytest.mark.parametrize("name", ["", "laion", "laion/", "/CLIP", "https://hub/laion/CLIP", "laion/CLIP/file.bin"])
def test_repositories_that_are_none(name):
    message = f"backbone is 'hf-hub:{name}', but a repository on the hub is written as hf-hub:OWNER/NAME"
    assert error_of(f"hf-hub:{name}", DEFAULT) == message


# Downloads.


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("backbone", ["ViT-B-32", HUB])
def test_downloads_that_fail_name_model_cause_and_what_to_try(backbone):
    with pytest.raises(BackboneError) as caught:
        load_backbone(backbone, DEFAULT if backbone == HUB else "laion2b_s34b_b79k")
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 600
    assert message.startswith(f"cannot load {backbone!r}")
    assert "). Try one of: set " in message
    assert "set HF_HOME to a cache that holds " in message
    assert message.endswith("; backbone=anovl-demo, which needs no download.")
    assert ("pretrained" in message) == (backbone != HUB)
    assert ("'local-dir:FOLDER'" in message) == (backbone == HUB)


@pytest.mark.usefixtures("offline")
def test_a_spec_that_cannot_be_downloaded():
    with pytest.raises(BackboneError, match=f"^cannot load '{HUB}' .*Try one of: set HF_HOME to a cache"):
        read_spec(HUB, None)


def test_the_default_weights_come_from_their_own_address(monkeypatch):
    """open_clip 3.3 would download laion400m_e31 for laion400m_e32."""
    asked = []

    def fail(config):
        asked.append(config)
        msg = "no route\nto host."
        raise OSError(msg)

    monkeypatch.setattr(open_clip, "download_pretrained", fail)
    with pytest.raises(BackboneError) as caught:
        load_backbone()
    assert str(caught.value) == (
        "cannot load 'ViT-B-16-plus-240' with weights 'laion400m_e32' (OSError: no route to host). Try one of: set "
        "pretrained to a .safetensors or .pt file of these weights; put "
        "vit_b_16_plus_240-laion400m_e32-699c4b84.pt into ~/.cache/clip; backbone=anovl-demo, which needs no download."
    )
    assert asked[0]["url"].endswith("vit_b_16_plus_240-laion400m_e32-699c4b84.pt")
    assert not asked[0].get("hf_hub")


def test_sizes_are_checked_before_anything_is_downloaded(monkeypatch, offline):
    monkeypatch.setattr(open_clip, "download_pretrained", lambda _: pytest.fail("the weights were downloaded"))
    with pytest.raises(ValueError, match="must be multiples of the patches of 'ViT-B-16-plus-240'"):
        load_backbone(image_size=241)
    backbone = write_repository(offline, "owner/name", "tiny-square")
    with pytest.raises(ValueError, match="must be multiples of the patches of 'hf-hub:owner/name'"):
        load_backbone(backbone, image_size=33)


def test_a_repository_brings_weights_tokenizer_and_normalization(offline, square):
    backbone = write_repository(offline, "owner/na.me", "tiny-square", square, **COLORS)
    loaded = load_backbone(backbone, image_size=(48, 32))
    assert [list(loaded.mean), list(loaded.std)] == list(COLORS.values())
    assert loaded.image_size == (48, 32)
    assert_close(loaded.visual.proj.data, load_file(square)["visual.proj"], **EXACT)
    assert loaded.tokenizer(["rust"]).shape == (1, 77)


def test_a_spec_needs_no_weights_of_a_repository(offline):
    backbone = write_repository(offline, "owner/name", "tiny-wide", **COLORS)
    spec = read_spec(backbone, None)
    assert spec.image_size == (32, 48)
    assert spec.config["embed_dim"] == 40
    assert [list(spec.mean), list(spec.std)] == list(COLORS.values())


def test_a_repository_with_another_tower(offline):
    backbone = write_repository(offline, "owner/name", "tiny-avgpool")
    with pytest.raises(BackboneError, match=r"^backbone 'hf-hub:owner/name' \(another kind of image tower\) is not"):
        read_spec(backbone, None)


# Folders.


def test_a_folder_brings_weights_tokenizer_and_normalization(tmp_path, square):
    backbone = write_export(tmp_path, "tiny-square", square, **COLORS)
    loaded = load_backbone(backbone)
    assert [list(loaded.mean), list(loaded.std)] == list(COLORS.values())
    assert_close(loaded.visual.proj.data, load_file(square)["visual.proj"], **EXACT)
    assert loaded.tokenizer(["rust"]).shape == (1, 77)
    assert load_backbone(backbone, None, (48, 32)).image_size == (48, 32)


def test_a_folder_without_normalization_has_openais(tmp_path, square):
    assert read_spec(write_export(tmp_path, "tiny-square", square), None)[2:] == OPENAI


def test_which_weights_of_a_folder_are_read(tmp_path, square):
    backbone = write_export(tmp_path, "tiny-square", square, "own.safetensors")
    assert source.find_weights(backbone, DEFAULT) == tmp_path / "own.safetensors"
    shutil.copy(square, tmp_path / "other.safetensors")
    message = error_of(backbone, None)
    assert message.endswith(
        "has 2 weights files, none with a name that open_clip gives; name one open_clip_model.safetensors or "
        "open_clip_pytorch_model.bin"
    )
    shutil.copy(square, tmp_path / "open_clip_pytorch_model.bin")
    assert source.find_weights(backbone, DEFAULT) == tmp_path / "open_clip_pytorch_model.bin"
    shutil.copy(square, tmp_path / "open_clip_model.safetensors")
    assert source.find_weights(backbone, DEFAULT) == tmp_path / "open_clip_model.safetensors"


def test_folders_that_lack_something(tmp_path, square):
    assert "but there is no such folder; write local-dir:FOLDER" in error_of(f"local-dir:{tmp_path / 'none'}", DEFAULT)
    assert error_of("local-dir:", DEFAULT).startswith("backbone is 'local-dir:', but there is no such folder")
    assert "has no open_clip_config.json; use a folder that open_clip exported" in error_of(
        f"local-dir:{tmp_path}", None
    )
    backbone = write_export(tmp_path, "tiny-square", square)
    (tmp_path / "open_clip_model.safetensors").unlink()
    message = error_of(backbone, DEFAULT)
    assert "has no weights file; name one open_clip_model.safetensors" in message
    assert "pretrained" not in message.replace(str(tmp_path), "")


@pytest.mark.parametrize("name", ["tiny-avgpool", "tiny-attnpool"])
def test_folders_with_another_tower(tmp_path, weights_of, name):
    message = error_of(write_export(tmp_path, name, weights_of(name)), DEFAULT)
    assert " (another kind of image tower) is not a vision transformer that" in message


GOOD = json.loads((ARCHITECTURES / "tiny-square.json").read_text())
BAD_CONFIGS = {
    "binary": "\x00\x01",
    "list": [],
    "model_cfg": {"preprocess_cfg": {}},
    "embed_dim": {"model_cfg": GOOD | {"embed_dim": "24"}},
    "no embed_dim": {"model_cfg": {key: GOOD[key] for key in ("vision_cfg", "text_cfg")}},
    "text_cfg": {"model_cfg": GOOD | {"text_cfg": []}},
    "vision_cfg": {"model_cfg": GOOD | {"vision_cfg": None}},
    "image_size": {"model_cfg": GOOD | {"vision_cfg": GOOD["vision_cfg"] | {"image_size": [32, 32, 32]}}},
    "negative": {"model_cfg": GOOD | {"vision_cfg": GOOD["vision_cfg"] | {"image_size": -32}}},
    "mean": {"model_cfg": GOOD, "preprocess_cfg": {"mean": [0.1, 0.2]}},
    "NaN": {"model_cfg": GOOD, "preprocess_cfg": {"mean": [0.1, 0.2, float("nan")]}},
    "std": {"model_cfg": GOOD, "preprocess_cfg": {"std": [0.1, 0.2, 0.0]}},
    "text": {"model_cfg": GOOD, "preprocess_cfg": {"std": "abc"}},
}


@pytest.mark.parametrize("content", BAD_CONFIGS.values(), ids=BAD_CONFIGS)
def test_folders_with_a_damaged_configuration(tmp_path, square, content):
    backbone = write_export(tmp_path, "tiny-square", square)
    text = content if isinstance(content, str) else json.dumps(content)
    (tmp_path / "open_clip_config.json").write_text(text)
    message = error_of(backbone, DEFAULT)
    assert message.startswith(f"the open_clip_config.json of backbone {backbone!r} is not one that open_clip wrote")
    assert message.endswith("; export it again")


def test_files_in_the_home_folder(tmp_path, monkeypatch, weights_of):
    monkeypatch.setenv("HOME", str(tmp_path))
    write_export(tmp_path / "clip", "tiny-square", weights_of("tiny-square"))
    assert source.find_weights(*check_source("local-dir:~/clip", None)).parent == tmp_path / "clip"
    file = "~/clip/open_clip_model.safetensors"
    assert source.find_weights(*check_source("tiny-square", file)).parent == tmp_path / "clip"
