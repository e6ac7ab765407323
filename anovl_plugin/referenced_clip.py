"""A CLIP with text banks and reference banks, which says how abnormal the patches of images are.

Shapes: B images, T tiles per image (1 without tiles), N patches per tile, C joint embedding width.
"""

import json
import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from anovl_plugin.banked_clip import BankedCLIP
from anovl_plugin.config import is_loading_checkpoint, to_builtin, to_config
from anovl_plugin.scoring.adaptation import Adaptation, adapt_tokens, parse_adaptation
from anovl_plugin.scoring.reference_bank import BankIdentity, ReferenceBank, check_count, parse_references
from anovl_plugin.scoring.reference_banks import ReferenceBanks
from anovl_plugin.scoring.references import References, same_number_of_patches, without_copies
from anovl_plugin.scoring.scores import abnormality_margin
from anovl_plugin.text.prompts import Prompts
from anovl_plugin.text.text_bank import TextBank
from anovl_plugin.vision.backbone import DEFAULT_BACKBONE, DEFAULT_PRETRAINED
from anovl_plugin.vision.chunks import in_chunks
from anovl_plugin.vision.tiles import check_square, check_tiles_per_side, split_into_tiles
from anovl_plugin.vision.value_attention import VisionTokens


class _EncodedReference(NamedTuple):
    """A reference image: unit tokens to compare, each (P, D), and text margins (P,)."""

    tokens: list[Tensor]
    margins: Tensor


class ReferencedCLIP(BankedCLIP):
    """A CLIP that compares the patches of images with text banks and, if there are any, with reference images.

    Args:
        backbone: The CLIP, as for :class:`BankedCLIP`. Default: ``ViT-B-16-plus-240``.
        prompts: What the prompts are made of, as for :class:`BankedCLIP`. Default: the paper's.
        pretrained: Weights of the CLIP, as for :class:`BankedCLIP`. Default: ``laion400m_e32``.
        image_size: Height and width (or one number for both) in pixels. Default: the architecture's own.
        tiles_per_side: Tiles of :attr:`image_size` along the short side of an image, 1 to 64. Default: none, images are
            not tiled.
        adaptation: Adaptation of an image's patch tokens before they are scored. Default: none.
        references: How images are compared with reference images. Default: none, zero-shot.
        cache: Whether to keep text banks on disk. Default: yes.

    Attributes:
        reference_banks: What is kept of the reference images of each class; ``None`` without ``references``.

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
        tiles_per_side: int | None = None,
        adaptation: Adaptation | None = None,
        references: References | None = None,
        cache: bool = True,
    ) -> None:
        super().__init__(backbone, prompts=prompts, pretrained=pretrained, image_size=image_size, cache=cache)
        # A checkpoint must not import anything.
        trusted = not is_loading_checkpoint()
        self.tiles_per_side = check_tiles_per_side(tiles_per_side)
        self.adaptation = parse_adaptation(to_builtin(adaptation), allow_import=trusted)
        self.references = parse_references(to_builtin(references), allow_import=trusted)
        self.reference_banks = None if self.references is None else ReferenceBanks()
        if self.image_tower.has_spec:
            self._check_tiles()
            self._depths()

    def load(self) -> None:
        """Load the CLIP, including its text tower, unless it is loaded already.

        Raises:
            BackboneError: If it cannot be loaded.
            ValueError: If the image size does not suit the patches, or the tiles are not square.
        """
        super().load()
        self._check_tiles()

    def prepare_for_checkpoint(self, state: dict[str, Any], *, has_weights: bool) -> None:
        """Make the model ready for a checkpoint's state dict, as :class:`BankedCLIP` does.

        Raises:
            BackboneError: If the CLIP cannot be loaded.
            ValueError: If the source holds a CLIP other than the one the checkpoint was made with, or the tiles are not
                square.
        """
        super().prepare_for_checkpoint(state, has_weights=has_weights)
        self._check_tiles()

    def build_reference_bank(
        self, images: Sequence[Tensor], class_name: str | None = None, source: str | None = None
    ) -> bool:
        """Build the reference bank of a class, unless the model has the very same one.

        Copies of an image count once, and a warning says so: the scale of distances is that between different images.
        Another warns of too few images for the settings.

        Args:
            images: Reference images, resized and normalized as for :meth:`forward`, each of shape (3, H, W).
            class_name: What they show. Default: the class of the only text bank, or of the first one.
            source: Identifies the images, so that an equal bank is kept. Default: none, a new bank is built.

        Returns:
            Whether a bank was built.

        Raises:
            RuntimeError: If there is no text bank of the class, or the model has no ``references``.
            TypeError: If the images are not floating-point tensors.
            ValueError: If images have the wrong shape, there are too few, or their tokens are not finite.
        """
        if self.references is None or self.reference_banks is None:
            msg = "the model has no references to compare with; set references, e.g. to PatchMemory()"
            raise RuntimeError(msg)
        self._check_ready()
        at = 0 if class_name is None else int(self.text_banks.index([class_name]))
        text_bank = list(self.text_banks)[at]
        for image in images:
            check_images(image[None])
        identity = self.reference_identity(text_bank, len(images), source)
        present = self.reference_banks.find(identity.class_name)
        if source is not None and present is not None and present.is_for(identity, self.references):
            return False
        distinct = without_copies(images)
        check_count(self.references, len(distinct))
        caution = self.references.caution(len(distinct))
        if caution is not None:
            warnings.warn(caution, UserWarning, stacklevel=2)
        with torch.inference_mode(False), torch.no_grad():
            encoded = [self._encode_reference(image[None], text_bank, identity.depths) for image in distinct]
        tokens = [same_number_of_patches(each) for each in zip(*(each.tokens for each in encoded), strict=True)]
        bank = ReferenceBank().to(self.image_tower.device)
        bank.build(self.references, tokens, torch.cat([each.margins for each in encoded]), identity)
        self.reference_banks.put(bank)
        return True

    def reference_identity(self, text_bank: TextBank, count: int = 0, source: str | None = None) -> BankIdentity:
        """Return what a reference bank of a class would be built from.

        Args:
            text_bank: The text bank of the class.
            count: Number of reference images. Default: 0, where they do not matter.
            source: Identifies the images. Default: none.
        """
        return BankIdentity(
            class_name=text_bank.class_name,
            fingerprint=self.image_tower.fingerprint,
            prompts=text_bank.prompts_hash,
            preparation=json.dumps([self.image_size, self.tiles_per_side, to_config(self.adaptation)], sort_keys=True),
            images=source,
            num_images=count,
            depths=self._depths(),
        )

    def _encode_reference(self, image: Tensor, text_bank: TextBank, depths: Sequence[int]) -> _EncodedReference:
        """Return the tokens to compare and the text margins of an image (1, 3, H, W) and its views."""
        references = cast("References", self.references)
        image = image.to(self.image_tower.device, torch.float32)
        parts, margins = [], []
        for view in references.image_views:
            tokens = self.encode(self._split(view(image))[0], depths)
            parts.append([each.flatten(0, 2) for each in references.select(tokens)])
            margins.append(self.score(self.adapt(tokens.patch_tokens, text_bank), text_bank.state_embeddings).flatten())
        return _EncodedReference([torch.cat(each) for each in zip(*parts, strict=True)], torch.cat(margins))

    def encode(self, tiles: Tensor, depths: Sequence[int] = ()) -> VisionTokens:
        """Return the tokens of tiles (B, T, 3, t, t): class tokens (B, T, C) and patch tokens (B, T, N, C).

        Args:
            tiles: The tiles.
            depths: Blocks of the original path to return the patch tokens of as well, (B, T, S, N, D). Default: none.
        """
        images, tower = tiles.flatten(0, 1), partial(self.image_tower, depths=tuple(depths))
        tokens = tower(images) if self.tiles_per_side is None else in_chunks(tower, images)
        present = {name: part for name, part in tokens._asdict().items() if part is not None}
        return tokens._replace(**{name: part.unflatten(0, (-1, tiles.shape[1])) for name, part in present.items()})

    def adapt(self, patch_tokens: Tensor, text_bank: TextBank) -> Tensor:
        """Return adapted patch tokens (B, T, N, C); all tiles of an image are adapted together."""
        if self.adaptation is None:
            return patch_tokens
        together = patch_tokens.flatten(1, 2)
        return adapt_tokens(self.adaptation, together, text_bank).view_as(patch_tokens)

    def score(self, patch_tokens: Tensor, state_embeddings: Tensor) -> Tensor:
        """Return the margins (B, T, N) of patch tokens (B, T, N, C), by states (2, C) or each image's, (B, 2, C)."""
        return abnormality_margin(patch_tokens, state_embeddings)

    def refer(
        self, margins: Tensor, tokens: VisionTokens, text_bank: TextBank, class_index: Tensor | None = None
    ) -> Tensor:
        """Return the margins (B, T, N), averaged with those by the reference images, if there are any.

        Args:
            margins: Margins of the patches by the text.
            tokens: Tokens of the tiles.
            text_bank: The text bank of the images' class.
            class_index: Index of each image's class, shape (B,), if they differ.
        """
        if self.references is None or self.reference_banks is None:
            return margins
        chosen = [each.flatten(1, 2) for each in self.references.select(tokens)]
        names = (text_bank.class_name,) if class_index is None else self.text_banks.class_names
        by_references = self.reference_banks.margins(self.references, chosen, names, class_index)
        return torch.lerp(margins, by_references.view_as(margins), self.references.weight)

    def _split(self, images: Tensor) -> tuple[Tensor, Any]:
        if self.tiles_per_side is not None:
            return split_into_tiles(images, self.image_size[0])
        size = tuple(images.shape[-2:])
        if size != self.image_size:
            msg = f"images are {size} pixels, but the model takes {self.image_size}; resize them"
            raise ValueError(msg)
        return images.unsqueeze(1), partial(torch.squeeze, dim=1)

    def _depths(self) -> tuple[int, ...]:
        """Return the blocks whose tokens are compared with those of reference images."""
        if self.references is None:
            return ()
        return self.references.depths_of(self.image_tower.num_blocks, self.source[0])

    def _check_ready(self) -> None:
        if not (self.text_banks.is_built and self.is_loaded):
            msg = "the model has no text bank yet; set class_name or call build_text_bank(class_name) first"
            raise RuntimeError(msg)

    def _check_reference_banks(self) -> None:
        # Graphs cannot hold checks.
        if self.references is None or self.reference_banks is None or torch.compiler.is_compiling():
            return
        for text_bank in self.text_banks:
            self.reference_banks.check(self.reference_identity(text_bank), self.references)

    def _check_tiles(self) -> None:
        if self.tiles_per_side is not None:
            check_square(self.image_size)


def check_images(images: Tensor) -> None:
    """Raise an error if a batch of images has the wrong type or shape; values are not read.

    Raises:
        TypeError: If the images are not a floating-point tensor.
        ValueError: If the shape is not (B, 3, H, W).
    """
    if not isinstance(images, Tensor) or not images.is_floating_point():
        kind = images.dtype if isinstance(images, Tensor) else type(images).__name__
        msg = f"images are {kind}, but must be a floating-point tensor; convert them, e.g. images.float() / 255"
        raise TypeError(msg)
    if images.ndim != 4 or images.shape[1] != 3 or 0 in images.shape[2:]:
        msg = f"images have the shape {tuple(images.shape)}, but must have (batch, 3, height, width)"
        raise ValueError(msg)
