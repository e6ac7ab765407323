"""The text tower: what a truncated context must not change, what does not fit, and when a tower is in memory."""

import io
import itertools
import pickle
import sys
from copy import deepcopy
from functools import partial

import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from anovl_plugin.text.prompts import prompt_ensemble
from anovl_plugin.text.text_tower import LazyTextTower, TextTower
from anovl_plugin.vision.backbone import load_backbone
from tests.helpers import reference_model
from tests.helpers.architectures import TINY

WITHIN = {"atol": 1e-5, "rtol": 0}
PROMPTS = ["a photo", "an industrial photo of a normal metal_nut without flaw for visual inspection", "rust", ""]


def load_tower(name, weights):
    loaded = load_backbone(name, weights, image=False)
    return TextTower(loaded.clip, loaded.tokenizer)


@pytest.fixture(scope="module", params=TINY)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def tower(name, weights_of):
    return load_tower(name, weights_of(name))


@pytest.fixture
def square_tower(weights_of):
    return load_tower("tiny-square", weights_of("tiny-square"))


def record_lengths(tower):
    """Return a list that fills with the context lengths the tower encodes."""
    lengths, encode_text = [], tower.clip.encode_text
    tower.clip.encode_text = lambda tokens: lengths.append(tokens.shape[1]) or encode_text(tokens)
    return lengths


def test_embeddings_equal_open_clips_own(name, tower, weights_of):
    clip, tokenizer = reference_model.load(name, weights_of(name))
    with torch.no_grad():
        expected = clip.encode_text(tokenizer(PROMPTS))
    assert_close(tower.encode(PROMPTS), expected.float(), **WITHIN)


def test_truncated_context_gives_what_the_full_one_gives(tower):
    truncated, full = tower.encode(PROMPTS), tower.encode(PROMPTS, truncate_context=False)
    assert truncated.dtype == torch.float32
    assert_close(truncated, full, **WITHIN)


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_embeddings_of_an_ensemble_are_those_of_the_full_context(square_tower, batch_size):
    prompts = [each for state in prompt_ensemble("metal_nut") for each in state][::11]
    embeddings = square_tower.encode(prompts, batch_size)
    full = square_tower.encode(prompts, truncate_context=False)
    assert_close(F.normalize(embeddings, dim=-1), F.normalize(full, dim=-1), atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", ["tiny-square", "tiny-customtext"])
def test_context_is_really_truncated_and_afterwards_whole(name, weights_of):
    tower = load_tower(name, weights_of(name))
    lengths = record_lengths(tower)
    tower.encode(["a photo", "rust"])
    tower.encode(["a photo", "rust"], truncate_context=False)
    assert lengths == [4, 77]
    text = getattr(tower.clip, "text", tower.clip)
    assert text.positional_embedding.shape[0] == 77
    assert text.attn_mask.shape == (77, 77)


def test_each_batch_is_truncated_to_its_own_longest(square_tower):
    lengths = record_lengths(square_tower)
    square_tower.encode(["a photo of rust", "rust", "a photo", "dust"], batch_size=2)
    assert lengths == [3, 6]


def test_a_tower_that_is_not_causal_reads_the_whole_context(square_tower):
    square_tower.clip.attn_mask = None
    lengths = record_lengths(square_tower)
    square_tower.encode(["a photo", "rust"])
    assert lengths == [77]


@pytest.mark.parametrize("batch_size", [1, 3, 256])
def test_batch_size_does_not_matter(tower, batch_size):
    assert_close(tower.encode(PROMPTS, batch_size), tower.encode(PROMPTS), **WITHIN)


def test_a_sentence_is_encoded_once(square_tower):
    seen, encode_text = [], square_tower.clip.encode_text
    square_tower.clip.encode_text = lambda tokens: seen.append(len(tokens)) or encode_text(tokens)
    embeddings = square_tower.encode(["rust", "a photo", "rust", "rust"])
    assert seen == [2]
    assert torch.equal(embeddings[[2, 3]], embeddings[[0, 0]])
    assert not torch.equal(embeddings[0], embeddings[1])


# Progress.


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize(
    ("stream", "seconds", "rank", "is_shown"),
    [(Terminal, 2, 0, True), (Terminal, 0, 0, False), (io.StringIO, 2, 0, False), (Terminal, 2, 1, False)],
    ids=["shown", "quick", "no terminal", "another process"],
)
def test_progress_is_shown_on_a_terminal_when_it_takes_long(square_tower, monkeypatch, stream, seconds, rank, is_shown):
    err, clock = stream(), itertools.count(step=seconds)
    monkeypatch.setattr(sys, "stderr", err)
    monkeypatch.setattr("tqdm.std.time", lambda: float(next(clock)))
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: rank)
    square_tower.encode(PROMPTS, batch_size=1)
    assert ("prompts:" in err.getvalue()) is is_shown


# What does not fit.


class OtherTokenizer:
    """Tokenizes as those of the transformers package do: truncated without a word, padded with an id of its own."""

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer

    def __call__(self, prompts):
        tokens = self.tokenizer(prompts)
        return torch.where(tokens == 0, 7, tokens)


@pytest.mark.parametrize("other", [False, True])
@pytest.mark.parametrize("words", [76, 300])
def test_a_prompt_that_does_not_fit_is_an_error(square_tower, words, other):
    if other:
        square_tower.tokenizer = OtherTokenizer(square_tower.tokenizer)
    prompt = "rust " * words
    message = r"^the prompt 'rust .*' is longer than the 77 tokens this text tower reads; shorten it$"
    with pytest.raises(ValueError, match=message) as caught:
        square_tower.encode(["a photo", prompt])
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize("words", [74, 75])  # with the start and the end token 76 and 77
def test_a_prompt_that_just_fits(square_tower, words):
    assert square_tower.encode(["rust " * words]).shape == (1, 24)
    square_tower.tokenizer = OtherTokenizer(square_tower.tokenizer)
    assert square_tower.tokenize(["rust " * (words - 1)]).shape == (1, 77)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_embeddings_that_are_not_finite_are_an_error(square_tower, value):
    weights = square_tower.clip.token_embedding.weight
    weights[square_tower.tokenizer.encode("rust")] = value
    message = r"^the text tower gives NaN or infinite values for 1 of 2 prompts, first 'rust'; use undamaged weights$"
    with pytest.raises(ValueError, match=message):
        square_tower.encode(["a photo", "rust"])
    assert square_tower.encode(["a photo"]).isfinite().all()


# When it is in memory.


@pytest.fixture
def lazy(weights_of):
    return LazyTextTower(partial(load_tower, "tiny-square", weights_of("tiny-square")))


def test_a_lazy_tower_is_loaded_once_and_released(weights_of):
    loads = []

    def load():
        loads.append(load_tower("tiny-square", weights_of("tiny-square")))
        return loads[-1]

    lazy = LazyTextTower(load)
    assert not lazy.is_loaded
    assert not loads
    assert lazy.get() is lazy.get() is loads[0]
    assert lazy.is_loaded
    lazy.release()
    assert not lazy.is_loaded
    assert lazy.get() is loads[1]


def test_a_tower_that_was_loaded_elsewhere_is_not_loaded_again(square_tower):
    lazy = LazyTextTower(lambda: pytest.fail("the tower was loaded"))
    lazy.set_loaded(square_tower)
    assert lazy.is_loaded
    assert lazy.get() is square_tower


def test_a_failing_load_leaves_nothing_behind():
    def fail():
        msg = "no weights"
        raise OSError(msg)

    lazy = LazyTextTower(fail)
    for _ in range(2):
        with pytest.raises(OSError, match="no weights"):
            lazy.get()
        assert not lazy.is_loaded


@pytest.mark.parametrize("copy", [deepcopy, lambda lazy: pickle.loads(pickle.dumps(lazy))], ids=["deepcopy", "pickle"])  # noqa: S301
def test_copies_load_their_own(lazy, copy):
    tower = lazy.get()
    other = copy(lazy)
    assert lazy.is_loaded
    assert not other.is_loaded
    assert other.get() is not tower
    assert_close(other.get().encode(PROMPTS), tower.encode(PROMPTS), rtol=0, atol=0)


def test_pickles_are_small(lazy):
    lazy.get()
    assert len(pickle.dumps(lazy)) < 1000


def test_a_lazy_tower_is_not_a_submodule(lazy):
    module = torch.nn.Module()
    module.text_tower = lazy
    lazy.get()
    assert not list(module.parameters())
    assert not module.state_dict()
