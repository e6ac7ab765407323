"""anomalib's models with the same metrics and the same clock, whatever they are."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import new_class
from typing import Any
from unittest.mock import patch

import torch
from anomalib import LearningType
from anomalib.data import Batch
from anomalib.models.components import AnomalibModule
from anomalib.models.image import WinClip
from anomalib.models.image.winclip import torch_model as winclip
from anomalib.pre_processing import PreProcessor
from lightning.pytorch.utilities.types import STEP_OUTPUT
from torchvision.transforms.v2 import Compose, InterpolationMode, Normalize, Resize

from anovl_plugin.benchmark.evaluator import PaperEvaluator
from anovl_plugin.config import to_builtin
from anovl_plugin.vision.backbone import Backbone, load_backbone

PACKAGE = "anovl_plugin.benchmark"


class Stopwatch:
    """Adds up the seconds between starts and stops; work that a GPU has been given is waited for.

    Attributes:
        seconds: the sum so far.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self._since: float | None = None

    def start(self) -> None:
        """Go on counting."""
        self._since = self._now()

    def stop(self) -> None:
        """Stop counting; nothing happens if nothing is being counted."""
        if self._since is not None:
            self.seconds += self._now() - self._since
            self._since = None

    @contextmanager
    def running(self) -> Iterator[None]:
        """Count while a block runs."""
        self.start()
        yield
        self.stop()

    @staticmethod
    def _now() -> float:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter()


class Benchmarked:
    """What the benchmark adds to a model; stands before the model's class among the bases.

    - The papers' metrics, on scores as the model gave them: no post-processor, no pictures.
    - ``seconds_per_image``: the model's test step, images being read, resized and normalised already. The first batch
      warms up and does not count; a test set of one batch is run twice and counted once.
    - ``setup_seconds``: what comes before the first image, once the weights are loaded: the text bank of a zero-shot
      model, and fitting, reading the training images included and validation left out.

    The pipeline of anomalib 2.7 takes the columns of its CSV from the first run, so all models of a file must have the
    same arguments. Those that a model does not have are ``null``, which means "not given" here, at any depth.

    Args:
        **settings: The model's own arguments; those that are ``None``, or mappings of nothing else, are left out.
    """

    def __init__(self, **settings: Any) -> None:
        self._setup_watch, self._test_watch, self._timed_images = Stopwatch(), Stopwatch(), 0
        super().__init__(
            **without_nulls(to_builtin(settings)), evaluator=PaperEvaluator(), post_processor=False, visualizer=False
        )

    @property
    def _learns_nothing(self) -> bool:
        return self.learning_type in {LearningType.ZERO_SHOT, LearningType.FEW_SHOT}

    @property
    def trainer_arguments(self) -> dict[str, Any]:
        """Those of the model; a zero-shot model is not validated, as there is no threshold to set."""
        return {**super().trainer_arguments, **({"limit_val_batches": 0} if self._learns_nothing else {})}

    def val_dataloader(self) -> list:
        """Offer no validation data of its own.

        The pipeline hands the data over as training data, so that a zero-shot model without this method stops it.
        """
        return []

    def setup(self, stage: str) -> None:
        """Count what the model does here: WinClip encodes its prompts."""
        with self._setup_watch.running():
            super().setup(stage)

    def on_fit_start(self) -> None:
        """Count fitting from here."""
        super().on_fit_start()
        self._setup_watch.start()

    def on_fit_end(self) -> None:
        """Count fitting up to here."""
        self._setup_watch.stop()
        super().on_fit_end()

    def on_validation_start(self) -> None:
        """Count what the model does here, as memory banks are filled at this point, but not the validation itself."""
        super().on_validation_start()
        self._setup_watch.stop()

    def on_validation_end(self) -> None:
        """Go on counting if this was a part of fitting."""
        super().on_validation_end()
        if self.trainer.state.fn == "fit":
            self._setup_watch.start()

    def on_test_start(self) -> None:
        """Count what the model does here: AnoVL builds its text bank."""
        with self._setup_watch.running():
            super().on_test_start()
        self._test_watch, self._timed_images = Stopwatch(), 0

    def test_step(self, batch: Batch, batch_idx: int, *args: Any, **kwargs: Any) -> STEP_OUTPUT:
        """Score a batch and count the time, unless it is the first of several."""
        single = sum(self.trainer.num_test_batches) == 1
        if single or batch_idx == 0:
            result = super().test_step(batch, batch_idx, *args, **kwargs)
        if single or batch_idx > 0:
            with self._test_watch.running():
                result = super().test_step(batch, batch_idx, *args, **kwargs)
            self._timed_images += len(batch.image)
        return result

    def on_test_epoch_end(self) -> None:
        """Log both times."""
        super().on_test_epoch_end()
        self.log("seconds_per_image", self._test_watch.seconds / self._timed_images)
        self.log("setup_seconds", self._setup_watch.seconds)


def without_nulls(settings: dict[str, Any]) -> dict[str, Any]:
    """Return settings without those that are ``None``, and without mappings that hold nothing else.

    Example:
        >>> without_nulls({"class_path": "GlobalScore", "init_args": {"views": None}, "steps": 0})
        {'class_path': 'GlobalScore', 'steps': 0}
    """
    parts = {name: without_nulls(value) if isinstance(value, dict) else value for name, value in settings.items()}
    return {name: value for name, value in parts.items() if value is not None and value != {}}


def benchmarked(model: type[AnomalibModule]) -> type[AnomalibModule]:
    """Make the benchmark's version of a model's class.

    Example:
        >>> from anomalib.models import Patchcore
        >>> benchmarked(Patchcore).__name__
        'BenchmarkPatchcore'
    """
    members = {"__module__": PACKAGE, "__doc__": f"{model.__name__}, made ready for the benchmark."}
    return new_class(f"Benchmark{model.__name__}", (Benchmarked, model), exec_body=lambda body: body.update(members))


class BenchmarkWinClip(Benchmarked, WinClip):
    """WinClip, made ready for the benchmark: with a CLIP of one's choice, and with a name for the class.

    Both are for the benchmark alone; no file of anomalib's is changed.

    anomalib writes WinClip's CLIP down as a constant. With ``backbone`` given, another one takes its place while the
    model is made, loaded as AnoVL loads it, so that both models have the same weights and the difference between them
    is the method.

    The pipeline first prepares a zero-shot model without any data, at which point WinClip settles for the class name
    "object" and keeps it. Here it waits for the data, and takes their category.

    Args:
        backbone: an open_clip architecture or ``anovl-demo``, as for AnoVL; anomalib's own choice if not given.
        pretrained: its weights, as for AnoVL.
        **settings: WinClip's own arguments; those that are ``None`` are left out.

    Raises:
        BackboneError: if the CLIP cannot be loaded.
    """

    def __init__(self, backbone: str | None = None, pretrained: str | None = None, **settings: Any) -> None:
        loaded = None if backbone is None else load_backbone(backbone, pretrained)
        with _clip_in_place(loaded):
            super().__init__(**settings)
        if loaded is not None:
            size = Resize(list(loaded.image_size), antialias=True, interpolation=InterpolationMode.BICUBIC)
            normalize = Normalize(mean=list(loaded.mean), std=list(loaded.std))
            self.pre_processor = PreProcessor(transform=Compose([size, normalize]))

    def setup(self, stage: str) -> None:
        """Encode the prompts as soon as the class has a name."""
        if self.class_name is not None or self.trainer.datamodule is not None:
            super().setup(stage)


@contextmanager
def _clip_in_place(loaded: Backbone | None) -> Iterator[None]:
    """Let WinClip's constructor meet the given CLIP where it asks open_clip for its own."""
    if loaded is None:
        yield
        return
    loaded.clip.visual = loaded.visual
    with patch.object(winclip.open_clip, "create_model_and_transforms", lambda *_, **__: (loaded.clip, None, None)):
        yield
