"""From prompts to the text bank: what "normal" and "abnormal" look like in CLIP's joint space.

Shapes: K prompts of both states together, L context length, C joint embedding width.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from anovl_plugin.text.prompts import PromptEnsemble


class TextTower(nn.Module):
    """The text side of an open_clip model: sentences in, embeddings out.

    Args:
        clip: an open_clip ``CLIP`` or ``CustomTextCLIP``; only its text part is used.
        tokenizer: turns a list of sentences into token ids (K, L), as ``open_clip.get_tokenizer`` makes it.
    """

    def __init__(self, clip: nn.Module, tokenizer: Callable[[list[str]], Tensor]) -> None:
        super().__init__()
        self.clip = clip
        self.tokenizer = tokenizer

    @property
    def device(self) -> torch.device:
        """Where the tower's weights are."""
        return next(self.parameters()).device

    def forward(self, tokens: Tensor) -> Tensor:
        """Embed token ids (K, L) as vectors (K, C), not normalised."""
        return self.clip.encode_text(tokens)

    def tokenize(self, prompts: list[str]) -> Tensor:
        """Turn sentences into token ids (K, L).

        Raises:
            ValueError: if a sentence does not fit into the tower's context.
        """
        tokens = self.tokenizer(prompts)
        if self._is_causal:
            # A full row is one that just fits or one that was cut; only counting its tokens tells.
            full = (tokens.argmax(1) == tokens.shape[1] - 1).nonzero().flatten().tolist()
            cut = [prompts[row] for row in full if len(self.tokenizer.encode(prompts[row])) + 2 > tokens.shape[1]]
            if cut:
                msg = (
                    f"the prompt {cut[0]!r} is longer than the {tokens.shape[1]} tokens this text tower reads; "
                    "use a shorter class_name"
                )
                raise ValueError(msg)
        return tokens

    def encode(self, prompts: list[str], batch_size: int = 256, *, cut_context: bool = True) -> Tensor:
        """Embed sentences.

        A causal tower never looks past the end token, so the context is cut to the longest sentence: the same
        embeddings in a fraction of the time.

        Args:
            prompts: K sentences.
            batch_size: how many are encoded at once.
            cut_context: leave the context whole to compare.

        Returns:
            Embeddings (K, C), float32, on the tower's device, not normalised.

        Raises:
            ValueError: if a sentence does not fit into the tower's context.
        """
        tokens = self.tokenize(prompts).to(self.device)
        overrides: dict[str, Tensor] = {}
        if cut_context and self._is_causal:
            length = int(tokens.argmax(1).max()) + 1
            tokens = tokens[:, :length]
            overrides = self._context_of(length)
        parts = [functional_call(self, overrides, (part,)) for part in tokens.split(batch_size)]
        return torch.cat(parts).float()

    @property
    def _text(self) -> nn.Module:
        return getattr(self.clip, "text", self.clip)

    @property
    def _is_causal(self) -> bool:
        pool_type = getattr(self._text, "text_pool_type", getattr(self._text, "pool_type", None))
        has_mask = getattr(self._text, "attn_mask", None) is not None
        return pool_type == "argmax" and has_mask and getattr(self._text, "cls_emb", None) is None

    def _context_of(self, length: int) -> dict[str, Tensor]:
        prefix = "clip." if self._text is self.clip else "clip.text."
        return {
            f"{prefix}positional_embedding": self._text.positional_embedding[:length],
            f"{prefix}attn_mask": self._text.attn_mask[:length, :length],
        }


def state_embedding(embeddings: Tensor) -> Tensor:
    """Average the prompts of one state: t_s = normalise(mean of the unnormalised embeddings).

    Args:
        embeddings: prompt embeddings of shape (..., K, C), not normalised.

    Returns:
        Unit vectors of shape (..., C).
    """
    return F.normalize(embeddings.mean(-2), dim=-1)


class TextBank(nn.Module):
    """What a class's prompts say, kept in float32 whatever precision the model is moved to.

    The two states differ by some 1e-3 in cosine, which half precision cannot hold.

    Args:
        width: joint embedding width C.
        num_prompts: prompts of both states together, K.

    Attributes:
        state_embeddings: unit vectors of "normal" and "abnormal", shape (2, C).
        prompt_embeddings: each prompt's own unit vector, the normal ones first, shape (K, C).
    """

    state_embeddings: Tensor
    prompt_embeddings: Tensor

    def __init__(self, width: int, num_prompts: int) -> None:
        super().__init__()
        self.register_buffer("state_embeddings", torch.zeros(2, width))
        self.register_buffer("prompt_embeddings", torch.zeros(num_prompts, width))

    def build(self, tower: TextTower, ensemble: PromptEnsemble) -> None:
        """Fill the bank from prompts, on the device of the text tower.

        Args:
            tower: the text side of the CLIP.
            ensemble: the prompts of the class.
        """
        # The engine asks for a bank in inference mode, whose tensors no checkpoint could be loaded into afterwards.
        with torch.inference_mode(False), torch.no_grad(), torch.autocast(tower.device.type, enabled=False):
            normal, abnormal = tower.encode(ensemble.normal), tower.encode(ensemble.abnormal)
            self.state_embeddings = torch.stack([state_embedding(normal), state_embedding(abnormal)])
            self.prompt_embeddings = F.normalize(torch.cat([normal, abnormal]), dim=-1)

    def copy(self) -> "TextBank":
        """Copy the bank to tensors of its own, which are no inference tensors if made outside of inference mode."""
        bank = TextBank(self.state_embeddings.shape[1], len(self.prompt_embeddings))
        bank.state_embeddings, bank.prompt_embeddings = self.state_embeddings.clone(), self.prompt_embeddings.clone()
        return bank

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "TextBank":  # noqa: ARG002 - torch's signature
        # Follow a move to another device, but not a cast to another precision.
        for name, buffer in self._buffers.items():
            self._buffers[name] = buffer.to(fn(buffer).device, torch.float32)
        return self
