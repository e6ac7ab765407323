"""The example configurations: each is read by anomalib's command line as its header says."""

import shlex
from pathlib import Path

import pytest
from anomalib.cli.cli import AnomalibCLI

from anovl_plugin.prompts import DOMAIN_PHRASES

FOLDER = Path(__file__).parent.parent / "configs"
CONFIGS = sorted(FOLDER.glob("*.yaml"))


class ReadingCLI(AnomalibCLI):
    """Reads the command line and makes nothing of it."""

    def before_instantiate_classes(self):
        """Leave the configuration as it was read."""

    def instantiate_classes(self):
        """Make neither model nor data."""


def command_of(path):
    """Find the command line in the comment at the head of a file."""
    header = []
    for line in path.read_text().splitlines():
        if not line.startswith("#"):
            break
        header.append(line.lstrip("# "))
    commands = [line for line in header if line.startswith("anomalib ")]
    assert commands, f"{path.name} does not state its command"
    return shlex.split(commands[0])


def test_there_are_configs():
    assert "demo.yaml" in [path.name for path in CONFIGS]
    assert len(CONFIGS) == len(list(FOLDER.iterdir()))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_command_of_header(path, monkeypatch):
    monkeypatch.chdir(FOLDER.parent)
    command = command_of(path)
    assert f"configs/{path.name}" in command
    config = ReadingCLI(command[1:], run=False).config[command[1]]
    assert config.model.class_path.rsplit(".", 1)[-1] == "AnoVL"
    assert config.model.init_args.domain in {"auto", *DOMAIN_PHRASES}
    assert config.data is not None
