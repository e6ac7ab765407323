"""The callbacks of a run and their order."""

from anomalib.metrics import Evaluator
from anomalib.visualization import ImageVisualizer
from lightning.pytorch import Trainer

from anovl_plugin import AntialiasedPreProcessor, ResultVisualizer, ZeroShotPostProcessor
from anovl_plugin.components.images.file_names import FileNames
from anovl_plugin.components.pictures.display_copies import BatchEndCallback
from anovl_plugin.components.results.one_class import OneClassMetrics
from anovl_plugin.components.results.prediction_table import PredictionTable
from anovl_plugin.components.results.raw_maps import RawMaps
from anovl_plugin.components.runs.exit_status import ExitStatus
from anovl_plugin.components.runs.run_callbacks import run_callbacks
from anovl_plugin.components.runs.run_folder import NoEmptyFolders


def components(visualizer: object) -> list:
    return [AntialiasedPreProcessor(), ZeroShotPostProcessor(), Evaluator(), visualizer]


def place(callbacks: list, kind: type) -> int:
    (index,) = [index for index, callback in enumerate(callbacks) if isinstance(callback, kind)]
    return index


def test_batches_are_scored_then_listed_then_measured_then_drawn():
    callbacks = run_callbacks(None, components(ResultVisualizer()), None, "png")
    kinds = (
        FileNames,
        AntialiasedPreProcessor,
        ZeroShotPostProcessor,
        PredictionTable,
        OneClassMetrics,
        Evaluator,
        RawMaps,
        ResultVisualizer,
        NoEmptyFolders,
        ExitStatus,
    )
    places = [place(callbacks, kind) for kind in kinds]
    assert places == sorted(places)
    assert places[-1] == len(callbacks) - 1


def test_maps_are_written_on_request_only():
    assert not any(
        isinstance(each, RawMaps) for each in run_callbacks(None, components(ResultVisualizer()), None, None)
    )


def test_copies_are_lent_to_a_visualizer_of_anomalib_only():
    with_ours = run_callbacks(None, components(ResultVisualizer()), None, None)
    with_theirs = run_callbacks(None, components(ImageVisualizer()), None, None)
    lending = [sum(isinstance(each, BatchEndCallback) for each in callbacks) for callbacks in (with_ours, with_theirs)]
    assert lending[1] - lending[0] == 2
    index = place(with_theirs, ImageVisualizer)
    assert isinstance(with_theirs[index - 1], BatchEndCallback)
    assert isinstance(with_theirs[index + 1], BatchEndCallback)


def test_a_trainer_keeps_its_callbacks():
    trainer = Trainer(accelerator="cpu", devices=1, logger=False, enable_checkpointing=False)
    own = components(ResultVisualizer())
    first = run_callbacks(trainer, own, None, None)
    trainer.callbacks.extend(first)
    assert run_callbacks(trainer, own, None, None) == []
    assert run_callbacks(trainer, own, "stop", None)
    assert run_callbacks(trainer, components(ResultVisualizer()), None, None)
    trainer.callbacks.clear()
    assert run_callbacks(trainer, own, None, None)
