"""The AnoVL model in plain torch: a batch of images in, scores and maps out."""

from typing import Literal, get_args

import torch
from anomalib.data import InferenceBatch
from anomalib.data.utils.tiler import Tiler
from torch import Tensor, nn

from anovl_plugin.scoring.adaptation import Adaptation, adapt_tokens, read_adaptation
from anovl_plugin.scoring.scores import abnormality_margin, check_fraction, map_score, margin_map, spread
from anovl_plugin.text.prompts import Domain, prompt_ensemble, resolve_domain
from anovl_plugin.text.text_bank import TextBank, TextTower
from anovl_plugin.vision.backbone import DEFAULT_BACKBONE, DEFAULT_PRETRAINED, load_backbone
from anovl_plugin.vision.tiles import BATCH_SIZE, check_tiling, make_tiler
from anovl_plugin.vision.value_attention import VisionTokens, image_forward, value_wise_forward
from anovl_plugin.vision.views import Views, is_exporting, read_views, same, sum_over_views

ImageScore = Literal["global", "map", "both"]


class AnoVLModel(nn.Module):
    """Zero-shot anomaly localization by value-wise attention and state prompts (arXiv 2308.15939).

    The text tower is held only until a bank is built; after that it takes no memory. Asking for another class loads
    it again.

    Args:
        backbone: an open_clip architecture, ``hf-hub:OWNER/NAME``, ``local-dir:FOLDER`` or ``anovl-demo``.
        pretrained: a tag of open_clip's, or the path of a .safetensors or .pt file.
        class_name: what the images show; builds the text bank at once. ``None`` leaves that to :meth:`setup`.
        domain: wording of the prompts, ``"auto"``, ``"object"`` or ``"texture"``.
        image_size: height and width (or one number for both) in pixels; ``None`` for the architecture's own.
        image_views: what the global token's score is averaged over: ``"single"``, ``"paper"`` or a list of views, see
            :mod:`anovl_plugin.vision.views`.
        image_score: what scores an image: ``"global"``, its global token, which is the paper's; ``"map"``, its map;
            or ``"both"``, the mean of the two.
        top_fraction: how much of the map its score is the mean of, see :func:`anovl_plugin.scoring.scores.map_score`.
        adaptation: what adapts the patch tokens of an image before they are scored, if anything.
        tiling: how many tiles of :attr:`image_size` the short side of the images holds; the long side is covered by
            as many more as it takes, see :mod:`anovl_plugin.vision.tiles`. ``None`` for images of that size, not cut.

    Attributes:
        visual: the image tower, frozen.
        text_bank: what the prompts of ``class_name`` say.
        image_size: height and width of the images the model takes.
        mean: mean of each colour channel to normalise images with.
        std: standard deviation of each colour channel, likewise.
        fingerprint: tells the image tower's weights from others.

    Raises:
        BackboneError: if the CLIP cannot be loaded or is of the wrong kind.
        ValueError: if an argument does not fit.

    Example:
        >>> model = AnoVLModel("anovl-demo", class_name="brick", domain="texture")
        >>> result = model(torch.rand(2, 3, 96, 96))
        >>> result.pred_score.shape, result.anomaly_map.shape
        (torch.Size([2]), torch.Size([2, 1, 96, 96]))
    """

    def __init__(
        self,
        backbone: str = DEFAULT_BACKBONE,
        pretrained: str | None = DEFAULT_PRETRAINED,
        class_name: str | None = None,
        domain: Domain = "auto",
        image_size: int | tuple[int, int] | None = None,
        image_views: Views = "single",
        image_score: ImageScore = "global",
        top_fraction: float = 0.0,
        adaptation: Adaptation | None = None,
        tiling: int | None = None,
    ) -> None:
        super().__init__()
        resolve_domain(class_name or "object", domain)
        check_fraction(top_fraction)
        if image_score not in get_args(ImageScore):
            msg = f"image_score is {image_score!r}, but must be one of {', '.join(get_args(ImageScore))}"
            raise ValueError(msg)
        views = read_views(image_views)
        self.num_views = len(views)
        # The image itself is scored with the map; only what differs from it goes through the tower once more.
        self.other_views = tuple(view for view in views if view is not same)
        self.image_score: ImageScore = image_score
        self.top_fraction = top_fraction
        self.adaptation = read_adaptation(adaptation)
        self._source = (backbone, pretrained, image_size)
        loaded = load_backbone(*self._source)
        self.visual = loaded.visual
        self.fingerprint = loaded.fingerprint
        self.image_size, self.mean, self.std = loaded.image_size, loaded.mean, loaded.std
        check_tiling(tiling, self.image_size)
        self.tiling = tiling
        self.score_unit = loaded.temperature
        num_prompts = sum(map(len, prompt_ensemble("object")))
        self.text_bank = TextBank(loaded.visual.output_dim, num_prompts)
        # In a tuple, so that the tower is no submodule: it follows no cast, enters no checkpoint and no export.
        self._text_tower = (TextTower(loaded.clip, loaded.tokenizer),)
        self.class_name: str | None = None
        self.domain: Domain = domain
        if class_name is not None:
            self.setup(class_name, domain)

    def setup(self, class_name: str, domain: Domain = "auto") -> None:
        """Build the text bank of a class on the model's device; nothing is done if the model has it already.

        Args:
            class_name: what the images show, as the data set spells it.
            domain: wording of the prompts.

        Raises:
            ValueError: if the class name is empty or too long for the text tower, or the domain unknown.
            BackboneError: if the text tower must be loaded again and cannot.
        """
        if (self.class_name, self.domain) == (class_name, domain):
            return
        ensemble = prompt_ensemble(class_name, domain)
        tower = self._take_text_tower()
        self.text_bank.build(tower.to(self.text_bank.states.device), ensemble)
        self.class_name, self.domain = class_name, domain

    def adopt_text_bank(self, class_name: str | None, domain: Domain) -> None:
        """Declare that the bank's buffers, as a checkpoint brought them, belong to a class, and let the tower go."""
        self.class_name, self.domain = class_name, domain
        if class_name is not None:
            self._text_tower = ()

    def forward(self, images: Tensor) -> InferenceBatch:
        """Score images.

        Args:
            images: resized to :attr:`image_size` and normalised with :attr:`mean` and :attr:`std`, shape (B, 3, H, W).
                With tiles of any size that is no smaller.

        Returns:
            ``pred_score`` (B,) and ``anomaly_map`` (B, 1, H, W), float32 probabilities in (0, 1); 0.5 is where
            "normal" and "abnormal" are equally likely. With tiles the map is averaged where they overlap, and an
            image's global score is the mean over its tiles.

        Raises:
            RuntimeError: if no class has been set up.
            ValueError: if the images have another size.
        """
        if self.class_name is None:
            msg = "the model has no text bank yet; give class_name or call setup(class_name) first"
            raise RuntimeError(msg)
        tiler = self._make_tiler(images)
        with torch.no_grad():
            # A trainer of another precision moves the tower to it, but not always the images.
            dtype = self.visual.conv1.weight.dtype
            tiles = (tiler.tile(images) if tiler else images).to(dtype)
            number = tiler.num_patches_h * tiler.num_patches_w if tiler else 1
            tokens = self._look(tiles)
            tile_maps = self._map_margins(tokens.local, number)
            anomaly_map = tiler.untile(tile_maps) if tiler else tile_maps
            score = self._image_margins(tiles, tokens.image, anomaly_map, number)
        return InferenceBatch(
            pred_score=spread(score, self.score_unit),
            anomaly_map=spread(anomaly_map, self.score_unit),
        )

    def _make_tiler(self, images: Tensor) -> Tiler | None:
        size = tuple(images.shape[-2:])
        if self.tiling is not None:
            return make_tiler(size, self.image_size[0])
        if size != self.image_size:
            msg = f"images are {size} pixels, but the model takes {self.image_size}; resize them"
            raise ValueError(msg)
        return None

    def _look(self, tiles: Tensor) -> VisionTokens:
        # The graph of an exported model takes batches of any size, so it must not depend on this one's.
        if self.tiling is None or is_exporting():
            return value_wise_forward(self.visual, tiles)
        parts = [value_wise_forward(self.visual, part) for part in tiles.split(BATCH_SIZE)]
        return VisionTokens(*map(torch.cat, zip(*parts, strict=True)))

    def _map_margins(self, local: Tensor, number: int) -> Tensor:
        if self.adaptation is not None:
            # All tiles of an image are adapted to together.
            whole = local.unflatten(0, (-1, number)).flatten(1, 2)
            local = adapt_tokens(self.adaptation, whole, self.text_bank).view_as(local)
        margins = abnormality_margin(local, self.text_bank.states)
        return margin_map(margins, self.visual.grid_size, self.image_size)

    def _image_margins(self, tiles: Tensor, token: Tensor, anomaly_map: Tensor, number: int) -> Tensor:
        if self.image_score == "map":
            return map_score(anomaly_map, self.top_fraction)
        others = sum_over_views(self._view_margins, tiles, self.other_views)
        itself = abnormality_margin(token, self.text_bank.states) * (self.num_views - len(self.other_views))
        margins = ((itself + others) / self.num_views).unflatten(0, (-1, number)).mean(1)
        if self.image_score == "both":
            return (margins + map_score(anomaly_map, self.top_fraction)) / 2
        return margins

    def _view_margins(self, images: Tensor) -> Tensor:
        return abnormality_margin(image_forward(self.visual, images), self.text_bank.states)

    def _take_text_tower(self) -> TextTower:
        if not self._text_tower:
            loaded = load_backbone(*self._source, image=False)
            self._text_tower = (TextTower(loaded.clip, loaded.tokenizer),)
        tower, self._text_tower = self._text_tower[0], ()
        return tower
