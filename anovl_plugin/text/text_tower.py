"""CLIP's text tower: sentences in, embeddings out.

Shapes: K prompts, L context length, C joint embedding width.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.func import functional_call

from anovl_plugin.hosts.open_clip import is_causal, shorter_context


class TextTower(nn.Module):
    """The text side of an open_clip model.

    Args:
        clip: An open_clip ``CLIP`` or ``CustomTextCLIP``; only its text part is used.
        tokenizer: Returns the token ids (K, L) of a list of sentences, as ``open_clip.get_tokenizer`` makes it.
    """

    def __init__(self, clip: nn.Module, tokenizer: Callable[[list[str]], Tensor]) -> None:
        super().__init__()
        self.clip = clip
        self.tokenizer = tokenizer

    @property
    def device(self) -> torch.device:
        """Device of the tower's weights."""
        return next(self.parameters()).device

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the embeddings (K, C) of token ids (K, L), not normalized."""
        return self.clip.encode_text(tokens)

    def tokenize(self, prompts: list[str]) -> Tensor:
        """Return the token ids (K, L) of sentences.

        Raises:
            ValueError: If a sentence does not fit into the tower's context.
        """
        tokens = self.tokenizer(prompts)
        if is_causal(self.clip):
            # A full row either just fits or was cut off; only counting its tokens tells.
            full = (tokens.argmax(1) == tokens.shape[1] - 1).nonzero().flatten().tolist()
            cut = [prompts[row] for row in full if len(self.tokenizer.encode(prompts[row])) + 2 > tokens.shape[1]]
            if cut:
                prompt = cut[0] if len(cut[0]) <= 120 else f"{cut[0][:119]}…"
                msg = (
                    f"the prompt {prompt!r} is longer than the {tokens.shape[1]} tokens this text tower reads; "
                    "use a shorter class_name"
                )
                raise ValueError(msg)
        return tokens

    def encode(self, prompts: list[str], batch_size: int = 256, *, truncate_context: bool = True) -> Tensor:
        """Return the embeddings of sentences.

        A causal tower never looks past the end token, so the context is truncated to the longest sentence: the same
        embeddings in a fraction of the time.

        Args:
            prompts: K sentences.
            batch_size: Most sentences encoded at once. Default: 256.
            truncate_context: Whether to truncate the context, where the tower allows it. Default: yes.

        Returns:
            Embeddings (K, C), float32, on the tower's device, not normalized.

        Raises:
            ValueError: If a sentence does not fit into the tower's context.
        """
        tokens = self.tokenize(prompts).to(self.device)
        overrides: dict[str, Tensor] = {}
        if truncate_context and is_causal(self.clip):
            length = int(tokens.argmax(1).max()) + 1
            tokens = tokens[:, :length]
            overrides = {f"clip.{name}": value for name, value in shorter_context(self.clip, length).items()}
        parts = [functional_call(self, overrides, (part,)) for part in tokens.split(batch_size)]
        return torch.cat(parts).float()


class LazyTextTower:
    """Owns a text tower that is loaded when needed and released afterwards.

    Args:
        load: Loads the tower, without an image tower.
    """

    def __init__(self, load: Callable[[], TextTower]) -> None:
        self._load = load
        self._tower: TextTower | None = None

    @property
    def is_loaded(self) -> bool:
        """Whether the tower is in memory."""
        return self._tower is not None

    def put(self, tower: TextTower) -> None:
        """Keep a tower that was loaded together with its image tower."""
        self._tower = tower

    def get(self) -> TextTower:
        """Return the tower, loaded if it is not in memory."""
        if self._tower is None:
            self._tower = self._load()
        return self._tower

    def release(self) -> None:
        """Free the tower's memory."""
        self._tower = None
