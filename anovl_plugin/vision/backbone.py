"""CLIP backbone loading: any open_clip model whose image tower is the native vision transformer.

Architectures, downloads, tokenizers and modules are open_clip's. Weights are read here, so that a file is checked
before it is used, and only the tower that is needed is built.
"""

import hashlib
import json
import logging
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

import open_clip
from torch import Tensor, nn

from anovl_plugin.hosts.open_clip import (
    VisionTransformer,
    download_from_hub,
    find_weights,
    is_native_tower,
    native_traits,
    to_custom_text_layout,
)
from anovl_plugin.vision.image_size import check_image_size, check_size, resize_positions
from anovl_plugin.vision.weights import (
    BackboneError,
    brief,
    check_finite,
    check_fit,
    first_line,
    read_temperature,
    read_weights,
)

__all__ = ["Backbone", "BackboneError", "BackboneSpec", "check_image_size", "check_size", "load_backbone"]

logger = logging.getLogger(__name__)

DEFAULT_BACKBONE = "ViT-B-16-plus-240"
DEFAULT_PRETRAINED = "laion400m_e32"
DEMO_BACKBONE = "anovl-demo"
_DEMO_FOLDER = Path(str(files("anovl_plugin"))) / "demo"
_HUB, _FOLDER = "hf-hub:", "local-dir:"
_CONFIG_FILE = "open_clip_config.json"
_EXAMPLES = (DEFAULT_BACKBONE, "ViT-B-16", "ViT-B-32", "ViT-L-14", "ViT-L-14-336", "ViT-H-14", DEMO_BACKBONE)
# Stand in for the tower that is not wanted.
_NO_VISION = {"layers": 1, "width": 64, "patch_size": 32, "image_size": 32}
_NO_TEXT = {"layers": 1, "width": 64, "heads": 1, "vocab_size": 8, "context_length": 4}


class BackboneSpec(NamedTuple):
    """What is known of a CLIP without its weights, as plain data.

    Attributes:
        config: ``embed_dim``, ``vision_cfg`` and ``quick_gelu`` of its image tower.
        image_size: Height and width that the image tower was made for, in pixels.
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


class Backbone(NamedTuple):
    """A loaded CLIP.

    Attributes:
        visual: Image tower, frozen and in evaluation mode; ``None`` if it was not wanted.
        clip: The open_clip model that holds the text tower, without its image tower; frozen, in evaluation mode;
            ``None`` if it was not wanted.
        tokenizer: Returns the token ids (K, L) of a list of sentences; ``None`` without a text tower.
        spec: Architecture, size and normalization.
        image_size: Height and width that the image tower takes, in pixels.
        temperature: CLIP's temperature, 1 / exp(logit_scale).
        fingerprint: Identifies weights and architecture of the image tower; ``None`` without it.
    """

    visual: VisionTransformer | None
    clip: nn.Module | None
    tokenizer: Callable[[list[str]], Tensor] | None
    spec: BackboneSpec
    image_size: tuple[int, int]
    temperature: float
    fingerprint: str | None

    @property
    def mean(self) -> tuple[float, ...]:
        """Mean of each color channel that images are normalized with."""
        return self.spec.mean

    @property
    def std(self) -> tuple[float, ...]:
        """Standard deviation of each color channel that images are normalized with."""
        return self.spec.std


def register_demo_architecture() -> None:
    """Register ``anovl-demo`` with open_clip."""
    if DEMO_BACKBONE not in open_clip.list_models():
        open_clip.add_model_config(_DEMO_FOLDER / f"{DEMO_BACKBONE}.json")


def is_supported_config(config: dict) -> bool:
    """Return whether the image tower of an architecture is the native vision transformer, read at its class token.

    Args:
        config: What ``open_clip.get_model_config`` returns.
    """
    vision = config["vision_cfg"]
    return (
        "multimodal_cfg" not in config
        and isinstance(vision.get("layers", 12), int)
        and not vision.get("timm_model_name")
        and not vision.get("attentional_pool")
        and vision.get("pool_type", "tok") == "tok"
        and not any(vision.get(key) for key in ("qk_norm", "scale_heads", "scaled_cosine_attn", "block_type"))
    )


def supported_architectures() -> list[str]:
    """Return the architectures of the installed open_clip that the method runs on.

    Example:
        >>> names = supported_architectures()
        >>> "ViT-B-16-plus-240" in names, "anovl-demo" in names, "RN50" in names
        (True, True, False)
    """
    register_demo_architecture()
    return [name for name in open_clip.list_models() if is_supported_config(open_clip.get_model_config(name))]


def check_visual(visual: nn.Module, name: str) -> None:
    """Raise an error if an image tower lacks the blocks that value-wise attention needs.

    Args:
        visual: The image tower of an open_clip model.
        name: What to call it in the error.

    Raises:
        BackboneError: If it is not open_clip's own vision transformer, read at its class token.
    """
    if not is_native_tower(visual):
        raise _unsupported(name, type(visual).__name__)


def check_source(backbone: str, pretrained: str | Path | None) -> tuple[str, str | None]:
    """Return where a CLIP comes from, or fail before downloading if the request is invalid or ambiguous.

    Args:
        backbone: An open_clip architecture, ``hf-hub:OWNER/NAME``, ``local-dir:FOLDER``, or ``anovl-demo``.
        pretrained: An open_clip tag, or the path of a weights file. The other sources bring their own weights, so
            only the default is accepted with them.

    Returns:
        Both, as strings.

    Raises:
        TypeError: If an argument has the wrong type.
        BackboneError: If the architecture is unknown or unsupported, or there are no such weights.
    """
    if isinstance(pretrained, Path):
        pretrained = str(pretrained)
    if not isinstance(backbone, str):
        msg = f"backbone is {brief(backbone)}, but must be a string: an architecture of open_clip, or anovl-demo"
        raise TypeError(msg)
    if not isinstance(pretrained, str | None):
        msg = (
            f"pretrained is {brief(pretrained)}, but must be a string: an open_clip tag, or the path of a weights file"
        )
        raise TypeError(msg)
    if brings_weights(backbone):
        if pretrained not in {None, DEFAULT_PRETRAINED}:
            msg = f"pretrained is {brief(pretrained)}, but {brief(backbone)} brings its own weights; leave it out"
            raise BackboneError(msg)
        if backbone.startswith(_FOLDER):
            _check_folder(backbone)
        return backbone, DEFAULT_PRETRAINED
    _check_architecture(backbone, pretrained)
    return backbone, pretrained


def brings_weights(backbone: str) -> bool:
    """Return whether a source of backbones holds weights of its own, so that ``pretrained`` is not used."""
    return backbone == DEMO_BACKBONE or backbone.startswith((_HUB, _FOLDER))


def read_spec(backbone: str, pretrained: str | None = None) -> BackboneSpec:
    """Return what is known of a CLIP without reading its weights; asks the hub for ``hf-hub:`` alone.

    Args:
        backbone: As for :func:`check_source`.
        pretrained: Likewise.

    Raises:
        BackboneError: If its configuration cannot be read, or its image tower is not supported.
    """
    config, preprocessing = _read_config(backbone, pretrained)
    if not is_supported_config(config):
        raise _unsupported(backbone, "another kind of image tower")
    vision = config["vision_cfg"]
    tower = {"embed_dim": config["embed_dim"], "vision_cfg": vision, "quick_gelu": config.get("quick_gelu", False)}
    mean = tuple(preprocessing.get("mean") or open_clip.OPENAI_DATASET_MEAN)
    std = tuple(preprocessing.get("std") or open_clip.OPENAI_DATASET_STD)
    return BackboneSpec(tower, _pair(vision.get("image_size", 224)), mean, std)


def load_backbone(
    backbone: str = DEFAULT_BACKBONE,
    pretrained: str | Path | None = DEFAULT_PRETRAINED,
    image_size: int | tuple[int, int] | None = None,
    *,
    image: bool = True,
    text: bool = True,
) -> Backbone:
    """Load a CLIP on the CPU in float32.

    Args:
        backbone: An open_clip architecture, ``hf-hub:OWNER/NAME``, ``local-dir:FOLDER``, or ``anovl-demo``, the small
            CLIP that comes with the package. Default: the paper's.
        pretrained: An open_clip tag, or the path of a .safetensors or .pt file, of which nothing is executed. The
            sources that bring their own weights (``hf-hub:``, ``local-dir:``, ``anovl-demo``) do not use it.
        image_size: Height and width (or one number for both) in pixels, multiples of the patch; the position
            embeddings are interpolated to it. Default: the size the architecture was made for.
        image: Whether to build the image tower. Default: yes.
        text: Whether to build the text tower and its tokenizer. Default: yes.

    Returns:
        The towers, the tokenizer, and how images must be prepared.

    Raises:
        BackboneError: If the image tower is not a native vision transformer, or the weights are unavailable or do not
            fit.
        ValueError: If the image size does not suit the patches.
    """
    backbone, pretrained = check_source(backbone, pretrained)
    size = check_image_size(image_size)
    spec = _or_explain(backbone, pretrained, read_spec)
    if size is not None:
        # Before anything is downloaded.
        check_size(size, spec.patch_size, backbone)
    weights = read_weights(_or_explain(backbone, pretrained, _find_file))
    config, _ = _read_config(backbone, pretrained)
    custom_text = config.get("custom_text", False) or "hf_model_name" in config["text_cfg"]
    if custom_text and "positional_embedding" in weights:
        weights = to_custom_text_layout(weights)
    temperature = read_temperature(weights)
    visual, identity = None, None
    if image:
        visual = _build(spec.config, "visual.", weights, backbone)
        check_visual(visual, backbone)
        identity = fingerprint(visual, spec)
        resize_positions(visual, size or spec.image_size, backbone)
    clip, tokenizer = None, None
    if text:
        clip = _build(config, "", weights, backbone, custom_text=custom_text)
        tokenizer = _or_explain(backbone, pretrained, lambda name, _: open_clip.get_tokenizer(name))
    return Backbone(visual, clip, tokenizer, spec, size or spec.image_size, temperature, identity)


def build_visual(config: dict[str, Any], image_size: tuple[int, int]) -> VisionTransformer:
    """Build an image tower without weights, for those of a checkpoint.

    Args:
        config: The ``config`` of its :class:`BackboneSpec`.
        image_size: Height and width in pixels that its position embeddings are for.

    Returns:
        The tower, frozen and in evaluation mode; its weights mean nothing.
    """
    visual = open_clip.CLIP(**_copy(config), text_cfg=dict(_NO_TEXT)).visual
    resize_positions(visual, image_size, "the checkpoint's CLIP")
    return visual.eval().requires_grad_(False)


def fingerprint(visual: VisionTransformer, spec: BackboneSpec) -> str:
    """Return what identifies an image tower: its weights, and what else changes its results.

    Args:
        visual: Image tower as it was loaded, in float32, its position embeddings not interpolated yet.
        spec: Its architecture and normalization.

    Returns:
        The first 16 hexadecimal digits of a SHA-256.
    """
    digest = hashlib.sha256()
    traits = {**native_traits(visual), "image_size": spec.image_size, "mean": spec.mean, "std": spec.std}
    digest.update(json.dumps(traits, sort_keys=True).encode())
    for name, weight in visual.state_dict().items():
        digest.update(name.encode())
        digest.update(weight.detach().cpu().contiguous().numpy())
    return digest.hexdigest()[:16]


def _build(
    config: dict[str, Any], prefix: str, weights: dict[str, Tensor], backbone: str, *, custom_text: bool = False
) -> Any:
    """Return one tower of a CLIP with its weights: the image tower, or the CLIP without it."""
    config, is_visual = _copy(config), prefix == "visual."
    kind = open_clip.CustomTextCLIP if custom_text else open_clip.CLIP
    for key in ("custom_text", "multimodal_cfg"):
        config.pop(key, None)
    if is_visual:
        tower = kind(**config, text_cfg=dict(_NO_TEXT)).visual
        wanted = {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
    else:
        if "hf_model_name" in config["text_cfg"]:
            config["text_cfg"]["hf_model_pretrained"] = False
        tower = kind(**{**config, "vision_cfg": dict(_NO_VISION)})
        del tower.visual
        wanted = {name: value for name, value in weights.items() if not name.startswith("visual.")}
        if tower.logit_bias is None:
            wanted.pop("logit_bias", None)
        wanted["logit_scale"] = wanted["logit_scale"].reshape(tower.logit_scale.shape)
    state = {name: value.float() for name, value in wanted.items()}
    whole_names = {f"{prefix}{name}": value for name, value in state.items()}
    check_fit(whole_names, {f"{prefix}{name}": value for name, value in tower.state_dict().items()}, backbone)
    check_finite(whole_names)
    tower.load_state_dict(state)
    return tower.float().eval().requires_grad_(False)


def _copy(config: dict[str, Any]) -> dict[str, Any]:
    return {key: dict(value) if isinstance(value, dict) else value for key, value in config.items()}


def _pair(size: int | list[int] | tuple[int, ...]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))


def _unsupported(name: str, kind: str) -> BackboneError:
    return BackboneError(
        f"backbone {brief(name)} ({kind}) is not a vision transformer that value-wise attention can run on; use one of "
        f"{', '.join(_EXAMPLES)} or another of those that anovl_plugin.vision.backbone.supported_architectures() lists"
    )


def _check_architecture(backbone: str, pretrained: str | None) -> None:
    register_demo_architecture()
    config = open_clip.get_model_config(backbone) if backbone else None
    if config is None:
        raise _unsupported(backbone, "unknown to open_clip")
    if not is_supported_config(config):
        raise _unsupported(backbone, "another kind of image tower")
    if not pretrained:
        msg = f"pretrained is {pretrained!r}, but {backbone!r} needs weights: set it to an open_clip tag or a file"
        raise BackboneError(msg)
    if Path(pretrained).is_file():
        return
    tags = open_clip.list_pretrained_tags_by_model(backbone)
    if pretrained not in tags:
        known = ", ".join(tags[:12]) or "it has none"
        msg = f"pretrained is {brief(pretrained)}, which is neither a file nor a tag of {backbone!r} ({known})"
        raise BackboneError(msg)
    quick_gelu = open_clip.get_pretrained_cfg(backbone, pretrained).get("quick_gelu")
    if quick_gelu is not None and quick_gelu != config.get("quick_gelu", False):
        other = backbone.removesuffix("-quickgelu") if config.get("quick_gelu") else f"{backbone}-quickgelu"
        msg = f"the weights {pretrained!r} were trained with another activation than {backbone!r} has; use {other!r}"
        raise BackboneError(msg)


def _check_folder(backbone: str) -> None:
    folder = Path(backbone.removeprefix(_FOLDER))
    if not backbone.removeprefix(_FOLDER) or not folder.is_dir():
        msg = f"backbone is {brief(backbone)}, but there is no such folder"
        raise BackboneError(msg)
    if not (folder / _CONFIG_FILE).is_file():
        msg = f"backbone is {brief(backbone)}, but the folder has no {_CONFIG_FILE}; use a folder that open_clip wrote"
        raise BackboneError(msg)
    if find_weights(folder) is None:
        msg = f"backbone is {brief(backbone)}, but the folder has no weights (.safetensors, .bin or .pth)"
        raise BackboneError(msg)


def _read_config(backbone: str, pretrained: str | None) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the configuration of a CLIP and of its preprocessing."""
    if backbone.startswith((_HUB, _FOLDER)):
        where = backbone.partition(":")[2]
        path = Path(where) / _CONFIG_FILE if backbone.startswith(_FOLDER) else download_from_hub(where, _CONFIG_FILE)
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            return _complete(content["model_cfg"]), content.get("preprocess_cfg", {})
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            cause = f"{type(error).__name__}: {first_line(error)}"
            msg = f"{_CONFIG_FILE} of {brief(backbone)} is damaged or incomplete ({cause})"
            raise BackboneError(msg) from None
    register_demo_architecture()
    config = open_clip.get_model_config(backbone)
    if config is None:
        raise _unsupported(backbone, "unknown to open_clip")
    return config, _preprocessing(backbone, pretrained)


def _complete(config: dict[str, Any]) -> dict[str, Any]:
    for key in ("embed_dim", "vision_cfg", "text_cfg"):
        if key not in config:
            raise KeyError(key)
    return config


def _preprocessing(backbone: str, pretrained: str | None) -> dict[str, Any]:
    """Return how images are prepared. A weights file does not say; its architecture's known weights do."""
    tags = open_clip.list_pretrained_tags_by_model(backbone)
    if pretrained in tags:
        return open_clip.get_pretrained_cfg(backbone, pretrained)
    openai = (tuple(open_clip.OPENAI_DATASET_MEAN), tuple(open_clip.OPENAI_DATASET_STD))
    configs = [open_clip.get_pretrained_cfg(backbone, tag) for tag in tags]
    known = {(tuple(c.get("mean") or openai[0]), tuple(c.get("std") or openai[1])) for c in configs} or {openai}
    if len(known) > 1:
        logger.warning(
            "Weights of %s are known with several normalizations; %s is assumed to have OpenAI's. Set a pre_processor "
            "if it was trained with another.",
            backbone,
            pretrained,
        )
    mean, std = known.pop() if len(known) == 1 else openai
    return {"mean": mean, "std": std}


def _find_file(backbone: str, pretrained: str | None) -> str | Path:
    """Return the path of the weights, downloaded if need be."""
    if backbone == DEMO_BACKBONE:
        return _DEMO_FOLDER / f"{DEMO_BACKBONE}.safetensors"
    if backbone.startswith(_FOLDER):
        return find_weights(Path(backbone.removeprefix(_FOLDER)))
    if backbone.startswith(_HUB):
        return download_from_hub(backbone.removeprefix(_HUB))
    if Path(pretrained).is_file():
        return pretrained
    config = _mislabelled(backbone, pretrained)
    source = {**config, "hf_hub": ""} if config else open_clip.get_pretrained_cfg(backbone, pretrained)
    path = open_clip.download_pretrained(source)
    if not path:
        msg = "open_clip knows no address of these weights"
        raise FileNotFoundError(msg)
    return path


def _mislabelled(backbone: str, pretrained: str | None) -> dict[str, str]:
    """Return the configuration of a tag whose entry in open_clip leads to another tag's weights on the hub, else {}.

    open_clip 3.3 does this for the paper's CLIP: it fetches laion400m_e31 when asked for laion400m_e32.
    """
    config = open_clip.get_pretrained_cfg(backbone, pretrained) if pretrained else {}
    hub_tag = config.get("hf_hub", "").rstrip("/").rpartition(".")[2]
    others = {tag for tag in open_clip.list_pretrained_tags_by_model(backbone) if tag != pretrained}
    return config if hub_tag in others and config.get("url") else {}


def _or_explain(backbone: str, pretrained: str | None, step: Callable[[str, str | None], Any]) -> Any:
    """Return the result of a step of loading; what goes wrong with hubs, caches and files ends in one error."""
    try:
        return step(backbone, pretrained)
    except BackboneError:
        raise
    except Exception as error:  # noqa: BLE001 - they fail in many ways
        raise _cannot_load(backbone, pretrained, error) from None


def _cannot_load(backbone: str, pretrained: str | None, error: Exception) -> BackboneError:
    own = brings_weights(backbone)
    source = "" if own else f" with weights {brief(pretrained)}"
    config = {} if own else open_clip.get_pretrained_cfg(backbone, pretrained)
    from_release = config.get("url") and (not config.get("hf_hub") or _mislabelled(backbone, pretrained))
    cache = (
        f"put {Path(config['url']).name} into ~/.cache/clip"
        if from_release
        else "set HF_HOME to a cache that holds them"
    )
    setting = "set backbone to its architecture and pretrained" if own else "set pretrained"
    return BackboneError(
        f"cannot load {brief(backbone)}{source} ({type(error).__name__}: {first_line(error)}). Try one of: {setting} "
        f"to a .safetensors or .pt file of these weights; {cache}; or backbone={DEMO_BACKBONE}, which needs no download."
    )
