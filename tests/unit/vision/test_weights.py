"""Files of weights: what is read, and what is an error of one line; nothing in a file is ever executed."""

import os
import zipfile

import pytest
import torch
from open_clip import CLIP
from safetensors.torch import load_file, save_file

from anovl_plugin.vision.backbone import BackboneError, load_backbone
from anovl_plugin.vision.weights import check_fit, read_temperature, read_weights


@pytest.fixture
def square(weights_of):
    return weights_of("tiny-square")


def error_of(path):
    with pytest.raises(BackboneError) as caught:
        load_backbone("tiny-square", str(path))
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 600
    return message


class Trap:
    """Makes a folder when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".bin"])
def test_the_content_decides_not_the_name(square, suffix, tmp_path):
    path = tmp_path / f"weights{suffix}"
    torch.save(load_file(square), path)
    expected = load_file(square)
    assert all(torch.equal(value, expected[name]) for name, value in read_weights(path).items())


@pytest.mark.parametrize("wrap", [lambda w: {"state_dict": w}, lambda w: {f"module.{k}": v for k, v in w.items()}])
def test_wrapped_weights_are_read(square, wrap, tmp_path):
    torch.save(wrap(load_file(square)), tmp_path / "weights.pt")
    assert read_weights(tmp_path / "weights.pt").keys() == load_file(square).keys()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_load_as_float32(square, dtype, tmp_path):
    weights = {name: value.to(dtype) for name, value in load_file(square).items()}
    save_file(weights, tmp_path / "weights.safetensors")
    visual = load_backbone("tiny-square", str(tmp_path / "weights.safetensors")).visual
    assert visual.proj.dtype == torch.float32
    assert torch.equal(visual.proj, weights["visual.proj"].float())


def text_of(content):
    return lambda path: path.write_bytes(content)


FILES = {
    "empty": (text_of(b""), "is empty; download it again"),
    "LFS pointer": (
        text_of(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"),
        "is a Git LFS pointer, not the weights themselves; run 'git lfs pull'",
    ),
    "web page": (text_of(b"<!DOCTYPE html><html>"), "is a web page, not weights; download the file itself"),
    "anything": (text_of(bytes(range(256)) * 40), "is not a weights file; use a .safetensors file or a .pt file"),
    "text": (text_of(b"no weights"), "is not a weights file"),
    "zip": (lambda path: zipfile.ZipFile(path, "w").writestr("readme.txt", "x"), "is a zip archive without weights"),
    "a tensor": (lambda path: torch.save(torch.zeros(2), path), "holds a Tensor, not a state dict; save one with"),
    "a list": (lambda path: torch.save([torch.zeros(2)], path), "holds a list, not a state dict"),
    "nothing": (lambda path: torch.save({}, path), "holds an empty dict, not a state dict"),
    "numbers": (lambda path: torch.save({"a": 1}, path), "holds a int under 'a', not a tensor; save the state dict"),
    "legacy pickle": (
        lambda path: torch.save([1], path, _use_new_zipfile_serialization=False),
        "holds a list, not a state dict",
    ),
    "damaged header": (text_of((10**6).to_bytes(8, "little") + b"{"), "is a truncated or damaged safetensors file"),
}


@pytest.mark.parametrize("case", FILES)
def test_what_is_not_a_weights_file_is_an_error(case, tmp_path):
    write, message = FILES[case]
    path = tmp_path / "weights.pt"
    closing = write(path)
    del closing
    assert message in error_of(path)


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_a_truncated_file_is_an_error(tmp_path, square, suffix):
    path = tmp_path / f"weights{suffix}"
    torch.save(load_file(square), path) if suffix == ".pt" else path.write_bytes(open(square, "rb").read())
    path.write_bytes(path.read_bytes()[:-5000])
    assert "download it again" in error_of(path)


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_pickle_does_not_run(tmp_path, square, zipped):
    trap, path = tmp_path / "trap", tmp_path / "weights.pt"
    content = {**load_file(square), "extra": Trap(trap)}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    assert "holds Python code or objects (posix.mkdir) beside tensors, none of which was run" in error_of(path)
    assert not trap.exists()
    torch.load(path, weights_only=False)
    assert trap.exists()  # the trap would have worked


def test_a_torchscript_archive_is_named_and_the_conversion_works(square, tmp_path, monkeypatch):
    clip = CLIP(
        16, {"layers": 1, "width": 64, "patch_size": 16, "image_size": 32}, {"layers": 1, "width": 64, "heads": 1}
    )
    inputs = {"encode_image": torch.rand(1, 3, 32, 32), "encode_text": torch.zeros(1, 77, dtype=torch.long)}
    torch.jit.trace_module(clip.eval(), inputs, check_trace=False).save(tmp_path / "openai.pt")
    message = error_of(tmp_path / "openai.pt")
    assert "is a TorchScript archive, as OpenAI publishes them, and could run code" in message
    code = message.partition('python -c "')[2].partition('"')[0]
    monkeypatch.chdir(tmp_path)
    exec(code, {})  # noqa: S102 - the line that the error advises
    assert read_weights("weights.pt").keys() == clip.state_dict().keys()


def test_the_layout_of_transformers_is_named(square, tmp_path):
    weights = {f"vision_model.{name}": value for name, value in load_file(square).items()}
    torch.save(weights, tmp_path / "pytorch_model.bin")
    message = error_of(tmp_path / "pytorch_model.bin")
    assert "has the layout of the transformers package ('vision_model." in message
    assert "use the open_clip export of these weights" in message


def changed(square, tmp_path, name, change):
    weights = load_file(square)
    weights[name] = change(weights[name])
    torch.save(weights, tmp_path / "weights.pt")
    return tmp_path / "weights.pt"


TENSORS = {
    "integers": ("visual.proj", lambda w: w.int(), "has int32 in 'visual.proj'; use dense floating-point weights"),
    "complex": ("visual.proj", lambda w: w.cfloat(), "has complex64 in 'visual.proj'; use dense floating-point"),
    "sparse": ("visual.proj", lambda w: w.to_sparse(), "has float32 (sparse_coo) in 'visual.proj'; use dense"),
    "NaN": (
        "visual.proj",
        lambda w: w.fill_(float("nan")),
        "weights in 'visual.proj' are NaN or infinite; use undamaged",
    ),
    "infinite text": (
        "ln_final.weight",
        lambda w: w.fill_(float("inf")),
        "weights in 'ln_final.weight' are NaN or inf",
    ),
    "short context": ("positional_embedding", lambda w: w[:20], "(another text context)"),
    "other size": ("visual.positional_embedding", lambda w: w[:5], "(made for another image size)"),
    "absurd scale": ("logit_scale", lambda w: w + 1000, "logit_scale is 100"),
    "NaN scale": ("logit_scale", lambda w: w * float("nan"), "logit_scale is nan, but it is the logarithm of CLIP"),
    "two scales": ("logit_scale", lambda w: w.expand(2).clone(), "logit_scale has shape (2,), but must be a single"),
}


@pytest.mark.parametrize("case", TENSORS)
def test_damaged_weights_are_an_error(case, square, tmp_path):
    name, change, message = TENSORS[case]
    assert message in error_of(changed(square, tmp_path, name, change))


def test_missing_weights_are_an_error(square, tmp_path):
    weights = load_file(square)
    del weights["logit_scale"]
    save_file(weights, tmp_path / "weights.safetensors")
    assert "the weights have no logit_scale, which holds CLIP's temperature" in error_of(
        tmp_path / "weights.safetensors"
    )
    weights["logit_scale"] = torch.tensor(4.6)
    del weights["visual.proj"]
    save_file(weights, tmp_path / "weights.safetensors")
    assert "missing visual.proj" in error_of(tmp_path / "weights.safetensors")


def test_a_scale_of_one_element_is_a_scale(square, tmp_path):
    path = changed(square, tmp_path, "logit_scale", lambda w: w.reshape(1))
    assert load_backbone("tiny-square", str(path)).temperature == load_backbone("tiny-square", square).temperature


def test_the_temperature_is_the_inverse_of_the_scale():
    assert read_temperature({"logit_scale": torch.tensor(100.0).log()}) == pytest.approx(0.01)


def test_only_the_first_few_names_are_listed():
    expected = {f"layer.{index}": torch.zeros(2) for index in range(50)}
    with pytest.raises(BackboneError, match=r"missing layer\.0, layer\.1 and 48 more") as caught:
        check_fit({}, expected, "tiny")
    assert len(str(caught.value)) < 300


def test_a_folder_is_an_error_of_one_line(tmp_path):
    with pytest.raises(BackboneError, match="cannot be read"):
        read_weights(tmp_path)
