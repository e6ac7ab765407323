"""Tests do not depend on chance, so that each fails or passes alone as it does after others, on any machine."""

import random

import hypothesis
import numpy as np
import pytest
import torch


@pytest.fixture(params=[0, 3])
def drawn_before(request):
    """Draw as many numbers as a fixture may have drawn, and return what is drawn first in its place."""
    first = torch.rand(1).item(), np.random.rand(), random.random()  # noqa: NPY002, S311
    torch.rand(request.param)
    return first


def test_random_numbers_are_those_of_a_test_that_runs_alone(drawn_before):
    torch.manual_seed(0)
    alone = torch.rand(1).item(), np.random.RandomState(0).rand(), random.Random(0).random()  # noqa: S311
    assert drawn_before == alone


@pytest.mark.parametrize("earlier", [0, 3])
def test_random_numbers_do_not_depend_on_fixtures_and_other_tests(drawn_before, earlier):
    assert (torch.rand(1).item(), np.random.rand(), random.random()) == drawn_before  # noqa: NPY002, S311
    torch.rand(earlier)


def test_examples_are_the_same_in_every_run_and_may_take_any_time():
    settings = hypothesis.settings.get_profile("tests")
    assert settings.derandomize
    assert settings.deadline is None
