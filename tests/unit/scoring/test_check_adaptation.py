"""The check passes what keeps the contract, and each of its parts fails an adaptation that does not."""

import dataclasses
import random
import re

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import anovl_plugin
from anovl_plugin.scoring.adaptation import Adaptation, LinearAdapter, TextAdapter
from anovl_plugin.scoring.check_adaptation import check_adaptation
from tests.helpers.adaptations import Center

# Adaptations that keep the contract


@dataclasses.dataclass
class AwayFromNormal(Adaptation):
    """The example of the documentation."""

    strength: float = 0.1

    def adapt(self, tokens, text_bank):
        normal = text_bank.state_embeddings[0]
        return tokens - self.strength * (tokens @ normal).mean(1)[:, None, None] * normal


@pytest.mark.parametrize(
    "adaptation",
    [
        TextAdapter(),
        LinearAdapter(),
        TextAdapter(steps=20, learning_rate=0.01, seed=7, batch_size=1),
        LinearAdapter(steps=1, learning_rate=0, noise_std=0.5),
        Center(0.5, "mine"),
        AwayFromNormal(),
    ],
    ids=repr,
)
def test_good_adaptations_pass(adaptation):
    check_adaptation(adaptation)


@pytest.mark.parametrize(
    "mode",
    [torch.no_grad, torch.inference_mode, lambda: torch.autocast("cpu", torch.bfloat16)],
    ids=["no_grad", "inference_mode", "autocast"],
)
def test_the_check_can_run_in_any_mode(mode):
    with mode():
        check_adaptation(TextAdapter(steps=2))


def test_the_check_leaves_the_global_random_state_alone():
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()  # noqa: NPY002
    check_adaptation(TextAdapter(steps=2))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.random.get_state()[1].tolist() == before[1]  # noqa: NPY002
    assert random.getstate() == before[2]


# Adaptations that do not


@dataclasses.dataclass
class Broken(Adaptation):
    """Returns the tokens; each subclass breaks the contract in one way."""

    def adapt(self, tokens, text_bank):  # noqa: ARG002
        return tokens.clone()


class NoDataclass(Adaptation):
    def __init__(self, strength=1.0):
        self.strength = strength

    def adapt(self, tokens, text_bank):  # noqa: ARG002
        return tokens


@dataclasses.dataclass
class Forgets(Broken):
    strength: float = 1.0

    def __post_init__(self):
        self.strength *= 2


@dataclasses.dataclass
class NotPlain(Broken):
    weights: object = object


@dataclasses.dataclass
class BadBatchSize(Broken):
    batch_size: int = 0


class LosesPatch(Broken):
    def adapt(self, tokens, text_bank):  # noqa: ARG002
        return tokens[:, :-1]


class ReturnsNone(Broken):
    def adapt(self, tokens, text_bank):
        """Forget the return statement."""


class OtherDevice(Broken):
    def adapt(self, tokens, text_bank):  # noqa: ARG002
        return tokens.to("meta")


class OtherDtype(Broken):
    def adapt(self, tokens, text_bank):  # noqa: ARG002
        return tokens.double()


class Raises(Broken):
    def adapt(self, tokens, text_bank):  # noqa: ARG002
        msg = "two\nlines"
        raise RuntimeError(msg)


class DividesByZero(Broken):
    def adapt(self, tokens, text_bank):  # noqa: ARG002
        return tokens / 0


class Standardizes(Broken):
    """Not defined for one patch."""

    def adapt(self, tokens, text_bank):  # noqa: ARG002
        return tokens / tokens.std(1, correction=0, keepdim=True)


class NeedsTwoImages(Broken):
    def adapt(self, tokens, text_bank):  # noqa: ARG002
        return F.batch_norm(tokens.flatten(1), None, None, training=True).view_as(tokens)


class WritesTokens(Broken):
    def adapt(self, tokens, text_bank):  # noqa: ARG002
        return tokens.mul_(2)


class WritesBank(Broken):
    def adapt(self, tokens, text_bank):
        text_bank.state_embeddings.neg_()
        return tokens


class DrawsFromTorch(Broken):
    def adapt(self, tokens, text_bank):  # noqa: ARG002
        return tokens + torch.randn_like(tokens)


class SeedsTorch(Broken):
    def adapt(self, tokens, text_bank):  # noqa: ARG002
        torch.manual_seed(0)
        return tokens + torch.randn_like(tokens)


class DrawsFromNumpy(Broken):
    def adapt(self, tokens, text_bank):  # noqa: ARG002
        return tokens + np.random.rand()  # noqa: NPY002


class DrawsFromPython(Broken):
    def adapt(self, tokens, text_bank):  # noqa: ARG002
        return tokens + random.random()  # noqa: S311


class Counts(Broken):
    calls = 0

    def adapt(self, tokens, text_bank):  # noqa: ARG002
        self.calls += 1
        return tokens + self.calls


class FirstCounts(Broken):
    """Depends on an image's place."""

    def adapt(self, tokens, text_bank):  # noqa: ARG002
        return tokens + torch.arange(len(tokens))[:, None, None]


class MeanOfBatch(Broken):
    def adapt(self, tokens, text_bank):  # noqa: ARG002
        return tokens - tokens.mean(0, keepdim=True)


class DividesByBatch(Broken):
    def adapt(self, tokens, text_bank):  # noqa: ARG002
        return tokens / len(tokens)


class ClipsAtBatch(Broken):
    """Depends on the others only when they are large, and for one image on nothing."""

    def adapt(self, tokens, text_bank):  # noqa: ARG002
        return torch.where(tokens.std() > 2, tokens * 2, tokens)


class TurnsAutocastOn(Broken):
    def adapt(self, tokens, text_bank):  # noqa: ARG002
        with torch.autocast("cpu"):
            return (100 * tokens @ torch.eye(tokens.shape[-1])).float()


AGAIN = "adapt each image by itself$"


@pytest.mark.parametrize(
    ("adaptation", "error", "message"),
    [
        (NoDataclass(), TypeError, r"is not a dataclass whose fields are all its arguments, .*; put @dataclass above"),
        (NotPlain(), TypeError, r"weights of NotPlain is <class 'object'>, but a setting must be a number"),
        (Forgets(), ValueError, r"Forgets turns its settings {.*2.0}} into {.*4.0}}; keep each in a field unchanged$"),
        (BadBatchSize(), ValueError, r"batch_size of BadBatchSize is 0, but must be a whole number of at least 1"),
        (LosesPatch(), ValueError, r"LosesPatch fails for 4 images of 9 patches: .*returned shape \(4, 8, 32\)$"),
        (ReturnsNone(), ValueError, r"ReturnsNone fails for 4 images of 9 patches: .*but returned None$"),
        (OtherDevice(), ValueError, r"OtherDevice fails for .* on cpu, but returned a tensor on meta$"),
        (OtherDtype(), ValueError, r"^OtherDtype returns torch.float64 for float32 tokens; return float32$"),
        (Raises(), ValueError, r"^Raises fails for 4 images of 9 patches: RuntimeError: two lines$"),
        (DividesByZero(), ValueError, r"DividesByZero returns values that are not finite for 4 images of 9 patches"),
        (Standardizes(), ValueError, r"Standardizes returns values that are not finite for 4 images of 1 patch$"),
        (
            NeedsTwoImages(),
            ValueError,
            r"NeedsTwoImages fails for 1 image of 9 patches: ValueError: Expected more than",
        ),
        (WritesTokens(), ValueError, r"^WritesTokens changes its tokens in place; work on a copy, tokens.clone\(\)$"),
        (WritesBank(), ValueError, r"^WritesBank changes the text bank in place; work on a copy, text_bank.copy\(\)$"),
        (DrawsFromTorch(), ValueError, r"^DrawsFromTorch changes the global random state of torch; use a generator"),
        (SeedsTorch(), ValueError, r"^SeedsTorch changes the global random state of torch; use a generator"),
        (DrawsFromNumpy(), ValueError, r"^DrawsFromNumpy changes the global random state of numpy; use a generator"),
        (DrawsFromPython(), ValueError, r"^DrawsFromPython changes the global random state of random; use a generator"),
        (Counts(), ValueError, r"^Counts returns different results for the same tokens; keep no state, and seed each"),
        (FirstCounts(), ValueError, rf"^FirstCounts returns results that depend on the order of the images; {AGAIN}"),
        (MeanOfBatch(), ValueError, rf"^MeanOfBatch returns results that depend on how many images a batch.*; {AGAIN}"),
        (DividesByBatch(), ValueError, rf"^DividesByBatch returns results that depend on how many images .*; {AGAIN}"),
        (ClipsAtBatch(), ValueError, rf"^ClipsAtBatch returns results that depend on the other images .*; {AGAIN}"),
        (
            TurnsAutocastOn(),
            ValueError,
            r"^TurnsAutocastOn returns other results in inference mode and autocast; leave",
        ),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Adaptation) else "",
)
def test_each_broken_adaptation_fails_its_check(adaptation, error, message):
    with pytest.raises(error, match=message) as caught:
        check_adaptation(adaptation)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


def test_the_check_is_public():
    assert anovl_plugin.check_adaptation is check_adaptation


@pytest.mark.parametrize("value", [None, TextAdapter, "TextAdapter", torch.nn.Identity()], ids=repr)
def test_something_else_is_not_an_adaptation(value):
    message = f"^adaptation is {re.escape(repr(value))}, but must be an instance of a subclass of Adaptation$"
    with pytest.raises(TypeError, match=message):
        check_adaptation(value)
