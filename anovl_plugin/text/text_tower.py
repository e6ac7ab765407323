"""The text side of a CLIP: sentences in, embeddings out.

Shapes: K sentences, L context length, C joint embedding width.
"""

from collections.abc import Callable

import open_clip
import torch
from torch import Tensor, nn
from torch.func import functional_call

from anovl_plugin.hosts.open_clip import is_causal, shorter_context

Tokenizer = Callable[[list[str]], Tensor]


class TextTower(nn.Module):
    """The text side of an open_clip model.

    Args:
        clip: An open_clip ``CLIP`` or ``CustomTextCLIP``; only its text part is used.
        tokenizer: Turns a list of sentences into token ids (K, L), as ``open_clip.get_tokenizer`` returns it.
    """

    def __init__(self, clip: open_clip.CLIP | open_clip.CustomTextCLIP, tokenizer: Tokenizer) -> None:
        super().__init__()
        self.clip = clip
        self.tokenizer = tokenizer

    @property
    def device(self) -> torch.device:
        """Device of the tower's weights."""
        return next(self.parameters()).device

    def forward(self, tokens: Tensor) -> Tensor:
        """Embed token ids (K, L) as vectors (K, C), not normalized."""
        return self.clip.encode_text(tokens)

    def tokenize(self, prompts: list[str]) -> Tensor:
        """Turn sentences into token ids (K, L).

        Raises:
            ValueError: If a sentence does not fit into the tower's context.
        """
        tokens = self.tokenizer(prompts)
        truncated = next((prompts[row] for row in self._full_rows(tokens) if self._is_truncated(prompts[row])), None)
        if truncated is not None:
            msg = (
                f"the prompt {truncated[:200]!r} is longer than the {tokens.shape[1]} tokens this text tower reads; "
                "use a shorter class_name"
            )
            raise ValueError(msg)
        return tokens

    def encode(self, prompts: list[str], batch_size: int = 256, *, truncate_context: bool = True) -> Tensor:
        """Embed sentences.

        A causal tower never looks past the end token, so the context is truncated to the longest sentence: the same
        embeddings in a fraction of the time.

        Args:
            prompts: K sentences.
            batch_size: How many are encoded at once. Defaults to 256.
            truncate_context: Truncate the context where the tower is causal. Defaults to ``True``.

        Returns:
            Embeddings (K, C), float32, on the tower's device, not normalized.

        Raises:
            ValueError: If a sentence does not fit into the tower's context, or an embedding is not finite.
        """
        tokens = self.tokenize(prompts).to(self.device)
        overrides: dict[str, Tensor] = {}
        if truncate_context and is_causal(self.clip):
            length = int(tokens.argmax(1).max()) + 1
            tokens = tokens[:, :length]
            overrides = {f"clip.{name}": tensor for name, tensor in shorter_context(self.clip, length).items()}
        parts = [functional_call(self, overrides, (part,)) for part in tokens.split(batch_size)]
        embeddings = torch.cat(parts).float()
        broken = (~embeddings.isfinite().all(1)).nonzero().flatten().tolist()
        if broken:
            msg = (
                f"the text tower gives NaN or infinite values for {len(broken)} of {len(prompts)} prompts, first "
                f"{prompts[broken[0]][:200]!r}; use undamaged weights"
            )
            raise ValueError(msg)
        return embeddings

    def _full_rows(self, tokens: Tensor) -> list[int]:
        """Return the rows that a sentence fills, or more than fills: only these can be truncated."""
        if isinstance(self.tokenizer, open_clip.SimpleTokenizer):
            return tokens[:, -1].nonzero().flatten().tolist()
        return list(range(len(tokens)))  # others pad with ids of their own

    def _is_truncated(self, prompt: str) -> bool:
        if isinstance(self.tokenizer, open_clip.SimpleTokenizer):
            # With the start and the end token.
            return len(self.tokenizer.encode(prompt)) + 2 > self.tokenizer([prompt]).shape[1]
        # Where one more word changes nothing, there was no room for it. This also rejects what just fits.
        return torch.equal(self.tokenizer([prompt]), self.tokenizer([f"{prompt} a"]))


class LazyTextTower:
    """A text tower that is loaded when it is needed and released afterwards.

    It is not a module: the tower follows no cast and no move, and is in no checkpoint and no export. Copies and
    pickles do not hold the tower; they load it again when they need it.

    Args:
        load: Loads the tower. Must be picklable for the holder to be.

    Example:
        >>> from anovl_plugin.vision.backbone import load_backbone
        >>> def load():
        ...     loaded = load_backbone("anovl-demo", image=False)
        ...     return TextTower(loaded.clip, loaded.tokenizer)
        >>> lazy = LazyTextTower(load)
        >>> lazy.is_loaded, lazy.get().encode(["a photo of rust"]).shape, lazy.is_loaded
        (False, torch.Size([1, 96]), True)
        >>> lazy.release()
        >>> lazy.is_loaded
        False
    """

    def __init__(self, load: Callable[[], TextTower]) -> None:
        self._load = load
        self._tower: TextTower | None = None

    @property
    def is_loaded(self) -> bool:
        """Whether the tower is in memory."""
        return self._tower is not None

    def get(self) -> TextTower:
        """Return the tower, loaded first if it is not in memory."""
        if self._tower is None:
            self._tower = self._load()
        return self._tower

    def put(self, tower: TextTower) -> None:
        """Hold a tower that was loaded together with something else."""
        self._tower = tower

    def release(self) -> None:
        """Release the tower's memory."""
        self._tower = None

    def __getstate__(self) -> dict[str, object]:
        """Return the state of a copy or pickle: without the tower."""
        return {"_load": self._load, "_tower": None}
