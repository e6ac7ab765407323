"""Large batches in chunks, so that memory does not grow with the number of images, views or tiles."""

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

Tokens = TypeVar("Tokens", Tensor, tuple[Tensor, ...])

# Images that go through the image tower at once.
CHUNK_SIZE = 32
# Whether a graph is being exported. Before torch 2.7, export and compile could not be told apart.
is_exporting = getattr(torch.compiler, "is_exporting", torch.compiler.is_compiling)


def in_chunks(function: Callable[[Tensor], Tokens], images: Tensor, size: int = CHUNK_SIZE) -> Tokens:
    """Return a function's result for a batch, computed on a limited number of images at a time.

    The graph of an exported model accepts any batch size, so it must not depend on the current one: while exporting,
    the batch is not split.

    Args:
        function: Maps images (M, ...) to a tensor, or to a named tuple of tensors and ``None``; the first dimension of
            each tensor is M.
        images: Shape (B, ...).
        size: Most images per call. Default: 32.

    Returns:
        What ``function(images)`` would return.

    Example:
        >>> in_chunks(lambda x: 2 * x, torch.arange(5), size=2)
        tensor([0, 2, 4, 6, 8])
    """
    if is_exporting() or len(images) <= size:
        return function(images)
    parts = [function(part) for part in images.split(size)]
    if isinstance(parts[0], Tensor):
        return torch.cat(parts)
    fields: list[Any] = [None if each[0] is None else torch.cat(each) for each in zip(*parts, strict=True)]
    return type(parts[0])(*fields)
