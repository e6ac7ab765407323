"""Test-time adaptation (arXiv 2308.15939, section 3.4) of one image, written out slowly in float64.

It shares nothing with the package. Gradients come from autograd; the optimizer is AdamW, written out by hand.

Shapes: N patches, C joint embedding width, K prompts.
"""

import math

import torch
from torch import Tensor

from tests.helpers.reference_model import softmax

BETAS, EPSILON, DECAY = (0.9, 0.999), 1e-8, 0.01


def probabilities(tokens: Tensor, states: Tensor) -> Tensor:
    """Return p(normal) and p(abnormal) of each token, (N, 2)."""
    lengths = torch.sqrt((tokens * tokens).sum(dim=1))
    cosines = [torch.einsum("nc,c->n", tokens, state) / lengths for state in states]
    return softmax(torch.stack(cosines, dim=1))


def loss(clean: Tensor, noisy: Tensor) -> Tensor:
    """Return the loss of one image from the probabilities (N, 2) of its clean and of its corrupted tokens."""
    patches = len(clean)
    entropy = -(clean * torch.log(clean)).sum() / patches
    labels = -torch.log(noisy[:, 1]) - torch.log(clean[:, 0])
    return entropy + 0.5 * labels.sum() / patches


def adapter(kind: str, tokens: Tensor, weight: Tensor, bias: Tensor, prompts: Tensor) -> Tensor:
    """Return g(x) = ½ x + ½ a(x / ‖x‖) of each token."""
    units = tokens / torch.sqrt((tokens * tokens).sum(dim=1, keepdim=True))
    hidden = torch.einsum("nc,oc->no", units, weight) + bias
    decoded = torch.einsum("nk,kc->nc", torch.tanh(hidden), prompts) if kind == "text" else hidden
    return 0.5 * tokens + 0.5 * decoded


class HandAdamW:
    """AdamW for one parameter."""

    def __init__(self, start: Tensor, learning_rate: float) -> None:
        self.value, self.learning_rate, self.count = start, learning_rate, 0
        self.first, self.second = torch.zeros_like(start), torch.zeros_like(start)

    def step(self, gradient: Tensor) -> None:
        self.count += 1
        self.first = BETAS[0] * self.first + (1 - BETAS[0]) * gradient
        self.second = BETAS[1] * self.second + (1 - BETAS[1]) * gradient**2
        first = self.first / (1 - BETAS[0] ** self.count)
        second = self.second / (1 - BETAS[1] ** self.count)
        decayed = self.value * (1 - self.learning_rate * DECAY)
        self.value = decayed - self.learning_rate * first / (torch.sqrt(second) + EPSILON)


def draw(
    rows: int, shape: tuple[int, int], steps: int, seed: int, noise_std: float
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Draw the weights (rows, C) and bias (rows), then the noise (N, C) of each step, from one generator."""
    generator = torch.Generator().manual_seed(seed)
    bound = 1 / math.sqrt(shape[1])
    weight = torch.empty(rows, shape[1]).uniform_(-bound, bound, generator=generator).double()
    bias = torch.empty(1, rows).uniform_(-bound, bound, generator=generator).double()
    noises = [noise_std * torch.randn(shape, generator=generator).double() for _ in range(steps)]
    return weight, bias[0], noises


def adapted(
    kind: str,
    tokens: Tensor,
    states: Tensor,
    prompts: Tensor,
    steps: int = 5,
    learning_rate: float = 1e-3,
    noise_std: float = 0.055,
    seed: int = 0,
) -> Tensor:
    """Tune a ``"text"`` or ``"linear"`` adapter on the tokens (N, C) of one image and return the adapted tokens."""
    tokens, states, prompts = tokens.double(), states.double(), prompts.double()
    rows = len(prompts) if kind == "text" else tokens.shape[1]
    weight, bias, noises = draw(rows, tuple(tokens.shape), steps, seed, noise_std)
    return tuned(kind, tokens, states, prompts, weight, bias, noises, learning_rate)


def tuned(
    kind: str,
    tokens: Tensor,
    states: Tensor,
    prompts: Tensor,
    weight: Tensor,
    bias: Tensor,
    noises: list[Tensor],
    learning_rate: float,
) -> Tensor:
    """Return tokens (N, C) adapted by one step for each noise, starting from the given weights."""
    parts = [HandAdamW(weight, learning_rate), HandAdamW(bias, learning_rate)]
    for noise in noises:
        values = [part.value.clone().requires_grad_() for part in parts]
        clean = probabilities(adapter(kind, tokens, *values, prompts), states)
        noisy = probabilities(adapter(kind, tokens + noise, *values, prompts), states)
        for part, gradient in zip(parts, torch.autograd.grad(loss(clean, noisy), values), strict=True):
            part.step(gradient)
    return adapter(kind, tokens, parts[0].value, parts[1].value, prompts)
