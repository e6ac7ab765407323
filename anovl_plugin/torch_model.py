"""The AnoVL model in plain torch: a batch of images in, scores and maps out."""

import torch
from anomalib.data import InferenceBatch
from torch import Tensor, nn

from anovl_plugin.backbone import DEFAULT_BACKBONE, DEFAULT_PRETRAINED, load_backbone
from anovl_plugin.prompts import Domain, prompt_ensemble, resolve_domain
from anovl_plugin.scores import abnormality_margin, margin_map, spread
from anovl_plugin.text_bank import TextBank, TextTower
from anovl_plugin.value_attention import value_wise_forward


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

    Attributes:
        visual: the image tower, frozen.
        text_bank: what the prompts of ``class_name`` say.
        image_size: height and width of the images the model takes.
        mean: mean of each colour channel to normalise images with.
        std: standard deviation of each colour channel, likewise.

    Raises:
        BackboneError: if the CLIP cannot be loaded or is of the wrong kind.
        ValueError: if image size, class name or domain do not fit.

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
    ) -> None:
        super().__init__()
        resolve_domain(class_name or "object", domain)
        self._source = (backbone, pretrained, image_size)
        loaded = load_backbone(*self._source)
        self.visual = loaded.visual
        self.image_size, self.mean, self.std = loaded.image_size, loaded.mean, loaded.std
        self.score_unit = 1 / float(loaded.clip.logit_scale.exp())
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

        Returns:
            ``pred_score`` (B,) and ``anomaly_map`` (B, 1, H, W), float32 probabilities in (0, 1); 0.5 is where
            "normal" and "abnormal" are equally likely.

        Raises:
            RuntimeError: if no class has been set up.
            ValueError: if the images have another size.
        """
        if self.class_name is None:
            msg = "the model has no text bank yet; give class_name or call setup(class_name) first"
            raise RuntimeError(msg)
        if tuple(images.shape[-2:]) != self.image_size:
            msg = f"images are {tuple(images.shape[-2:])} pixels, but the model takes {self.image_size}; resize them"
            raise ValueError(msg)
        with torch.no_grad():
            # A trainer of another precision moves the tower to it, but not always the images.
            tokens = value_wise_forward(self.visual, images.to(self.visual.conv1.weight.dtype))
            score = abnormality_margin(tokens.image, self.text_bank.states)
            patches = abnormality_margin(tokens.local, self.text_bank.states)
            anomaly_map = margin_map(patches, self.visual.grid_size, self.image_size)
        return InferenceBatch(
            pred_score=spread(score, self.score_unit),
            anomaly_map=spread(anomaly_map, self.score_unit),
        )

    def _take_text_tower(self) -> TextTower:
        if not self._text_tower:
            loaded = load_backbone(*self._source)
            self._text_tower = (TextTower(loaded.clip, loaded.tokenizer),)
        tower, self._text_tower = self._text_tower[0], ()
        return tower
