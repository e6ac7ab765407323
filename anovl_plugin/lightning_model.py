"""AnoVL as an anomalib model: ``anomalib test --model AnoVL``."""

import warnings
from pathlib import Path
from typing import Any

import torch
from anomalib import LearningType
from anomalib.data import Batch, InferenceBatch
from anomalib.metrics import Evaluator
from anomalib.models.components import AnomalibModule
from anomalib.post_processing import PostProcessor
from anomalib.pre_processing import PreProcessor
from anomalib.visualization import Visualizer
from lightning.pytorch import Callback
from lightning.pytorch.utilities.types import STEP_OUTPUT
from torch import Tensor, nn
from torchvision.transforms.v2 import Compose, Normalize, Resize

from anovl_plugin.components.arguments import check_components
from anovl_plugin.components.bit_depth import with_full_bit_depth
from anovl_plugin.components.checkpoint import (
    CheckpointError,
    changed_settings,
    read_saved_model,
    reconcile,
    without_tower,
)
from anovl_plugin.components.distributed import UnpaddedEvaluationSampler
from anovl_plugin.components.export import check_exportable, check_openvino, quiet_exporter
from anovl_plugin.components.post_processor import ZeroShotPostProcessor
from anovl_plugin.components.pre_processor import AntialiasedPreProcessor
from anovl_plugin.components.validation import OptionalValidation
from anovl_plugin.config import check_flag, is_loading_checkpoint, loading_checkpoint, to_config
from anovl_plugin.hosts.lightning import attached_trainer
from anovl_plugin.scoring.adaptation import Adaptation
from anovl_plugin.scoring.image_score import GlobalScore, ImageScore, ImageScoreName
from anovl_plugin.text.prompts import Domain, check_class_name
from anovl_plugin.torch_model import AnoVLModel, NonFiniteImageError, check_images
from anovl_plugin.vision.backbone import DEFAULT_BACKBONE, DEFAULT_PRETRAINED
from anovl_plugin.vision.tiles import short_side

FALLBACK_CLASS_NAME = "object"
# How far beyond [0, 1] raw pixels may lie, as resizing can overshoot.
_PIXEL_TOLERANCE = 0.1


class AnoVL(AnomalibModule):
    """AnoVL: zero-shot anomaly localization with vision-language models (arXiv 2308.15939).

    The constructor checks its arguments and loads nothing; the CLIP is loaded once, when it is first needed. With a
    checkpoint, what is left at its default comes from the checkpoint, and what is set must agree with it.

    Args:
        backbone: The CLIP: an open_clip architecture, ``hf-hub:OWNER/NAME``, ``local-dir:FOLDER``, or ``anovl-demo``,
            the small one that comes with the package. Default: ``ViT-B-16-plus-240``, the paper's.
        class_name: What the images show, e.g. ``bottle``. Default: the data module's category, else ``object``.
        domain: Wording of the prompts: ``object``, ``texture``, or ``auto``: texture for MVTec AD's texture classes,
            else object. Default: ``auto``.
        pretrained: Weights of the CLIP: an open_clip tag, or a .safetensors or .pt file. ``hf-hub:``, ``local-dir:``
            and ``anovl-demo`` bring their own. Default: ``laion400m_e32``.
        image_size: Height and width (or one number for both) in pixels that images are resized to, multiples of the
            CLIP's patch. Default: the size the CLIP was made for.
        image_score: What scores an image: ``global``, its class token, which is the paper's; ``map``, its map;
            ``both``, their mean; or ``GlobalScore``, ``MapScore``, ``CombinedScore`` with settings of their own.
            Default: ``global``.
        tiles_per_side: Square tiles of the CLIP's size along the short side of an image, 1 to 64, for large images and
            small defects: 1 is the published procedure for VisA, more see finer; the long side uses as many more as it
            needs. Default: none, an image is resized to one tile, whatever its shape.
        adaptation: What adapts each image's patch tokens at test time, and so its map: ``TextAdapter`` (the paper's
            for MVTec AD), ``LinearAdapter`` (for VisA), or the class path of your own. Default: nothing.
        save_backbone: Whether to keep CLIP's image tower in checkpoints, which then take hundreds of MB but need no
            other source of weights. Default: no.
        pre_processor: Resizes and normalizes images. Default: what the CLIP needs.
        post_processor: Sets thresholds and normalizes scores. Default: thresholds of 0.5, which validation data, where
            there are any, adapt.
        evaluator: Computes metrics. Default: anomalib's, AUROC and F1 of images and pixels.
        visualizer: Draws the result pictures. Default: anomalib's.

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
        class_name: str | None = None,
        domain: Domain = "auto",
        pretrained: str | None = DEFAULT_PRETRAINED,
        image_size: int | tuple[int, int] | None = None,
        image_score: ImageScoreName | ImageScore = "global",
        tiles_per_side: int | None = None,
        adaptation: Adaptation | None = None,
        save_backbone: bool = False,
        pre_processor: nn.Module | bool = True,
        post_processor: nn.Module | bool = True,
        evaluator: Evaluator | bool = True,
        visualizer: Visualizer | bool = True,
    ) -> None:
        if class_name is not None:
            check_class_name(class_name)
        check_flag("save_backbone", save_backbone)
        model = AnoVLModel(
            backbone,
            domain=domain,
            pretrained=pretrained,
            image_size=image_size,
            image_score=image_score,
            tiles_per_side=tiles_per_side,
            adaptation=adaptation,
        )
        check_components(pre_processor, post_processor, evaluator, visualizer)
        # anomalib copies all arguments, so they are checked before. These two, of anybody's class, need no copy.
        image_score, adaptation = "global", None
        super().__init__(
            pre_processor=pre_processor, post_processor=post_processor, evaluator=evaluator, visualizer=visualizer
        )
        self.model = model
        self._use_settings(_settings_of(self.model, class_name, domain, save_backbone))
        # The class of the text bank that came with a checkpoint.
        self._checkpoint_class: str | None = None
        self._has_default_pre_processor = pre_processor is True
        self._was_given_pre_processor = not isinstance(pre_processor, bool)
        if not is_loading_checkpoint() and not backbone.startswith("hf-hub:"):
            self._set_default_transform()

    @property
    def settings(self) -> dict[str, Any]:
        """The constructor's arguments, live components excepted, as plain data."""
        return dict(self.hparams)

    @property
    def learning_type(self) -> LearningType:
        """Zero-shot: nothing is learned from the dataset."""
        return LearningType.ZERO_SHOT

    @property
    def trainer_arguments(self) -> dict[str, Any]:
        """The user's trainer arguments are not changed."""
        return {}

    def configure_callbacks(self) -> list[Callback]:
        """Return anomalib's callbacks, made to read images of any bit depth, and those that handle a run's data."""
        return [*with_full_bit_depth(super().configure_callbacks()), UnpaddedEvaluationSampler(), OptionalValidation()]

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
        pre_processor.set_transform(self._default_transform(image_size))
        return pre_processor

    def configure_post_processor(self) -> PostProcessor:
        """Return the default post-processor: thresholds of 0.5 that validation data adapt."""
        return ZeroShotPostProcessor()

    def configure_optimizers(self) -> None:
        """Nothing is trained."""

    def val_dataloader(self) -> list:
        """No validation data; a data module's takes precedence."""
        return []

    def on_validation_start(self) -> None:
        """Load the CLIP and build the text bank, on the device of the run."""
        self.build_text_bank()

    on_test_start = on_validation_start
    on_predict_start = on_validation_start

    def validation_step(self, batch: Batch, *args: object, **kwargs: object) -> STEP_OUTPUT:
        """Score a batch; the post-processor takes thresholds and normalization from it."""
        del args, kwargs
        return self._score(batch)

    def test_step(self, batch: Batch, *args: object, **kwargs: object) -> STEP_OUTPUT:
        """Score a batch."""
        del args, kwargs
        return self._score(batch)

    def predict_step(self, batch: Batch, *args: object, **kwargs: object) -> STEP_OUTPUT:
        """Score a batch."""
        del args, kwargs
        return self._score(batch)

    def forward(self, batch: Tensor, *args: object, **kwargs: object) -> InferenceBatch:
        """Pre-process, score and post-process raw images, as an exported model does.

        Args:
            batch: Images of any size with values in [0, 1], shape (B, 3, H, W).
            *args: Ignored.
            **kwargs: Ignored.

        Returns:
            Scores (B,), labels (B,), maps (B, 1, H, W) and masks (B, 1, H, W).

        Raises:
            TypeError: If the images are not a floating-point tensor.
            ValueError: If the images have the wrong shape, or values that are clearly not in [0, 1].
        """
        check_images(batch)
        # Graphs hold no checks of values.
        if not torch.compiler.is_compiling():
            _check_values(batch)
        if not (self.model.text_bank.is_built and self.model.is_loaded):
            self.build_text_bank()
        return super().forward(batch, *args, **kwargs)

    def load(self) -> None:
        """Load the CLIP, unless it is loaded already.

        Raises:
            BackboneError: If it cannot be loaded.
        """
        self.model.load()
        self._set_default_transform()

    def build_text_bank(self) -> None:
        """Load the CLIP and build the text bank of the current class, unless the model has it already.

        The class is the ``class_name`` argument, else the category of the data module, else the class of the text bank
        (of a checkpoint, if there is a data module), else ``object``.
        """
        before = self.model.text_bank.class_name
        built = self.model.build_text_bank(self._resolve_class_name(), self.settings["domain"])
        self._set_default_transform()
        # Thresholds belong to the text bank they were set with.
        if built and before is not None and isinstance(self.post_processor, ZeroShotPostProcessor):
            self.post_processor.reset()

    def to_torch(self, *args: Any, **kwargs: Any) -> Path:
        """Export as anomalib does, with the text bank inside."""
        self.build_text_bank()
        return super().to_torch(*args, **kwargs)

    def to_onnx(
        self,
        export_root: Path | str,
        model_file_name: str = "model",
        input_size: tuple[int, int] | None = None,
        **kwargs: Any,
    ) -> Path:
        """Export as anomalib does, with the text bank inside.

        Args:
            export_root: Folder to write to.
            model_file_name: Name of the file, without its suffix. Default: ``model``.
            input_size: Height and width in pixels of the images that the exported model takes. Default: any.
            **kwargs: Passed on to ``torch.onnx.export``.

        Raises:
            ValueError: If the model adapts at test time, or has tiles but no input size.
        """
        check_exportable(self.model, input_size)
        self.build_text_bank()
        # torch's exporter cannot downgrade to anomalib's default opset.
        kwargs.setdefault("opset_version", 18)
        kwargs.setdefault("verbose", False)
        with quiet_exporter():
            return super().to_onnx(export_root, model_file_name, input_size, **kwargs)

    def to_openvino(
        self,
        export_root: Path | str,
        model_file_name: str = "model",
        input_size: tuple[int, int] | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> Path:
        """Export as anomalib does, with the text bank inside.

        Args:
            export_root: Folder to write to.
            model_file_name: Name of the files, without their suffix. Default: ``model``.
            input_size: Height and width in pixels of the images that the exported model takes. Default: any.
            *args: anomalib's further arguments.
            **kwargs: anomalib's further arguments.

        Raises:
            ValueError: As :meth:`to_onnx`.
            ModuleNotFoundError: If OpenVINO is not installed.
        """
        check_exportable(self.model, input_size)
        check_openvino()
        return super().to_openvino(export_root, model_file_name, input_size, *args, **kwargs)

    @classmethod
    def load_from_checkpoint(cls, *args: Any, **kwargs: Any) -> "AnoVL":  # type: ignore[override] # anomalib's arguments
        """Return the model that wrote a checkpoint.

        Nothing that the checkpoint names is imported: its adaptation must be a class of this package, or one that the
        program has imported already.

        Args:
            *args: As for every anomalib model: the path of the checkpoint, and where to load it.
            **kwargs: Settings to change on purpose. Where they change scores, thresholds start at 0.5 again.

        Raises:
            CheckpointError: If another model wrote the checkpoint.
        """
        with loading_checkpoint():
            return super().load_from_checkpoint(*args, **kwargs)

    def get_extra_state(self) -> dict[str, Any]:
        """Return the settings, for the state dict."""
        return {"settings": self.settings}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Keep the current settings; :meth:`on_load_checkpoint` has reconciled them with the checkpoint's."""

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Leave the image tower out, unless it is to be saved.

        Raises:
            RuntimeError: If there is no text bank yet.
        """
        super().on_save_checkpoint(checkpoint)
        if not self.model.text_bank.is_built:
            msg = "there is no text bank to save yet; validate, test or call build_text_bank() first"
            raise RuntimeError(msg)
        checkpoint["anomalib_components_enabled"]["post_processor_class"] = type(self.post_processor).__name__
        checkpoint["anomalib_components_enabled"]["default_pre_processor"] = self._has_default_pre_processor
        if not self.settings["save_backbone"]:
            checkpoint["state_dict"] = without_tower(checkpoint["state_dict"])

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Use the settings of a checkpoint, and load the CLIP it was made with.

        Raises:
            CheckpointError: If another model wrote the checkpoint, or a setting contradicts it.
            BackboneError: If the CLIP cannot be loaded.
        """
        saved = read_saved_model(checkpoint)
        if is_loading_checkpoint():
            # What differs from the checkpoint was changed on purpose.
            settings, changed = self.settings, changed_settings(self.settings, saved)
        else:
            settings, changed = reconcile(self.settings, _DEFAULTS, saved, self._category()), []
        with loading_checkpoint():
            if settings != self.settings or not self.model.is_loaded:
                arguments = {name: settings[name] for name in settings if name not in {"class_name", "save_backbone"}}
                self.model = AnoVLModel(**arguments).to(self.device)
                self._use_settings(settings)
            self.model.restore(saved.clip, has_tower=saved.has_tower)
        self._checkpoint_class = saved.bank["class_name"]
        self._restore_components(checkpoint, changed)
        if changed:
            self._restart_thresholds(checkpoint, changed)

    def _restore_components(self, checkpoint: dict[str, Any], changed: list[str]) -> None:
        components = [self.pre_processor, self.post_processor]
        enabled = checkpoint.get("anomalib_components_enabled", {})
        wanted, was_default = enabled.pop("post_processor_class", None), enabled.pop("default_pre_processor", False)
        current = type(self.post_processor).__name__
        if wanted not in {None, "NoneType", current}:
            msg = f"post_processor is a {current}, but the checkpoint was made with a {wanted}; pass one of that class"
            raise ValueError(msg)
        if self._was_given_pre_processor:
            self._check_pre_processor(checkpoint)
        elif self._has_default_pre_processor:
            self._has_default_pre_processor = was_default
            if was_default and {"image_size", "tiles_per_side"} & set(changed):
                checkpoint.pop("anomalib_pre_processor_config", None)
                self._set_default_transform()
        super().on_load_checkpoint(checkpoint)
        # anomalib drops a component that the checkpoint's model did not have, but not its callback.
        trainer = attached_trainer(self)
        for component in components:
            kept = component in (self.pre_processor, self.post_processor)
            if trainer is not None and not kept and component in trainer.callbacks:
                trainer.callbacks.remove(component)
        self._update_dataset_resizing()

    def _update_dataset_resizing(self) -> None:
        """Let the datasets resize as the pre-processor does now; anomalib asked it before it was complete."""
        trainer = attached_trainer(self)
        if trainer is not None and trainer.datamodule is not None:
            trainer.datamodule.setup(trainer.state.fn)

    def _check_pre_processor(self, checkpoint: dict[str, Any]) -> None:
        key = "anomalib_pre_processor_config"
        own = self.pre_processor.checkpoint_config() if isinstance(self.pre_processor, PreProcessor) else None
        if checkpoint.get(key) == own:
            return
        if is_loading_checkpoint():
            # Changed on purpose; anomalib would replace it.
            checkpoint.pop(key, None)
            return
        msg = (
            "pre_processor is not the checkpoint's; leave it out, or change it on purpose with "
            "AnoVL.load_from_checkpoint(path, pre_processor=...)"
        )
        raise CheckpointError(msg)

    def _restart_thresholds(self, checkpoint: dict[str, Any], changed: list[str]) -> None:
        if not isinstance(self.post_processor, ZeroShotPostProcessor):
            return
        names = ", ".join(changed)
        msg = f"{names} of the checkpoint changed on purpose, so its thresholds do not hold; they start at 0.5 again"
        warnings.warn(msg, UserWarning, stacklevel=2)
        fresh = {f"post_processor.{name}": value for name, value in self.post_processor.state_dict().items()}
        checkpoint["state_dict"] = {**checkpoint["state_dict"], **fresh}

    def _score(self, batch: Batch) -> STEP_OUTPUT:
        try:
            predictions = self.model(batch.image)
        except NonFiniteImageError as error:
            if not batch.image_path:
                raise
            names = ", ".join(str(batch.image_path[index]) for index in error.indices)
            msg = (
                f"{names}: scores are not finite: pixels are NaN, infinite or far out of range, or precision is too low"
            )
            raise ValueError(msg) from None
        return batch.update(**predictions._asdict())

    def _use_settings(self, settings: dict[str, Any]) -> None:
        self.save_hyperparameters(settings)

    def _default_transform(self, image_size: tuple[int, int] | None = None) -> Compose:
        size = list(image_size or self.model.image_size)
        if image_size is None and self.model.tiles_per_side is not None:
            size = [short_side(size[0], self.model.tiles_per_side)]
        return Compose([Resize(size, antialias=True), Normalize(list(self.model.mean), list(self.model.std))])

    def _set_default_transform(self) -> None:
        if self._has_default_pre_processor and self.pre_processor is not None and self.pre_processor.transform is None:
            self.pre_processor.set_transform(self._default_transform())
            self._update_dataset_resizing()

    def _category(self) -> str | None:
        trainer = attached_trainer(self)
        return getattr(trainer.datamodule, "category", None) or None if trainer is not None else None

    def _resolve_class_name(self) -> str:
        trainer = attached_trainer(self)
        datamodule = None if trainer is None else trainer.datamodule
        built = self.model.text_bank.class_name if datamodule is None else self._checkpoint_class
        return self.settings["class_name"] or self._category() or built or FALLBACK_CLASS_NAME


def _settings_of(model: AnoVLModel, class_name: str | None, domain: Domain, save_backbone: bool) -> dict[str, Any]:
    backbone, pretrained = model.source
    return {
        "backbone": backbone,
        "class_name": class_name,
        "domain": domain,
        "pretrained": pretrained,
        "image_size": model.requested_image_size,
        "image_score": to_config(model.image_score),
        "tiles_per_side": model.tiles_per_side,
        "adaptation": to_config(model.adaptation),
        "save_backbone": save_backbone,
    }


_DEFAULTS: dict[str, Any] = {
    "backbone": DEFAULT_BACKBONE,
    "class_name": None,
    "domain": "auto",
    "pretrained": DEFAULT_PRETRAINED,
    "image_size": None,
    "image_score": to_config(GlobalScore()),
    "tiles_per_side": None,
    "adaptation": None,
    "save_backbone": False,
}


def _check_values(images: Tensor) -> None:
    if not len(images):
        msg = "the batch of images is empty; pass at least one image"
        raise ValueError(msg)
    low, high = (float(value) for value in images.aminmax())
    if not (low >= -_PIXEL_TOLERANCE and high <= 1 + _PIXEL_TOLERANCE):
        msg = f"images have values from {low:g} to {high:g}, but must lie in [0, 1]; divide 8-bit images by 255"
        raise ValueError(msg)
