"""The AnoVL model in plain torch: a batch of images in, scores and maps out.

Shapes: B images, T tiles per image (1 without tiles), N patches per tile, C joint embedding width.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from anomalib.data import InferenceBatch
from torch import Tensor

from anovl_plugin.banked_clip import BankedCLIP
from anovl_plugin.config import is_loading_checkpoint, to_builtin, to_config
from anovl_plugin.scoring.adaptation import Adaptation, adapt_tokens, parse_adaptation
from anovl_plugin.scoring.defect_names import DefectMatch, defect_cosines
from anovl_plugin.scoring.image_score import (
    ImageScore,
    ImageScoreName,
    combine_margins,
    mean_over_views,
    parse_image_score,
)
from anovl_plugin.scoring.reference_bank import BankIdentity, ReferenceBank, check_count, parse_references
from anovl_plugin.scoring.reference_banks import ReferenceBanks
from anovl_plugin.scoring.references import References, same_number_of_patches
from anovl_plugin.scoring.scores import abnormality_margin, map_score, margin_map, to_probability
from anovl_plugin.text.prompts import Prompts, check_class_name
from anovl_plugin.text.text_bank import TextBank
from anovl_plugin.vision.backbone import (
    DEFAULT_BACKBONE,
    DEFAULT_PRETRAINED,
)
from anovl_plugin.vision.chunks import in_chunks, is_exporting
from anovl_plugin.vision.tiles import check_square, check_tiles_per_side, split_into_tiles
from anovl_plugin.vision.value_attention import VisionTokens


class _EncodedReference(NamedTuple):
    """A reference image: unit tokens to compare, each (P, D), and text margins (P,)."""

    tokens: list[Tensor]
    margins: Tensor


class NonFiniteImageError(ValueError):
    """Images of a batch give scores that are NaN or infinite.

    Attributes:
        indices: Positions of the images in the batch.
    """

    def __init__(self, indices: list[int]) -> None:
        super().__init__(
            f"images {indices} of the batch give scores that are not finite: their pixels are NaN, infinite or far "
            "out of range, or the precision is too low; check the files, or use another precision"
        )
        self.indices = indices


class ScoredImages(NamedTuple):
    """Scores and maps of images, and how their patches match the words for defects.

    Attributes:
        scores: Image scores (B,) and anomaly maps (B, 1, H, W), as :meth:`AnoVLModel.forward` returns them.
        matches: The match of each image; ``None`` if the prompts of its class have no words for defects, or words that
            the CLIP does not tell apart.
    """

    scores: InferenceBatch
    matches: list[DefectMatch | None]


class _OfClass(NamedTuple):
    """Patch tokens (B, T, N, C) of the images of one class; rows (B,) tell which, ``None`` all of the batch."""

    bank: TextBank
    rows: Tensor | None
    patch_tokens: Tensor


class AnoVLModel(BankedCLIP):
    """Zero-shot anomaly localization by value-wise attention and state prompts (arXiv 2308.15939).

    The constructor checks its arguments. The CLIP is loaded once, when it is first needed. The text tower is released
    as soon as the text bank is built; for another class, it alone is loaded again.

    Args:
        backbone: The CLIP: an open_clip architecture, ``hf-hub:OWNER/NAME``, ``local-dir:FOLDER`` or ``anovl-demo``.
            Default: ``ViT-B-16-plus-240``.
        class_name: What the images show; builds the text bank at once. Default: none, see :meth:`build_text_bank`.
        domain: Wording of the prompts: ``object``, ``texture``, or ``auto``, by class name. Default: ``auto``.
        prompts: What the prompts are made of: a YAML file, a mapping with the keys of such a file, or
            :class:`Prompts`. Default: the paper's.
        pretrained: Weights of the CLIP: an open_clip tag, or a .safetensors or .pt file. Default: ``laion400m_e32``.
        image_size: Height and width (or one number for both) in pixels. Default: the architecture's own.
        image_score: How an image is scored: ``global``, ``map``, ``both``, or an :class:`ImageScore`. Default:
            ``global``.
        tiles_per_side: Tiles of :attr:`image_size` along the short side of an image, 1 to 64. Default: none, images are
            not tiled.
        adaptation: Adaptation of an image's patch tokens before they are scored. Default: none.
        references: How images are compared with reference images, see :meth:`build_reference_bank`. Default: none,
            zero-shot.
        cache: Whether to keep text banks on disk, where the next start finds them; see
            :class:`~anovl_plugin.text.cache.TextBankCache`. Default: yes.

    Attributes:
        image_tower: The CLIP's image tower.
        text_banks: The embeddings of the prompts of each class, in the order of the classes' indices.
        reference_banks: What is kept of the reference images of each class; ``None`` without ``references``.

    Raises:
        BackboneError: If the CLIP is unknown, of an unsupported kind, or cannot be loaded.
        TypeError: If an argument has the wrong type.
        ValueError: If an argument is invalid.

    Example:
        >>> model = AnoVLModel("anovl-demo", class_name="brick", domain="texture")
        >>> result = model(torch.rand(2, 3, 96, 96))
        >>> result.pred_score.shape, result.anomaly_map.shape
        (torch.Size([2]), torch.Size([2, 1, 96, 96]))
    """

    def __init__(
        self,
        backbone: str = DEFAULT_BACKBONE,
        *,
        class_name: str | None = None,
        domain: str = "auto",
        prompts: Prompts | str | Path | Mapping[str, Any] | None = None,
        pretrained: str | None = DEFAULT_PRETRAINED,
        image_size: int | tuple[int, int] | None = None,
        image_score: ImageScore | ImageScoreName = "global",
        tiles_per_side: int | None = None,
        adaptation: Adaptation | None = None,
        references: References | None = None,
        cache: bool = True,
    ) -> None:
        if class_name is not None:
            check_class_name(class_name)
        super().__init__(backbone, prompts=prompts, pretrained=pretrained, image_size=image_size, cache=cache)
        self.prompts.resolve_domain(class_name or "object", domain)
        # A checkpoint must not import anything.
        trusted = not is_loading_checkpoint()
        self.image_score = parse_image_score(to_builtin(image_score), allow_import=trusted)
        self.tiles_per_side = check_tiles_per_side(tiles_per_side)
        self.adaptation = parse_adaptation(to_builtin(adaptation), allow_import=trusted)
        self.references = parse_references(to_builtin(references), allow_import=trusted)
        self.reference_banks = None if self.references is None else ReferenceBanks()
        if self.image_tower.has_spec:
            self._check_tiles()
            self._depths()
        if class_name is not None:
            self.build_text_bank(class_name, domain)

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
        check_count(self.references, len(images))
        for image in images:
            check_images(image[None])
        identity = self.reference_identity(text_bank, len(images), source)
        present = self.reference_banks.find(identity.class_name)
        if source is not None and present is not None and present.is_for(identity, self.references):
            return False
        with torch.inference_mode(False), torch.no_grad():
            encoded = [self._encode_reference(image[None], text_bank, identity.depths) for image in images]
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

    def forward(self, images: Tensor, class_index: Tensor | int | None = None) -> InferenceBatch:
        """Score images.

        Args:
            images: Resized to :attr:`image_size` and normalized with :attr:`mean` and :attr:`std`, shape (B, 3, H, W).
                With tiles, of any size at least as large.
            class_index: Which of the :attr:`text_banks` each image is compared with, int64, shape (B,), or a number for
                all. Default: none, if there is one class.

        Returns:
            ``pred_score`` (B,) and ``anomaly_map`` (B, 1, H, W), float32 probabilities in (0, 1); 0.5 is where
            "normal" and "abnormal" are equally likely. With tiles, the map is averaged where they overlap, and the
            class token's score is the mean over tiles. Images of several classes get what a batch of their own class
            alone would give.

        Raises:
            RuntimeError: If no text bank or, with references, no reference bank has been built.
            TypeError: If the images are not a floating-point tensor, or the indices not an integer one.
            ValueError: If the images or indices have the wrong shape, an index is missing or out of range, scores are
                not finite, or a reference bank belongs to another CLIP or setting.
        """
        return self._predict(images, class_index)[0]

    def predict(self, images: Tensor, class_index: Tensor | int | None = None) -> ScoredImages:
        """Score images as :meth:`forward` does, and compare their patches with the words for defects of their class.

        Patch tokens are compared as they are without adaptation, which is made for two states.

        Args:
            images: As for :meth:`forward`.
            class_index: As for :meth:`forward`.

        Raises:
            RuntimeError: As :meth:`forward`.
            TypeError: As :meth:`forward`.
            ValueError: As :meth:`forward`.
        """
        scores, classes = self._predict(images, class_index)
        matches: list[DefectMatch | None] = [None] * len(images)
        for bank, rows, patch_tokens in classes:
            of_class = self._match_defects(bank, patch_tokens, (images.shape[-2], images.shape[-1]))
            for row, match in zip(range(len(images)) if rows is None else rows.tolist(), of_class, strict=True):
                matches[row] = match
        return ScoredImages(scores, matches)

    def _predict(self, images: Tensor, class_index: Tensor | int | None) -> tuple[InferenceBatch, list[_OfClass]]:
        check_images(images)
        self._check_ready()
        self._check_reference_banks()
        with torch.no_grad():
            score, anomaly_map, classes = self._margins(images, class_index)
        temperature = cast("float", self.image_tower.temperature)
        scores = InferenceBatch(
            pred_score=to_probability(score, temperature), anomaly_map=to_probability(anomaly_map, temperature)
        )
        return scores, classes

    def _match_defects(
        self, bank: TextBank, patch_tokens: Tensor, size: tuple[int, int]
    ) -> Sequence[DefectMatch | None]:
        # Among words that the CLIP cannot tell apart, a share would be a guess.
        if not bank.defect_words or bank.indistinct_words():
            return [None] * len(patch_tokens)
        grid_size, tile = self.image_tower.visual.grid_size, self.image_size[0] if self.tiles_per_side else None
        temperature = cast("float", self.image_tower.temperature)
        with torch.no_grad():
            cosines = defect_cosines(patch_tokens, bank.defect_embeddings).cpu()
        return [DefectMatch(bank.defect_words, each, size, grid_size, tile, temperature) for each in cosines]

    def _margins(self, images: Tensor, class_index: Tensor | int | None) -> tuple[Tensor, Tensor, list[_OfClass]]:
        """Return the margins of images (B,), their maps of margins (B, 1, H, W), and their tokens by class."""
        bank = self.text_bank
        if isinstance(class_index, int):
            bank = self.text_banks.at(class_index)
            score, anomaly_map, tokens = self._margins_of_class(images, bank, bank.state_embeddings)
            return score, anomaly_map, [_OfClass(bank, None, tokens)]
        if len(self.text_banks) > 1 and class_index is not None and is_exporting():
            # The graph takes any indices, so it cannot divide the batch by them.
            states = self.text_banks.state_embeddings[class_index]
            score, anomaly_map, _ = self._margins_of_class(images, bank, states, class_index)
            return score, anomaly_map, []
        self.text_banks.check_index(class_index, images)
        if class_index is None or len(self.text_banks) == 1 or not len(images):
            score, anomaly_map, tokens = self._margins_of_class(images, bank, bank.state_embeddings)
            return score, anomaly_map, [_OfClass(bank, None, tokens)]
        classes, order, scores, maps = [], [], [], []
        for index in class_index.unique().tolist():
            bank, rows = self.text_banks[index], (class_index == index).nonzero().flatten()
            try:
                score, anomaly_map, tokens = self._margins_of_class(images[rows], bank, bank.state_embeddings)
            except NonFiniteImageError as error:
                raise NonFiniteImageError(rows[error.indices].tolist()) from None
            classes.append(_OfClass(bank, rows, tokens))
            order.append(rows)
            scores.append(score)
            maps.append(anomaly_map)
        place = torch.cat(order).argsort()
        return torch.cat(scores)[place], torch.cat(maps)[place], classes

    def _margins_of_class(
        self, images: Tensor, bank: TextBank, states: Tensor, class_index: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the margins of images and maps, by states (2, C) or each image's, (B, 2, C), and the patch tokens."""
        tiles, join = self._split(images)
        tokens = self.encode(tiles, () if self.reference_banks is None else self.reference_banks.depths)
        margins = self.score(self.adapt(tokens.patch_tokens, bank), states)
        margins = self.refer(margins, tokens, bank, class_index)
        return *self.aggregate(margins, tokens.class_token, tiles, join, states), tokens.patch_tokens

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

    def aggregate(
        self,
        margins: Tensor,
        class_token: Tensor,
        tiles: Tensor,
        join: Callable[[Tensor], Tensor],
        state_embeddings: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Return the margins of images (B,) and their maps of margins (B, 1, H, W).

        Args:
            margins: Margins of the patches, shape (B, T, N).
            class_token: Class tokens of the tiles, shape (B, T, C).
            tiles: The tiles themselves, for further views of them, shape (B, T, 3, t, t).
            join: Function that joins maps of tiles (B, T, 1, t, t) to maps of images.
            state_embeddings: Unit vectors of "normal" and "abnormal", (2, C), or each image's own, (B, 2, C).
        """
        number = margins.shape[1]
        tile_maps = margin_map(margins.flatten(0, 1), self.image_tower.visual.grid_size, self.image_size)
        anomaly_map = join(tile_maps.unflatten(0, (-1, number)))
        views = self.image_score.image_views
        class_margins = None
        if views:
            if state_embeddings.ndim == 3:
                state_embeddings = state_embeddings.repeat_interleave(number, dim=0)
            own = abnormality_margin(class_token.flatten(0, 1), state_embeddings)
            over_views = mean_over_views(
                partial(self._class_margin, state_embeddings=state_embeddings), tiles.flatten(0, 1), views, own
            )
            class_margins = over_views.unflatten(0, (-1, number)).mean(1)
        score = combine_margins(self.image_score, class_margins, anomaly_map)
        if self.references is not None:
            score = torch.lerp(score, map_score(anomaly_map, self.references.top_fraction), self.references.weight)
        # Checked before joining, because there are fewer margins than pixels. Graphs cannot hold checks.
        if not torch.compiler.is_compiling():
            finite = margins.flatten(1).isfinite().all(1) & score.isfinite()
            if not finite.all():
                raise NonFiniteImageError((~finite).nonzero().flatten().tolist())
        return score, anomaly_map

    def _class_margin(self, images: Tensor, state_embeddings: Tensor) -> Tensor:
        return abnormality_margin(self.image_tower.class_token(images), state_embeddings)

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
