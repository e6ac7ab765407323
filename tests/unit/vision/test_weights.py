"""Weights files: what is read, what is not, and that nothing in a file is ever executed."""

import json
import math
import os
import re
import shlex
import subprocess
import sys
import zipfile

import open_clip
import pytest
import torch
from safetensors.torch import load_file, save, save_file
from torch.testing import assert_close

from anovl_plugin.vision.backbone import BackboneError, check_source, load_backbone
from anovl_plugin.vision.weights import (
    brief,
    check_finite,
    check_fit,
    first_line,
    read_temperature,
    read_weights,
)
from tests.helpers.architectures import ARCHITECTURES
from tests.helpers.tolerances import EXACT

LFS_POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935\nsize 830000000\n"


@pytest.fixture(scope="module")
def weights(weights_of):
    return load_file(weights_of("tiny-square"))


def check_rejected(path, message, backbone="tiny-square"):
    """Check that loading fails with one short line that matches."""
    for load in (lambda: load_backbone(backbone, path), lambda: load_backbone(backbone, str(path), image=False)):
        with pytest.raises(BackboneError, match=message) as caught:
            load()
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 600


def saved(tmp_path, weights, **changes):
    """Write weights with some of them changed, or left out where the change is ``None``."""
    content = {name.replace("/", "."): tensor for name, tensor in {**weights, **changes}.items() if tensor is not None}
    torch.save(content, tmp_path / "weights.pt")
    return tmp_path / "weights.pt"


# Valid files.


@pytest.mark.parametrize("name", ["weights.safetensors", "weights.pt", "weights.bin", "weights"])
def test_the_content_decides_not_the_name(tmp_path, weights, name):
    save_file(weights, tmp_path / name)
    assert_close(read_weights(tmp_path / name), weights, **EXACT)
    torch.save(weights, tmp_path / name)
    assert_close(read_weights(str(tmp_path / name)), weights, **EXACT)


@pytest.mark.parametrize("is_zip", [True, False])
@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("wrapped", [True, False])
def test_layouts_of_saved_state_dicts(tmp_path, weights, is_zip, prefix, wrapped):
    content = {prefix + name: tensor for name, tensor in weights.items()}
    content = {"epoch": 3, "state_dict": content} if wrapped else content
    torch.save(content, tmp_path / "weights.pt", _use_new_zipfile_serialization=is_zip)
    assert_close(read_weights(tmp_path / "weights.pt"), weights, **EXACT)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
def test_other_precisions_are_loaded_as_float32(tmp_path, weights, dtype, suffix):
    path, cast = tmp_path / f"weights.{suffix}", {name: tensor.to(dtype) for name, tensor in weights.items()}
    save_file(cast, path) if suffix == "safetensors" else torch.save(cast, path)
    loaded = load_backbone("tiny-square", path)
    towers = {f"visual.{key}": value for key, value in loaded.visual.state_dict().items()} | loaded.clip.state_dict()
    assert_close(towers, {name: tensor.float() for name, tensor in cast.items()}, **EXACT)


def test_a_scale_in_a_list_of_one(tmp_path, weights):
    path = saved(tmp_path, weights, logit_scale=torch.tensor([math.log(20)]))
    loaded = load_backbone("tiny-square", path)
    assert loaded.temperature == pytest.approx(1 / 20)
    assert loaded.clip.logit_scale.shape == ()


def test_constants_beside_the_weights_are_ignored(tmp_path, weights):
    constants = {name: torch.tensor(77) for name in ("input_resolution", "context_length", "vocab_size")}
    constants["text.transformer.embeddings.position_ids"] = torch.arange(77)[None]
    path = saved(tmp_path, weights, attn_mask=torch.full((77, 77), -torch.inf).triu(1), **constants)
    assert read_weights(path).keys() == weights.keys()
    load_backbone("tiny-square", path)


def test_a_bias_that_the_architecture_lacks_is_ignored(tmp_path, weights):
    """Sigmoid losses train one; margins between states do not depend on it."""
    path = saved(tmp_path, weights, logit_bias=torch.tensor(-10.0))
    assert "logit_bias" not in load_backbone("tiny-square", path).clip.state_dict()


def test_custom_text_model_reads_the_layout_of_others(tmp_path, weights, weights_of):
    loaded = load_backbone("tiny-customtext", saved(tmp_path, weights))
    assert_close(loaded.clip.state_dict()["text.token_embedding.weight"], weights["token_embedding.weight"])
    own = load_backbone("tiny-customtext", weights_of("tiny-customtext"))
    assert loaded.clip.state_dict().keys() == own.clip.state_dict().keys()


def test_loaded_weights_do_not_depend_on_the_file(tmp_path, weights):
    """Weights that are mapped to the file would change with it."""
    save_file(weights, tmp_path / "weights.safetensors")
    loaded = load_backbone("tiny-square", tmp_path / "weights.safetensors")
    with (tmp_path / "weights.safetensors").open("r+b") as file:
        file.seek(8 + int.from_bytes(file.read(8), "little"))
        file.write(bytes(sum(tensor.nbytes for tensor in weights.values())))
    assert_close(loaded.visual.proj.data, weights["visual.proj"], **EXACT)


# Files that are not weights.


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"weights.pt' is empty; download it again$"),
        (LFS_POINTER, "is a Git LFS pointer, not the weights themselves; run 'git lfs pull'"),
        (b"<!DOCTYPE html>\n<html><body>404</body></html>", "is a web page, not weights; download the file itself"),
        (b"\n  <html>", "is a web page, not weights"),
        (b"no weights", "is not a weights file; use a .safetensors file or a .pt file"),
        (bytes(range(256)) * 40, "is not a weights file; use a .safetensors file or a .pt file"),
        (b"\x93NUMPY\x01\x00", "is not a weights file"),
        (b"\x80\x02}q\x00.", "is truncated or damaged"),
        (b"PK\x03\x04" + bytes(500), "is truncated; download it again"),
        ((10**6).to_bytes(8, "little") + b"{", "truncated or damaged safetensors file .its header is cut off"),
        ((5).to_bytes(8, "little") + b"{abc}", "truncated or damaged safetensors file"),
        ((2).to_bytes(8, "little") + b"{}", "holds an empty dict, not a state dict"),
    ],
)
def test_other_files_are_named(tmp_path, content, message):
    (tmp_path / "weights.pt").write_bytes(content)
    check_rejected(tmp_path / "weights.pt", message)


@pytest.mark.parametrize("part", [0.02, 0.5, 0.99])
def test_truncated_files(tmp_path, weights, part):
    content = save(weights)
    (tmp_path / "weights.safetensors").write_bytes(content[: int(part * len(content))])
    check_rejected(tmp_path / "weights.safetensors", "is a truncated or damaged safetensors file .*; download it again")
    for is_zip in (True, False):
        torch.save(weights, tmp_path / "weights.pt", _use_new_zipfile_serialization=is_zip)
        content = (tmp_path / "weights.pt").read_bytes()
        (tmp_path / "weights.pt").write_bytes(content[: int(part * len(content))])
        check_rejected(tmp_path / "weights.pt", r"is truncated(;| or damaged \(.*\);) download it again")


def test_a_zip_of_something_else(tmp_path):
    with zipfile.ZipFile(tmp_path / "weights.zip", "w") as archive:
        archive.writestr("clip/model.safetensors", "")
    check_rejected(tmp_path / "weights.zip", "is a zip archive without weights; extract it")


def test_a_file_that_cannot_be_read(tmp_path):
    with pytest.raises(BackboneError, match=r"cannot be read \(FileNotFoundError: .*\)$"):
        read_weights(tmp_path / "none.pt")
    with pytest.raises(BackboneError, match=r"cannot be read \(IsADirectoryError: .*\)$"):
        read_weights(tmp_path)


@pytest.mark.parametrize("content", [torch.zeros(2), [torch.zeros(2)], {}, {0: torch.zeros(2)}, 3])
def test_what_is_not_a_state_dict(tmp_path, content):
    torch.save(content, tmp_path / "weights.pt")
    check_rejected(
        tmp_path / "weights.pt", r"holds (a Tensor|a list|an int|a dict|an empty dict), not a state dict; save one with"
    )


def test_a_state_dict_with_other_things_in_it(tmp_path, weights):
    check_rejected(
        saved(tmp_path, weights, epoch=3), "holds an int under 'epoch', not a tensor; save the state dict alone"
    )


def test_the_layout_of_transformers(tmp_path, weights):
    names = {name: re.sub("^visual", "vision_model", name) for name in weights}
    content = {names[name] if "visual" in name else f"text_model.{name}": tensor for name, tensor in weights.items()}
    torch.save(content, tmp_path / "pytorch_model.bin")
    check_rejected(
        tmp_path / "pytorch_model.bin", "has the layout of the transformers package .*; use the open_clip export"
    )


# No code is run.


class Malicious:
    """Makes a folder when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


class MaliciousScript(torch.nn.Module):
    """Writes a file when it is loaded as TorchScript."""

    def __init__(self, path):
        super().__init__()
        self.path: str = str(path)
        self.weight = torch.nn.Parameter(torch.ones(2))

    def forward(self, images):
        return images

    @torch.jit.export
    def __getstate__(self):
        return (self.weight, self.path, self.training)

    @torch.jit.export
    def __setstate__(self, state: tuple[torch.Tensor, str, bool]):
        self.weight = state[0]
        self.path = state[1]
        self.training = state[2]
        torch.save(state[0], state[1])


def write_pickle(path, trap, weights):
    torch.save({**weights, "extra": Malicious(trap)}, path)


def write_script(path, trap, _):
    torch.jit.script(MaliciousScript(trap)).save(path)


def as_folder(folder, file):
    """Return a folder with a weights file, laid out as open_clip exports it."""
    model = json.loads((ARCHITECTURES / "tiny-square.json").read_text())
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": model, "preprocess_cfg": {}}))
    return f"local-dir:{file.parent}"


@pytest.mark.parametrize("way", ["pretrained", "local-dir"])
@pytest.mark.parametrize(
    ("write", "trigger", "message"),
    [
        (
            write_pickle,
            lambda path: torch.load(path, weights_only=False),
            r"holds Python code or objects \(\w+.mkdir\)",
        ),
        (write_script, torch.jit.load, "is a TorchScript archive, as OpenAI publishes them, and could run code"),
    ],
    ids=["pickle", "TorchScript"],
)
def test_nothing_in_a_file_is_executed(tmp_path, weights, way, write, trigger, message):
    trap, path = tmp_path / "trap", tmp_path / "files" / "open_clip_pytorch_model.bin"
    path.parent.mkdir()
    write(path, trap, weights)
    source = ("tiny-square", path) if way == "pretrained" else (as_folder(path.parent, path),)
    check_source(source[0], path if way == "pretrained" else None)
    for side in ({}, {"image": False}, {"text": False}):
        with pytest.raises(BackboneError, match=message) as caught:
            load_backbone(*source, **side)
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 600
    assert not trap.exists()
    trigger(path)
    assert trap.exists()  # the trap would have worked


def test_torchscript_can_be_converted_as_the_error_says(tmp_path, weights_of, weights):
    clip = open_clip.create_model("tiny-square", pretrained=None)
    clip.load_state_dict(weights)
    inputs = {"encode_image": torch.rand(1, 3, 32, 32), "encode_text": torch.zeros(1, 77, dtype=torch.long)}
    torch.jit.trace_module(clip.eval(), inputs, check_trace=False).save(tmp_path / "ViT.pt")
    with pytest.raises(BackboneError, match="is a TorchScript archive") as caught:
        load_backbone("tiny-square", tmp_path / "ViT.pt")
    command = re.search(r"python -c \".*?\"(?= and use weights.pt$)", str(caught.value))[0]
    _, *arguments = shlex.split(command)
    subprocess.run([sys.executable, *arguments], cwd=tmp_path, check=True, capture_output=True)
    converted = load_backbone("tiny-square", tmp_path / "weights.pt")
    assert_close(
        converted.visual.state_dict(), load_backbone("tiny-square", weights_of("tiny-square")).visual.state_dict()
    )


# Contents of the file.


@pytest.mark.parametrize("dtype", [torch.int8, torch.int64, torch.bool, torch.complex64, torch.float8_e4m3fn])
def test_weights_that_are_not_real_numbers(tmp_path, weights, dtype):
    name = str(dtype).removeprefix("torch.")
    path = saved(tmp_path, weights, **{"visual.proj": torch.ones(64, 24).to(dtype)})
    check_rejected(path, f"has {name} in 'visual.proj'; use dense floating-point weights")


def test_weights_without_data_of_their_own(tmp_path, weights):
    check_rejected(
        saved(tmp_path, weights, **{"visual.proj": torch.ones(64, 24).to_sparse()}), r"float32 \(sparse_coo\) in"
    )
    check_rejected(
        saved(tmp_path, weights, **{"visual.proj": torch.ones(64, 24, device="meta")}), "has no data in 'visual.p"
    )


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_weights_that_are_not_finite(tmp_path, weights, value, dtype):
    for name, side in (("visual.proj", {"text": False}), ("text_projection", {"image": False})):
        damaged = weights[name].to(dtype, copy=True)
        damaged[1, 2] = value
        path = saved(tmp_path, weights, **{name: damaged})
        with pytest.raises(BackboneError, match=rf"^1 of \d+ weights in '{name}' are NaN or infinite; use undamaged"):
            load_backbone("tiny-square", path, **side)
        with pytest.raises(BackboneError, match=f"in '{name}' are NaN or infinite"):
            load_backbone("tiny-square", path)


def test_weights_beyond_float32_are_not_finite(tmp_path, weights):
    path = saved(tmp_path, weights, **{"visual.proj": torch.full((64, 24), 1e300, dtype=torch.float64)})
    with pytest.raises(BackboneError, match=r"^1536 of 1536 weights in .visual\.proj. are NaN"):
        load_backbone("tiny-square", path)


def test_large_weights_are_finite():
    # Their sum is not.
    check_finite({"weight": torch.full((3,), 3e38), "half": torch.full((5,), 6e4, dtype=torch.float16)})


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 100.0, -11.0])
def test_absurd_scales(tmp_path, weights, value):
    path = saved(tmp_path, weights, logit_scale=torch.tensor(value))
    check_rejected(
        path, f"^logit_scale is {value}, but it is the logarithm of CLIP's scale and must be between -10 and 10"
    )


def test_missing_and_several_scales(tmp_path, weights):
    check_rejected(
        saved(tmp_path, weights, logit_scale=None), "^the weights have no logit_scale, which holds CLIP's temperat"
    )
    check_rejected(
        saved(tmp_path, weights, logit_scale=torch.ones(2)), r"^logit_scale has shape \(2,\), but must be a single"
    )


@pytest.mark.parametrize("scale", [1.0, 14.3, 100.0, 117.3])
def test_temperature(scale):
    assert read_temperature({"logit_scale": torch.tensor(math.log(scale))}) == pytest.approx(1 / scale)


# Weights of another architecture.


def test_weights_of_another_architecture(weights_of, tmp_path):
    def message(name, **side):
        with pytest.raises(BackboneError) as caught:
            load_backbone("tiny-square", weights_of(name), **side)
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 600
        return str(caught.value)

    start = "the weights are not those of 'tiny-square': "
    assert message("tiny-wide", text=False).startswith(f"{start}visual.")
    assert " instead of " in message("tiny-wide", text=False)
    assert " more; missing visual.transformer.resblocks.2." in message("tiny-wide", text=False)
    assert "unexpected visual.transformer.resblocks.0.ls_1.gamma" in message("tiny-layerscale", text=False)
    assert message("tiny-wide", image=False).startswith(
        f"{start}text_projection has shape (32, 40) instead of (32, 24)"
    )
    assert "Use the architecture that they were trained with" in message("tiny-wide")
    check_rejected(
        saved(tmp_path, {}, something=torch.zeros(1), logit_scale=torch.ones(())), "missing .* more; unexpected some"
    )


def test_a_truncated_text_context(tmp_path, weights):
    path = saved(tmp_path, weights, positional_embedding=weights["positional_embedding"][:60])
    message = r"positional_embedding has shape \(60, 32\) instead of \(77, 32\) \(another text context\)"
    check_rejected(path, message)


def test_positions_of_another_image_size(tmp_path, weights):
    path = saved(tmp_path, weights, **{"visual.positional_embedding": weights["visual.positional_embedding"][:10]})
    with pytest.raises(BackboneError, match=r"shape \(10, 64\) instead of \(17, 64\) \(made for another image size\)"):
        load_backbone("tiny-square", path)


def test_few_names_are_shown():
    expected = {f"{'long' * 50}.{index}": torch.zeros(index + 1) for index in range(900)}
    with pytest.raises(BackboneError) as caught:
        check_fit({f"other{index}": torch.zeros(1) for index in range(900)}, expected, "x" * 10_000)
    assert " and 898 more; unexpected other0, other1 and 898 more. Use the arch" in str(caught.value)
    with pytest.raises(BackboneError) as wrong_shapes:
        check_fit({name: torch.zeros(2, 3) for name in expected}, expected, "tiny")
    assert max(len(str(error.value)) for error in (caught, wrong_shapes)) < 600


def test_short_forms():
    assert first_line(ValueError("a\n  b.")) == "a b"
    assert first_line(ValueError()) == "no reason given"
    assert len(first_line(ValueError("a" * 999))) == 200
    assert len(brief("a" * 999)) == 120
