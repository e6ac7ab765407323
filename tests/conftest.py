"""Tiny CLIPs with random weights, loaded through the same path as real ones, models on them, and small datasets."""

import os
import random

import hypothesis
import pytest

from tests.helpers.architectures import ARCHITECTURES
from tests.helpers.chromium import CHROMIUM, DRIVER

# The same code passes or fails whenever it is tested, so examples are the same in every run, and may take any time. For
# others, run pytest with --hypothesis-profile other.
hypothesis.settings.register_profile("tests", hypothesis.settings.default, deadline=None, derandomize=True)
hypothesis.settings.register_profile("other", hypothesis.settings.default, deadline=None, derandomize=False)
hypothesis.settings.load_profile("tests")


def pytest_addoption(parser):
    parser.addoption("--network", action="store_true", help="run the tests that fetch pretrained weights from a hub")


def pytest_configure(config):
    # The hub's client reads this when it is imported, which is why nothing above imports it.
    if not config.getoption("--network"):
        os.environ["HF_HUB_OFFLINE"] = "1"
    # The threads that receive workers' warnings import the modules of these warnings. Two threads that import torch at
    # once end in a deadlock, so it is imported here.
    if getattr(config.option, "numprocesses", None) and not hasattr(config, "workerinput"):
        import lightning.pytorch  # noqa: F401


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup():
    _seed()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_call():
    _seed()


def _seed():
    """Make the random numbers of a test those that it has alone, whatever tests its process ran before."""
    import numpy as np
    import torch

    for seed in (torch.manual_seed, np.random.seed, random.seed):
        seed(0)


def pytest_collection_modifyitems(config, items):
    import torch

    missing = {}
    if not torch.cuda.is_available():
        missing["gpu"] = "needs a CUDA device"
    if not config.getoption("--network"):
        missing["network"] = "needs the hub; run with --network"
    if CHROMIUM is None or DRIVER is None:
        missing["browser"] = "needs Chromium and its driver (apt-get install chromium chromium-driver)"
    for item in items:
        for name, reason in missing.items():
            if name in item.keywords:
                # A GPU, the hub or a browser cannot be had everywhere; `pytest -rs` shows which is missing.
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(autouse=True)
def _empty_cache(tmp_path_factory, monkeypatch):
    """Give each test, and the processes it starts, an empty cache of text banks."""
    monkeypatch.setenv("ANOVL_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(scope="session", autouse=True)
def _session_cache(tmp_path_factory):
    """Keep fixtures of a wider scope from the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ANOVL_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session", autouse=True)
def _tiny_architectures():
    import open_clip

    open_clip.add_model_config(ARCHITECTURES)


@pytest.fixture(scope="session")
def weights_of(tmp_path_factory, _tiny_architectures):
    """Return a function from an architecture's name to a file of random weights for it."""
    import open_clip
    import torch
    from safetensors.torch import save_file

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


@pytest.fixture(scope="session")
def make(weights_of):
    """Return a function that creates a tiny AnoVL without a visualizer."""
    from anovl_plugin import AnoVL

    def make_model(backbone: str = "tiny-square", **options: object) -> AnoVL:
        return AnoVL(backbone, pretrained=weights_of(backbone), **{"visualizer": False, **options})

    return make_model


@pytest.fixture
def replace_loading(monkeypatch):
    """Return a function that makes models call another function instead of ``load_backbone``."""

    def replace(load) -> None:
        for module in ("banked_clip", "vision.image_tower"):
            monkeypatch.setattr(f"anovl_plugin.{module}.load_backbone", load)

    return replace


@pytest.fixture(scope="session")
def bottles(tmp_path_factory):
    """Return a function that creates a datamodule of one small MVTec AD tree, which no test changes."""
    from tests.helpers import image_datasets

    root = image_datasets.write_mvtec(tmp_path_factory.mktemp("bottles"))
    return lambda: image_datasets.MVTecAD(root, "bottle", eval_batch_size=4, num_workers=0)


@pytest.fixture(scope="session")
def bare(tmp_path_factory):
    """Return a folder of images without labels, which no test changes."""
    from tests.helpers import image_datasets

    return image_datasets.write_bare(tmp_path_factory.mktemp("bare") / "shots")
