"""Value-wise attention (AnoVL, section 3.2): patch tokens that can be compared with text.

A CLIP vision transformer keeps its original path x. Beside it, a value-wise path ℓ accumulates from every block an
attention whose queries and keys are the values themselves:

    original    xⁱ = yⁱ + MLP(LN₂(yⁱ)),   yⁱ = xⁱ⁻¹ + W_o softmax(q kᵀ/√d) v
    value-wise  ℓⁱ = ℓⁱ⁻¹ + W_o softmax(v vᵀ/√d) v,   ℓ⁰ = x⁰

with q, k, v from LN₁(xⁱ⁻¹) of the *original* path. Nothing is trained, and the original path is CLIP's own.

Shapes: B images, N patches (h·w in row-major order), D transformer width, C joint embedding width, S depths.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from anovl_plugin.hosts.open_clip import ResidualAttentionBlock, VisionTransformer


class VisionTokens(NamedTuple):
    """Image-tower outputs in the joint embedding space, not normalized.

    Attributes:
        class_token: Projected class tokens of the original path, CLIP's own image embedding, shape (B, C).
        patch_tokens: Projected patch tokens, shape (B, N, C).
        block_tokens: Patch tokens of the original path after chosen blocks, in the tower's own space, shape
            (B, S, N, D); ``None`` if no block was chosen.
    """

    class_token: Tensor
    patch_tokens: Tensor
    block_tokens: Tensor | None = None


def embed_patches(visual: VisionTransformer, images: Tensor) -> Tensor:
    """Return the tokens x⁰ that enter the first block.

    Args:
        visual: An open_clip vision transformer.
        images: Normalized images of the tower's size, shape (B, 3, H, W).

    Returns:
        The class token followed by the patch tokens, shape (B, 1 + N, D).
    """
    patches = visual.conv1(images).flatten(2).transpose(1, 2)
    class_token = visual.class_embedding.to(patches.dtype).expand(patches.shape[0], 1, -1)
    tokens = torch.cat([class_token, patches], dim=1) + visual.positional_embedding.to(patches.dtype)
    return visual.ln_pre(tokens)


def attention_residuals(
    block: ResidualAttentionBlock, tokens: Tensor, num_queries: int | None = None
) -> tuple[Tensor, Tensor]:
    """Return what one block's attention adds to the original path and to the value-wise path.

    Args:
        block: An open_clip ``ResidualAttentionBlock``.
        tokens: Tokens xⁱ⁻¹ of the original path, shape (B, 1 + N, D).
        num_queries: Number of leading query tokens M of the original residual. Default: all of them.

    Returns:
        The original residual W_o softmax(q kᵀ/√d) v, shape (B, M, D), and the value-wise residual
        W_o softmax(v vᵀ/√d) v, shape (B, 1 + N, D).
    """
    q, k, v = queries_keys_values(block, tokens, num_queries)
    return attend(block, q, k, v), attend(block, v, v, v)


def queries_keys_values(
    block: ResidualAttentionBlock, tokens: Tensor, num_queries: int | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the queries of the first M tokens (all if ``None``) and the keys and values of all, by heads."""
    attention = block.attn
    normed = block.ln_1(tokens)
    width = tokens.shape[-1]

    def heads(part: Tensor, start: int, stop: int) -> Tensor:
        rows = slice(start * width, stop * width)
        projected = F.linear(part, attention.in_proj_weight[rows], attention.in_proj_bias[rows])
        return projected.unflatten(-1, (stop - start, attention.num_heads, -1)).permute(2, 0, 3, 1, 4)

    if num_queries is None:
        q, k, v = heads(normed, 0, 3)
    else:
        (q,), (k, v) = heads(normed[:, :num_queries], 0, 1), heads(normed, 1, 3)
    return q, k, v


def attend(block: ResidualAttentionBlock, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Return W_o softmax(q kᵀ/√d) v, shape (B, M, D), for queries, keys and values split by heads."""
    values = F.scaled_dot_product_attention(q, k, v)
    return block.ls_1(block.attn.out_proj(values.transpose(1, 2).flatten(2)))


def add_feed_forward(block: ResidualAttentionBlock, tokens: Tensor) -> Tensor:
    """Return y + MLP(LN₂(y)), the second half of a block's original path."""
    return tokens + block.ls_2(block.mlp(block.ln_2(tokens)))


def to_joint_space(visual: VisionTransformer, tokens: Tensor) -> Tensor:
    """Return tokens (..., D) of the last block as tokens (..., C) of the joint embedding space: LN_post(x) W."""
    return visual.ln_post(tokens) @ visual.proj


def class_token_forward(visual: VisionTransformer, images: Tensor) -> Tensor:
    """Run the original path alone and return what ``visual(images)`` returns, at slightly less cost.

    Args:
        visual: An open_clip vision transformer, as for :func:`value_wise_forward`.
        images: Normalized images of the tower's size, shape (B, 3, H, W).

    Returns:
        Class tokens (B, C), not normalized.
    """
    tokens = embed_patches(visual, images)
    for block, num_queries in _blocks(visual):
        tokens = tokens[:, :num_queries] + attend(block, *queries_keys_values(block, tokens, num_queries))
        tokens = add_feed_forward(block, tokens)
    return to_joint_space(visual, tokens[:, 0])


def original_forward(visual: VisionTransformer, images: Tensor) -> VisionTokens:
    """Run the original path alone and return its patch tokens too, projected like the class token.

    Args:
        visual: An open_clip vision transformer, as for :func:`value_wise_forward`.
        images: Normalized images of the tower's size, shape (B, 3, H, W).

    Returns:
        Class tokens (B, C) and patch tokens (B, N, C), not normalized.
    """
    tokens = embed_patches(visual, images)
    for block in visual.transformer.resblocks:
        tokens = add_feed_forward(block, tokens + attend(block, *queries_keys_values(block, tokens, None)))
    joint = to_joint_space(visual, tokens)
    return VisionTokens(joint[:, 0], joint[:, 1:])


def value_wise_forward(visual: VisionTransformer, images: Tensor, depths: Sequence[int] = ()) -> VisionTokens:
    """Run both paths of a CLIP vision transformer.

    The class token equals ``visual(images)``; the patch tokens are those of the last block's value-wise path.

    Args:
        visual: An open_clip vision transformer whose image embedding is its projected class token
            (see :func:`anovl_plugin.vision.backbone.check_visual`).
        images: Normalized images of the tower's size, shape (B, 3, H, W).
        depths: Blocks of the original path to return the patch tokens of as well, each from 1 to the number of blocks.
            Default: none.

    Returns:
        Class tokens (B, C), patch tokens (B, N, C) and, with depths, tokens of these blocks (B, S, N, D), none of them
        normalized.

    Example:
        >>> import torch
        >>> from open_clip.transformer import VisionTransformer
        >>> visual = VisionTransformer(image_size=32, patch_size=8, width=64, layers=2, heads=2, mlp_ratio=4.0,
        ...                            output_dim=16).eval()
        >>> tokens = value_wise_forward(visual, torch.rand(3, 3, 32, 32))
        >>> tokens.class_token.shape, tokens.patch_tokens.shape
        (torch.Size([3, 16]), torch.Size([3, 16, 16]))
    """
    tokens = value_wise = embed_patches(visual, images)
    kept: dict[int, Tensor] = {}
    for depth, (block, num_queries) in enumerate(_blocks(visual, whole=max(depths, default=0)), start=1):
        original_residual, value_wise_residual = attention_residuals(block, tokens, num_queries)
        value_wise = value_wise + value_wise_residual
        tokens = add_feed_forward(block, tokens[:, :num_queries] + original_residual)
        if depth in depths:
            kept[depth] = tokens[:, 1:]
    block_tokens = torch.stack([kept[depth] for depth in depths], dim=1) if depths else None
    return VisionTokens(to_joint_space(visual, tokens[:, 0]), to_joint_space(visual, value_wise[:, 1:]), block_tokens)


def _blocks(visual: VisionTransformer, whole: int = 0) -> Iterator[tuple[ResidualAttentionBlock, int | None]]:
    """Yield each block and the number of tokens of the original path to compute in it, all up to block ``whole``."""
    # Only the class token of the last block's original path is used otherwise.
    blocks = visual.transformer.resblocks
    for depth, block in enumerate(blocks, start=1):
        yield block, 1 if depth == len(blocks) > whole else None
