"""Value-wise attention (AnoVL, section 3.2): local tokens that can be compared with text.

A CLIP vision transformer keeps its ordinary path. Beside it a second, local path ℓ collects from every block an
attention whose queries and keys are the values themselves:

    ordinary   xⁱ = yⁱ + MLP(LN₂(yⁱ)),   yⁱ = xⁱ⁻¹ + W_o softmax(q kᵀ/√d) v
    local      ℓⁱ = ℓⁱ⁻¹ + W_o softmax(v vᵀ/√d) v,   ℓ⁰ = x⁰

with q, k, v from LN₁(xⁱ⁻¹) of the *ordinary* path. Nothing is trained, and the ordinary path is CLIP's own.

Shapes: B images, N patches (h·w in row-major order), D transformer width, C joint embedding width.
"""

from typing import NamedTuple

import torch
from open_clip.transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F


class VisionTokens(NamedTuple):
    """What a tower says of a batch, in the joint embedding space and not normalised.

    Attributes:
        image: global tokens of the ordinary path, CLIP's own image embedding, shape (B, C).
        local: patch tokens of the value-wise path, shape (B, N, C).
    """

    image: Tensor
    local: Tensor


def embed_patches(visual: VisionTransformer, images: Tensor) -> Tensor:
    """Make the tokens x⁰ that enter the first block.

    Args:
        visual: an open_clip vision transformer.
        images: normalised images of the tower's size, shape (B, 3, H, W).

    Returns:
        Class token first, then the patches, shape (B, 1 + N, D).
    """
    patches = visual.conv1(images).flatten(2).transpose(1, 2)
    class_token = visual.class_embedding.to(patches.dtype).expand(patches.shape[0], 1, -1)
    tokens = torch.cat([class_token, patches], dim=1) + visual.positional_embedding.to(patches.dtype)
    return visual.ln_pre(tokens)


def attention_residuals(block: nn.Module, tokens: Tensor, asking: int | None = None) -> tuple[Tensor, Tensor]:
    """Compute what one block's attention adds to the ordinary path and to the local path.

    Args:
        block: an open_clip ``ResidualAttentionBlock``.
        tokens: the ordinary path's tokens xⁱ⁻¹, shape (B, 1 + N, D).
        asking: how many leading tokens the ordinary residual is wanted for, M; ``None`` for all of them.

    Returns:
        The ordinary residual W_o softmax(q kᵀ/√d) v, shape (B, M, D), and the local residual
        W_o softmax(v vᵀ/√d) v, shape (B, 1 + N, D).
    """
    q, k, v = queries_keys_values(block, tokens, asking)
    return attend(block, q, k, v), attend(block, v, v, v)


def queries_keys_values(block: nn.Module, tokens: Tensor, asking: int | None) -> tuple[Tensor, Tensor, Tensor]:
    """Project LN₁(xⁱ⁻¹) to queries of the first M tokens (all if ``None``) and keys and values of all, by heads."""
    attention = block.attn
    normed = block.ln_1(tokens)
    width = tokens.shape[-1]

    def heads(part: Tensor, start: int, stop: int) -> Tensor:
        rows = slice(start * width, stop * width)
        projected = F.linear(part, attention.in_proj_weight[rows], attention.in_proj_bias[rows])
        return projected.unflatten(-1, (stop - start, attention.num_heads, -1)).permute(2, 0, 3, 1, 4)

    if asking is None:
        q, k, v = heads(normed, 0, 3)
    else:
        (q,), (k, v) = heads(normed[:, :asking], 0, 1), heads(normed, 1, 3)
    return q, k, v


def attend(block: nn.Module, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Compute W_o softmax(q kᵀ/√d) v, shape (B, M, D), of queries, keys and values by heads."""
    values = F.scaled_dot_product_attention(q, k, v)
    return block.ls_1(block.attn.out_proj(values.transpose(1, 2).flatten(2)))


def image_forward(visual: VisionTransformer, images: Tensor) -> Tensor:
    """Run the ordinary path alone and give what ``visual(images)`` gives, for a little less work.

    Args:
        visual: an open_clip vision transformer, as for :func:`value_wise_forward`.
        images: normalised images of the tower's size, shape (B, 3, H, W).

    Returns:
        Image tokens (B, C), not normalised.
    """
    tokens = embed_patches(visual, images)
    for block, asking in _blocks(visual):
        tokens = tokens[:, :asking] + attend(block, *queries_keys_values(block, tokens, asking))
        tokens = tokens + block.ls_2(block.mlp(block.ln_2(tokens)))
    return visual.ln_post(tokens[:, 0]) @ visual.proj


def _blocks(visual: VisionTransformer) -> list[tuple[nn.Module, int | None]]:
    # Of the last block's ordinary path only the class token is read.
    blocks = visual.transformer.resblocks
    return [(block, 1 if index == len(blocks) - 1 else None) for index, block in enumerate(blocks)]


def value_wise_forward(visual: VisionTransformer, images: Tensor) -> VisionTokens:
    """Run both paths of a CLIP vision transformer.

    The image token equals ``visual(images)``; the local tokens are those of the last block.

    Args:
        visual: an open_clip vision transformer whose image embedding is its projected class token
            (:func:`anovl_plugin.vision.backbone.check_visual` tells).
        images: normalised images of the tower's size, shape (B, 3, H, W).

    Returns:
        Image tokens (B, C) and local tokens (B, N, C), not normalised.

    Example:
        >>> import torch
        >>> from open_clip.transformer import VisionTransformer
        >>> visual = VisionTransformer(image_size=32, patch_size=8, width=64, layers=2, heads=2, mlp_ratio=4.0,
        ...                            output_dim=16).eval()
        >>> tokens = value_wise_forward(visual, torch.rand(3, 3, 32, 32))
        >>> tokens.image.shape, tokens.local.shape
        (torch.Size([3, 16]), torch.Size([3, 16, 16]))
    """
    tokens = local = embed_patches(visual, images)
    for block, asking in _blocks(visual):
        ordinary, value_wise = attention_residuals(block, tokens, asking)
        local = local + value_wise
        tokens = tokens[:, :asking] + ordinary
        tokens = tokens + block.ls_2(block.mlp(block.ln_2(tokens)))
    image = visual.ln_post(tokens[:, 0]) @ visual.proj
    return VisionTokens(image, visual.ln_post(local[:, 1:]) @ visual.proj)
