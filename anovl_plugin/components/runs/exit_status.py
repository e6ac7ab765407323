"""How a command ends if something went wrong: one line that says what, and status 1."""

import sys

from lightning.pytorch import Callback, LightningModule, Trainer

from anovl_plugin.components.checkpoints.settings import CheckpointError
from anovl_plugin.components.classes.image_classes import ClassError
from anovl_plugin.components.images.pre_processor import ImageTooLargeError
from anovl_plugin.components.images.unreadable import UnreadableImageError
from anovl_plugin.components.references.reference_images import ReferenceImageError
from anovl_plugin.components.results.prediction_table import PredictionTable
from anovl_plugin.components.runs.distributed import SplitError
from anovl_plugin.hosts.lightning import is_command
from anovl_plugin.scoring.reference_bank import TooFewReferencesError
from anovl_plugin.text.text_tower import PromptTooLongError
from anovl_plugin.vision.weights import BackboneError

# What the user can mend; the message says how.
_KINDS = (
    BackboneError,
    CheckpointError,
    ClassError,
    ImageTooLargeError,
    PromptTooLongError,
    ReferenceImageError,
    SplitError,
    TooFewReferencesError,
    UnreadableImageError,
)


class ExitStatus(Callback):
    """Ends a command with status 1 if images could not be read, or if an error's message says all there is to say.

    Programs go on, and get the error itself. Of any other error, a command shows where it was raised.

    Args:
        table: Table of the run, whose summary is printed before.
    """

    def __init__(self, table: PredictionTable) -> None:
        self._table = table

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """End the process if this was a command and images could not be read.

        Raises:
            SystemExit: With status 1, if so.
        """
        del pl_module, stage
        if self._table.summary is not None and self._table.summary.unreadable and is_command(trainer):
            raise SystemExit(1)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Print the error in one line and end the process if this was a command and the line says it all.

        Raises:
            SystemExit: With status 1, if so.
        """
        del pl_module
        if is_command(trainer) and isinstance(exception, _KINDS):
            print(f"error: {exception}", file=sys.stderr, flush=True)  # noqa: T201
            raise SystemExit(1)
