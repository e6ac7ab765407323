"""A CLIP and the text banks that it compares images with: loading, building, caching."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

from torch import nn

from anovl_plugin.config import check_flag, is_loading_checkpoint, to_builtin
from anovl_plugin.text.cache import TextBankCache
from anovl_plugin.text.prompts import Prompts, check_class_name
from anovl_plugin.text.text_bank import TextBank, build_text_banks
from anovl_plugin.text.text_banks import TextBanks
from anovl_plugin.text.text_tower import LazyTextTower, TextTower, Tokenizer
from anovl_plugin.vision.backbone import (
    DEFAULT_BACKBONE,
    DEFAULT_PRETRAINED,
    Backbone,
    check_image_size,
    check_source,
    load_backbone,
)
from anovl_plugin.vision.image_tower import ImageTower
from anovl_plugin.vision.source import find_weights


class BankedCLIP(nn.Module):
    """A CLIP, loaded when it is first needed, with a text bank for each class.

    The text tower is released as soon as the text banks are built; for another class, it alone is loaded again.

    Args:
        backbone: The CLIP, as for :func:`~anovl_plugin.vision.backbone.load_backbone`. Default: ``ViT-B-16-plus-240``.
        prompts: What the prompts are made of, as :meth:`Prompts.load` reads it. Default: the paper's.
        pretrained: Weights of the CLIP: an open_clip tag, or a .safetensors or .pt file. Default: ``laion400m_e32``.
        image_size: Height and width (or one number for both) in pixels. Default: the architecture's own.
        cache: Whether to keep text banks on disk. Default: yes.

    Attributes:
        image_tower: The CLIP's image tower.
        text_banks: The embeddings of the prompts of each class, in the order of the classes' indices.

    Raises:
        BackboneError: If the CLIP is unknown or of an unsupported kind.
        TypeError: If an argument has the wrong type.
        ValueError: If an argument is invalid.
    """

    def __init__(
        self,
        backbone: str = DEFAULT_BACKBONE,
        *,
        prompts: Prompts | str | Path | Mapping[str, Any] | None = None,
        pretrained: str | None = DEFAULT_PRETRAINED,
        image_size: int | tuple[int, int] | None = None,
        cache: bool = True,
    ) -> None:
        super().__init__()
        check_flag("cache", cache)
        self.prompts = Prompts.load(to_builtin(prompts))
        # What a checkpoint names may be gone, since it may hold everything itself.
        trusted = not is_loading_checkpoint()
        source = check_source(backbone, pretrained) if trusted else (backbone, pretrained)
        self.image_tower = ImageTower(source, check_image_size(to_builtin(image_size)))
        self.text_banks = TextBanks()
        self.cache = cache
        self._text_tower = LazyTextTower(partial(_load_text_tower, *source))
        # The hub is not contacted before the CLIP is needed.
        if trusted and not source[0].startswith("hf-hub:"):
            self.image_tower.read_spec()

    @property
    def text_bank(self) -> TextBank:
        """The text bank of the only class, or of the first one."""
        return next(iter(self.text_banks))

    @property
    def source(self) -> tuple[str, str | None]:
        """Backbone and pretrained of the CLIP."""
        return self.image_tower.source

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width in pixels of the images (with tiles: of a tile) that the model takes."""
        return self.image_tower.image_size

    @property
    def mean(self) -> tuple[float, ...]:
        """Mean of each color channel to normalize images with, for values in [0, 1]."""
        return self.image_tower.spec.mean

    @property
    def std(self) -> tuple[float, ...]:
        """Standard deviation of each color channel to normalize images with, for values in [0, 1]."""
        return self.image_tower.spec.std

    @property
    def is_loaded(self) -> bool:
        """Whether the image tower is in memory."""
        return self.image_tower.is_loaded

    def load(self) -> None:
        """Load the CLIP, including its text tower, unless it is loaded already.

        Raises:
            BackboneError: If it cannot be loaded.
            ValueError: If the image size does not suit the patches.
        """
        if not self.is_loaded:
            loaded = load_backbone(*self.source, self.image_tower.requested_image_size)
            self.image_tower.set_loaded(loaded)
            self._text_tower.set_loaded(_text_tower_of(loaded))

    def prepare_for_checkpoint(self, state: dict[str, Any], *, has_weights: bool) -> None:
        """Make the model ready for a checkpoint's state dict.

        Args:
            state: Extra state of the image tower in the checkpoint.
            has_weights: Whether the checkpoint holds the image tower. If not, it is loaded from its source.

        Raises:
            BackboneError: If the CLIP cannot be loaded.
            ValueError: If the source holds a CLIP other than the one the checkpoint was made with.
        """
        self.image_tower.prepare_for_checkpoint(state, has_weights=has_weights)

    def build_text_bank(self, class_name: str, domain: str = "auto") -> bool:
        """Build the text bank of a class on the model's device, unless the model has it already.

        Args:
            class_name: What the images show, as the dataset spells it.
            domain: Wording of the prompts. Default: ``auto``, by class name.

        Returns:
            Whether a bank was built.

        Raises:
            BackboneError: If the CLIP cannot be loaded.
            ValueError: If the class name or the domain is invalid.
        """
        return bool(self.build_text_banks([class_name], domain))

    def build_text_banks(self, class_names: Sequence[str], domain: str = "auto") -> list[str]:
        """Build the text banks of several classes, except those that the model has already.

        Afterwards, the model has the banks of these classes and no others; a class's index is its position here.

        Args:
            class_names: What images show, as the dataset spells it; at least one class.
            domain: Wording of the prompts. Default: ``auto``, by class name.

        Returns:
            The classes whose banks were built.

        Raises:
            BackboneError: If the CLIP cannot be loaded.
            ValueError: If there is no class, or a class name or the domain is invalid.
        """
        if isinstance(class_names, str) or not class_names:
            msg = f"class_names is {class_names!r}, but must be a list of at least one class; use e.g. ['bottle']"
            raise ValueError(msg)
        for class_name in class_names:
            check_class_name(class_name)
        names = list(dict.fromkeys(class_names))
        banks = {bank.class_name: bank for bank in self.text_banks}
        missing = [name for name in names if name not in banks or not banks[name].is_for(name, domain, self.prompts)]
        if missing:
            built = self._make_text_banks(missing, domain)
            self.text_banks.replace([built.get(name) or banks[name] for name in names])
        else:
            self.text_banks.replace([banks[name] for name in names])
            self.image_tower.load()
        return missing

    def _make_text_banks(self, class_names: list[str], domain: str) -> dict[str, TextBank]:
        """Return the text banks of classes, from the cache or built; the image tower is loaded, too."""
        banks = self._cached_text_banks(class_names, domain)
        missing = [class_name for class_name in class_names if class_name not in banks]
        if not missing:
            self.image_tower.load()
            return banks
        self.load()
        tower = self._text_tower.get().to(self.image_tower.device)
        built = build_text_banks(tower, missing, domain, self.prompts)
        if self.cache:
            TextBankCache().store(self._weights(), self.source[0], tower, built)
        self._text_tower.release()
        return banks | dict(zip(missing, built, strict=True))

    def _cached_text_banks(self, class_names: list[str], domain: str) -> dict[str, TextBank]:
        # A tower in memory may be another than that of the source.
        if not self.cache or self._text_tower.is_loaded:
            return {}
        cache = TextBankCache()
        fingerprint = cache.recall(self._weights(), self.source[0])
        return cache.find(fingerprint, class_names, domain, self.prompts, self.image_tower.device)

    def _weights(self) -> Path:
        return find_weights(*check_source(*self.source))


def _text_tower_of(loaded: Backbone) -> TextTower:
    return TextTower(loaded.clip, cast("Tokenizer", loaded.tokenizer))


def _load_text_tower(backbone: str, pretrained: str | None) -> TextTower:
    return _text_tower_of(load_backbone(backbone, pretrained, image=False))
