"""Tiny CLIPs with random weights, loaded through the same path as the real ones."""

import os
import sys
from pathlib import Path

# The hub's client reads this when it is imported.
if "--network" not in sys.argv:
    os.environ["HF_HUB_OFFLINE"] = "1"

import open_clip
import pytest
import torch
from safetensors.torch import save_file

ARCHITECTURES = Path(__file__).parent / "helpers" / "architectures"
TINY = ("tiny-square", "tiny-wide", "tiny-quickgelu", "tiny-layerscale", "tiny-customtext")


@pytest.fixture(scope="session", autouse=True)
def _tiny_architectures():
    open_clip.add_model_config(ARCHITECTURES)


@pytest.fixture(scope="session")
def weights_of(tmp_path_factory, _tiny_architectures):
    """Give a function from an architecture's name to a file of random weights for it."""
    folder = tmp_path_factory.mktemp("weights")

    def write(name: str) -> str:
        path = folder / f"{name}.safetensors"
        if not path.exists():
            with torch.random.fork_rng():
                torch.manual_seed(sum(name.encode()))
                clip = open_clip.create_model(name)
            save_file({key: value.contiguous() for key, value in clip.state_dict().items()}, path)
        return str(path)

    return write


def pytest_addoption(parser):
    parser.addoption("--network", action="store_true", help="run the tests that fetch pretrained weights from a hub")


def pytest_collection_modifyitems(config, items):
    missing = {}
    if not torch.cuda.is_available():
        missing["gpu"] = "needs a CUDA device"
    if not config.getoption("--network"):
        missing["network"] = "needs the hub; run with --network"
    for item in items:
        for name, reason in missing.items():
            if name in item.keywords:
                # A CUDA device or the hub cannot be had everywhere; the marker's own reason is shown by `pytest -rs`.
                item.add_marker(pytest.mark.skip(reason=reason))
