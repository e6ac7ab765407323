"""Adaptations, tokens and text banks that several test modules use."""

import dataclasses

import pytest
import torch
from torch.nn import functional as F

from anovl_plugin.scoring.adaptation import Adaptation, LinearAdapter, TextAdapter
from anovl_plugin.text.text_bank import TextBank
from tests.helpers.random_tensors import noise

KINDS = {"text": TextAdapter, "linear": LinearAdapter}
both_kinds = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)


@dataclasses.dataclass
class Center(Adaptation):
    """Subtracts a part of the mean of an image's tokens."""

    strength: float = 1.0
    note: str | None = None

    def adapt(self, tokens, text_bank):
        assert text_bank.state_embeddings.shape == (2, tokens.shape[-1])
        return tokens - self.strength * tokens.mean(1, keepdim=True)


@dataclasses.dataclass
class Watch(Adaptation):
    """Checks the conditions under which it is called, and writes to all of its arguments."""

    batch_size: int = 2

    def __post_init__(self):
        self.sizes = []

    def adapt(self, tokens, text_bank):
        assert torch.is_grad_enabled()
        assert not torch.is_inference_mode_enabled()
        assert not torch.is_autocast_enabled("cpu")
        for tensor in (tokens, text_bank.state_embeddings, text_bank.prompt_embeddings):
            assert tensor.dtype == torch.float32
            assert tensor.grad_fn is None
            assert not tensor.requires_grad
            assert not tensor.is_inference()
        self.sizes.append(len(tokens))
        scale = torch.ones((), requires_grad=True)
        result = scale * tokens * text_bank.state_embeddings[1]
        result.square().sum().backward()
        for tensor in (tokens, text_bank.state_embeddings, text_bank.prompt_embeddings):
            tensor.zero_()
        return result


def make_text_bank(width=24, num_prompts=10, seed=1):
    """Return a text bank whose embeddings are about as close to each other as those of a CLIP."""
    base, bank = noise(width, seed=seed), TextBank()
    states = torch.stack([base, base + 0.1 * noise(width, seed=seed + 1)])
    bank.state_embeddings = F.normalize(states, dim=-1)
    bank.prompt_embeddings = F.normalize(base + noise(num_prompts, width, seed=seed + 2), dim=-1)
    return bank
