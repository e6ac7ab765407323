"""Environments to install the plugin into, one of each kind per test module."""

import pytest

from tests.helpers.environments import Environment
from tests.helpers.registration_scenarios import make_surfaces


@pytest.fixture(scope="module")
def surfaces(tmp_path_factory):
    """Return a folder with a few of the demo's images."""
    return make_surfaces(tmp_path_factory.mktemp("surfaces"))


@pytest.fixture(scope="module")
def environment_without_plugin(tmp_path_factory):
    return Environment(tmp_path_factory.mktemp("without-plugin"))


@pytest.fixture(scope="module")
def environment_with_plugin(tmp_path_factory):
    return Environment(tmp_path_factory.mktemp("with-plugin")).install()


@pytest.fixture(scope="module")
def environment_with_editable_plugin(tmp_path_factory):
    return Environment(tmp_path_factory.mktemp("with-editable-plugin")).install("--editable")
