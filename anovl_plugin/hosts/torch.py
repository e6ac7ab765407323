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


class ResizableModuleList(nn.ModuleList):
    """A list of modules of one kind that takes as many as a state dict holds.

    ``nn.Module`` has no public hook before its children are loaded in the oldest version of torch that is supported.
    """

    def new_module(self) -> nn.Module:
        """Return a module to load into; subclasses define it."""
        raise NotImplementedError

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: object) -> None:
        held = {int(name) for key in state_dict if (name := key.removeprefix(prefix).split(".")[0]).isdigit()}
        number = len(held) or len(self)
        del self[number:]
        self.extend(self.new_module() for _ in range(number - len(self)))
        super()._load_from_state_dict(state_dict, prefix, *args)


def state_version(module: nn.Module) -> tuple[tuple[int, int], ...]:
    """Return what differs once a parameter or buffer of a module has been changed or replaced."""
    tensors = [*module.parameters(), *module.buffers()]
    # Inference tensors have no version; nothing changes them outside of inference mode.
    return tuple((id(tensor), -1 if tensor.is_inference() else tensor._version) for tensor in tensors)
