"""Tiny CLIPs with random weights, loaded through the same path as the real ones."""

import os
from pathlib import Path

import open_clip
import pytest
import torch
from safetensors.torch import save_file

os.environ.setdefault("HF_HUB_OFFLINE", "1")
ARCHITECTURES = Path(__file__).parent / "architectures"
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
