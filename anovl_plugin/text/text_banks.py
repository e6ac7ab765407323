"""The text banks of all classes that a model knows.

Shapes: K classes, B images, C joint embedding width.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import cast

import torch
from torch import Tensor

from anovl_plugin.config import shown
from anovl_plugin.hosts.torch import ResizableModuleList
from anovl_plugin.text.text_bank import TextBank


class TextBanks(ResizableModuleList):
    """One text bank per class; the index of a class is the position of its bank.

    There is at least one bank, which is empty until built. A state dict may hold any number of banks.

    Example:
        >>> banks = TextBanks()
        >>> len(banks), banks.is_built, banks.class_names
        (1, False, ())
    """

    def __init__(self) -> None:
        super().__init__([TextBank()])

    def __iter__(self) -> Iterator[TextBank]:
        """Iterate over the banks, in order."""
        return cast("Iterator[TextBank]", super().__iter__())

    def new_module(self) -> TextBank:
        """Return an empty bank."""
        return TextBank()

    @property
    def is_built(self) -> bool:
        """Whether there is a bank of at least one class."""
        return all(bank.is_built for bank in self)

    @property
    def class_names(self) -> tuple[str, ...]:
        """The classes, in the order of their index."""
        return tuple(bank.class_name for bank in self if bank.class_name is not None)

    @property
    def state_embeddings(self) -> Tensor:
        """Unit vectors of "normal" and "abnormal" of each class, shape (K, 2, C)."""
        return torch.stack([bank.state_embeddings for bank in self])

    def replace(self, banks: Iterable[TextBank]) -> None:
        """Hold these banks instead; there must be at least one."""
        banks = list(banks)
        del self[:]
        self.extend(banks)

    def index(self, class_names: Sequence[str]) -> Tensor:
        """Return the index of each class, for the ``class_index`` of a batch.

        Args:
            class_names: Class of each image.

        Returns:
            Indices, int64, shape (B,).

        Raises:
            ValueError: If there is no bank of a class.
        """
        known = {class_name: index for index, class_name in enumerate(self.class_names)}
        for class_name in class_names:
            if class_name not in known:
                msg = f"there is no text bank of class {shown(class_name)}, only of {', '.join(map(shown, known))}"
                raise ValueError(msg)
        return torch.tensor([known[class_name] for class_name in class_names], dtype=torch.long)

    def at(self, class_index: int) -> TextBank:
        """Return the bank of a class.

        Raises:
            ValueError: If the index is out of range.
        """
        if not 0 <= class_index < len(self):
            names = ", ".join(map(shown, self.class_names))
            msg = f"class_index is {class_index}, but must lie in 0 to {len(self) - 1}, the indices of {names}"
            raise ValueError(msg)
        return list(self)[class_index]

    def check_index(self, class_index: Tensor | None, images: Tensor) -> None:
        """Raise an error if indices do not say which class each image shows.

        Args:
            class_index: Index of each image's class; may be missing if there is one class.
            images: The images (B, ...).

        Raises:
            TypeError: If it is not an integer tensor.
            ValueError: If it is missing where there are several classes, or has the wrong shape, or an index is out
                of range.
        """
        names = ", ".join(map(shown, self.class_names))
        if class_index is None:
            if len(self) > 1:
                msg = f"the model has text banks of {len(self)} classes ({names}); pass the class_index of each image"
                raise ValueError(msg)
            return
        if not isinstance(class_index, Tensor) or class_index.dtype not in (torch.int64, torch.int32):
            kind = class_index.dtype if isinstance(class_index, Tensor) else type(class_index).__name__
            msg = f"class_index is {kind}, but must be a tensor of integers, e.g. model.text_banks.index(['bottle'])"
            raise TypeError(msg)
        number = len(images)
        if tuple(class_index.shape) != (number,):
            msg = (
                f"class_index has the shape {tuple(class_index.shape)}, but must have one index per image, ({number},)"
            )
            raise ValueError(msg)
        if number and not (class_index.amin() >= 0 and class_index.amax() < len(self)):
            msg = (
                f"class_index has values from {class_index.amin().item()} to {class_index.amax().item()}, but must lie "
                f"in 0 to {len(self) - 1}, the indices of {names}"
            )
            raise ValueError(msg)
