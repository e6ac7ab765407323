"""Test-time adaptation (AnoVL, section 3.4): an image's patch tokens are changed before they are scored.

An :class:`Adaptation` takes patch tokens and the text bank and gives adapted tokens. The paper's tune a small adapter
g with residual ½ for each image, on the model's own soft labels and on tokens corrupted with noise:

    g(x) = ½ x + ½ a(x / ‖x‖)
    loss = mean H(p(x)) + ½ mean (−log p_abnormal(x + n) − log p_normal(x)),   n ~ N(0, σ²)

with means over the patches of the image, p the softmax of the two cosines, and H its entropy in nats.

Shapes: B images, N patches, C joint embedding width, K prompts.
"""

import dataclasses
import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pkgutil import resolve_name
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.optim import AdamW

from anovl_plugin.scoring.scores import cosine_difference
from anovl_plugin.text.text_bank import TextBank


class Adaptation(ABC):
    """What adapts the patch tokens of an image: the place to hook in one of your own.

    A subclass is a dataclass whose fields are its settings, numbers and strings, so that command line, YAML and
    checkpoints can hold them. :meth:`adapt` is called outside of inference mode, with gradients enabled and autocast
    off, on float32 tensors that may be kept for a backward pass; its result is detached. What is not finite in it is
    put back to what it was, image by image.

    Attributes:
        batch_size: the most images that :meth:`adapt` is given at once; larger batches are worked through in parts.

    Example:
        >>> @dataclasses.dataclass
        ... class Center(Adaptation):
        ...     strength: float = 1.0
        ...
        ...     def adapt(self, tokens, text_bank):
        ...         return tokens - self.strength * tokens.mean(1, keepdim=True)
        >>> Center(0.5).adapt(torch.tensor([[[1.0], [3.0]]]), text_bank=None)
        tensor([[[0.],
                 [2.]]])
    """

    batch_size: int = 8

    @abstractmethod
    def adapt(self, tokens: Tensor, text_bank: TextBank) -> Tensor:
        """Adapt patch tokens.

        Args:
            tokens: local tokens, not normalised, shape (B, N, C).
            text_bank: the states (2, C) and prompts (K, C) to compare them with.

        Returns:
            Adapted tokens, shape (B, N, C).
        """


def adapt_tokens(adaptation: Adaptation, tokens: Tensor, text_bank: TextBank) -> Tensor:
    """Adapt the tokens of a batch under any mode of torch's: inference mode, no_grad, autocast.

    Args:
        adaptation: what to do.
        tokens: local tokens of any precision, not normalised, shape (B, N, C).
        text_bank: the class's text bank.

    Returns:
        Adapted tokens, float32, without gradient, shape (B, N, C). An image whose adaptation is not finite keeps its
        tokens, and one warning says how many did.

    Raises:
        ValueError: if the adaptation returns another shape.
    """
    with torch.inference_mode(False), torch.enable_grad(), torch.autocast(tokens.device.type, enabled=False):
        # Copies, because what was made in inference mode cannot be kept for a backward pass.
        start, bank = tokens.detach().float().clone(), text_bank.copy()
        parts = [adaptation.adapt(part, bank).detach() for part in start.clone().split(adaptation.batch_size)]
    adapted = torch.cat(parts)
    if adapted.shape != tokens.shape:
        name = type(adaptation).__name__
        msg = f"{name} made tokens of shape {tuple(adapted.shape)} from {tuple(tokens.shape)}; it must keep the shape"
        raise ValueError(msg)
    finite = adapted.isfinite().flatten(1).all(1)
    if not finite.all():
        count = int((~finite).sum())
        msg = f"the adaptation of {count} of {len(finite)} images is not finite; their maps are training-free"
        warnings.warn(msg, RuntimeWarning, stacklevel=2)
    return torch.where(finite[:, None, None], adapted.float(), start)


def soft_label_loss(clean: Tensor, noisy: Tensor) -> Tensor:
    """Give each image's loss: mean H(p) + ½ mean (−log p_noisy(abnormal) − log p(normal)), means over patches.

    Args:
        clean: log odds of the patches, shape (B, N).
        noisy: log odds of the corrupted patches, shape (B, N).

    Returns:
        Losses in nats, shape (B,).

    Example:
        >>> soft_label_loss(torch.zeros(1, 4), torch.zeros(1, 4)) / math.log(2)
        tensor([2.])
    """
    is_normal = F.softplus(clean)  # −log p(normal) = −log σ(−d)
    entropy = is_normal - clean * clean.sigmoid()
    is_abnormal = F.softplus(-noisy)
    return entropy.mean(1) + 0.5 * (is_abnormal + is_normal).mean(1)


@dataclasses.dataclass
class ResidualAdapter(Adaptation):
    """An adapter tuned for each image: the common part of the paper's two.

    Each image has weights W and b of its own, in one stack that one AdamW serves: its update is elementwise, so this
    is the optimisation of each image alone. Initial weights and noise are drawn from the seed, the same for every
    image, which therefore depends on nothing but itself, the seed and the settings.

    Args:
        steps: Steps of AdamW.
        learning_rate: Its learning rate.
        noise: Standard deviation of the noise on tokens.
        seed: Seed of the initial weights and of the noise.
        batch_size: Images tuned at once. Bounds the memory, changes no result.

    Raises:
        ValueError: If an argument is out of its range.
    """

    steps: int = 5
    learning_rate: float = 1e-3
    noise: float = 0.055
    seed: int = 0
    batch_size: int = 4

    def __post_init__(self) -> None:
        """Check the settings."""
        for name, least in {"steps": 1, "seed": 0, "batch_size": 1}.items():
            value = getattr(self, name)
            if type(value) is not int or not least <= value < 2**63:
                msg = f"{name} of {type(self).__name__} is {value!r}, but must be a whole number of at least {least}"
                raise ValueError(msg)
        for name in ("learning_rate", "noise"):
            value = getattr(self, name)
            if type(value) not in {int, float} or not 0 <= value < math.inf:
                msg = f"{name} of {type(self).__name__} is {value!r}, but must be a finite number of at least 0"
                raise ValueError(msg)

    @abstractmethod
    def outputs(self, text_bank: TextBank) -> int:
        """Give the number of rows of W."""

    @abstractmethod
    def finish(self, hidden: Tensor, text_bank: TextBank) -> Tensor:
        """Go from u Wᵀ + b to a(u), shape (B, N, C)."""

    def adapt(self, tokens: Tensor, text_bank: TextBank) -> Tensor:
        """Tune the adapter on each image and apply it, see :meth:`Adaptation.adapt`."""
        generator = torch.Generator().manual_seed(self.seed)
        parameters = self._initial(tokens, text_bank, generator)
        # One kernel for the whole update, where torch has it.
        optimizer = AdamW(parameters, lr=self.learning_rate, fused=tokens.device.type in {"cpu", "cuda"} or None)
        num_patches = tokens.shape[1]
        for _ in range(self.steps):
            # On the CPU for any device, so that they all draw the same; Lightning changes torch's default precision.
            noise = torch.randn(tokens.shape[1:], generator=generator, dtype=torch.float32, device="cpu")
            both = torch.cat([tokens, tokens + self.noise * noise.to(tokens)], dim=1)
            odds = cosine_difference(self._residual(both, parameters, text_bank), text_bank.state_embeddings)
            optimizer.zero_grad()
            soft_label_loss(odds[:, :num_patches], odds[:, num_patches:]).sum().backward()
            optimizer.step()
        with torch.no_grad():
            return self._residual(tokens, parameters, text_bank)

    def _initial(self, tokens: Tensor, text_bank: TextBank, generator: torch.Generator) -> list[Tensor]:
        # torch's default for Linear: uniform within 1/√C, weights and biases.
        rows, columns = self.outputs(text_bank), tokens.shape[-1]
        bound = 1 / math.sqrt(columns)
        drawn = [torch.empty(*shape, dtype=torch.float32, device="cpu") for shape in ((rows, columns), (1, rows))]
        for part in drawn:
            part.uniform_(-bound, bound, generator=generator)
        return [part.to(tokens).repeat(len(tokens), 1, 1).requires_grad_() for part in drawn]

    def _residual(self, tokens: Tensor, parameters: list[Tensor], text_bank: TextBank) -> Tensor:
        weight, bias = parameters
        hidden = torch.baddbmm(bias, F.normalize(tokens, dim=-1), weight.transpose(1, 2))
        return 0.5 * (tokens + self.finish(hidden, text_bank))


class TextAdapter(ResidualAdapter):
    """The adapter published for MVTec AD, which answers in prompts: a(u) = tanh(u Wᵀ + b) T, W (K, C), T (K, C)."""

    def outputs(self, text_bank: TextBank) -> int:
        """Give K."""
        return len(text_bank.prompt_embeddings)

    def finish(self, hidden: Tensor, text_bank: TextBank) -> Tensor:
        """Mix the prompts: tanh(hidden) T."""
        return hidden.tanh() @ text_bank.prompt_embeddings


class LinearAdapter(ResidualAdapter):
    """The adapter published for VisA: a(u) = u Wᵀ + b, W (C, C)."""

    def outputs(self, text_bank: TextBank) -> int:
        """Give C."""
        return text_bank.state_embeddings.shape[-1]

    def finish(self, hidden: Tensor, text_bank: TextBank) -> Tensor:  # noqa: ARG002 - the text has no part in it
        """Take the sum as it is."""
        return hidden


def read_adaptation(given: Adaptation | dict[str, Any] | str | None) -> Adaptation | None:
    """Make an adaptation from what a user, a YAML file or a checkpoint says.

    Args:
        given: an adaptation, a class path (or the bare name of a class that has been imported), a dictionary of
            ``class_path`` and ``init_args``, or ``None``.

    Raises:
        ValueError: if there is no such class, it is no adaptation, or does not take these arguments.

    Example:
        >>> read_adaptation({"class_path": "anovl_plugin.TextAdapter", "init_args": {"steps": 3}}).steps
        3
    """
    if given is None or isinstance(given, Adaptation):
        return given
    config = {"class_path": given} if isinstance(given, str) else given
    kind, arguments = None, {}
    if isinstance(config, Mapping) and set(config) <= {"class_path", "init_args"}:
        kind, arguments = _find(str(config.get("class_path"))), config.get("init_args") or {}
    if kind is None:
        msg = f"adaptation is {given!r}, but must be the class path of an Adaptation, such as anovl_plugin.TextAdapter"
        raise ValueError(msg)
    try:
        return kind(**arguments)
    except TypeError as error:
        msg = f"{kind.__name__} does not take the arguments {arguments}: {error}"
        raise ValueError(msg) from error


def adaptation_config(adaptation: Adaptation | None) -> dict[str, Any] | None:
    """Write an adaptation as plain data that :func:`read_adaptation` reads.

    Raises:
        TypeError: if it is no dataclass, or a setting is no plain data.

    Example:
        >>> adaptation_config(LinearAdapter(steps=2))["init_args"]["steps"]
        2
    """
    if adaptation is None:
        return None
    kind = type(adaptation)
    if ("__init__" in vars(kind) and "__dataclass_fields__" not in vars(kind)) or not dataclasses.is_dataclass(kind):
        msg = f"{kind.__name__} is no dataclass, so its settings cannot be saved; put @dataclass above it"
        raise TypeError(msg)
    settings = {field.name: getattr(adaptation, field.name) for field in dataclasses.fields(kind) if field.init}
    for name, value in settings.items():
        if not isinstance(value, bool | int | float | str | None):
            msg = f"{name} of {kind.__name__} is {value!r}, but a setting must be a number, a string or None"
            raise TypeError(msg)
    return {"class_path": f"{kind.__module__}.{kind.__qualname__}", "init_args": settings}


def _find(path: str) -> type[Adaptation] | None:
    if "." not in path:
        return {kind.__name__: kind for kind in _subclasses(Adaptation)}.get(path)
    try:
        kind = resolve_name(path)
    except (ImportError, AttributeError, ValueError):
        return None
    return kind if isinstance(kind, type) and issubclass(kind, Adaptation) else None


def _subclasses(kind: type) -> list[type]:
    return [each for child in kind.__subclasses__() for each in (child, *_subclasses(child))]
