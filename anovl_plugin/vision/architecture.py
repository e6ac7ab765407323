"""CLIP architectures: which ones the method runs on, and how their towers are built and filled with weights."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any

import open_clip
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from anovl_plugin.hosts.open_clip import (
    POSITION_IDS,
    VisionTransformer,
    is_native_tower,
    set_positions,
    to_custom_text_layout,
)
from anovl_plugin.vision.image_size import check_size
from anovl_plugin.vision.weights import BackboneError, brief, check_finite, check_fit, first_line

DEFAULT_BACKBONE = "ViT-B-16-plus-240"
DEMO_BACKBONE = "anovl-demo"
DEMO_FOLDER = Path(str(files("anovl_plugin"))) / "demo"

# open_clip builds both towers; the unwanted one is made as small as possible.
_NO_VISION = {"image_size": 8, "patch_size": 8, "width": 8, "head_width": 8, "layers": 1}
_NO_TEXT = {"context_length": 1, "vocab_size": 1, "width": 8, "heads": 1, "layers": 1}
_OTHER_BLOCKS = (
    "qk_norm",
    "scale_heads",
    "scaled_cosine_attn",
    "scale_attn_inner",
    "scale_attn",
    "scale_fc",
    "block_type",
)


def register_demo_architecture() -> None:
    """Register ``anovl-demo`` with open_clip."""
    if DEMO_BACKBONE not in open_clip.list_models():
        open_clip.add_model_config(DEMO_FOLDER / f"{DEMO_BACKBONE}.json")


def is_supported_config(config: Mapping[str, Any]) -> bool:
    """Return whether the method runs on an architecture, whose image tower must be the native vision transformer.

    Args:
        config: An open_clip configuration, as ``open_clip.get_model_config`` returns it.
    """
    vision = config.get("vision_cfg")
    return (
        isinstance(vision, Mapping)
        and "multimodal_cfg" not in config
        and isinstance(vision.get("layers", 12), int)
        and not vision.get("timm_model_name")
        and not vision.get("attentional_pool")
        and vision.get("pool_type", "tok") == "tok"
        and not any(vision.get(key) for key in _OTHER_BLOCKS)
    )


def supported_architectures() -> list[str]:
    """Return the names of the architectures of the installed open_clip that the method runs on.

    Example:
        >>> names = supported_architectures()
        >>> "ViT-B-16-plus-240" in names, "anovl-demo" in names, "RN50" in names
        (True, True, False)
    """
    register_demo_architecture()
    return [name for name in open_clip.list_models() if is_supported_config(open_clip.get_model_config(name))]


def check_visual(visual: nn.Module, name: str) -> None:
    """Raise if an image tower lacks the blocks that value-wise attention needs.

    Args:
        visual: The image tower of an open_clip model.
        name: What to call it in the error.

    Raises:
        BackboneError: If it is not open_clip's own vision transformer with the class token as its image embedding.
    """
    if not is_native_tower(visual):
        raise unsupported(name, type(visual).__name__)


def unsupported(name: str, kind: str) -> BackboneError:
    """Return the error that says that an architecture is not supported, and names some that are."""
    names = supported_architectures()
    common = [DEFAULT_BACKBONE, "ViT-L-14-336", DEMO_BACKBONE]
    return BackboneError(
        f"backbone {brief(name)} ({kind}) is not a vision transformer that value-wise attention can run on; supported: "
        f"{', '.join(common)} and {len(names) - len(common)} more, see "
        "anovl_plugin.vision.backbone.supported_architectures()"
    )


@torch.inference_mode(mode=False)  # inference tensors could not be loaded into later
def build_visual(config: Mapping[str, Any], image_size: tuple[int, int]) -> VisionTransformer:
    """Build an image tower without weights: all of them are NaN until a state dict is loaded.

    Args:
        config: ``embed_dim``, ``vision_cfg`` and ``quick_gelu``, as a backbone's spec holds them.
        image_size: Height and width in pixels that the position embeddings are sized for.

    Returns:
        The tower on the CPU in float32, frozen and in evaluation mode.

    Raises:
        BackboneError: If the configuration is not that of a supported architecture.
        ValueError: If the image size does not suit the patches.
    """
    visual = _build_image_tower(config, "of the given configuration")
    patches = visual.patch_size
    check_size(image_size, patches, "of the given configuration")
    grid = (image_size[0] // patches[0], image_size[1] // patches[1])
    width = visual.positional_embedding.shape[1]
    set_positions(
        visual, torch.empty(1 + grid[0] * grid[1], width, dtype=torch.float32, device="cpu"), image_size, grid
    )
    for weight in visual.parameters():
        weight.data.fill_(torch.nan)
    return visual.eval().requires_grad_(requires_grad=False)


def load_visual(config: Mapping[str, Any], weights: Mapping[str, Tensor], backbone: str) -> VisionTransformer:
    """Build an image tower and copy its weights into it.

    Args:
        config: An open_clip configuration; its text tower is ignored.
        weights: Weights of the whole CLIP.
        backbone: What to call it in errors.

    Returns:
        The tower on the CPU in float32, frozen and in evaluation mode.

    Raises:
        BackboneError: If the architecture is not supported or the weights do not fit it.
    """
    visual = _build_image_tower(config, backbone)
    wanted = {name: tensor for name, tensor in weights.items() if name.startswith("visual.")}
    _fill(nn.ModuleDict({"visual": visual}), wanted, backbone)
    return visual.eval().requires_grad_(requires_grad=False)


def load_text(config: Mapping[str, Any], weights: Mapping[str, Tensor], backbone: str) -> nn.Module:
    """Build a CLIP without its image tower and copy its weights into it.

    Args:
        config: An open_clip configuration; its image tower is ignored.
        weights: Weights of the whole CLIP.
        backbone: What to call it in errors.

    Returns:
        The model on the CPU in float32, frozen and in evaluation mode.

    Raises:
        BackboneError: If the text tower cannot be built or the weights do not fit it.
    """
    text = dict(config["text_cfg"])
    if text.get("hf_model_name"):
        text["hf_model_pretrained"] = False
    clip = _build({**config, "vision_cfg": _NO_VISION, "text_cfg": text}, backbone, "text")
    del clip.visual
    wanted = {name: tensor for name, tensor in weights.items() if not name.startswith("visual.")}
    if "positional_embedding" in wanted and not hasattr(clip, "positional_embedding"):
        wanted = to_custom_text_layout(wanted)
    expected = clip.state_dict()
    if POSITION_IDS in expected:
        wanted[POSITION_IDS] = expected[POSITION_IDS]
    if "logit_bias" not in expected:
        wanted.pop("logit_bias", None)  # nothing here uses it
    for name in {"logit_scale", "logit_bias"} & wanted.keys() & expected.keys():
        if wanted[name].numel() == 1:  # some files have a list of one
            wanted[name] = wanted[name].reshape(expected[name].shape)
    _fill(clip, wanted, backbone)
    return clip.eval().requires_grad_(requires_grad=False)


def _build_image_tower(config: Mapping[str, Any], backbone: str) -> VisionTransformer:
    if not is_supported_config(config):
        raise unsupported(backbone, "another kind of image tower")
    vision = {key: tuple(value) if isinstance(value, list) else value for key, value in config["vision_cfg"].items()}
    # A custom text tower would be looked up on the hub.
    visual = _build(
        {**config, "vision_cfg": vision, "text_cfg": _NO_TEXT, "custom_text": False}, backbone, "image"
    ).visual
    check_visual(visual, backbone)
    return visual


def _build(config: dict[str, Any], backbone: str, side: str) -> open_clip.CLIP | open_clip.CustomTextCLIP:
    is_custom = config.pop("custom_text", False) or config["text_cfg"].get("hf_model_name")
    try:
        with _uninitialized():
            return (open_clip.CustomTextCLIP if is_custom else open_clip.CLIP)(**config).float()
    except Exception as error:  # noqa: BLE001 - a configuration can be wrong in any way, and text towers ask the hub
        msg = f"cannot build the {side} tower of {brief(backbone)} ({type(error).__name__}: {first_line(error)})"
        raise BackboneError(msg) from None


def _fill(module: nn.Module, weights: Mapping[str, Tensor], backbone: str) -> None:
    check_fit(weights, module.state_dict(), backbone)
    module.load_state_dict(weights)
    # After loading, as some float64 values overflow float32.
    check_finite(module.state_dict())


class _SkipRandomValues(TorchFunctionMode):
    """Leaves tensors unchanged instead of filling them with random values."""

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__name__", "") in {"normal_", "uniform_", "kaiming_uniform_", "xavier_uniform_"}:
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        return func(*args, **kwargs)


@contextmanager
def _uninitialized() -> Iterator[None]:
    """Build modules on the CPU without random weights, which is faster and keeps torch's random state."""
    with torch.device("cpu"), torch.random.fork_rng(devices=[]), _SkipRandomValues():
        yield
