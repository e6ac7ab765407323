"""The AnoVL model in plain torch: a batch of images in, scores and maps out.

Shapes: B images, T tiles per image (1 without tiles), N patches per tile, C joint embedding width.
"""

from functools import partial
from typing import Any

import torch
from anomalib.data import InferenceBatch
from torch import Tensor, nn

from anovl_plugin.config import is_loading_checkpoint, to_builtin
from anovl_plugin.scoring.adaptation import Adaptation, adapt_tokens, parse_adaptation
from anovl_plugin.scoring.image_score import (
    ImageScore,
    ImageScoreName,
    combine_margins,
    mean_over_views,
    parse_image_score,
)
from anovl_plugin.scoring.scores import abnormality_margin, margin_map, to_probability
from anovl_plugin.text.prompts import Domain, check_class_name, resolve_domain
from anovl_plugin.text.text_bank import TextBank
from anovl_plugin.text.text_tower import LazyTextTower, TextTower
from anovl_plugin.vision.backbone import (
    DEFAULT_BACKBONE,
    DEFAULT_PRETRAINED,
    Backbone,
    BackboneSpec,
    build_visual,
    check_image_size,
    check_size,
    check_source,
    load_backbone,
    read_spec,
)
from anovl_plugin.vision.chunks import in_chunks
from anovl_plugin.vision.tiles import check_square, check_tiles_per_side, split_into_tiles
from anovl_plugin.vision.value_attention import VisionTokens, class_token_forward, value_wise_forward


class NonFiniteImageError(ValueError):
    """Images of a batch give scores that are NaN or infinite.

    Attributes:
        indices: Which images of the batch.
    """

    def __init__(self, indices: list[int]) -> None:
        super().__init__(
            f"images {indices} of the batch give scores that are not finite: their pixels are NaN, infinite or far "
            "out of range, or the precision is too low; check the files, or use another precision"
        )
        self.indices = indices


class AnoVLModel(nn.Module):
    """Zero-shot anomaly localization by value-wise attention and state prompts (arXiv 2308.15939).

    The constructor checks its arguments. The CLIP is loaded when it is first needed, once; the text tower is released
    as soon as the text bank is built, and loaded again, by itself, when another class is set up.

    Args:
        backbone: The CLIP: an open_clip architecture, ``hf-hub:OWNER/NAME``, ``local-dir:FOLDER`` or ``anovl-demo``.
            Default: ``ViT-B-16-plus-240``.
        class_name: What the images show; builds the text bank at once. Default: none, see :meth:`build_text_bank`.
        domain: Wording of the prompts: ``object``, ``texture``, or ``auto``, by class name. Default: ``auto``.
        pretrained: Weights of the CLIP: an open_clip tag, or a .safetensors or .pt file. Default: ``laion400m_e32``.
        image_size: Height and width (or one number for both) in pixels. Default: the architecture's own.
        image_score: What scores an image: ``global``, ``map``, ``both``, or an :class:`ImageScore`. Default:
            ``global``.
        tiles_per_side: Tiles of :attr:`image_size` along the short side of an image, 1 to 64. Default: none, images are
            not cut.
        adaptation: What adapts an image's patch tokens before they are scored. Default: nothing.

    Attributes:
        visual: The image tower, frozen; ``None`` until loaded.
        text_bank: The embeddings of the prompts, and the class they belong to.

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

    visual: Any

    def __init__(
        self,
        backbone: str = DEFAULT_BACKBONE,
        *,
        class_name: str | None = None,
        domain: Domain = "auto",
        pretrained: str | None = DEFAULT_PRETRAINED,
        image_size: int | tuple[int, int] | None = None,
        image_score: ImageScore | ImageScoreName = "global",
        tiles_per_side: int | None = None,
        adaptation: Adaptation | None = None,
    ) -> None:
        super().__init__()
        if class_name is not None:
            check_class_name(class_name)
        resolve_domain(class_name or "object", domain)
        # What a checkpoint names need not be there: it may hold everything itself, and it must not import anything.
        trusted = not is_loading_checkpoint()
        self.source = check_source(backbone, pretrained) if trusted else (backbone, pretrained)
        self.requested_image_size = check_image_size(to_builtin(image_size))
        self.image_score = parse_image_score(to_builtin(image_score), allow_import=trusted)
        self.tiles_per_side = check_tiles_per_side(tiles_per_side)
        self.adaptation = parse_adaptation(to_builtin(adaptation), allow_import=trusted)
        self._spec: BackboneSpec | None = None
        # The hub is not contacted before the CLIP is needed.
        if trusted and not self.source[0].startswith("hf-hub:"):
            self._use_spec(read_spec(*self.source))
        self.temperature: float | None = None
        self.fingerprint: str | None = None
        self.register_module("visual", None)
        self.text_bank = TextBank()
        self._text_tower = LazyTextTower(partial(_load_text_tower, *self.source))
        # Follows every move and cast, so that a CLIP that is loaded afterwards can follow, too.
        self.register_buffer("_placement", torch.empty(0), persistent=False)
        self.register_load_state_dict_post_hook(_allow_missing_tower)
        if class_name is not None:
            self.build_text_bank(class_name, domain)

    @property
    def spec(self) -> BackboneSpec:
        """Architecture, size and normalization of the CLIP; asks the hub for them where it has to."""
        if self._spec is None:
            self._use_spec(read_spec(*self.source))
        return self._spec

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width in pixels of the images (with tiles: of a tile) that the model takes."""
        return self.requested_image_size or self.spec.image_size

    @property
    def mean(self) -> tuple[float, ...]:
        """Mean of each color channel to normalize images with, for values in [0, 1]."""
        return self.spec.mean

    @property
    def std(self) -> tuple[float, ...]:
        """Standard deviation of each color channel to normalize images with, for values in [0, 1]."""
        return self.spec.std

    @property
    def is_loaded(self) -> bool:
        """Whether the image tower is in memory."""
        return self.visual is not None

    def load(self, *, text: bool = True) -> None:
        """Load the CLIP, unless it is loaded already.

        Args:
            text: Whether to load the text tower with it, for the text bank. Default: yes.

        Raises:
            BackboneError: If it cannot be loaded.
        """
        if self.is_loaded:
            return
        loaded = load_backbone(*self.source, self.requested_image_size, text=text)
        self._use_spec(loaded.spec)
        self.temperature, self.fingerprint = loaded.temperature, loaded.fingerprint
        self._place(loaded.visual)
        if text:
            self._text_tower.put(_text_tower_of(loaded))

    def restore(self, state: dict[str, Any], *, has_tower: bool) -> None:
        """Make the model ready for the weights of a checkpoint.

        Args:
            state: What :meth:`get_extra_state` returned when the checkpoint was made.
            has_tower: Whether the checkpoint holds the image tower. If not, it is loaded from its source.

        Raises:
            BackboneError: If the CLIP cannot be loaded.
            ValueError: If the source holds another CLIP than the checkpoint was made with.
        """
        if has_tower:
            spec = _to_spec(state["spec"])
            self._use_spec(spec)
            if not self.is_loaded or self.fingerprint != state["fingerprint"]:
                self._place(build_visual(spec.config, self.image_size))
            return
        self.load(text=False)
        if self.fingerprint != state["fingerprint"]:
            backbone, pretrained = state["source"]
            msg = (
                f"the checkpoint was made with another CLIP (fingerprint {state['fingerprint']}, backbone "
                f"{backbone!r}, pretrained {pretrained!r}) than this model's (fingerprint {self.fingerprint}, backbone "
                f"{self.source[0]!r}, pretrained {self.source[1]!r}); use the CLIP of the checkpoint"
            )
            raise ValueError(msg)

    def build_text_bank(self, class_name: str, domain: Domain = "auto") -> bool:
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
        check_class_name(class_name)
        if self.text_bank.is_for(class_name, domain):
            self.load(text=False)
            return False
        self.load()
        tower = self._text_tower.get().to(self._placement.device)
        self.text_bank.build(tower, class_name, domain)
        self._text_tower.release()
        return True

    def forward(self, images: Tensor) -> InferenceBatch:
        """Score images.

        Args:
            images: Resized to :attr:`image_size` and normalized with :attr:`mean` and :attr:`std`, shape (B, 3, H, W).
                With tiles, of any size that is not smaller.

        Returns:
            ``pred_score`` (B,) and ``anomaly_map`` (B, 1, H, W), float32 probabilities in (0, 1); 0.5 is where
            "normal" and "abnormal" are equally likely. With tiles, the map is averaged where they overlap, and the
            class token's score is the mean over tiles.

        Raises:
            RuntimeError: If no text bank has been built.
            TypeError: If the images are not a floating-point tensor.
            ValueError: If the images have the wrong shape, or their scores are not finite.
        """
        check_images(images)
        if not (self.text_bank.is_built and self.is_loaded):
            msg = "the model has no text bank yet; set class_name or call build_text_bank(class_name) first"
            raise RuntimeError(msg)
        with torch.no_grad():
            # A trainer of another precision casts the tower, but not always the images.
            tiles, join = self._split(images)
            tiles = tiles.to(next(self.visual.parameters()).dtype)
            tokens = self.encode(tiles)
            margins = self.score(self.adapt(tokens.patch_tokens))
            score, anomaly_map = self.aggregate(margins, tokens.class_token, tiles, join)
        return InferenceBatch(
            pred_score=to_probability(score, self.temperature),
            anomaly_map=to_probability(anomaly_map, self.temperature),
        )

    def encode(self, tiles: Tensor) -> VisionTokens:
        """Return the tokens of tiles (B, T, 3, t, t): class tokens (B, T, C) and patch tokens (B, T, N, C)."""
        number = tiles.shape[1]
        if self.tiles_per_side is None:
            tokens = value_wise_forward(self.visual, tiles.flatten(0, 1))
        else:
            tokens = in_chunks(partial(value_wise_forward, self.visual), tiles.flatten(0, 1))
        return VisionTokens(*(part.unflatten(0, (-1, number)) for part in tokens))

    def adapt(self, patch_tokens: Tensor) -> Tensor:
        """Return adapted patch tokens (B, T, N, C); all tiles of an image are adapted together."""
        if self.adaptation is None:
            return patch_tokens
        together = patch_tokens.flatten(1, 2)
        return adapt_tokens(self.adaptation, together, self.text_bank).view_as(patch_tokens)

    def score(self, patch_tokens: Tensor) -> Tensor:
        """Return the margins (B, T, N) of patch tokens (B, T, N, C)."""
        return abnormality_margin(patch_tokens, self.text_bank.state_embeddings)

    def aggregate(self, margins: Tensor, class_token: Tensor, tiles: Tensor, join: Any) -> tuple[Tensor, Tensor]:
        """Return the margins of images (B,) and their maps of margins (B, 1, H, W).

        Args:
            margins: Margins of the patches, shape (B, T, N).
            class_token: Class tokens of the tiles, shape (B, T, C).
            tiles: The tiles themselves, for further views of them, shape (B, T, 3, t, t).
            join: Function that joins maps of tiles (B, T, 1, t, t) to maps of images.
        """
        number = margins.shape[1]
        tile_maps = margin_map(margins.flatten(0, 1), self.visual.grid_size, self.image_size)
        anomaly_map = join(tile_maps.unflatten(0, (-1, number)))
        views = self.image_score.image_views
        class_margins = None
        if views:
            own = abnormality_margin(class_token.flatten(0, 1), self.text_bank.state_embeddings)
            over_views = mean_over_views(self._class_margin, tiles.flatten(0, 1), views, own)
            class_margins = over_views.unflatten(0, (-1, number)).mean(1)
        score = combine_margins(self.image_score, class_margins, anomaly_map)
        # Before joining, as anomalib's tiler turns NaN into 0. Graphs hold no checks.
        if not torch.compiler.is_compiling():
            finite = margins.flatten(1).isfinite().all(1) & score.isfinite()
            if not finite.all():
                raise NonFiniteImageError((~finite).nonzero().flatten().tolist())
        return score, anomaly_map

    def get_extra_state(self) -> dict[str, Any]:
        """Return what a checkpoint says of the CLIP beside its weights."""
        return {
            "source": self.source,
            "spec": None if self._spec is None else self._spec._asdict(),
            "temperature": self.temperature,
            "fingerprint": self.fingerprint,
        }

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Restore what a checkpoint says of the CLIP."""
        if state["spec"] is not None:
            self._spec = _to_spec(state["spec"])
        self.temperature, self.fingerprint = state["temperature"], state["fingerprint"]

    def _class_margin(self, images: Tensor) -> Tensor:
        return abnormality_margin(class_token_forward(self.visual, images), self.text_bank.state_embeddings)

    def _split(self, images: Tensor) -> tuple[Tensor, Any]:
        if self.tiles_per_side is not None:
            return split_into_tiles(images, self.image_size[0])
        size = tuple(images.shape[-2:])
        if size != self.image_size:
            msg = f"images are {size} pixels, but the model takes {self.image_size}; resize them"
            raise ValueError(msg)
        return images.unsqueeze(1), partial(torch.squeeze, dim=1)

    def _use_spec(self, spec: BackboneSpec) -> None:
        if self.requested_image_size is not None:
            check_size(self.requested_image_size, spec.patch_size, self.source[0])
        if self.tiles_per_side is not None:
            check_square(self.requested_image_size or spec.image_size)
        self._spec = spec

    def _place(self, visual: nn.Module) -> None:
        self.visual = visual.to(self._placement.device, self._placement.dtype)


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


def _allow_missing_tower(model: nn.Module, incompatible_keys: Any) -> None:
    """Accept a state dict without an image tower where the model has loaded its own."""
    if model.visual is not None:
        tower = {f"visual.{name}" for name in model.visual.state_dict()}
        missing = incompatible_keys.missing_keys
        missing[:] = [key for key in missing if key.removeprefix("model.") not in tower]


def _text_tower_of(loaded: Backbone) -> TextTower:
    return TextTower(loaded.clip, loaded.tokenizer)


def _load_text_tower(backbone: str, pretrained: str | None) -> TextTower:
    return _text_tower_of(load_backbone(backbone, pretrained, image=False))


def _to_spec(state: dict[str, Any]) -> BackboneSpec:
    return BackboneSpec(state["config"], tuple(state["image_size"]), tuple(state["mean"]), tuple(state["std"]))
