"""The reference banks of all classes that a model knows.

Shapes: K classes, B images, N patches, D width of a token.
"""

from collections.abc import Iterator, Sequence
from typing import cast

import torch
from torch import Tensor

from anovl_plugin.config import shown
from anovl_plugin.hosts.torch import ResizableModuleList
from anovl_plugin.scoring.reference_bank import BankIdentity, ReferenceBank
from anovl_plugin.scoring.references import References


class ReferenceBanks(ResizableModuleList):
    """One reference bank per class, found by the name of the class.

    There is at least one bank, which is empty until built. A state dict may hold any number of banks.
    """

    def __init__(self) -> None:
        super().__init__([ReferenceBank()])

    def __iter__(self) -> Iterator[ReferenceBank]:
        """Iterate over the banks."""
        return cast("Iterator[ReferenceBank]", super().__iter__())

    def new_module(self) -> ReferenceBank:
        """Return an empty bank."""
        return ReferenceBank()

    @property
    def depths(self) -> tuple[int, ...]:
        """Blocks whose tokens are compared, the same for all banks; none until built."""
        return next((bank.identity.depths for bank in self if bank.identity is not None), ())

    def find(self, class_name: str | None) -> ReferenceBank | None:
        """Return the bank of a class, or ``None`` if there is none."""
        return next((bank for bank in self if bank.identity and bank.identity.class_name == class_name), None)

    def fits(self, wanted: BankIdentity, references: References) -> bool:
        """Return whether there is a bank of a class, a CLIP, prompts and references, whatever its images."""
        bank = self.find(wanted.class_name)
        return bank is not None and bank.fits(wanted, references)

    def check(self, wanted: BankIdentity, references: References) -> None:
        """Raise an error if there is no bank of a class, or it belongs to another CLIP, prompts or references.

        Raises:
            RuntimeError: If there is no bank of the class.
            ValueError: If it belongs to something else.
        """
        bank = self.find(wanted.class_name)
        if bank is None:
            msg = (
                f"the model has no reference bank of class {shown(wanted.class_name)} yet; call "
                "build_reference_bank(images) first"
            )
            raise RuntimeError(msg)
        bank.check(wanted, references)

    def put(self, bank: ReferenceBank) -> None:
        """Hold a bank, in place of the one of its class, and of empty ones."""
        name = cast("BankIdentity", bank.identity).class_name
        others = [each for each in self if each.identity and each.identity.class_name != name]
        del self[:]
        self.extend([*others, bank])

    def margins(
        self,
        references: References,
        tokens: Sequence[Tensor],
        class_names: Sequence[str | None],
        class_index: Tensor | None = None,
    ) -> Tensor:
        """Return how abnormal patches are by the references of their image's class, float32, shape (B, N).

        Args:
            references: What compares images with references.
            tokens: Unit tokens of images, as :meth:`.References.select` returns them, each (B, N, D).
            class_names: The K classes.
            class_index: Index of each image's class, shape (B,). Default: all images are of the first class.
        """
        names = class_names[:1] if class_index is None else class_names
        found = [cast("ReferenceBank", self.find(name)).margins(references, tokens) for name in names]
        if class_index is None:
            return found[0]
        return torch.stack(found, dim=1)[torch.arange(len(class_index), device=class_index.device), class_index]
