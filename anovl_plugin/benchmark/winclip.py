"""WinClip for the benchmark: with a CLIP of the user's choice, and with the category of the data as its class name."""

from pathlib import Path
from typing import Any

import torch
from anomalib.metrics import Evaluator
from anomalib.models.image import WinClip
from anomalib.pre_processing import PreProcessor
from anomalib.visualization import Visualizer
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision.transforms.v2 import Compose, InterpolationMode, Normalize, Resize

from anovl_plugin.benchmark.models import Benchmarked
from anovl_plugin.components.references.reference_images import choose, read_references, training_files
from anovl_plugin.hosts.anomalib_winclip import WinClipModelWithClip
from anovl_plugin.vision.backbone import load_backbone


class WinClipWithClip(WinClip):
    """WinClip with a CLIP of the user's choice. Arguments are those of :class:`BenchmarkWinClip`."""

    def __init__(  # noqa: PLR0913 - anomalib's arguments
        self,
        backbone: str | None = None,
        pretrained: str | None = None,
        class_name: str | None = None,
        k_shot: int = 0,
        scales: tuple[int, ...] = (2, 3),
        few_shot_source: Path | str | None = None,
        pre_processor: nn.Module | bool = True,
        post_processor: nn.Module | bool = True,
        evaluator: Evaluator | bool = True,
        visualizer: Visualizer | bool = True,
    ) -> None:
        if backbone is None:
            super().__init__(
                class_name, k_shot, scales, few_shot_source, pre_processor, post_processor, evaluator, visualizer
            )
            return
        loaded = load_backbone(backbone, pretrained)
        if pre_processor is True:
            resize = Resize(list(loaded.image_size), antialias=True, interpolation=InterpolationMode.BICUBIC)
            normalize = Normalize(mean=list(loaded.mean), std=list(loaded.std))
            pre_processor = PreProcessor(transform=Compose([resize, normalize]))
        # WinClip's own constructor would download the CLIP that anomalib hard-codes.
        super(WinClip, self).__init__(pre_processor, post_processor, evaluator, visualizer)
        clip: Any = loaded.clip
        clip.visual = loaded.visual
        self.model = WinClipModelWithClip(clip, tuple(scales))
        self.class_name = class_name
        self.k_shot = k_shot
        self.few_shot_source = Path(few_shot_source) if few_shot_source else None
        self.is_setup = False

    def setup(self, stage: str) -> None:
        """Encode the prompts, but not before the class has a name.

        The benchmark pipeline first sets up a zero-shot model without data. anomalib's WinClip would then choose the
        class name "object" and keep it.
        """
        if self.class_name is not None or getattr(self.trainer, "datamodule", None) is not None:
            super().setup(stage)

    def collect_reference_images(self, dataloader: DataLoader) -> Tensor:
        """Return the training images that AnoVL takes as references, resized and normalized, shape (k_shot, 3, H, W).

        anomalib's WinClip takes the first ones of the shuffled data, and does not normalize them.
        """
        del dataloader
        files = choose(training_files(getattr(self.trainer, "datamodule", None)), self.k_shot, "the training data")
        return torch.stack(read_references(files, getattr(self.pre_processor, "transform", None)))


class BenchmarkWinClip(Benchmarked, WinClipWithClip):  # type: ignore[misc] # as in every anomalib model
    """WinClip for the benchmark: with a CLIP of the user's choice, and the data's category as class name.

    anomalib hard-codes WinClip's CLIP. With ``backbone``, WinClip runs on another one, loaded as AnoVL loads it: the
    two models can then have the same weights and differ only in their method. anomalib itself is not changed.

    Args:
        backbone: An open_clip architecture or ``anovl-demo``, as for AnoVL. Default: anomalib's own choice.
        pretrained: Its weights, as for AnoVL.
        **settings: WinClip's own arguments; those that are ``None`` are left out.

    Raises:
        BackboneError: If the CLIP cannot be loaded.
    """
