"""``run.yaml`` in the folder of each run: what its results were made with."""

import platform
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch import LightningModule, Trainer

from anovl_plugin.components.results.whole_file import whole_file
from anovl_plugin.components.runs.each_stage import EachStage
from anovl_plugin.components.thresholds.shown_thresholds import shown_thresholds, validated_thresholds
from anovl_plugin.hosts.lightning import is_preliminary

RECORD = "run.yaml"
_LIBRARIES = ("anovl_plugin", "anomalib", "lightning", "open_clip_torch", "torch")


class RunRecord(EachStage):
    """Writes ``run.yaml`` when a run starts, and again when it is finished."""

    def __init__(self) -> None:
        self._started = ""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Begin anew."""
        del trainer, pl_module, stage
        self._started = ""

    def start_batch(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the file before the first batch, with no time at which the run finished."""
        if not self._started:
            self._started = _now()
            self._write(trainer, pl_module, finished=None)

    def end_stage(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the file again, with the thresholds that a validation run has found."""
        self._write(trainer, pl_module, finished=_now())

    def _write(self, trainer: Trainer, pl_module: LightningModule, finished: str | None) -> None:
        if not trainer.is_global_zero or is_preliminary(trainer):
            return
        record = describe_run(trainer, pl_module) | {"started": self._started, "finished": finished}
        folder = Path(trainer.default_root_dir)
        folder.mkdir(parents=True, exist_ok=True)
        with whole_file(folder / RECORD) as unfinished:
            unfinished.write_text(yaml.safe_dump(record, sort_keys=False, allow_unicode=True), encoding="utf-8")


def describe_run(trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
    """Return as plain data what the results of a run are made with."""
    post_processor = getattr(pl_module, "post_processor", None)
    banks: Any = getattr(getattr(pl_module, "model", None), "text_banks", ())
    shown = shown_thresholds(post_processor, normalized=not trainer.validating)
    before = shown_thresholds(post_processor, normalized=False)
    own = validated_thresholds(pl_module)
    of_classes = {"image_of_class": own} if len(own) > 1 else {}
    return {
        "run": trainer.state.fn.value if trainer.state.fn is not None else None,
        "classes": {bank.class_name: bank.domain for bank in banks},
        "checkpoint": None if trainer.ckpt_path is None else str(trainer.ckpt_path),
        "thresholds": {"image": shown.image, "pixel": shown.pixel},
        "thresholds_before_normalization": {"image": before.image, "pixel": before.pixel} | of_classes,
        "settings": _plain(getattr(pl_module, "settings", {})),
        "versions": {name: version(name) for name in _LIBRARIES} | {"python": platform.python_version()},
    }


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def _now() -> str:
    return datetime.now().astimezone().isoformat(timespec="seconds")
