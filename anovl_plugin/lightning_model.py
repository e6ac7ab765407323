"""AnoVL as an anomalib model: ``anomalib test --model AnoVL``."""

import warnings
from pathlib import Path
from typing import Any, cast, get_args

import torch
from anomalib import LearningType
from anomalib.data import Batch, InferenceBatch
from anomalib.metrics import Evaluator
from anomalib.models.components import AnomalibModule
from anomalib.post_processing import PostProcessor
from anomalib.visualization import Visualizer
from lightning.pytorch import Callback
from lightning.pytorch.utilities.types import STEP_OUTPUT
from torch import Tensor, nn

from anovl_plugin.components.arguments import check_components
from anovl_plugin.components.checkpoints.checkpoint import CheckpointMixin
from anovl_plugin.components.checkpoints.export import TextBankExportMixin
from anovl_plugin.components.checkpoints.settings import references_of, settings_of
from anovl_plugin.components.classes.classes_of_run import ClassesMixin
from anovl_plugin.components.classes.image_classes import parse_class_name
from anovl_plugin.components.images.pre_processor import AntialiasedPreProcessor, default_transform
from anovl_plugin.components.images.unreadable import OnError
from anovl_plugin.components.pictures.visualizer import ResultVisualizer
from anovl_plugin.components.references.references_of_run import ReferencesMixin, parse_few_shot
from anovl_plugin.components.results.explanation import keep_matches
from anovl_plugin.components.results.raw_maps import MapFormat
from anovl_plugin.components.runs.run_callbacks import run_callbacks
from anovl_plugin.components.runs.run_folder import RunFolder
from anovl_plugin.components.runs.validated_results import ValidatedResults
from anovl_plugin.components.thresholds.post_processor import ZeroShotPostProcessor
from anovl_plugin.config import check_choice, check_flag, is_loading_checkpoint
from anovl_plugin.hosts.lightning import attached_trainer, is_preliminary, put_first
from anovl_plugin.referenced_clip import check_images
from anovl_plugin.scoring.adaptation import Adaptation
from anovl_plugin.scoring.image_score import ImageScore, ImageScoreName
from anovl_plugin.scoring.references import References
from anovl_plugin.torch_model import AnoVLModel, NonFiniteImageError, ScoredImages
from anovl_plugin.vision.backbone import DEFAULT_BACKBONE, DEFAULT_PRETRAINED

# How far raw pixels may lie outside [0, 1], because resizing can overshoot.
_PIXEL_TOLERANCE = 0.1


class AnoVL(ReferencesMixin, ClassesMixin, TextBankExportMixin, CheckpointMixin, AnomalibModule):
    """AnoVL: zero-shot anomaly localization with vision-language models (arXiv 2308.15939).

    The constructor checks its arguments and loads nothing; the CLIP is loaded once, when it is first needed. With a
    checkpoint, arguments left at their defaults come from the checkpoint, and the others must agree with it.

    Args:
        backbone: The CLIP: an open_clip architecture, ``hf-hub:OWNER/NAME``, ``local-dir:FOLDER``, or ``anovl-demo``,
            the small one that comes with the package. Default: ``ViT-B-16-plus-240``, the paper's.
        class_name: What the images show, e.g. ``bottle``. For several products in one run, a mapping from the names of
            folders to classes, e.g. ``{line_1: bottle, line_2: screw}``, or ``from_folder``, if folders are named for
            products. Default: the data module's category or categories, else ``object``.
        domain: Wording of the prompts: ``object``, ``texture``, or ``auto``: texture for MVTec AD's texture classes,
            else object. Default: ``auto``.
        prompts: What the prompts are made of: a YAML file that extends or replaces the paper's, or a mapping with the
            keys of such a file. Default: the paper's.
        pretrained: Weights of the CLIP: an open_clip tag, or a .safetensors or .pt file. ``hf-hub:``, ``local-dir:``
            and ``anovl-demo`` bring their own. Default: ``laion400m_e32``.
        image_size: Height and width (or one number for both) in pixels that images are resized to, multiples of the
            CLIP's patch. Default: the size the CLIP was made for.
        image_score: How an image is scored: ``global``, by its class token, as in the paper; ``map``, by its map;
            ``both``, by the mean of the two; or ``GlobalScore``, ``MapScore``, ``CombinedScore`` with settings of their
            own. Default: ``global``.
        tiles_per_side: Number of square tiles of the CLIP's size along the short side of an image, 1 to 64, for large
            images and small defects. 1 is the published procedure for VisA; more tiles show finer detail. The long side
            gets as many as it needs. Default: none, images of any shape are resized to one tile.
        adaptation: Test-time adaptation of each image's patch tokens, which changes its map: ``TextAdapter`` (the
            paper's for MVTec AD), ``LinearAdapter`` (for VisA), or the class path of your own. Default: none.
        k_shot: Number of reference images of each class, 0 to 100000: normal images to compare with, from
            ``few_shot_source`` or the data module's training data. Default: 0, zero-shot, or, with ``few_shot_source``,
            all of its images.
        few_shot_source: Folder of reference images; of several classes, one folder for each in it. Default: none, they
            come from the training data.
        references: How images are compared with the reference images: ``PatchMemory``, by the nearest patch,
            ``PatchSubspace``, by what their patches span, or the class path of your own. Default: ``PatchMemory`` if
            there are reference images.
        cache: Whether to keep text banks on disk, in the user's cache folder, where the next start finds them. Default:
            yes.
        save_backbone: Whether to keep CLIP's image tower in checkpoints, which then take hundreds of MB but need no
            other source of weights. Default: no.
        pre_processor: Resizes and normalizes images. Default: what the CLIP needs.
        post_processor: Sets thresholds and normalizes scores. Default: thresholds of 0.5 until validation data set
            them.
        evaluator: Computes metrics. Default: anomalib's, AUROC and F1 of images and pixels.
        visualizer: Draws the result pictures. Default: anomalib's.
        on_error: What an image that cannot be read does to a run: ``report`` names it and goes on, ``stop`` ends the
            run. Default: none, which reports in predictions and stops validation and tests.
        save_maps: Also write the raw anomaly maps of tests and predictions, as ``png`` (16 bits) or ``npy`` files.
            Default: none.

    Raises:
        BackboneError: If the CLIP is unknown or of an unsupported kind.
        TypeError: If an argument has the wrong type.
        ValueError: If an argument is invalid.

    Example:
        >>> from anomalib.models import get_model
        >>> model = get_model("AnoVL", backbone="anovl-demo", class_name="brick", domain="texture")
        >>> model.name, model.learning_type.value
        ('AnoVL', 'zero_shot')
    """

    model: AnoVLModel

    def __init__(
        self,
        backbone: str = DEFAULT_BACKBONE,
        *,
        class_name: str | dict[str, str] | None = None,
        domain: str = "auto",
        prompts: str | Path | dict[str, Any] | None = None,
        pretrained: str | None = DEFAULT_PRETRAINED,
        image_size: int | tuple[int, int] | None = None,
        image_score: ImageScoreName | ImageScore = "global",
        tiles_per_side: int | None = None,
        adaptation: Adaptation | None = None,
        k_shot: int = 0,
        few_shot_source: str | Path | None = None,
        references: References | None = None,
        cache: bool = True,
        save_backbone: bool = False,
        pre_processor: nn.Module | bool = True,
        post_processor: nn.Module | bool = True,
        evaluator: Evaluator | bool = True,
        visualizer: Visualizer | bool = True,
        on_error: OnError | None = None,
        save_maps: MapFormat | None = None,
    ) -> None:
        class_name = parse_class_name(class_name)
        check_flag("save_backbone", save_backbone)
        few_shot = parse_few_shot(k_shot, few_shot_source, references)
        model = AnoVLModel(
            backbone,
            domain=domain,
            prompts=prompts,
            pretrained=pretrained,
            image_size=image_size,
            image_score=image_score,
            tiles_per_side=tiles_per_side,
            adaptation=adaptation,
            references=cast("Any", references_of(few_shot)),
            cache=cache,
        )
        check_choice("on_error", on_error, get_args(OnError))
        check_choice("save_maps", save_maps, get_args(MapFormat))
        check_components(pre_processor, post_processor, evaluator, visualizer)
        # anomalib copies all arguments, so they are checked first. These may be of any class and need no copy.
        image_score, adaptation, references = "global", None, None
        super().__init__(
            pre_processor=pre_processor, post_processor=post_processor, evaluator=evaluator, visualizer=visualizer
        )
        self.model = model
        self._on_error, self._save_maps = on_error, save_maps
        # These belong to a run, not to the model and its checkpoints.
        for name in ("on_error", "save_maps"):
            self.hparams.pop(name)
        self.save_hyperparameters(settings_of(self.model, class_name, domain, save_backbone, few_shot))
        self._validated = ValidatedResults()
        self.has_default_pre_processor = pre_processor is True
        self._was_given_pre_processor = not isinstance(pre_processor, bool)
        if not is_loading_checkpoint() and not backbone.startswith("hf-hub:"):
            self.set_default_transform()

    @property
    def learning_type(self) -> LearningType:
        """Few-shot with reference images, else zero-shot; nothing is trained."""
        return LearningType.ZERO_SHOT if self.model.references is None else LearningType.FEW_SHOT

    @property
    def trainer_arguments(self) -> dict[str, Any]:
        """No changes to the user's trainer arguments."""
        return {}

    def configure_callbacks(self) -> list[Callback]:
        """Return anomalib's callbacks, and those that handle the data and the results of a run."""
        trainer = attached_trainer(self)
        put_first(trainer, RunFolder)
        components = cast("list[Callback]", super().configure_callbacks())
        return run_callbacks(trainer, components, self._on_error, self._save_maps)

    def configure_pre_processor(self, image_size: tuple[int, int] | None = None) -> AntialiasedPreProcessor:  # type: ignore[override] # ours needs the CLIP
        """Return the default pre-processor: bilinear resizing to the model's size, and CLIP's normalization.

        With tiles, the short side is resized to hold them.

        Args:
            image_size: Height and width in pixels. Default: the model's own.
        """
        if not hasattr(self, "model"):
            # Filled in as soon as the CLIP is known.
            return AntialiasedPreProcessor()
        pre_processor = AntialiasedPreProcessor()
        pre_processor.set_transform(default_transform(self.model, image_size))
        return pre_processor

    def configure_post_processor(self) -> PostProcessor:
        """Return the default post-processor, with thresholds of 0.5 until validation data set them."""
        return ZeroShotPostProcessor()

    def configure_visualizer(self) -> ResultVisualizer:  # type: ignore[override] # anomalib's is a class method
        """Return the default visualizer."""
        return ResultVisualizer()

    def configure_optimizers(self) -> None:
        """Nothing is trained."""

    def val_dataloader(self) -> list:
        """No validation data; a data module's takes precedence."""
        # Not to have any is no mistake.
        warnings.filterwarnings("ignore", "Total length of `list` across ranks is zero")
        return []

    def on_validation_start(self) -> None:
        """Load the CLIP and build the text bank and the reference bank, on the device of the run."""
        self._validated.clear()
        self.build_text_bank()

    def on_test_start(self) -> None:
        """Load the CLIP and build the text bank and the reference bank, on the device of the run."""
        self.build_text_bank()

    on_predict_start = on_test_start

    def on_test_end(self) -> None:
        """Forget the results of the validation before the test or prediction."""
        self._validated.clear()

    on_predict_end = on_test_end

    def validation_step(self, batch: Batch, *args: object, **kwargs: object) -> STEP_OUTPUT:
        """Score a batch, from which the post-processor sets thresholds and normalization."""
        del args, kwargs
        return self._score(batch, keep=is_preliminary(self.trainer))

    def test_step(self, batch: Batch, *args: object, **kwargs: object) -> STEP_OUTPUT:
        """Score a batch, or take the scores from the validation before the test if it saw the very same batch."""
        del args, kwargs
        return self._score(batch, reuse=True)

    def predict_step(self, batch: Batch, *args: object, **kwargs: object) -> STEP_OUTPUT:
        """Score a batch, as in a test."""
        del args, kwargs
        return self._score(batch, reuse=True)

    def forward(
        self, batch: Tensor, class_index: Tensor | None = None, *args: object, **kwargs: object
    ) -> InferenceBatch:
        """Pre-process, score and post-process raw images, as an exported model does.

        Args:
            batch: Images of any size with values in [0, 1], shape (B, 3, H, W).
            class_index: Index of each image's class, shape (B,), see :meth:`TextBanks.index`. Default: none, if there
                is one class.
            *args: Ignored.
            **kwargs: Ignored.

        Returns:
            Scores (B,), labels (B,), maps (B, 1, H, W) and masks (B, 1, H, W).

        Raises:
            TypeError: If the images are not a floating-point tensor.
            ValueError: If the images have the wrong shape, or values that are clearly not in [0, 1].
        """
        del args, kwargs
        check_images(batch)
        # Graphs cannot check values.
        if not torch.compiler.is_compiling():
            _check_values(batch)
        if not (self.model.text_banks.is_built and self.model.is_loaded and self.has_references):
            self.build_text_bank()
        index = self.only_class_index() if class_index is None else class_index
        predictions = self.model(self.pre_processor(batch) if self.pre_processor else batch, index)
        if isinstance(self.post_processor, ZeroShotPostProcessor):
            return self.post_processor(predictions, index)
        return self.post_processor(predictions) if self.post_processor else predictions

    def load(self) -> None:
        """Load the CLIP, unless it is loaded already.

        Raises:
            BackboneError: If it cannot be loaded.
        """
        self.model.load()
        self.set_default_transform()

    def _score(self, batch: Batch, *, keep: bool = False, reuse: bool = False) -> STEP_OUTPUT:
        class_index = self.class_index_of(batch)
        if class_index is not None:
            # Not one of anomalib's fields; the post-processor and the metrics read it.
            batch.class_index = class_index  # type: ignore[attr-defined]
        images = cast("Tensor", batch.image)
        found = self._validated.find(self.model, images, class_index) if reuse else None
        try:
            scored = self._predict(images, class_index) if found is None else found
        except NonFiniteImageError as error:
            paths = getattr(batch, "image_path", None)
            if not paths:
                raise
            names = ", ".join(str(paths[index]) for index in error.indices)
            msg = (
                f"{names}: scores are not finite: pixels are NaN, infinite or far out of range, or precision is too low"
            )
            raise ValueError(msg) from None
        # For the table of predictions, which has no time for such images.
        batch.is_taken_over = found is not None  # type: ignore[attr-defined]
        if keep:
            self._validated.keep(self.model, images, class_index, scored)
        keep_matches(batch, scored.matches)
        return batch.update(**scored.scores._asdict())

    def _predict(self, images: Tensor, class_index: Tensor | None) -> ScoredImages:
        if any(bank.defect_words for bank in self.model.text_banks):
            return self.model.predict(images, class_index)
        # The usual way, so that a compiled model stays compiled.
        return ScoredImages(self.model(images, class_index), [None] * len(images))


def _check_values(images: Tensor) -> None:
    if not len(images):
        msg = "the batch of images is empty; pass at least one image"
        raise ValueError(msg)
    low, high = (float(value) for value in images.aminmax())
    if not (low >= -_PIXEL_TOLERANCE and high <= 1 + _PIXEL_TOLERANCE):
        msg = f"images have values from {low:g} to {high:g}, but must lie in [0, 1]; divide 8-bit images by 255"
        raise ValueError(msg)
