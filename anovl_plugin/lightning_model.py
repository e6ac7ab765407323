"""AnoVL as an anomalib model: ``anomalib test --model AnoVL``."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

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

from anovl_plugin.components.bit_depth import with_full_bit_depth
from anovl_plugin.components.distributed import UnpaddedEvaluationSampler
from anovl_plugin.components.export import check_graph, check_openvino, quiet_exporter
from anovl_plugin.components.post_processor import ZeroShotPostProcessor
from anovl_plugin.components.pre_processor import AntialiasedPreProcessor
from anovl_plugin.registration import register
from anovl_plugin.scoring.adaptation import Adaptation, adaptation_config, read_adaptation
from anovl_plugin.text.prompts import Domain
from anovl_plugin.torch_model import AnoVLModel, ImageScore
from anovl_plugin.vision.backbone import DEFAULT_BACKBONE, DEFAULT_PRETRAINED
from anovl_plugin.vision.tiles import short_side
from anovl_plugin.vision.views import Views

FALLBACK_CLASS_NAME = "object"
_TOWER = "model.visual."


class AnoVL(AnomalibModule):
    """AnoVL: zero-shot anomaly localization with vision-language models (arXiv 2308.15939).

    Args:
        backbone: The CLIP to use: an open_clip architecture, ``hf-hub:OWNER/NAME``, ``local-dir:FOLDER``, or
            ``anovl-demo``, the small one that comes with the package and needs no download.
        pretrained: Its weights: a tag of open_clip's, or the path of a .safetensors or .pt file. Not looked at for
            ``hf-hub:``, ``local-dir:`` and ``anovl-demo``, which bring their own.
        class_name: What the images show, e.g. ``bottle``. If not given, the data module's category, else ``object``.
        domain: Wording of the prompts: ``object``, ``texture``, or ``auto``, which takes MVTec AD's textures for
            textures and everything else for an object.
        image_size: Height and width (or one number for both) in pixels that images are resized to, multiples of the
            CLIP's patch. If not given, the size the CLIP was made for.
        image_views: Views of an image that its score is averaged over: ``single``, the image alone; ``paper``, the
            published 22, at 22 times the cost; or a list such as ``[image, flip, "rotate 22.5"]``.
        image_score: What scores an image: ``global``, its global token, which is the paper's; ``map``, its map; or
            ``both``, the mean of the two.
        top_fraction: With ``map`` and ``both``, how much of the map is averaged: 0 for the highest pixel, 0.01 for
            the highest hundredth.
        adaptation: What adapts each image's patch tokens at test time, and so its map: nothing if not given,
            ``TextAdapter`` (the paper's for MVTec AD), ``LinearAdapter`` (for VisA), or the class path of your own.
        tiling: How many square tiles of the CLIP's size cover the short side of an image, for large images and small
            defects: 1 is the published procedure for VisA, 2 and more see finer; the long side takes as many more as
            it needs. If not given, an image is resized to one tile, whatever its shape.
        self_contained: Keep CLIP's image tower in checkpoints, which then take hundreds of MB. If not, a checkpoint
            holds the text bank, the settings and thresholds, and the tower comes from where it came before.
        pre_processor: Resizes and normalises images. ``True`` for what the CLIP needs.
        post_processor: Sets thresholds and normalises scores. ``True`` for thresholds of 0.5 that validation data,
            where there is any, adapts.
        evaluator: Computes metrics. ``True`` for anomalib's default: AUROC and F1 of images and pixels.
        visualizer: Draws the result pictures. ``True`` for anomalib's default.

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
        pretrained: str | None = DEFAULT_PRETRAINED,
        class_name: str | None = None,
        domain: Domain = "auto",
        image_size: int | tuple[int, int] | None = None,
        image_views: Views = "single",
        image_score: ImageScore = "global",
        top_fraction: float = 0.0,
        adaptation: Adaptation | None = None,
        tiling: int | None = None,
        self_contained: bool = False,
        pre_processor: nn.Module | bool = True,
        post_processor: nn.Module | bool = True,
        evaluator: Evaluator | bool = True,
        visualizer: Visualizer | bool = True,
    ) -> None:
        if isinstance(pretrained, Path):
            pretrained = str(pretrained)
        image_views, image_size = plain(image_views), plain(image_size)
        adapter = read_adaptation(adaptation)
        # Hyper-parameters are taken from these names, and must be plain data.
        adaptation = adaptation_config(adapter)
        # The default pre-processor depends on the CLIP, so it is made after the model.
        super().__init__(False, post_processor, evaluator, visualizer)
        self.model = AnoVLModel(
            backbone,
            pretrained,
            domain=domain,
            image_size=image_size,
            image_views=image_views,
            image_score=image_score,
            top_fraction=top_fraction,
            adaptation=adapter,
            tiling=tiling,
        )
        self.pre_processor = self._resolve_component(pre_processor, nn.Module, self.configure_pre_processor)
        self.self_contained = self_contained
        self.class_name = class_name
        self.domain: Domain = domain

    @property
    def learning_type(self) -> LearningType:
        """Zero-shot: nothing is learned from the data set."""
        return LearningType.ZERO_SHOT

    @property
    def trainer_arguments(self) -> dict[str, Any]:
        """The trainer runs as the user set it."""
        return {}

    def configure_callbacks(self) -> list[Callback]:
        """Return anomalib's callbacks, those that read deep images, and the one that divides images among processes."""
        return [*with_full_bit_depth(super().configure_callbacks()), UnpaddedEvaluationSampler()]

    def configure_pre_processor(self, image_size: tuple[int, int] | None = None) -> PreProcessor:
        """Resize to the model's size, or the short side to that of its tiles, bilinear, and normalise as the CLIP does.

        Args:
            image_size: height and width in pixels, the model's own if not given.
        """
        size = list(image_size or self.model.image_size)
        if image_size is None and self.model.tiling is not None:
            size = [short_side(size[0], self.model.tiling)]
        normalize = Normalize(mean=list(self.model.mean), std=list(self.model.std))
        pre_processor = AntialiasedPreProcessor()
        pre_processor.set_transform(Compose([Resize(size, antialias=True), normalize]))
        return pre_processor

    def configure_post_processor(self) -> PostProcessor:
        """Start from thresholds of 0.5 and let validation data adapt them."""
        return ZeroShotPostProcessor()

    def configure_optimizers(self) -> None:
        """Nothing is trained."""

    def val_dataloader(self) -> list:
        """Offer no validation data; that of a data module comes before this."""
        return []

    def on_validation_start(self) -> None:
        """Build the text bank, now that the model is on its device."""
        self.prepare_text_bank()

    def on_test_start(self) -> None:
        """Build the text bank, now that the model is on its device."""
        self.prepare_text_bank()

    def on_predict_start(self) -> None:
        """Build the text bank, now that the model is on its device."""
        self.prepare_text_bank()

    def validation_step(self, batch: Batch, *args: object, **kwargs: object) -> STEP_OUTPUT:
        """Score a batch; the post-processor takes thresholds and normalisation from it."""
        del args, kwargs
        return batch.update(**self.model(batch.image)._asdict())

    def forward(self, batch: Tensor, *args: object, **kwargs: object) -> InferenceBatch:
        """Pre-process, score and post-process raw images, as an exported model does.

        Args:
            batch: images of any size with values in [0, 1], shape (B, 3, H, W).
            *args: not used.
            **kwargs: not used.

        Returns:
            Scores (B,), labels (B,), maps (B, 1, H, W) and masks (B, 1, H, W).
        """
        if self.model.class_name is None:
            self.prepare_text_bank()
        return super().forward(batch, *args, **kwargs)

    def prepare_text_bank(self) -> None:
        """Build the text bank for the class at hand, unless the model has it already."""
        self.model.setup(self._resolve_class_name(), self.domain)

    def to_torch(self, *args: Any, **kwargs: Any) -> Path:
        """Export as anomalib does, with the text bank inside."""
        self.prepare_text_bank()
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
            export_root: folder to write to.
            model_file_name: name of the file, without its ending.
            input_size: height and width of the images that the exported model takes, in pixels; any if not given.
            **kwargs: passed on to ``torch.onnx.export``.

        Raises:
            ValueError: if the model adapts at test time, which a graph cannot do, or has tiles, and no input size.
        """
        check_graph(self.model, input_size)
        self.prepare_text_bank()
        # anomalib's default is older than what torch can write, and the conversion down to it fails.
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
            export_root: folder to write to.
            model_file_name: name of the files, without their ending.
            input_size: height and width of the images that the exported model takes, in pixels; any if not given.
            *args: anomalib's further settings.
            **kwargs: anomalib's further settings.

        Raises:
            ValueError: as :meth:`to_onnx`.
            ModuleNotFoundError: if OpenVINO is not installed.
        """
        check_graph(self.model, input_size)
        check_openvino()
        return super().to_openvino(export_root, model_file_name, input_size, *args, **kwargs)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Note which class and which image tower the text bank belongs to, and leave the tower out."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["anovl_text_bank"] = {"class_name": self.model.class_name, "domain": self.model.domain}
        checkpoint["anovl_fingerprint"] = self.model.fingerprint
        if not self.self_contained:
            state = checkpoint["state_dict"]
            checkpoint["state_dict"] = {name: state[name] for name in state if not name.startswith(_TOWER)}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the text bank for what it was when it was saved, and the image tower from where it was loaded.

        Raises:
            ValueError: if the checkpoint is another model's, or was made with another image tower.
        """
        if "anovl_text_bank" not in checkpoint:
            msg = (
                "the checkpoint holds no text bank, so it is of another model than AnoVL; give ckpt_path one of AnoVL's"
            )
            raise ValueError(msg)
        # Checkpoints from before there were fingerprints hold the tower itself.
        saved = checkpoint.get("anovl_fingerprint", self.model.fingerprint)
        if saved != self.model.fingerprint:
            made_with = checkpoint.get("hyper_parameters", {})
            msg = (
                f"the checkpoint was made with another CLIP (fingerprint {saved}, backbone "
                f"{made_with.get('backbone')!r}, pretrained {made_with.get('pretrained')!r}) than this model's "
                f"(fingerprint {self.model.fingerprint}); give the model that backbone and those weights"
            )
            raise ValueError(msg)
        super().on_load_checkpoint(checkpoint)
        own = {f"{_TOWER}{name}": weight for name, weight in self.model.visual.state_dict().items()}
        # The weights of a self-contained checkpoint come last, so they win.
        checkpoint["state_dict"] = own | checkpoint["state_dict"]
        self.model.adopt_text_bank(**checkpoint["anovl_text_bank"])

    def _resolve_class_name(self) -> str:
        """Take the argument, else the data module's category, else, without any, the bank at hand or "object"."""
        if self.class_name is not None:
            return self.class_name
        datamodule = self.trainer.datamodule if self._trainer is not None else None
        if datamodule is None:
            return self.model.class_name or FALLBACK_CLASS_NAME
        return getattr(datamodule, "category", None) or FALLBACK_CLASS_NAME


def plain(value: object) -> object:
    """Make a list of what anomalib's pipelines give as one of omegaconf's, and leave everything else."""
    foreign = isinstance(value, Sequence) and not isinstance(value, str | list | tuple)
    return list(value) if foreign else value


register()
