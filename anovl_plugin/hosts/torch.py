"""What the package uses of torch beyond its public API."""

from collections.abc import Callable

import torch
from torch import Tensor, nn


class Float32Buffers(nn.Module):
    """A module whose buffers follow a move to another device but stay in float32.

    ``nn.Module`` has no public hook for this: ``half()``, ``to(dtype)`` and Lightning's precision plugins all go
    through ``_apply``.
    """

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Float32Buffers":  # noqa: ARG002 - torch's signature
        for name, buffer in self._buffers.items():
            if buffer is not None:
                self._buffers[name] = buffer.to(fn(buffer).device, torch.float32)
        return self
