"""What gives the same result without the playground: a YAML file and a command line."""

import json
import shlex
from typing import Any

import yaml

from anovl_plugin.playground.session import Judged, threshold_arguments

YAML_NAME = "words.yaml"
_POST_PROCESSOR = "anovl_plugin.ZeroShotPostProcessor"


def to_yaml(judged: Judged, accelerator: str = "cpu") -> str:
    """Return a config that ``anomalib predict`` and ``anomalib test`` accept.

    Args:
        judged: The result to reproduce.
        accelerator: What the model runs on. Default: ``cpu``.
    """
    arguments: dict[str, Any] = judged.scored.settings.arguments()
    threshold = threshold_arguments(judged.threshold)
    if threshold:
        arguments["post_processor"] = {"class_path": _POST_PROCESSOR, "init_args": threshold}
    config = {
        "model": {"class_path": "AnoVL", "init_args": arguments},
        "trainer": {"accelerator": accelerator, "devices": 1},
    }
    command = join(["anomalib", "predict", "--config", YAML_NAME, "--data", str(judged.scored.path)])
    facts = f"score {float(judged.scored.score):.6f}, {judged.content.label}"
    head = f"# Saved by the playground: {facts}\n#\n#     {command}\n\n"
    return head + yaml.safe_dump(config, sort_keys=False, allow_unicode=True, width=110)


def to_command(judged: Judged, accelerator: str = "cpu") -> str:
    """Return an ``anomalib predict`` command in one line.

    Args:
        judged: The result to reproduce.
        accelerator: What the model runs on. Default: ``cpu``.
    """
    words = ["anomalib", "predict", "--model", "AnoVL"]
    for name, value in judged.scored.settings.arguments().items():
        text = json.dumps(value, ensure_ascii=False) if isinstance(value, dict) else str(value)
        words += [f"--model.{name}", text]
    threshold = threshold_arguments(judged.threshold)
    if threshold:
        words += ["--model.post_processor", _POST_PROCESSOR]
    for name, value in threshold.items():
        words += [f"--model.post_processor.{name}", json.dumps(value)]
    words += ["--trainer.accelerator", accelerator, "--trainer.devices", "1", "--data", str(judged.scored.path)]
    return join(words)


def join(words: list[str]) -> str:
    """Return words as one line of a shell; every word is one word of it, whatever it holds."""
    return shlex.join(words)
