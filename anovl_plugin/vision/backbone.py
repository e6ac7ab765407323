"""The CLIP that everything rests on: any open_clip model whose image tower is the native vision transformer.

Loading is open_clip's. What is added: a check that the tower has the blocks the method needs, normalisation and image
size set explicitly, the architecture that the package ships, and one error that says what to do when weights cannot
be had.
"""

import hashlib
import logging
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

import open_clip
import torch
from open_clip.transformer import ResidualAttentionBlock, VisionTransformer
from open_clip.version import __version__ as open_clip_version
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

logger = logging.getLogger(__name__)

DEFAULT_BACKBONE = "ViT-B-16-plus-240"
DEFAULT_PRETRAINED = "laion400m_e32"
DEMO_BACKBONE = "anovl-demo"
_DEMO_FOLDER = Path(str(files("anovl_plugin"))) / "demo"
_SCHEMES = ("hf-hub:", "local-dir:")


class BackboneError(RuntimeError):
    """A CLIP cannot be loaded, or is none that the method can run on."""


class Backbone(NamedTuple):
    """A CLIP, loaded.

    Attributes:
        visual: image tower, frozen and in evaluation mode.
        clip: the open_clip model that holds the text tower, without its image tower; frozen, in evaluation mode.
        tokenizer: turns a list of sentences into token ids (K, L).
        image_size: height and width that the image tower takes, in pixels.
        mean: mean of each colour channel that images are normalised with, for values in [0, 1].
        std: standard deviation of each colour channel, likewise.
    """

    visual: VisionTransformer
    clip: nn.Module
    tokenizer: Callable[[list[str]], Tensor]
    image_size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]


def register_demo_architecture() -> None:
    """Make open_clip know ``anovl-demo``."""
    if DEMO_BACKBONE not in open_clip.list_models():
        open_clip.add_model_config(_DEMO_FOLDER / f"{DEMO_BACKBONE}.json")


def is_supported_config(config: dict) -> bool:
    """Tell from an open_clip configuration whether its image tower is the native vision transformer, class token read.

    Args:
        config: what ``open_clip.get_model_config`` returns.
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
    """List the architectures of the installed open_clip that the method runs on.

    Example:
        >>> names = supported_architectures()
        >>> "ViT-B-16-plus-240" in names, "anovl-demo" in names, "RN50" in names
        (True, True, False)
    """
    register_demo_architecture()
    return [name for name in open_clip.list_models() if is_supported_config(open_clip.get_model_config(name))]


def check_visual(visual: nn.Module, name: str) -> None:
    """Refuse an image tower that lacks the blocks which value-wise attention needs.

    Args:
        visual: the image tower of an open_clip model.
        name: what to call it in the error.

    Raises:
        BackboneError: if it is not open_clip's own vision transformer, read at its class token.
    """
    usable = (
        isinstance(visual, VisionTransformer)
        and visual.attn_pool is None
        and visual.pool_type == "tok"
        and visual.proj is not None
        and all(type(block) is ResidualAttentionBlock for block in visual.transformer.resblocks)
    )
    if not usable:
        _refuse(name, type(visual).__name__)


def load_backbone(
    backbone: str = DEFAULT_BACKBONE,
    pretrained: str | None = DEFAULT_PRETRAINED,
    image_size: int | tuple[int, int] | None = None,
) -> Backbone:
    """Load a CLIP on the CPU in float32.

    Args:
        backbone: an open_clip architecture, ``hf-hub:OWNER/NAME``, ``local-dir:FOLDER``, or ``anovl-demo``, the small
            CLIP that comes with the package.
        pretrained: a tag of open_clip's, or the path of a .safetensors or .pt file, which is read weights-only. The
            sources that bring their own weights (``hf-hub:``, ``local-dir:``, ``anovl-demo``) do not look at it.
        image_size: height and width (or one number for both) in pixels, multiples of the patch; the position
            embeddings are interpolated to it. ``None`` for the size the architecture was made for.

    Returns:
        The two towers, the tokenizer, and how images must be prepared.

    Raises:
        BackboneError: if the tower is of another kind than the native vision transformer, or the weights cannot be
            had or do not fit.
        ValueError: if the image size does not suit the patches.
    """
    register_demo_architecture()
    if backbone == DEMO_BACKBONE:
        pretrained = str(_DEMO_FOLDER / f"{DEMO_BACKBONE}.safetensors")
    elif backbone.startswith(_SCHEMES):
        pretrained = None
    else:
        _check_request(backbone, pretrained)
    size = _as_pair(image_size)
    if size is not None and not backbone.startswith(_SCHEMES):
        # Before anything is downloaded.
        patch = open_clip.get_model_config(backbone)["vision_cfg"].get("patch_size", 16)
        check_size(size, (patch, patch) if isinstance(patch, int) else tuple(patch), backbone)
    try:
        options = {"require_pretrained": True, **_normalisation(backbone, pretrained)}
        with _readable_weights(_right_download(backbone, pretrained)) as source:
            clip = open_clip.create_model(backbone, pretrained=source, **options)
        tokenizer = open_clip.get_tokenizer(backbone)
    except Exception as error:  # noqa: BLE001 - hubs, files and archives fail in many ways; all end in one error
        raise _cannot_load(backbone, pretrained, error) from None
    clip = clip.float().eval().requires_grad_(False)
    visual = clip.visual
    check_visual(visual, backbone)
    if size is not None:
        resize_positions(visual, size, backbone)
    del clip.visual
    mean, std = tuple(visual.image_mean), tuple(visual.image_std)
    return Backbone(visual, clip, tokenizer, tuple(visual.image_size), mean, std)


def fingerprint(visual: VisionTransformer) -> str:
    """Tell image towers apart by their weights, whatever size their position embeddings were interpolated to.

    Args:
        visual: image tower as it was loaded, in float32.

    Returns:
        The first 16 hexadecimal digits of a SHA-256 over its weights.
    """
    digest = hashlib.sha256()
    for name, weight in visual.state_dict().items():
        if name != "positional_embedding":
            digest.update(name.encode())
            digest.update(weight.detach().cpu().contiguous().numpy())
    return digest.hexdigest()[:16]


def _as_pair(image_size: int | tuple[int, int] | None) -> tuple[int, int] | None:
    if image_size is None:
        return None
    pair = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
    if len(pair) != 2 or any(side < 1 for side in pair):
        msg = f"image_size is {image_size!r}, but must be a positive number of pixels or a pair (height, width) of them"
        raise ValueError(msg)
    return pair


def _refuse(name: str, kind: str) -> None:
    msg = (
        f"backbone {name!r} ({kind}) is not a vision transformer that value-wise attention can run on; "
        f"supported: {', '.join(supported_architectures())}"
    )
    raise BackboneError(msg)


def _check_request(backbone: str, pretrained: str | None) -> None:
    """Refuse before anything is downloaded what could only fail, or succeed wrongly, afterwards."""
    config = open_clip.get_model_config(backbone)
    if config is None:
        _refuse(backbone, "unknown to open_clip")
    if not is_supported_config(config):
        _refuse(backbone, "another kind of image tower")
    if not pretrained:
        msg = f"pretrained is {pretrained!r}, but {backbone!r} needs weights: give a tag of open_clip's or a file"
        raise BackboneError(msg)
    tags = open_clip.list_pretrained_tags_by_model(backbone)
    if Path(pretrained).is_file():
        return
    if pretrained not in tags:
        msg = f"pretrained is {pretrained!r}, which is neither a file nor one of the tags of {backbone!r}: {tags}"
        raise BackboneError(msg)
    quick_gelu = open_clip.get_pretrained_cfg(backbone, pretrained).get("quick_gelu")
    if quick_gelu is not None and quick_gelu != config.get("quick_gelu", False):
        other = backbone.removesuffix("-quickgelu") if config.get("quick_gelu") else f"{backbone}-quickgelu"
        msg = f"the weights {pretrained!r} were trained with another activation than {backbone!r} has; use {other!r}"
        raise BackboneError(msg)


def _normalisation(backbone: str, pretrained: str | None) -> dict[str, dict]:
    """Take for a bare file, which says nothing of it, the normalisation of the architecture's known weights."""
    is_file = Path(str(pretrained)).is_file() or _mislabelled(backbone, pretrained)
    if backbone.startswith(_SCHEMES) or not is_file:
        return {}
    tags = open_clip.list_pretrained_tags_by_model(backbone)
    configs = [open_clip.get_pretrained_cfg(backbone, tag) for tag in tags]
    openai = (tuple(open_clip.OPENAI_DATASET_MEAN), tuple(open_clip.OPENAI_DATASET_STD))
    known = {(tuple(c.get("mean") or openai[0]), tuple(c.get("std") or openai[1])) for c in configs} or {openai}
    if len(known) > 1:
        logger.warning(
            "Weights of %s are known with several normalisations; %s is taken to have OpenAI's. Give a pre_processor "
            "if it was trained with another.",
            backbone,
            pretrained,
        )
    mean, std = known.pop() if len(known) == 1 else openai
    return {"force_preprocess_cfg": {"mean": mean, "std": std}}


def _mislabelled(backbone: str, pretrained: str | None) -> dict[str, str]:
    """Give the configuration of a tag whose entry in open_clip leads to another tag's weights on the hub, else {}.

    open_clip 3.3 does this for the paper's CLIP: it fetches laion400m_e31 when asked for laion400m_e32.
    """
    config = open_clip.get_pretrained_cfg(backbone, pretrained) if pretrained else {}
    hub_tag = config.get("hf_hub", "").rstrip("/").rpartition(".")[2]
    others = {tag for tag in open_clip.list_pretrained_tags_by_model(backbone) if tag != pretrained}
    return config if hub_tag in others and config.get("url") else {}


def _right_download(backbone: str, pretrained: str | None) -> str | None:
    """Fetch the weights that a tag names from their own address where open_clip would fetch others."""
    config = _mislabelled(backbone, pretrained)
    return open_clip.download_pretrained({**config, "hf_hub": ""}) if config else pretrained


@contextmanager
def _readable_weights(pretrained: str | None) -> Iterator[str | None]:
    """Give older versions of open_clip, which cannot read safetensors, the same weights as a .pt file."""
    version = tuple(int(part) for part in open_clip_version.split(".")[:2])
    if pretrained is None or not pretrained.endswith(".safetensors") or version >= (2, 27):
        yield pretrained
        return
    with tempfile.TemporaryDirectory() as folder:
        converted = str(Path(folder) / "weights.pt")
        torch.save(load_file(pretrained), converted)
        yield converted


def _cannot_load(backbone: str, pretrained: str | None, error: Exception) -> BackboneError:
    cause = " ".join(str(error).split()).rstrip(".") or "no reason given"
    source = f" with weights {pretrained!r}" if pretrained else ""
    config = open_clip.get_pretrained_cfg(backbone, pretrained) if pretrained else {}
    from_release = config.get("url") and (not config.get("hf_hub") or _mislabelled(backbone, pretrained))
    cache = (
        f"put {Path(config['url']).name} into ~/.cache/clip"
        if from_release
        else "set HF_HOME to a cache that holds them"
    )
    # What brings its own weights does not look at pretrained.
    setting = "set backbone to its architecture and pretrained" if backbone.startswith(_SCHEMES) else "set pretrained"
    return BackboneError(
        f"cannot load {backbone!r}{source} ({type(error).__name__}: {cause}). Ways on: {setting} to a "
        f".safetensors or .pt file of these weights; {cache}; or try backbone={DEMO_BACKBONE}, which needs no download."
    )


def check_size(size: tuple[int, int], patches: tuple[int, int], backbone: str) -> None:
    """Refuse a height and width in pixels that are no multiples of the patch.

    Raises:
        ValueError: names the nearest sizes that are.
    """
    if any(side % patch for side, patch in zip(size, patches, strict=True)):
        nearest = [tuple(_multiples(side, patch)) for side, patch in zip(size, patches, strict=True)]
        msg = (
            f"image_size is {size}, but the sides must be multiples of the patches of {backbone!r} ({patches[0]} "
            f"pixels); nearest heights {nearest[0]}, nearest widths {nearest[1]}"
        )
        raise ValueError(msg)


def resize_positions(visual: VisionTransformer, size: tuple[int, int], backbone: str) -> None:
    """Make an image tower take images of another size: its position embeddings are interpolated, bicubic.

    open_clip can do this while loading, but takes every grid for a square one, and leaves the embeddings as they are
    where another shape has as many patches.

    Args:
        visual: image tower, changed in place.
        size: height and width in pixels.
        backbone: what to call it in the error.

    Raises:
        ValueError: if a side is no multiple of the patch.
    """
    patches = visual.patch_size
    check_size(size, patches, backbone)
    grid = (size[0] // patches[0], size[1] // patches[1])
    if grid != tuple(visual.grid_size):
        positions = visual.positional_embedding
        image = positions[1:].T.unflatten(1, visual.grid_size).unsqueeze(0)
        image = F.interpolate(image, grid, mode="bicubic", antialias=True)
        resized = torch.cat([positions[:1], image.flatten(2)[0].T])
        visual.positional_embedding = nn.Parameter(resized, requires_grad=positions.requires_grad)
    visual.image_size, visual.grid_size = size, grid


def _multiples(side: int, patch: int) -> Iterator[int]:
    lower = side // patch * patch
    if lower:
        yield lower
    yield lower + patch
