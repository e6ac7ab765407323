"""The callbacks of a run, in the order that they need."""

from collections.abc import Sequence
from typing import Any

from anomalib.metrics import Evaluator
from anomalib.visualization import Visualizer
from lightning.pytorch import Callback

from anovl_plugin.components.bit_depth import FullBitDepth
from anovl_plugin.components.class_metrics import ClassMetrics
from anovl_plugin.components.display_copies import with_display_copies
from anovl_plugin.components.distributed import UnpaddedEvaluationSampler
from anovl_plugin.components.file_names import FileNames
from anovl_plugin.components.one_class import OneClassMetrics
from anovl_plugin.components.prediction_table import ExitStatus, PredictionTable
from anovl_plugin.components.raw_maps import MapFormat, RawMaps
from anovl_plugin.components.run_record import RunRecord
from anovl_plugin.components.unreadable import OnError, UnreadableImages
from anovl_plugin.components.validation import OptionalValidation, RandomHalves
from anovl_plugin.components.visualizer import ResultVisualizer


def run_callbacks(
    components: Sequence[Callback], on_error: OnError | None, save_maps: MapFormat | None
) -> list[Callback]:
    """Return the callbacks of a model.

    Args:
        components: Pre-processor, post-processor, evaluator and visualizer, as far as the model has them.
        on_error: What an image that cannot be read does to a run.
        save_maps: Format of the raw maps to write; ``None`` to write none.
    """
    unreadable = UnreadableImages(on_error)
    table = PredictionTable(unreadable)
    processors: list[Callback] = []
    evaluators: list[Callback] = []
    visualizers: list[Callback] = []
    for component in components:
        kinds: dict[Any, list[Callback]] = {Evaluator: evaluators, Visualizer: visualizers}
        next((found for kind, found in kinds.items() if isinstance(component, kind)), processors).append(component)
    return [
        # These see the loaders in this order.
        FileNames(),
        FullBitDepth(),
        UnpaddedEvaluationSampler(),
        unreadable,
        OptionalValidation(),
        RandomHalves(),
        RunRecord(),
        # These see each batch in this order: the clock stops before anything is measured or drawn.
        *processors,
        table,
        ClassMetrics(),
        OneClassMetrics(),
        *evaluators,
        *([RawMaps(save_maps)] if save_maps else []),
        *_drawing(visualizers),
        # Ends the process, so it comes last.
        ExitStatus(table),
    ]


def _drawing(visualizers: list[Callback]) -> list[Callback]:
    """Return visualizers, with 8-bit copies for those that cannot draw other files."""
    if all(isinstance(visualizer, ResultVisualizer) for visualizer in visualizers):
        return visualizers
    return with_display_copies(visualizers)
