"""The AnoVL model in plain torch: a batch of images in, scores and maps out.

Shapes: B images, T tiles per image (1 without tiles), N patches per tile, C joint embedding width.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from anomalib.data import InferenceBatch
from torch import Tensor

from anovl_plugin.config import is_loading_checkpoint, to_builtin
from anovl_plugin.referenced_clip import ReferencedCLIP, check_images
from anovl_plugin.scoring.adaptation import Adaptation
from anovl_plugin.scoring.defect_names import DefectMatch, defect_cosines
from anovl_plugin.scoring.image_score import (
    ImageScore,
    ImageScoreName,
    combine_margins,
    mean_over_views,
    parse_image_score,
)
from anovl_plugin.scoring.references import References
from anovl_plugin.scoring.scores import abnormality_margin, map_score, margin_map, to_probability
from anovl_plugin.text.prompts import Prompts, check_class_name
from anovl_plugin.text.text_bank import TextBank
from anovl_plugin.vision.backbone import DEFAULT_BACKBONE, DEFAULT_PRETRAINED
from anovl_plugin.vision.chunks import is_exporting


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


class AnoVLModel(ReferencedCLIP):
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
        super().__init__(
            backbone,
            prompts=prompts,
            pretrained=pretrained,
            image_size=image_size,
            tiles_per_side=tiles_per_side,
            adaptation=adaptation,
            references=references,
            cache=cache,
        )
        self.prompts.resolve_domain(class_name or "object", domain)
        # A checkpoint must not import anything.
        self.image_score = parse_image_score(to_builtin(image_score), allow_import=not is_loading_checkpoint())
        if class_name is not None:
            self.build_text_bank(class_name, domain)

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
