"""The example configurations: anomalib's command line reads each as its header says."""

import shlex
from pathlib import Path

import pytest
import yaml

from anovl_plugin.demo.datamodule import make_category
from anovl_plugin.text.prompts import Prompts
from tests.helpers.commands import ReadingCLI, run

FOLDER = Path(__file__).parents[2] / "configs"
CONFIGS = sorted(FOLDER.glob("*.yaml"))


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
    # The benchmark's are for another command and have their own tests.
    assert {*CONFIGS, FOLDER / "benchmark"} == {*FOLDER.iterdir()}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_command_of_header(path, monkeypatch):
    monkeypatch.chdir(FOLDER.parent)
    command = command_of(path)
    assert f"configs/{path.name}" in command
    config = ReadingCLI(command[1:], run=False).config[command[1]]
    assert config.model.class_path.rsplit(".", 1)[-1] == "AnoVL"
    assert config.model.init_args.domain in {"auto", *Prompts.load().domains}
    assert config.data is not None


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Return a Folder of normal and cracked bricks without masks."""
    root = tmp_path_factory.mktemp("images")
    make_category(root, "brick")
    return root / "brick"


def test_whole_method_on_data_of_ones_own(images, tmp_path):
    data = (
        "--data Folder --data.name bricks --data.root {images} --data.normal_dir train/good "
        "--data.abnormal_dir test/crack --data.normal_test_dir test/good --data.num_workers 0"
    )
    command = f"anomalib test --config {FOLDER}/anovl_tta.yaml --model.backbone anovl-demo {data}"
    done = run(shlex.split(command.format(images=images)), tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "image_AUROC" in done.stdout
    (saved,) = tmp_path.rglob("config.yaml")
    model = yaml.safe_load(saved.read_text())["model"]
    assert model["init_args"]["image_score"]["init_args"]["views"] == "paper"
    assert model["init_args"]["adaptation"]["class_path"] == "anovl_plugin.TextAdapter"
    assert len(list(tmp_path.rglob("images/*/*.png"))) == 13
