"""What the package uses of torch beyond its public API."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn


class Float32Buffers(nn.Module):
    """A module whose own buffers follow a move to another device but stay in float32.

    ``nn.Module`` has no public hook for this: ``half()``, ``to(dtype)`` and Lightning's precision plugins all go
    through ``_apply``.
    """

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Float32Buffers":
        for module in self.children() if recurse else ():
            module._apply(fn)
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


class HeldTensors(Float32Buffers):
    """A module that holds any number of named tensors, and takes whatever a state dict has for it.

    ``nn.Module`` has no public hook before a state dict is loaded in the oldest version of torch that is supported.
    """

    _placement: Tensor

    def __init__(self) -> None:
        super().__init__()
        # Follows every move, so that tensors that are loaded afterwards can follow, too.
        self.register_buffer("_placement", torch.empty(0), persistent=False)

    @property
    def held(self) -> dict[str, Tensor]:
        """The tensors by name."""
        return {name: buffer for name, buffer in self.named_buffers() if name != "_placement"}

    def hold(self, tensors: Mapping[str, Tensor]) -> None:
        """Hold these tensors instead."""
        for name in self.held:
            delattr(self, name)
        for name, value in tensors.items():
            self.register_buffer(name, value.to(self._placement.device, torch.float32))

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: object) -> None:
        own = {name.removeprefix(prefix): value for name, value in state_dict.items() if name.startswith(prefix)}
        self.hold({name: torch.empty_like(value) for name, value in own.items() if isinstance(value, Tensor)})
        super()._load_from_state_dict(state_dict, prefix, *args)
