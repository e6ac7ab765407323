"""CLIP backbone loading: any open_clip model whose image tower is the native vision transformer.

open_clip knows the architectures, the weights and where they are, and builds the towers. The weights are read and
checked here, so that nothing in a file is executed and each tower can be loaded without the other.
"""

import hashlib
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import open_clip
import torch
from torch import Tensor, nn

from anovl_plugin.config import check_flag
from anovl_plugin.hosts.open_clip import VisionTransformer, log_as_details, native_traits
from anovl_plugin.vision.architecture import (
    DEFAULT_BACKBONE,
    DEMO_BACKBONE,
    build_visual,
    check_visual,
    is_supported_config,
    load_text,
    load_visual,
    register_demo_architecture,
    supported_architectures,
)
from anovl_plugin.vision.image_size import check_image_size, check_size, resize_positions
from anovl_plugin.vision.source import (
    DEFAULT_PRETRAINED,
    BackboneSpec,
    brings_weights,
    check_source,
    find_weights,
    known_normalizations,
    read_model_config,
    read_spec,
    spec_of,
)
from anovl_plugin.vision.weights import BackboneError, brief, first_line, read_temperature, read_weights

__all__ = [
    "DEFAULT_BACKBONE",
    "DEFAULT_PRETRAINED",
    "DEMO_BACKBONE",
    "Backbone",
    "BackboneError",
    "BackboneSpec",
    "build_visual",
    "check_image_size",
    "check_size",
    "check_source",
    "check_visual",
    "fingerprint",
    "is_supported_config",
    "load_backbone",
    "read_spec",
    "register_demo_architecture",
    "resize_positions",
    "supported_architectures",
]

logger = logging.getLogger(__name__)


class Backbone(NamedTuple):
    """A loaded CLIP model, or one side of it.

    Attributes:
        visual: Image tower, frozen and in evaluation mode; ``None`` if it was not requested.
        clip: The open_clip model that holds the text tower, without its image tower; frozen, in evaluation mode.
            ``None`` if it was not requested.
        tokenizer: Turns a list of sentences into token ids (K, L); ``None`` without the text tower.
        spec: What is known about the image tower without its weights.
        image_size: Height and width of the images that the image tower takes, in pixels.
        temperature: CLIP's temperature, 1 / exp(logit_scale).
        fingerprint: Identifies the image tower, see :func:`fingerprint`; ``None`` without it.
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
        """Mean of each color channel that images are normalized with, for values in [0, 1]."""
        return self.spec.mean

    @property
    def std(self) -> tuple[float, ...]:
        """Standard deviation of each color channel that images are normalized with."""
        return self.spec.std


@log_as_details()
@torch.inference_mode(mode=False)  # no gradients could flow through inference tensors later
def load_backbone(
    backbone: str = DEFAULT_BACKBONE,
    pretrained: str | Path | None = DEFAULT_PRETRAINED,
    image_size: int | tuple[int, int] | None = None,
    *,
    image: bool = True,
    text: bool = True,
) -> Backbone:
    """Load a CLIP on the CPU in float32; torch's random state is not used.

    Args:
        backbone: An open_clip architecture, ``hf-hub:OWNER/NAME``, ``local-dir:FOLDER``, or ``anovl-demo``, the small
            CLIP that comes with the package. Default: ``ViT-B-16-plus-240``.
        pretrained: An open_clip tag, or the path of a .safetensors or .pt file, nothing of which is executed. Default:
            ``laion400m_e32``. The sources that bring their own weights (``hf-hub:``, ``local-dir:``,
            ``anovl-demo``) accept only the default and ``None``.
        image_size: Height and width (or one number for both) in pixels, multiples of the patch; the position
            embeddings are interpolated to it. Default: ``None``, the size the architecture was made for.
        image: Load the image tower. Default: ``True``.
        text: Load the text tower and its tokenizer. Default: ``True``.

    Returns:
        The requested towers, and how images must be prepared.

    Raises:
        TypeError: If an argument is of another type.
        BackboneError: If the architecture is not supported, or the weights are unavailable or do not fit it.
        ValueError: If the image size does not suit the patches.
    """
    check_flag("image", image)
    check_flag("text", text)
    size = check_image_size(image_size)
    backbone, pretrained = check_source(backbone, pretrained)
    model, preprocessing = read_model_config(backbone)
    spec = spec_of(backbone, pretrained, model, preprocessing)
    if size is not None:
        check_size(size, spec.patch_size, backbone)  # before anything is downloaded
    path = find_weights(backbone, pretrained)
    weights = read_weights(path)
    temperature = read_temperature(weights)
    clip = load_text(model, weights, backbone) if text else None
    tokenizer = _load_tokenizer(backbone, model) if text else None
    visual = load_visual(model, weights, backbone) if image else None
    identity = fingerprint(visual, spec) if image else None
    if image:
        _warn_of_normalization(backbone, pretrained)
    if image and size is not None:
        resize_positions(visual, size, backbone)
    return Backbone(visual, clip, tokenizer, spec, size or spec.image_size, temperature, identity)


def fingerprint(visual: VisionTransformer, spec: BackboneSpec) -> str:
    """Return a hash that identifies an image tower by everything that affects its results.

    Args:
        visual: Image tower as it was loaded, in float32, its position embeddings not interpolated.
        spec: Its spec; the image size and the normalization count.

    Returns:
        The first 16 hexadecimal digits of a SHA-256 over its weights, activation, heads and sizes.
    """
    traits = native_traits(visual) | {"image_size": spec.image_size, "mean": spec.mean, "std": spec.std}
    digest = hashlib.sha256(json.dumps(traits, sort_keys=True).encode())
    for name, weight in visual.state_dict().items():
        digest.update(f"{name} {tuple(weight.shape)}".encode())
        digest.update(weight.detach().to("cpu", torch.float32).contiguous().numpy())
    return digest.hexdigest()[:16]


def _load_tokenizer(backbone: str, model: dict[str, Any]) -> Callable[[list[str]], Tensor]:
    text = model["text_cfg"]
    try:
        if backbone.startswith("local-dir:") and not text.get("hf_tokenizer_name"):
            # open_clip before 3.0 does not know such folders.
            return open_clip.SimpleTokenizer(
                context_length=text.get("context_length", 77), **text.get("tokenizer_kwargs", {})
            )
        return open_clip.get_tokenizer(backbone)
    except Exception as error:  # noqa: BLE001 - tokenizers come from hubs and other packages
        msg = f"cannot load the tokenizer of {brief(backbone)} ({type(error).__name__}: {first_line(error)})"
        raise BackboneError(msg) from None


def _warn_of_normalization(backbone: str, pretrained: str) -> None:
    if not brings_weights(backbone) and len(known_normalizations(backbone, pretrained)) > 1:
        logger.warning(
            "The weights known for %s use different normalizations; OpenAI's is used for %s. Set a pre_processor if "
            "these weights were trained with another.",
            backbone,
            pretrained,
        )
