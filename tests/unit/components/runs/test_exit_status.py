"""Which errors a command tells in one line, and which keep their traceback."""

import pytest
from lightning.pytorch import Trainer
from lightning.pytorch.cli import SaveConfigCallback

from anovl_plugin.components.checkpoints.settings import CheckpointError
from anovl_plugin.components.classes.image_classes import ClassError, by_mapping
from anovl_plugin.components.images.pre_processor import ImageTooLargeError
from anovl_plugin.components.images.unreadable import UnreadableImageError, UnreadableImages
from anovl_plugin.components.references.reference_images import ReferenceImageError, files_in_folder
from anovl_plugin.components.results.prediction_table import PredictionTable
from anovl_plugin.components.runs.exit_status import ExitStatus
from anovl_plugin.scoring.reference_bank import TooFewReferencesError
from anovl_plugin.text.text_tower import PromptTooLongError
from anovl_plugin.vision.weights import BackboneError

OURS = [
    BackboneError("..."),
    CheckpointError("..."),
    ClassError("..."),
    ImageTooLargeError("..."),
    PromptTooLongError("a photo of a nut", 8),
    ReferenceImageError("..."),
    TooFewReferencesError("..."),
    UnreadableImageError("..."),
]


@pytest.fixture
def status():
    return ExitStatus(PredictionTable(UnreadableImages()))


class Saving(SaveConfigCallback):
    """Marks a trainer as that of a command."""

    def __init__(self):
        """Save nothing."""


def trainer(*callbacks: object) -> Trainer:
    return Trainer(
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=list(callbacks),
    )


def raised_by(function: object, *arguments: object) -> BaseException:
    with pytest.raises(Exception) as caught:  # noqa: PT011 # any error is passed on
        function(*arguments)
    return caught.value


@pytest.mark.parametrize("error", OURS)
def test_a_command_tells_errors_of_the_package_in_one_line(status, error, capsys):
    with pytest.raises(SystemExit):
        status.on_exception(trainer(Saving()), None, error)
    assert capsys.readouterr().err == f"error: {error}\n"


@pytest.mark.parametrize(
    "error",
    [
        ValueError("nobody raised it"),
        raised_by(int, "x"),
        raised_by(by_mapping({"line1": "nut"}).of_path, None),
        RuntimeError("out of memory"),
        KeyboardInterrupt(),
    ],
)
def test_other_errors_keep_their_traceback(status, error, capsys):
    status.on_exception(trainer(Saving()), None, error)
    assert capsys.readouterr().err == ""


def test_a_command_prints_one_line_and_ends(status, tmp_path, capsys):
    error = raised_by(files_in_folder, tmp_path / "gone")
    with pytest.raises(SystemExit) as ended:
        status.on_exception(trainer(Saving()), None, error)
    assert ended.value.code == 1
    folder = tmp_path / "gone"
    message = f"error: few_shot_source is '{folder}', but there is no such folder; give a folder of reference images\n"
    assert capsys.readouterr().err == message


def test_a_program_gets_the_error_itself(status, capsys):
    status.on_exception(trainer(), None, ReferenceImageError("..."))
    status.on_exception(trainer(Saving()), None, RuntimeError("..."))
    assert capsys.readouterr().err == ""
