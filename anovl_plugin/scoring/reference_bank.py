"""The reference bank: what is kept of the reference images of a class, and the scale of its distances.

Shapes: R reference images, P patches of each, B images, N patches, D width of a token.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from anovl_plugin.config import from_config, to_config
from anovl_plugin.hosts.torch import HeldTensors
from anovl_plugin.scoring.patch_memory import PatchMemory
from anovl_plugin.scoring.patch_subspace import PatchSubspace
from anovl_plugin.scoring.references import References, Scale, bank_config, find_scale

__all__ = ["BankIdentity", "PatchMemory", "PatchSubspace", "ReferenceBank", "parse_references"]

_FITTED, _SCALE = "fitted_", "scale_values"


def parse_references(value: object, *, allow_import: bool = True) -> References | None:
    """Return references from an instance, a class path or a configuration; ``None`` for none.

    Args:
        value: Whatever :func:`anovl_plugin.config.from_config` accepts.
        allow_import: Whether a class path may be imported. Default: yes.

    Raises:
        TypeError: If it is none of these.
        ValueError: If there is no such class, or it does not accept the settings.

    Example:
        >>> parse_references("PatchSubspace").variance
        0.75
    """
    return from_config(value, References, allow_import=allow_import)


class TooFewReferencesError(ValueError):
    """There are fewer reference images than it takes to compare images with them."""


class BankIdentity(NamedTuple):
    """What a reference bank was built from.

    Attributes:
        class_name: What the images show.
        fingerprint: Identifies the image tower.
        prompts: Identifies the prompts, whose margins set the scale.
        preparation: How images are prepared and adapted: size, tiles and adaptation.
        images: Identifies the images; ``None`` if they were passed as tensors.
        num_images: Number of reference images.
        depths: Blocks of the image tower whose tokens are compared.
    """

    class_name: str | None
    fingerprint: str | None
    prompts: str | None
    preparation: str
    images: str | None
    num_images: int
    depths: tuple[int, ...]


class ReferenceBank(HeldTensors):
    """What is kept of the reference images of a class.

    Kept in float32 whatever precision the model is moved to. Names and sizes of the tensors depend on the references,
    so a state dict may hold any; what they were built from travels with them.

    Attributes:
        identity: What the bank was built from; ``None`` until built.
        settings: The settings of the references that it was built with and depends on; ``None`` until built.
    """

    def __init__(self) -> None:
        super().__init__()
        self.identity: BankIdentity | None = None
        self.settings: dict[str, Any] | None = None
        self.register_load_state_dict_post_hook(_check_loaded)

    @property
    def is_built(self) -> bool:
        """Whether the bank holds references."""
        return self.identity is not None

    @property
    def fitted(self) -> dict[str, Tensor]:
        """What :meth:`.References.fit` returned."""
        return {name.removeprefix(_FITTED): value for name, value in self.held.items() if name.startswith(_FITTED)}

    @property
    def scale(self) -> Scale:
        """The scale of distances and text margins."""
        return Scale(*self.get_buffer(_SCALE).unbind())

    @property
    def num_bytes(self) -> int:
        """Bytes that the bank takes."""
        return sum(tensor.nbytes for tensor in self.held.values())

    def build(self, references: References, tokens: Sequence[Tensor], margins: Tensor, identity: BankIdentity) -> None:
        """Fill the bank.

        Args:
            references: What compares images with references.
            tokens: Unit tokens of the reference images, as :meth:`.References.select` returns them, each (R, P, D).
            margins: Text margins of the reference patches, shape (R, P).
            identity: What the bank is built from.

        Raises:
            TooFewReferencesError: If there are too few images.
            ValueError: If the tokens are not finite.
        """
        check_count(references, identity.num_images)
        # Lightning calls this in inference mode; inference tensors cannot be loaded into later.
        with torch.inference_mode(False), torch.no_grad(), torch.autocast(margins.device.type, enabled=False):
            tokens, margins = [each.clone() for each in tokens], margins.clone()
            fitted = references.fit(tokens)
            scale = torch.stack(find_scale(references, tokens, margins))
        self.hold({f"{_FITTED}{name}": value for name, value in fitted.items()} | {_SCALE: scale})
        _check_finite(self, f"of {identity.class_name!r}")
        self.identity, self.settings = identity, bank_config(to_config(references))

    def is_for(self, identity: BankIdentity, references: References) -> bool:
        """Return whether the bank was built from these, with these references."""
        return self.identity == identity and self.settings == bank_config(to_config(references))

    def fits(self, wanted: BankIdentity, references: References) -> bool:
        """Return whether the bank belongs to a class, a CLIP, prompts and references, whatever its images."""
        return self._difference(wanted, references) is None

    def check(self, wanted: BankIdentity, references: References) -> None:
        """Raise an error if the bank does not belong to a class, a CLIP, prompts and references.

        Args:
            wanted: What the bank should be built from; the images do not matter.
            references: The references of the model.

        Raises:
            ValueError: If it does not.
        """
        difference = self._difference(wanted, references)
        if difference is not None:
            msg = f"the reference bank was built with {difference}; build it again with build_reference_bank(images)"
            raise ValueError(msg)

    def _difference(self, wanted: BankIdentity, references: References) -> str | None:
        own = cast("BankIdentity", self.identity)
        differences = {
            "another CLIP": own.fingerprint != wanted.fingerprint,
            "other prompts": own.prompts != wanted.prompts,
            "another image_size, tiles_per_side or adaptation": own.preparation != wanted.preparation,
            "other settings of references": self.settings != bank_config(to_config(references)),
        }
        return next((text for text, differs in differences.items() if differs), None)

    def margins(self, references: References, tokens: Sequence[Tensor]) -> Tensor:
        """Return how abnormal patches are by the references, on the scale of text margins, float32, shape (B, N).

        Args:
            references: What compares images with references; of the settings that the bank was built with.
            tokens: Unit tokens of images, as :meth:`.References.select` returns them, each (B, N, D).
        """
        with torch.autocast(tokens[0].device.type, enabled=False):
            return self.scale.to_margins(references.distances(tokens, self.fitted))

    def get_extra_state(self) -> dict[str, Any]:
        """Return what the bank was built from, for the state dict."""
        return {"identity": None if self.identity is None else self.identity._asdict(), "settings": self.settings}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Restore what the bank was built from."""
        identity = state["identity"]
        self.identity = None if identity is None else BankIdentity(**identity | {"depths": tuple(identity["depths"])})
        self.settings = state["settings"]


def check_count(references: References, count: int) -> None:
    """Raise an error if there are too few reference images.

    Raises:
        TooFewReferencesError: If there are.
    """
    if count < references.least_images:
        msg = (
            f"{type(references).__name__} needs at least {references.least_images} reference image"
            f"{'s' if references.least_images > 1 else ''}, but there {'is' if count == 1 else 'are'} {count}; give "
            "more"
        )
        raise TooFewReferencesError(msg)


def _check_loaded(bank: nn.Module, incompatible_keys: object) -> None:
    del incompatible_keys
    if isinstance(bank, ReferenceBank) and bank.identity is not None:
        _check_finite(bank, f"of {bank.identity.class_name!r} in the checkpoint")


def _check_finite(bank: nn.Module, whose: str) -> None:
    if not all(buffer.isfinite().all() for buffer in bank.buffers()):
        msg = f"the reference bank {whose} holds NaN or infinite values; check the reference images and the weights"
        raise ValueError(msg)
