"""anomalib's models with the same metrics and the same clock."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from inspect import signature
from types import new_class
from typing import Any, cast

import torch
from anomalib import LearningType
from anomalib.data import Batch
from anomalib.models.components import AnomalibModule
from lightning.pytorch.utilities.types import STEP_OUTPUT
from torch import Tensor

from anovl_plugin.benchmark.evaluator import PaperEvaluator
from anovl_plugin.components.mixin import ModelMixin
from anovl_plugin.config import to_builtin
from anovl_plugin.lightning_model import AnoVL
from anovl_plugin.scoring.memory import unfragmented_memory

PACKAGE = "anovl_plugin.benchmark"


class Stopwatch:
    """Adds up the seconds between starts and stops, each taken when the GPU has finished its work.

    Attributes:
        seconds: The sum so far.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self._since: float | None = None

    def start(self) -> None:
        """Start or continue the clock."""
        self._since = self._now()

    def stop(self) -> None:
        """Stop the clock if it runs."""
        if self._since is not None:
            self.seconds += self._now() - self._since
            self._since = None

    @contextmanager
    def running(self) -> Iterator[None]:
        """Run the clock in a ``with`` block."""
        self.start()
        yield
        self.stop()

    @staticmethod
    def _now() -> float:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter()


class Benchmarked(ModelMixin):
    """Mixin that adds the benchmark's metrics and clock to a model; it must precede the model in the MRO.

    - The papers' metrics, on the model's raw scores: no post-processor, no pictures.
    - ``seconds_per_image``: the model's test step, without reading, resizing and normalizing images. The first batch is
      a warm-up and does not count; a test set of one batch is run twice and counted once.
    - ``setup_seconds``: the time between loading the weights and the first image: building the text bank of a zero-shot
      model; fitting any other, which includes reading the training images but not validation.

    The pipeline of anomalib 2.7 takes the columns of its CSV from the first run, so all models of a file must have the
    same arguments. Those that a model does not have are ``null``, which means "not given" here, at any depth.

    Args:
        **settings: The model's own arguments; those that are ``None``, or mappings of nothing else, are left out.
        k_shot: Number of reference images of a model that takes some. Any other is fitted to so many training batches.
            Default: the model's own, or all batches.
    """

    def __init__(self, k_shot: int | None = None, **settings: Any) -> None:
        self._setup_watch, self._test_watch, self._timed_images = Stopwatch(), Stopwatch(), 0
        models = [
            kind
            for kind in type(self).__mro__
            if issubclass(kind, AnomalibModule) and not issubclass(kind, Benchmarked)
        ]
        has_shots = any("k_shot" in signature(kind).parameters for kind in models)
        self._training_batches = None if has_shots else k_shot
        own = without_nulls(to_builtin(settings) | ({"k_shot": k_shot} if has_shots else {}))
        super().__init__(**own, evaluator=PaperEvaluator(), post_processor=False, visualizer=False)

    @property
    def _needs_fitting(self) -> bool:
        return self.learning_type not in {LearningType.ZERO_SHOT, LearningType.FEW_SHOT}

    @property
    def trainer_arguments(self) -> dict[str, Any]:
        """The model's own arguments; a zero-shot model is not validated, because no threshold is set."""
        own = super().trainer_arguments  # type: ignore[safe-super] # the model's
        if not self._needs_fitting:
            return {**own, "limit_val_batches": 0}
        return own if self._training_batches is None else {**own, "limit_train_batches": self._training_batches}

    def val_dataloader(self) -> list:
        """Return no validation data.

        The pipeline passes the data module as training data, and fails for a zero-shot model without this method.
        """
        return []

    def setup(self, stage: str) -> None:
        """Time the model's own setup, in which WinClip encodes its prompts."""
        with self._setup_watch.running():
            super().setup(stage)

    def on_fit_start(self) -> None:
        """Start timing the fit."""
        super().on_fit_start()
        self._setup_watch.start()

    def on_fit_end(self) -> None:
        """Stop timing the fit."""
        self._setup_watch.stop()
        super().on_fit_end()

    def on_validation_start(self) -> None:
        """Time the model's own part, in which memory banks are filled, but not the validation itself."""
        with unfragmented_memory():
            super().on_validation_start()
        self._setup_watch.stop()

    def on_validation_end(self) -> None:
        """Continue timing if this validation was part of a fit."""
        super().on_validation_end()
        if self.trainer.state.fn == "fit":
            self._setup_watch.start()

    def on_test_start(self) -> None:
        """Time the model's own part, in which AnoVL builds its text bank."""
        with self._setup_watch.running():
            super().on_test_start()
        self._test_watch, self._timed_images = Stopwatch(), 0

    def test_step(self, batch: Batch, batch_idx: int, *args: Any, **kwargs: Any) -> STEP_OUTPUT:
        """Score a batch, and time it unless it is the first of several."""
        single = sum(self.trainer.num_test_batches) == 1
        if single or batch_idx == 0:
            result = super().test_step(batch, batch_idx, *args, **kwargs)
        if single or batch_idx > 0:
            with self._test_watch.running():
                result = super().test_step(batch, batch_idx, *args, **kwargs)
            self._timed_images += len(cast("Tensor", batch.image))
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
    """Return the benchmark's version of a model class.

    Example:
        >>> from anomalib.models import Patchcore
        >>> benchmarked(Patchcore).__name__
        'BenchmarkPatchcore'
    """
    members = {"__module__": PACKAGE, "__doc__": f"{model.__name__}, for the benchmark."}
    return new_class(f"Benchmark{model.__name__}", (Benchmarked, model), exec_body=lambda body: body.update(members))


class BenchmarkAnoVL(Benchmarked, AnoVL):  # type: ignore[misc] # AnoVL's own test_step ignores more arguments
    """AnoVL for the benchmark: its CLIP is loaded before the clock starts, like the weights of the other models.

    Args:
        **settings: AnoVL's own arguments; those that are ``None`` are left out.
    """

    def setup(self, stage: str) -> None:
        """Load the CLIP."""
        self.load()
        super().setup(stage)
