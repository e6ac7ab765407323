"""The callbacks of a run, in the order that they need."""

from collections.abc import Sequence
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

from anomalib.metrics import Evaluator
from anomalib.post_processing import PostProcessor
from anomalib.visualization import Visualizer
from lightning.pytorch import Callback, Trainer

from anovl_plugin.components.classes.class_metrics import ClassMetrics
from anovl_plugin.components.images.bit_depth import FullBitDepth
from anovl_plugin.components.images.file_names import FileNames
from anovl_plugin.components.images.unreadable import OnError, UnreadableImages
from anovl_plugin.components.pictures.display_copies import with_display_copies
from anovl_plugin.components.pictures.visualizer import ResultVisualizer
from anovl_plugin.components.results.explanation import with_explanations
from anovl_plugin.components.results.one_class import OneClassMetrics
from anovl_plugin.components.results.prediction_table import PredictionTable
from anovl_plugin.components.results.raw_maps import MapFormat, RawMaps
from anovl_plugin.components.runs.distributed import SameImages, UnpaddedEvaluationSampler
from anovl_plugin.components.runs.exit_status import ExitStatus
from anovl_plugin.components.runs.run_folder import NoEmptyFolders
from anovl_plugin.components.runs.run_record import RunRecord
from anovl_plugin.components.runs.validation import OptionalValidation, RandomHalves
from anovl_plugin.hosts.lightning import callbacks_of


class _Returned(NamedTuple):
    """What a trainer was given in the run before."""

    wanted: tuple
    callbacks: list[Callback]


_RETURNED: WeakKeyDictionary[Trainer, _Returned] = WeakKeyDictionary()


def run_callbacks(
    trainer: Trainer | None, components: Sequence[Callback], on_error: OnError | None, save_maps: MapFormat | None
) -> list[Callback]:
    """Return the callbacks that a model adds to those of a trainer: none if it has them from the run before.

    Args:
        trainer: The trainer; ``None`` if there is none yet.
        components: Pre-processor, post-processor, evaluator and visualizer, as far as the model has them.
        on_error: What an image that cannot be read does to a run.
        save_maps: Format of the raw maps to write; ``None`` to write none.
    """
    wanted = (*components, on_error, save_maps)
    if trainer is not None and trainer in _RETURNED:
        before, attached = _RETURNED[trainer], callbacks_of(trainer)
        if before.wanted == wanted and all(callback in attached for callback in before.callbacks):
            # If they were returned again, Lightning would say at length that they replace themselves.
            return []
    callbacks = _arrange(components, on_error, save_maps)
    if trainer is not None:
        _RETURNED[trainer] = _Returned(wanted, callbacks)
    return callbacks


def _arrange(components: Sequence[Callback], on_error: OnError | None, save_maps: MapFormat | None) -> list[Callback]:
    unreadable = UnreadableImages(on_error)
    table = PredictionTable(unreadable)
    processors: list[Callback] = []
    evaluators: list[Callback] = []
    visualizers: list[Callback] = []
    for component in components:
        kinds: dict[Any, list[Callback]] = {Evaluator: evaluators, Visualizer: visualizers}
        next((found for kind, found in kinds.items() if isinstance(component, kind)), processors).append(component)
    post_processor = next((each for each in processors if isinstance(each, PostProcessor)), None)
    return [
        SameImages(),
        # These see the loaders in this order.
        FileNames(),
        FullBitDepth(),
        UnpaddedEvaluationSampler(),
        unreadable,
        OptionalValidation(),
        RandomHalves(),
        RunRecord(),
        # These see each batch in this order: the clock stops before anything is measured or drawn.
        *with_explanations(processors, post_processor),
        table,
        OneClassMetrics(),
        *evaluators,
        ClassMetrics(),
        *([RawMaps(save_maps)] if save_maps else []),
        *_drawing(visualizers),
        NoEmptyFolders(),
        # Ends the process, so it comes last.
        ExitStatus(table),
    ]


def _drawing(visualizers: list[Callback]) -> list[Callback]:
    """Return visualizers, with 8-bit copies for those that cannot draw other files."""
    if all(isinstance(visualizer, ResultVisualizer) for visualizer in visualizers):
        return visualizers
    return with_display_copies(visualizers)
