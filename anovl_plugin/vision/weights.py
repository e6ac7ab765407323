"""Files of CLIP weights: read without running anything from them, and checked."""

import math
import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from reprlib import Repr
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from anovl_plugin.hosts.open_clip import POSITION_IDS

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
# What OpenAI's files hold besides the weights, and constants that converted files and some text towers keep among them.
_NOT_WEIGHTS = {"input_resolution", "context_length", "vocab_size", "attn_mask", "text.attn_mask", POSITION_IDS}
_SAFETENSORS_HEADER = 100_000_000
_LFS_POINTER = b"version https://git-lfs.github.com/spec/"
# CLIP's scale is its exponential. CLIP's training clamps it at 4.6, a scale of 100; sigmoid losses go slightly beyond.
_MAX_LOGIT_SCALE = 10.0

_repr = Repr()
_repr.maxstring = 120
_repr.maxother = 120
brief = _repr.repr


class BackboneError(ValueError):
    """A CLIP cannot be loaded or is not supported."""


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Read the weights of an open_clip model; nothing in the file is executed.

    Args:
        path: A .safetensors file, or one that ``torch.save`` wrote, holding a state dict or ``{"state_dict": …}``.
            Its content decides, not its name.

    Returns:
        Tensors by open_clip's names, in the file's precision. They may still be mapped to the file; copy those to keep.

    Raises:
        BackboneError: If it is not such a file, or holds anything but floating-point weights.
    """
    path = Path(path)
    try:
        # safetensors before 0.7 would read onto the default device.
        with torch.device("cpu"):
            content = _read(path)
    except OSError as error:
        raise _error(path, f"cannot be read ({type(error).__name__}: {first_line(error)})") from None
    return _check_tensors(path, _unwrap(path, content))


def check_fit(weights: Mapping[str, Tensor], expected: Mapping[str, Tensor], backbone: str) -> None:
    """Raise if weights do not fit an architecture.

    Args:
        weights: Tensors by name.
        expected: The architecture's own tensors by name; only their shapes matter.
        backbone: What to call the architecture in the error.

    Raises:
        BackboneError: If a name is missing or left over, or a shape differs; names the first few.
    """
    shapes = [
        f"{name} has shape {tuple(weights[name].shape)} instead of {tuple(tensor.shape)}"
        + _hint(name, weights[name], tensor)
        for name, tensor in expected.items()
        if name in weights and weights[name].shape != tensor.shape
    ]
    missing = [name for name in expected if name not in weights]
    unexpected = [name for name in weights if name not in expected]
    parts = [_some("", shapes, "; "), _some("missing ", missing), _some("unexpected ", unexpected)]
    if any(parts):
        msg = (
            f"the weights are not those of {brief(backbone)}: {'; '.join(part for part in parts if part)}. Use the "
            "architecture that they were trained with"
        )
        raise BackboneError(msg)


def check_finite(weights: Mapping[str, Tensor]) -> None:
    """Raise if weights hold NaN or an infinity.

    Raises:
        BackboneError: Names the first tensor that does.
    """
    for name, tensor in weights.items():
        # If a term is not finite, neither is the sum. The converse may fail, but rarely does.
        if not tensor.sum().isfinite() and not tensor.isfinite().all():
            count = int((~tensor.isfinite()).sum())
            msg = f"{count} of {tensor.numel()} weights in {brief(name)} are NaN or infinite; use undamaged weights"
            raise BackboneError(msg)


def read_temperature(weights: Mapping[str, Tensor]) -> float:
    """Return CLIP's temperature, 1 / exp(logit_scale).

    Raises:
        BackboneError: If ``logit_scale`` is missing, not one number, not finite or absurd.
    """
    scale = weights.get("logit_scale")
    if scale is None:
        msg = "the weights have no logit_scale, which holds CLIP's temperature; use the complete CLIP, both towers"
        raise BackboneError(msg)
    if scale.numel() != 1:
        msg = f"logit_scale has shape {tuple(scale.shape)}, but must be a single number; use undamaged weights"
        raise BackboneError(msg)
    value = float(scale)
    if not math.isfinite(value) or abs(value) > _MAX_LOGIT_SCALE:
        msg = (
            f"logit_scale is {value}, but it is the logarithm of CLIP's scale and must be between "
            f"-{_MAX_LOGIT_SCALE:g} and {_MAX_LOGIT_SCALE:g}; use undamaged weights"
        )
        raise BackboneError(msg)
    return math.exp(-value)


def first_line(error: Exception, limit: int = 200) -> str:
    """Return an error's message as one line of at most ``limit`` characters."""
    text = " ".join(str(error).split()).rstrip(".") or "no reason given"
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def _read(path: Path) -> object:
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(4096)
    if size == 0:
        raise _error(path, "is empty; download it again")
    if head.startswith(_LFS_POINTER):
        raise _error(path, "is a Git LFS pointer, not the weights themselves; run 'git lfs pull' where it came from")
    if head.startswith(b"PK\x03\x04"):
        return _read_zip(path)
    header = int.from_bytes(head[:8], "little")
    if head[8:9] == b"{" and header <= _SAFETENSORS_HEADER:
        return _read_safetensors(path, is_complete=size >= 8 + header)
    if head.startswith(b"\x80"):  # what torch.save wrote before 1.6
        return _read_pickle(path, mmap=False)
    if head.lstrip().startswith(b"<"):
        raise _error(path, "is a web page, not weights; download the file itself")
    raise _error(path, "is not a weights file; use a .safetensors file or a .pt file with a state dict")


def _read_safetensors(path: Path, *, is_complete: bool) -> object:
    try:
        if is_complete:
            return load_file(path)
        cause = "its header is cut off"
    except Exception as error:  # noqa: BLE001 - the library has an error type of its own, which says what is wrong
        cause = first_line(error)
    raise _error(path, f"is a truncated or damaged safetensors file ({cause}); download it again")


def _read_zip(path: Path) -> object:
    if not zipfile.is_zipfile(path):
        raise _error(path, "is truncated; download it again")
    with zipfile.ZipFile(path) as archive:
        names = {name.partition("/")[2] for name in archive.namelist()}
    if "constants.pkl" in names:
        name = brief(path.name)
        raise _error(
            path,
            "is a TorchScript archive, as OpenAI publishes them, and could run code. If you trust it, convert it with "
            f"python -c \"import torch; torch.save(torch.jit.load({name}, 'cpu').state_dict(), 'weights.pt')\" "
            "and use weights.pt",
        )
    if "data.pkl" not in names:
        raise _error(path, "is a zip archive without weights; extract it and use the weights file in it")
    return _read_pickle(path, mmap=path.suffix != ".safetensors")


def _read_pickle(path: Path, *, mmap: bool) -> object:
    try:
        if mmap:
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        with path.open("rb") as file:  # given a path, torch would go by its name
            return torch.load(file, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # noqa: BLE001 - a damaged pickle fails in any way
        name = re.search(r"GLOBAL ([\w.]+)", str(error))
        if isinstance(error, pickle.UnpicklingError) and name:
            problem = (
                f"holds Python code or objects ({name[1][:80]}) besides tensors, none of which was run; save "
                "the tensors alone: torch.save(model.state_dict(), 'weights.pt')"
            )
        else:
            problem = f"is truncated or damaged ({type(error).__name__}: {first_line(error)}); download it again"
    raise _error(path, problem)


def _unwrap(path: Path, content: object) -> dict[str, object]:
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    if not isinstance(content, Mapping) or not content or not all(isinstance(name, str) for name in content):
        raise _error(path, f"holds {_kind(content)}, not a state dict; save one with torch.save(model.state_dict(), …)")
    if all(name.startswith("module.") for name in content):
        content = {name.removeprefix("module."): value for name, value in content.items()}
    layout = next((name for name in content if name.startswith(("vision_model.", "text_model."))), None)
    if layout:
        raise _error(
            path,
            f"has the layout of the transformers package ({brief(layout)}, …); use the open_clip export of these "
            "weights, or backbone='hf-hub:OWNER/NAME' of a repository with an open_clip_config.json",
        )
    return {name: value for name, value in content.items() if name not in _NOT_WEIGHTS}


def _check_tensors(path: Path, content: dict[str, Any]) -> dict[str, Tensor]:
    for name, value in content.items():
        if not isinstance(value, Tensor):
            raise _error(path, f"holds {_kind(value)} under {brief(name)}, not a tensor; save the state dict alone")
        if value.dtype not in _FLOATS or value.layout != torch.strided or value.is_meta:
            kind = str(value.dtype).removeprefix("torch.")
            layout = "" if value.layout == torch.strided else f" ({str(value.layout).removeprefix('torch.')})"
            problem = f"has {'no data' if value.is_meta else kind + layout} in {brief(name)}"
            raise _error(path, f"{problem}; use dense floating-point weights (float16, bfloat16 or float32)")
    return content


def _hint(name: str, tensor: Tensor, expected: Tensor) -> str:
    if not name.endswith("positional_embedding") or tensor.shape[1:] != expected.shape[1:]:
        return ""
    return " (made for another image size)" if name.startswith("visual.") else " (another text context)"


def _some(title: str, items: list[str], separator: str = ", ", limit: int = 2) -> str:
    if not items:
        return ""
    shown = separator.join(item[:150] for item in items[:limit])
    rest = f" and {len(items) - limit} more" if len(items) > limit else ""
    return f"{title}{shown}{rest}"


def _kind(value: object) -> str:
    name = type(value).__name__
    if isinstance(value, Mapping) and not value:
        return f"an empty {name}"
    return f"{'an' if name[0].lower() in 'aeiou' else 'a'} {name}"


def _error(path: Path, problem: str) -> BackboneError:
    return BackboneError(f"the weights file {brief(str(path))} {problem}")
