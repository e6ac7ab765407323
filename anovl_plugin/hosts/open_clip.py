"""Names of open_clip that it neither exports from its top level nor documents.

Shapes: N patches, D transformer width, L context length.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import open_clip
from open_clip.model import convert_to_custom_text_state_dict
from open_clip.pretrained import download_pretrained_from_hf
from open_clip.transformer import ResidualAttentionBlock, VisionTransformer
from torch import Tensor, nn

__all__ = [
    "POSITION_IDS",
    "ResidualAttentionBlock",
    "VisionTransformer",
    "download_from_hub",
    "is_causal",
    "is_native_tower",
    "log_as_details",
    "native_traits",
    "set_positions",
    "shorter_context",
    "to_custom_text_layout",
]

# A constant that text towers of the transformers package kept among their weights before transformers 4.31.
POSITION_IDS = "text.transformer.embeddings.position_ids"


@contextmanager
def log_as_details() -> Iterator[None]:
    """Turn what open_clip logs about each step of loading, at INFO in the root logger, into DEBUG lines."""
    root, folder = logging.getLogger(), str(Path(open_clip.__file__).parent)

    def demote(record: logging.LogRecord) -> bool:
        if record.levelno != logging.INFO or not record.pathname.startswith(folder):
            return True
        record.levelno, record.levelname = logging.DEBUG, "DEBUG"
        return root.isEnabledFor(logging.DEBUG)

    root.addFilter(demote)
    try:
        yield
    finally:
        root.removeFilter(demote)


def download_from_hub(repository: str, filename: str | None = None) -> Path:
    """Return the local path of a file of a Hugging Face repository, downloaded if it is not in the cache.

    Args:
        repository: Its name, ``OWNER/NAME``.
        filename: A file in it. Default: ``None``, the repository's open_clip weights.
    """
    names = {} if filename is None else {"filename": filename}
    return Path(download_pretrained_from_hf(repository, **names))


def to_custom_text_layout(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return weights of a ``CLIP`` named as ``CustomTextCLIP`` names them."""
    return convert_to_custom_text_state_dict(weights)


def is_native_tower(visual: nn.Module) -> bool:
    """Return whether an image tower is open_clip's own vision transformer with the class token as its embedding."""
    return (
        isinstance(visual, VisionTransformer)
        and visual.attn_pool is None
        and visual.pool_type == "tok"
        and visual.proj is not None
        and all(type(block) is ResidualAttentionBlock for block in visual.transformer.resblocks)
    )


def native_traits(visual: VisionTransformer) -> dict[str, object]:
    """Return, as plain data, what affects a native tower's results but is not in its weights."""
    blocks = visual.transformer.resblocks
    return {
        "activations": [repr(block.mlp.gelu) for block in blocks],
        "heads": [block.attn.num_heads for block in blocks],
        "norms": [module.eps for module in visual.modules() if isinstance(module, nn.LayerNorm)],
        "patch_size": list(visual.patch_size),
    }


def set_positions(
    visual: VisionTransformer, positions: Tensor, image_size: tuple[int, int], grid: tuple[int, int]
) -> None:
    """Set a native tower's position embeddings and the sizes that go with them.

    Args:
        visual: Image tower, changed in place.
        positions: Embeddings of the class token and of the patches in row-major order, shape (1 + N, D).
        image_size: Height and width of the images in pixels.
        grid: Height and width in patches, N their product.
    """
    requires_grad = visual.positional_embedding.requires_grad
    visual.positional_embedding = nn.Parameter(positions, requires_grad=requires_grad)
    visual.image_size, visual.grid_size = image_size, grid


def is_causal(clip: nn.Module) -> bool:
    """Return whether the text tower of a CLIP reads a sentence at its end token and never looks past it."""
    text = getattr(clip, "text", clip)
    pool_type = getattr(text, "text_pool_type", getattr(text, "pool_type", None))
    has_mask = getattr(text, "attn_mask", None) is not None
    return pool_type == "argmax" and has_mask and getattr(text, "cls_emb", None) is None


def shorter_context(clip: nn.Module, length: int) -> dict[str, Tensor]:
    """Return the tensors of a causal text tower that depend on its context, by name, for a context of length L."""
    text: Any = getattr(clip, "text", clip)
    prefix = "" if text is clip else "text."
    return {
        f"{prefix}positional_embedding": text.positional_embedding[:length],
        f"{prefix}attn_mask": text.attn_mask[:length, :length],
    }
