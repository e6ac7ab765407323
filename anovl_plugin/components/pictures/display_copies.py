"""8-bit copies of image files with more than 8 bits a channel, for anomalib's visualizer to draw."""

from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from anomalib.data import ImageBatch
from anomalib.visualization import Visualizer
from lightning.pytorch import Callback, LightningModule, Trainer
from torchvision.transforms.v2.functional import to_pil_image

from anovl_plugin.components.images.image_file import read_header, read_image


def with_display_copies(callbacks: Sequence[Callback]) -> list[Callback]:
    """Return callbacks among which the visualizer, if there is one, draws 8-bit copies.

    Args:
        callbacks: Callbacks of the model.
    """
    if not any(isinstance(callback, Visualizer) for callback in callbacks):
        return list(callbacks)
    copies = DisplayCopies()
    return [BatchEndCallback(copies.lend), *callbacks, BatchEndCallback(copies.restore)]


class BatchEndCallback(Callback):
    """Calls a function with each test or prediction batch once the model has run.

    Args:
        function: Function to call; it may change the batch in place.
    """

    def __init__(self, function: Callable[[ImageBatch], None]) -> None:
        self._function = function

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: object,
        batch: ImageBatch,
        *indices: int,
    ) -> None:
        """Call the function with the batch."""
        del trainer, pl_module, outputs, indices
        self._function(batch)

    def on_predict_batch_end(self, *arguments: Any) -> None:
        """Call the function with the batch."""
        self.on_test_batch_end(*arguments)


class DisplayCopies:
    """Lends the visualizer 8-bit copies of files that Pillow would show as white, or not at all.

    anomalib's visualizer reopens a file to draw it, and names the picture after the end of the file's path. Copies
    therefore keep the path of the original below a temporary folder.
    """

    def __init__(self) -> None:
        self._folder: TemporaryDirectory | None = None
        self._paths: list[str] | None = None

    def lend(self, batch: ImageBatch) -> None:
        """Make a batch's paths of deep files point to 8-bit copies."""
        paths = batch.image_path or []
        if any(read_header(path).is_deep for path in paths):
            self._folder, self._paths = TemporaryDirectory(prefix="anovl-"), paths
            batch.image_path = [_copy_for_display(path, Path(self._folder.name)) for path in paths]

    def restore(self, batch: ImageBatch) -> None:
        """Restore the batch's own paths, and delete the copies."""
        if self._folder is not None:
            batch.image_path = self._paths
            self._folder.cleanup()
            self._folder = self._paths = None


def _copy_for_display(path: str, folder: Path) -> str:
    """Return the path of an 8-bit copy of a deep file, or ``path`` itself for any other file."""
    if not read_header(path).is_deep:
        return path
    absolute = Path(path).absolute()
    target = folder / absolute.relative_to(absolute.anchor)
    target.parent.mkdir(parents=True, exist_ok=True)
    # Readers go by the content; the suffix is kept because the picture is named after it.
    to_pil_image(read_image(path)).save(target, format="PNG", compress_level=1)
    return str(target)
