"""Where a CLIP comes from: an architecture of open_clip with weights, the hub, a folder or the package itself."""

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import open_clip

from anovl_plugin.config import expanded, shown
from anovl_plugin.hosts.open_clip import download_from_hub
from anovl_plugin.vision.architecture import (
    DEMO_BACKBONE,
    DEMO_FOLDER,
    is_supported_config,
    register_demo_architecture,
    unsupported,
)
from anovl_plugin.vision.weights import BackboneError, brief, first_line

DEFAULT_PRETRAINED = "laion400m_e32"

_HUB = "hf-hub:"
FOLDER = "local-dir:"
_CONFIG = "open_clip_config.json"
# In the order in which open_clip prefers them.
_WEIGHTS = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
    "open_clip_pytorch_model.pth",
    "model.safetensors",
    "pytorch_model.bin",
    "pytorch_model.pth",
    "model.pth",
)
_OPENAI = (tuple(open_clip.OPENAI_DATASET_MEAN), tuple(open_clip.OPENAI_DATASET_STD))
_SHOWN_TAGS = 8


class BackboneSpec(NamedTuple):
    """What is known about a CLIP's image tower without its weights, as plain data.

    Attributes:
        config: ``embed_dim``, ``vision_cfg`` and ``quick_gelu`` of its open_clip configuration.
        image_size: Height and width in pixels that the architecture was made for.
        mean: Mean of each color channel that images are normalized with, for values in [0, 1].
        std: Standard deviation of each color channel, likewise.
    """

    config: dict[str, Any]
    image_size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def patch_size(self) -> tuple[int, int]:
        """Height and width of a patch in pixels."""
        return _pair(self.config["vision_cfg"].get("patch_size", 16))


def check_source(backbone: str, pretrained: str | Path | None) -> tuple[str, str]:
    """Raise if a backbone and its weights do not name a CLIP; nothing is downloaded, and no weights are read.

    Args:
        backbone: An open_clip architecture, ``hf-hub:OWNER/NAME``, ``local-dir:FOLDER`` or ``anovl-demo``.
        pretrained: An open_clip tag or the path of a weights file. The sources that bring their own weights (all but
            architectures) accept the default and ``None``.

    Returns:
        Both as strings; the default weights for a source that brings its own.

    Raises:
        TypeError: If an argument is of another type.
        BackboneError: If the architecture or tag is unknown, the architecture not supported, a file or folder missing
            or incomplete, the activation not that of the weights, or weights given to a source that brings its own.
    """
    register_demo_architecture()
    if not isinstance(backbone, str):
        msg = f"backbone is {shown(backbone)}, but must be a string such as 'ViT-B-16-plus-240' or 'anovl-demo'"
        raise TypeError(msg)
    if pretrained is not None and not isinstance(pretrained, (str, Path)):
        msg = f"pretrained is {shown(pretrained)}, but must be an open_clip tag or the path of a weights file"
        raise TypeError(msg)
    pretrained = None if pretrained is None else expanded(pretrained)
    if not brings_weights(backbone):
        return backbone, _check_architecture(backbone, pretrained)
    if pretrained not in {None, DEFAULT_PRETRAINED}:
        msg = (
            f"pretrained is {brief(pretrained)}, but backbone {brief(backbone)} brings its own weights; omit pretrained"
        )
        raise BackboneError(msg)
    if backbone.startswith(_HUB) and not re.fullmatch(r"[\w.-]+/[\w.-]+", backbone.removeprefix(_HUB)):
        msg = f"backbone is {brief(backbone)}, but a repository on the hub is written as hf-hub:OWNER/NAME"
        raise BackboneError(msg)
    if backbone.startswith(FOLDER):
        read_model_config(backbone)
        _weights_in(backbone)
    return backbone, DEFAULT_PRETRAINED


def brings_weights(backbone: str) -> bool:
    """Return whether a backbone has weights of its own, so that ``pretrained`` says nothing."""
    return backbone == DEMO_BACKBONE or backbone.startswith((_HUB, FOLDER))


def read_spec(backbone: str, pretrained: str | Path | None) -> BackboneSpec:
    """Return what is known about an image tower without its weights, at most downloading the hub's configuration.

    Args:
        backbone: As for :func:`check_source`.
        pretrained: As for :func:`check_source`.

    Raises:
        TypeError: As :func:`check_source`.
        BackboneError: As :func:`check_source`; also if the hub's configuration cannot be downloaded or is not that of
            a supported architecture.
    """
    backbone, pretrained = check_source(backbone, pretrained)
    return spec_of(backbone, pretrained, *read_model_config(backbone))


def read_model_config(backbone: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the configurations of a checked backbone's model and of its preprocessing."""
    if not backbone.startswith((_HUB, FOLDER)):
        return open_clip.get_model_config(backbone), {}
    if backbone.startswith(_HUB):
        try:
            path = download_from_hub(backbone.removeprefix(_HUB), _CONFIG)
        except Exception as error:  # noqa: BLE001 - the hub's client fails in many ways
            raise cannot_download(backbone, DEFAULT_PRETRAINED, error) from None
    else:
        path = _folder(backbone) / _CONFIG
    return _parse_config(backbone, path)


def spec_of(backbone: str, pretrained: str, model: Mapping[str, Any], preprocessing: Mapping[str, Any]) -> BackboneSpec:
    """Return the spec of a checked backbone from its configurations."""
    config = {key: model[key] for key in ("embed_dim", "vision_cfg")} | {"quick_gelu": bool(model.get("quick_gelu"))}
    if not brings_weights(backbone):
        known = known_normalizations(backbone, pretrained)
        mean, std = known.pop() if len(known) == 1 else _OPENAI
    else:
        mean, std = preprocessing.get("mean", _OPENAI[0]), preprocessing.get("std", _OPENAI[1])
    return BackboneSpec(
        config, _pair(model["vision_cfg"].get("image_size", 224)), tuple(map(float, mean)), tuple(map(float, std))
    )


def known_normalizations(backbone: str, pretrained: str) -> set[tuple[tuple, tuple]]:
    """Return the mean and standard deviation that a tag's images are normalized with.

    A weights file carries no normalization; for one, return those of all known weights of its architecture.
    """
    tags = open_clip.list_pretrained_tags_by_model(backbone)
    configs = [
        open_clip.get_pretrained_cfg(backbone, tag) for tag in tags if pretrained == tag or pretrained not in tags
    ]
    return {(tuple(c.get("mean") or _OPENAI[0]), tuple(c.get("std") or _OPENAI[1])) for c in configs} or {_OPENAI}


def find_weights(backbone: str, pretrained: str) -> Path:
    """Return the weights file of a checked backbone, downloaded if necessary.

    Raises:
        BackboneError: If the download fails.
    """
    if backbone == DEMO_BACKBONE:
        return DEMO_FOLDER / f"{DEMO_BACKBONE}.safetensors"
    if backbone.startswith(FOLDER):
        return _weights_in(backbone)
    is_tag = pretrained in open_clip.list_pretrained_tags_by_model(backbone)
    try:
        if backbone.startswith(_HUB):
            return download_from_hub(backbone.removeprefix(_HUB))
        return Path(open_clip.download_pretrained(_download_config(backbone, pretrained)) if is_tag else pretrained)
    except Exception as error:  # noqa: BLE001 - hubs and networks fail in many ways
        raise cannot_download(backbone, pretrained, error) from None


def cannot_download(backbone: str, pretrained: str, error: Exception) -> BackboneError:
    """Return the error that says what to do when something cannot be downloaded."""
    if backbone.startswith(_HUB):
        source = ""
        ways = [
            "set HF_HOME to a cache that holds it",
            "set backbone to 'local-dir:FOLDER' with the repository's files",
        ]
    else:
        source = f" with weights {brief(pretrained)}"
        config = _download_config(backbone, pretrained)
        from_release = config.get("url") and not config.get("hf_hub")
        file = f"put {Path(config['url']).name} into ~/.cache/clip" if from_release else ""
        ways = [
            "set pretrained to a .safetensors or .pt file of these weights",
            file or "set HF_HOME to a cache that holds them",
        ]
    return BackboneError(
        f"cannot load {brief(backbone)}{source} ({type(error).__name__}: {first_line(error, 160)}). Try one of: "
        f"{'; '.join(ways)}; backbone={DEMO_BACKBONE}, which needs no download."
    )


def _check_architecture(backbone: str, pretrained: str | None) -> str:
    """Return the tag or file; raise before downloading if it is invalid or would load mismatched weights."""
    config = open_clip.get_model_config(backbone) if backbone else None
    if config is None:
        raise unsupported(backbone, "unknown to open_clip")
    if not is_supported_config(config):
        raise unsupported(backbone, "another kind of image tower")
    if pretrained is None or not pretrained.strip():
        msg = f"pretrained is {shown(pretrained)}, but {backbone!r} needs weights: an open_clip tag or a weights file"
        raise BackboneError(msg)
    tags = open_clip.list_pretrained_tags_by_model(backbone)
    if pretrained in tags:
        _check_activation(backbone, pretrained, config)
        return pretrained
    try:
        is_file = Path(pretrained).is_file()
    except (OSError, ValueError):  # too long for a file's name, or with a null character in it
        is_file = False
    if not is_file:
        more = f" and {len(tags) - _SHOWN_TAGS} more" if len(tags) > _SHOWN_TAGS else ""
        msg = (
            f"pretrained is {brief(pretrained)}, which is neither a file nor one of the tags of {backbone!r}: "
            f"{', '.join(tags[:_SHOWN_TAGS]) or 'there are none'}{more}"
        )
        raise BackboneError(msg)
    return pretrained


def _check_activation(backbone: str, tag: str, config: Mapping[str, Any]) -> None:
    wanted = open_clip.get_pretrained_cfg(backbone, tag).get("quick_gelu")
    if wanted is not None and wanted != config.get("quick_gelu", False):
        other = backbone.removesuffix("-quickgelu") if config.get("quick_gelu") else f"{backbone}-quickgelu"
        msg = f"the weights {tag!r} were trained with another activation than {backbone!r} has; use {other!r}"
        raise BackboneError(msg)


def _download_config(backbone: str, tag: str) -> dict[str, Any]:
    """Return what open_clip's downloader needs to know of a tag.

    If its entry points to another tag's weights on the hub, only the tag's own address is kept: open_clip 3.3 would
    download laion400m_e31 for laion400m_e32 of the paper's CLIP.
    """
    config = open_clip.get_pretrained_cfg(backbone, tag)
    hub_tag = config.get("hf_hub", "").rstrip("/").rpartition(".")[2]
    others = {other for other in open_clip.list_pretrained_tags_by_model(backbone) if other != tag}
    return {**config, "hf_hub": ""} if hub_tag in others and config.get("url") else config


def _folder(backbone: str) -> Path:
    name = expanded(backbone.removeprefix(FOLDER))
    folder = Path(name)
    try:
        is_folder = name != "" and folder.is_dir()
    except (OSError, ValueError):  # too long for a name, or with a null character in it
        is_folder = False
    if not is_folder:
        msg = f"backbone is {brief(backbone)}, but there is no such folder; write local-dir:FOLDER"
        raise BackboneError(msg)
    if not (folder / _CONFIG).is_file():
        msg = f"the folder of backbone {brief(backbone)} has no {_CONFIG}; use a folder that open_clip exported"
        raise BackboneError(msg)
    return folder


def _weights_in(backbone: str) -> Path:
    folder = _folder(backbone)
    preferred = [folder / name for name in _WEIGHTS if (folder / name).is_file()]
    suffixes = (".safetensors", ".bin", ".pth", ".pt")
    found = preferred[:1] or sorted(path for path in folder.iterdir() if path.suffix in suffixes)
    if len(found) != 1:
        what = f"{len(found)} weights files, none with a name that open_clip gives" if found else "no weights file"
        msg = f"the folder of backbone {brief(backbone)} has {what}; name one {_WEIGHTS[0]} or {_WEIGHTS[2]}"
        raise BackboneError(msg)
    return found[0]


def _parse_config(backbone: str, path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        model, preprocessing = content["model_cfg"], content.get("preprocess_cfg") or {}
        sides = model["vision_cfg"].get("image_size", 224)
        numbers = [*(sides if isinstance(sides, list) else [sides, sides]), model["embed_dim"]]
        is_valid = (
            isinstance(model["text_cfg"], dict)
            and len(numbers) == 3
            and all(type(number) is int and number > 0 for number in numbers)
            and all(_is_color(preprocessing.get(key, [1, 1, 1])) for key in ("mean", "std"))
            and all(value > 0 for value in preprocessing.get("std", []))
        )
    except Exception as error:  # noqa: BLE001 - the content can be anything
        is_valid, cause = False, f" ({type(error).__name__}: {first_line(error)})"
    else:
        cause = ""
    if not is_valid:
        msg = f"the {_CONFIG} of backbone {brief(backbone)} is not one that open_clip wrote{cause}; export it again"
        raise BackboneError(msg)
    if not is_supported_config(model):
        raise unsupported(backbone, "another kind of image tower")
    return model, preprocessing


def _pair(size: int | list[int] | tuple[int, int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))


def _is_color(values: Any) -> bool:
    return len(values) == 3 and all(isinstance(value, (int, float)) and math.isfinite(value) for value in values)
