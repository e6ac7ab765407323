"""``predictions.csv`` and ``predictions.json`` of each run, and the summary at its end."""

import json
import logging
from pathlib import Path
from time import perf_counter

from anomalib.data import ImageBatch
from lightning.pytorch import LightningModule, Trainer

from anovl_plugin.components.images.file_names import FileNames
from anovl_plugin.components.images.unreadable import UnreadableImages
from anovl_plugin.components.results.coco import assemble
from anovl_plugin.components.results.predictions import (
    ABNORMAL,
    NORMAL,
    UNREADABLE,
    AppendedFile,
    Prediction,
    RunFacts,
    predictions_of,
    read_csv,
    to_csv,
)
from anovl_plugin.components.results.summary import Summary, describe, summarize
from anovl_plugin.components.results.whole_file import whole_file
from anovl_plugin.components.runs.each_stage import EachStage
from anovl_plugin.components.thresholds.shown_thresholds import class_names_of, thresholds_of, validated_thresholds
from anovl_plugin.hosts.lightning import is_command, is_preliminary

TABLE, COCO, LINES = "predictions.csv", "predictions.json", "predictions.json.lines"

logger = logging.getLogger(__name__)


class PredictionTable(EachStage):
    """Writes what a run found on each image, as the run goes, and says at the end where it is.

    All processes of a run append to the same files, so that each image is there once. The silent validation before a
    test or a prediction has no table. Of a validation, scores are those before normalization, and labels are filled in
    at the end, when the threshold is known.

    Args:
        unreadable: Callback that meets the images that cannot be read.

    Attributes:
        summary: Counts and highest images of the run, in its first process, once it is done.
    """

    def __init__(self, unreadable: UnreadableImages) -> None:
        self._unreadable = unreadable
        self._folder: Path | None = None
        self._files: dict[str, AppendedFile] = {}
        self._started = 0.0
        self._told = 0
        self.summary: Summary | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Begin the files, unless this is the silent validation before a run."""
        del pl_module
        self._close()
        self._folder, self.summary, self._told = None, None, 0
        if stage == "fit" or is_preliminary(trainer):
            return
        self._folder = Path(trainer.default_root_dir)
        if trainer.is_global_zero:
            self._folder.mkdir(parents=True, exist_ok=True)
            (self._folder / TABLE).write_text(to_csv([], header=True), encoding="utf-8")
            (self._folder / LINES).write_text("", encoding="utf-8")
            (self._folder / COCO).unlink(missing_ok=True)

    def start_batch(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        del trainer, pl_module
        self._started = perf_counter()

    def end_batch(self, trainer: Trainer, pl_module: LightningModule, batch: ImageBatch) -> None:
        """Append the images of a batch."""
        if self._folder is None:
            return
        if batch.pred_score is not None:
            # Waits for a GPU.
            batch.pred_score.cpu()
        is_taken_over = getattr(batch, "is_taken_over", False)
        milliseconds = None if is_taken_over else 1000 * (perf_counter() - self._started) / len(batch)
        # Those of a validation are known at its end.
        unknown: list[float | None] = [None] * len(batch)
        limits = unknown if trainer.validating else [each.image for each in thresholds_of(pl_module, batch)]
        facts = RunFacts(class_names_of(pl_module, batch), limits, milliseconds)
        self._append(trainer, predictions_of(batch, facts))

    def end_stage(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Complete the files once all processes are done."""
        if self._folder is None:
            return
        self._append(trainer, [])
        self._close()
        trainer.strategy.barrier("predictions")
        if trainer.is_global_zero:
            if trainer.validating:
                _fill_in_labels(self._folder / TABLE, validated_thresholds(pl_module))
            if trainer.world_size > 1:
                _drop_repeated(self._folder / TABLE)
            self._assemble(trainer)
            self.summary = summarize(self._folder / TABLE)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Say what was found, and where it is."""
        del pl_module, stage
        summary = self.summary
        if self._folder is None or summary is None:
            return
        names = FileNames.of(trainer)
        short = {path: str(names.name_of(path)) for _, path, _ in summary.highest}
        text = describe(summary, self._folder, short)
        if is_command(trainer) or trainer.progress_bar_callback is not None:
            print(text, flush=True)  # noqa: T201
        else:
            logger.info("%s", text)
            for reason in summary.unreadable:
                logger.error("%s", reason)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Complete the files of a run that is interrupted, as far as it got."""
        del pl_module, exception
        if self._folder is None or not (self._folder / LINES).exists():
            return
        self._append(trainer, [])
        self._close()
        if trainer.is_global_zero:
            self._assemble(trainer)

    def _append(self, trainer: Trainer, predictions: list[Prediction]) -> None:
        assert self._folder is not None
        names = FileNames.of(trainer)
        failed = self._unreadable.found[self._told :]
        self._told += len(failed)
        rows = [prediction.to_row() for prediction in predictions]
        rows += [Prediction(path, label=UNREADABLE, error=reason).to_row() for path, reason in failed]
        if rows:
            self._file(TABLE).append(to_csv(rows))
        lines = [
            each.to_coco(names.name_of(each.image_path).as_posix() if each.image_path else "") for each in predictions
        ]
        if lines and not trainer.validating:
            self._file(LINES).append("".join(f"{json.dumps(line)}\n" for line in lines))

    def _file(self, name: str) -> AppendedFile:
        assert self._folder is not None
        if name not in self._files:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._files[name] = AppendedFile(self._folder / name)
        return self._files[name]

    def _close(self) -> None:
        for file in self._files.values():
            file.close()
        self._files.clear()

    def _assemble(self, trainer: Trainer) -> None:
        """Make the COCO file of its lines, which a killed run leaves behind."""
        assert self._folder is not None
        if not trainer.validating:
            folder = FileNames.of(trainer).folder
            info = {"description": "Regions that AnoVL found abnormal", "image_folder": str(folder or "")}
            assemble(self._folder / LINES, self._folder / COCO, info)
        (self._folder / LINES).unlink()


def _fill_in_labels(table: Path, thresholds: dict[str, float | None]) -> None:
    """Add thresholds and labels to the rows of a validation.

    Args:
        table: The table.
        thresholds: Threshold of each class.
    """
    rows: list[dict[str, object]] = []
    for row in read_csv(table):
        threshold = thresholds.get(row["class"])
        if row["score"] and threshold is not None:
            label = ABNORMAL if float(row["score"]) > threshold else NORMAL
            rows.append({**row, "threshold": f"{threshold:.6f}", "label": label})
        else:
            rows.append({**row})
    _rewrite(table, rows)


def _drop_repeated(table: Path) -> None:
    """Sort a table by path and keep each image once; processes that share images out may have got some twice."""
    rows = {row["image_path"] or str(index): row for index, row in enumerate(read_csv(table))}
    _rewrite(table, [{**rows[path]} for path in sorted(rows)])


def _rewrite(table: Path, rows: list[dict[str, object]]) -> None:
    with whole_file(table) as unfinished:
        unfinished.write_text(to_csv(rows, header=True), encoding="utf-8", newline="")
