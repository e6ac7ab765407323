"""Test-time adaptation (AnoVL, section 3.4): the patch tokens of an image are changed before they are scored.

An :class:`Adaptation` maps patch tokens and the text bank to adapted tokens. The paper's two tune a small adapter g
with residual ½ for each image, on the model's own soft labels and on tokens corrupted with noise:

    g(x) = ½ x + ½ a(x / ‖x‖)
    loss = mean H(p(x)) + ½ mean (−log p_abnormal(x + n) − log p_normal(x)),   n ~ N(0, σ²)

with means over the patches of the image, p the softmax of the two cosines, and H its entropy in nats.

Shapes: B images, N patches, C joint embedding width, K prompts.
"""

import dataclasses
import math
import warnings
from abc import ABC, abstractmethod

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.optim import AdamW

from anovl_plugin.config import from_config, number, whole_number
from anovl_plugin.scoring.scores import cosine_difference
from anovl_plugin.text.text_bank import TextBank


class Adaptation(ABC):
    """Base class of adaptations of an image's patch tokens; subclass it to add your own.

    A subclass is a dataclass whose fields are its settings: numbers, strings, and lists of them, which the command
    line, YAML and checkpoints can hold. :meth:`adapt` is called outside inference mode, with gradients enabled and
    autocast off. Its result is detached. Non-finite results are replaced by the input tokens, image by image.
    :func:`~anovl_plugin.scoring.check_adaptation.check_adaptation` checks a subclass.

    Attributes:
        batch_size: Most images passed to :meth:`adapt` at once; larger batches are split. Default: 8.

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
        """Return adapted patch tokens.

        Args:
            tokens: Patch tokens, not normalized, float32 without gradient, shape (B, N, C).
            text_bank: The embeddings of the states (2, C) and prompts (K, C) to compare them with, float32.

        Returns:
            Adapted tokens of a floating-point dtype on the same device, shape (B, N, C). The tokens of an
            image should depend on that image alone.
        """


def parse_adaptation(value: object, *, allow_import: bool = True) -> Adaptation | None:
    """Return an adaptation from an instance, a class path or a configuration; ``None`` for none.

    Args:
        value: Whatever :func:`anovl_plugin.config.from_config` accepts.
        allow_import: Whether a class path may be imported. Default: ``True``.

    Raises:
        TypeError: If it is none of these, or its ``batch_size`` is not an integer.
        ValueError: If there is no such adaptation, it does not accept the settings, or its ``batch_size`` is below 1.

    Example:
        >>> parse_adaptation("LinearAdapter").batch_size
        4
    """
    adaptation = from_config(value, Adaptation, allow_import=allow_import)
    if adaptation is not None:
        whole_number(adaptation, "batch_size", least=1)
    return adaptation


def adapt_tokens(adaptation: Adaptation, tokens: Tensor, text_bank: TextBank) -> Tensor:
    """Return the adapted tokens of a batch, the same in inference mode, under ``no_grad`` and under autocast.

    Args:
        adaptation: The adaptation to apply. It gets float32 copies of the tokens and the text bank.
        tokens: Patch tokens of any precision, not normalized, shape (B, N, C).
        text_bank: The text bank of the class.

    Returns:
        Adapted tokens, float32, without gradient, shape (B, N, C). An image whose adaptation is not finite keeps its
        tokens, and one warning says how many images did.

    Raises:
        TypeError: If the adaptation does not return a floating-point tensor, or its ``batch_size`` is not an integer.
        ValueError: If the adaptation returns another shape or device, or its ``batch_size`` is below 1.
    """
    batch_size = whole_number(adaptation, "batch_size", least=1)
    with torch.inference_mode(False), torch.enable_grad(), torch.autocast(tokens.device.type, enabled=False):
        # Copies, because a tensor made in inference mode cannot be saved for a backward pass, and because an
        # adaptation may write to its arguments.
        start = tokens.detach().float().clone()
        parts = start.clone().split(batch_size)
        adapted = torch.cat([call_adapt(adaptation, part, text_bank.copy()).detach().float() for part in parts])
    finite = adapted.isfinite().flatten(1).all(1)
    if not finite.all():
        count = int((~finite).sum())
        msg = f"the adaptation of {count} of {len(finite)} images is not finite; their maps are training-free"
        warnings.warn(msg, RuntimeWarning, stacklevel=2)
    return torch.where(finite[:, None, None], adapted, start)


def call_adapt(adaptation: Adaptation, tokens: Tensor, text_bank: TextBank) -> Tensor:
    """Return the result of :meth:`Adaptation.adapt`; raise an error if it cannot be scored.

    Raises:
        TypeError: If it is not a floating-point tensor.
        ValueError: If it has another shape than the tokens or is on another device.
    """
    # Read before the call, which may change the tokens.
    shape, device = tuple(tokens.shape), tokens.device
    adapted = adaptation.adapt(tokens, text_bank)
    wanted = f"{type(adaptation).__name__}.adapt must return a floating-point tensor of shape {shape} on {device}"
    if not isinstance(adapted, Tensor):
        msg = f"{wanted}, but returned {'None' if adapted is None else f'a {type(adapted).__name__}'}"
        raise TypeError(msg)
    if not adapted.is_floating_point():
        msg = f"{wanted}, but returned {adapted.dtype}"
        raise TypeError(msg)
    if tuple(adapted.shape) != shape:
        msg = f"{wanted}, but returned shape {tuple(adapted.shape)}"
        raise ValueError(msg)
    if adapted.device != device:
        msg = f"{wanted}, but returned a tensor on {adapted.device}"
        raise ValueError(msg)
    return adapted


def soft_label_loss(clean: Tensor, noisy: Tensor) -> Tensor:
    """Return the loss of each image: mean H(p) + ½ mean (−log p_noisy(abnormal) − log p(normal)), means over patches.

    Args:
        clean: Differences of the patches' cosines, log p(abnormal) − log p(normal), shape (B, N).
        noisy: Those of the corrupted patches, shape (B, N).

    Returns:
        Losses in nats, shape (B,).

    Example:
        >>> soft_label_loss(torch.zeros(1, 4), torch.zeros(1, 4)) / math.log(2)
        tensor([2.])
    """
    minus_log_normal = F.softplus(clean)  # −log p(normal) = −log σ(−d)
    entropy = minus_log_normal - clean * clean.sigmoid()
    minus_log_abnormal = F.softplus(-noisy)
    return entropy.mean(1) + 0.5 * (minus_log_abnormal + minus_log_normal).mean(1)


@dataclasses.dataclass
class ResidualAdapter(Adaptation):
    """Base of the paper's two adapters, which are tuned for each image.

    Each image has its own weights W and bias b. All images share one AdamW, whose update is elementwise, so each
    image is optimized as if it were alone. Initial weights and noise are drawn from the seed and are the same for every
    image, so a result depends only on the image, the seed and the settings.

    Args:
        steps: Steps of AdamW, at least 1. Default: 5.
        learning_rate: Learning rate of AdamW, from 0 to 100. Default: 0.001.
        noise_std: Standard deviation of the noise that is added to the tokens, from 0 to 100. Default: 0.055.
        seed: Seed of the initial weights and of the noise, at least 0. Default: 0.
        batch_size: Images tuned at once, at least 1. It bounds the memory and does not change the result. Default: 4.

    Raises:
        TypeError: If an argument has another type.
        ValueError: If an argument is out of range.
    """

    steps: int = 5
    learning_rate: float = 1e-3
    noise_std: float = 0.055
    seed: int = 0
    batch_size: int = 4

    def __post_init__(self) -> None:
        """Check the settings and convert NumPy numbers."""
        for name, least in {"steps": 1, "seed": 0, "batch_size": 1}.items():
            setattr(self, name, whole_number(self, name, least=least))
        for name in ("learning_rate", "noise_std"):
            # With a learning rate above 100, AdamW's weight decay of 0.01 overshoots 0.
            setattr(self, name, number(self, name, least=0, most=100))

    @abstractmethod
    def hidden_size(self, text_bank: TextBank) -> int:
        """Return the number of hidden units, which is the number of rows of W."""

    @abstractmethod
    def decode(self, hidden: Tensor, text_bank: TextBank) -> Tensor:
        """Compute a(u), shape (B, N, C), from the hidden units u Wᵀ + b."""

    def adapt(self, tokens: Tensor, text_bank: TextBank) -> Tensor:
        """Tune the adapter on each image and apply it; see :meth:`Adaptation.adapt`."""
        generator = torch.Generator().manual_seed(self.seed)
        parameters = self._initial(tokens, text_bank, generator)
        # One kernel for the whole update where torch has one.
        optimizer = AdamW(parameters, lr=self.learning_rate, fused=tokens.device.type in {"cpu", "cuda"} or None)
        num_patches = tokens.shape[1]
        for _ in range(self.steps):
            # Drawn on the CPU, so that all devices get the same; float32 regardless of torch's default dtype.
            noise = torch.randn(tokens.shape[1:], generator=generator, dtype=torch.float32, device="cpu")
            both = torch.cat([tokens, tokens + self.noise_std * noise.to(tokens)], dim=1)
            differences = cosine_difference(self._residual(both, parameters, text_bank), text_bank.state_embeddings)
            optimizer.zero_grad()
            soft_label_loss(differences[:, :num_patches], differences[:, num_patches:]).sum().backward()
            optimizer.step()
        with torch.no_grad():
            return self._residual(tokens, parameters, text_bank)

    def _initial(self, tokens: Tensor, text_bank: TextBank, generator: torch.Generator) -> list[Tensor]:
        # The default of torch.nn.Linear: weights and bias uniform in ±1/√C.
        rows, columns = self.hidden_size(text_bank), tokens.shape[-1]
        bound = 1 / math.sqrt(columns)
        drawn = [torch.empty(*shape, dtype=torch.float32, device="cpu") for shape in ((rows, columns), (1, rows))]
        for part in drawn:
            part.uniform_(-bound, bound, generator=generator)
        return [part.to(tokens).repeat(len(tokens), 1, 1).requires_grad_() for part in drawn]

    def _residual(self, tokens: Tensor, parameters: list[Tensor], text_bank: TextBank) -> Tensor:
        weight, bias = parameters
        hidden = torch.baddbmm(bias, F.normalize(tokens, dim=-1), weight.transpose(1, 2))
        return 0.5 * (tokens + self.decode(hidden, text_bank))


class TextAdapter(ResidualAdapter):
    """The adapter published for MVTec AD, whose output is a mixture of prompt embeddings.

    a(u) = tanh(u Wᵀ + b) T with W (K, C) and T (K, C), the prompt embeddings.
    """

    def hidden_size(self, text_bank: TextBank) -> int:
        """Return K."""
        return len(text_bank.prompt_embeddings)

    def decode(self, hidden: Tensor, text_bank: TextBank) -> Tensor:
        """Return tanh(hidden) T."""
        return hidden.tanh() @ text_bank.prompt_embeddings


class LinearAdapter(ResidualAdapter):
    """The adapter published for VisA: a(u) = u Wᵀ + b with W (C, C)."""

    def hidden_size(self, text_bank: TextBank) -> int:
        """Return C."""
        return text_bank.state_embeddings.shape[-1]

    def decode(self, hidden: Tensor, text_bank: TextBank) -> Tensor:  # noqa: ARG002 - the adapter does not use the text
        """Return the hidden units."""
        return hidden
