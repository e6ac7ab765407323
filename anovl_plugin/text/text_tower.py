"""The text side of a CLIP: sentences in, embeddings out.

Shapes: K sentences, L context length, C joint embedding width.
"""

from collections.abc import Callable, Sequence

import open_clip
import torch
from torch import Tensor, nn
from torch.func import functional_call
from tqdm import tqdm

from anovl_plugin.hosts.open_clip import is_causal, shorter_context

Tokenizer = Callable[[list[str]], Tensor]


class PromptTooLongError(ValueError):
    """A sentence is longer than a text tower's context.

    Args:
        prompt: The sentence.
        context_length: How many tokens the tower reads.
        remedy: What to do. Default: ``"shorten it"``.
    """

    def __init__(self, prompt: str, context_length: int, remedy: str = "shorten it") -> None:
        self.prompt = prompt
        self.context_length = context_length
        super().__init__(
            f"the prompt {prompt[:200]!r} is longer than the {context_length} tokens this text tower reads; {remedy}"
        )


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
            PromptTooLongError: If a sentence does not fit into the tower's context.
        """
        tokens = self.tokenizer(prompts)
        truncated = next((prompts[row] for row in self._full_rows(tokens) if self._is_truncated(prompts[row])), None)
        if truncated is not None:
            raise PromptTooLongError(truncated, tokens.shape[1])
        return tokens

    def encode(self, prompts: Sequence[str], batch_size: int = 64, *, truncate_context: bool = True) -> Tensor:
        """Embed sentences.

        A causal tower never looks past the end token, so the sentences are sorted by length, and the context of each
        batch is truncated to its longest: the same embeddings in a fraction of the time. A sentence that is there more
        than once is encoded once. A progress bar appears on a terminal if this takes more than a second.

        Args:
            prompts: K sentences.
            batch_size: How many are encoded at once. Default: 64.
            truncate_context: Truncate the context where the tower is causal. Default: yes.

        Returns:
            Embeddings (K, C), float32, on the tower's device, not normalized.

        Raises:
            PromptTooLongError: If a sentence does not fit into the tower's context.
            ValueError: If an embedding is not finite.
        """
        rows = {prompt: row for row, prompt in enumerate(dict.fromkeys(prompts))}
        distinct = list(rows)
        tokens = self.tokenize(distinct)
        truncate = truncate_context and is_causal(self.clip)
        lengths = tokens.argmax(1) + 1 if truncate else torch.full((len(tokens),), tokens.shape[1])
        order = lengths.argsort(stable=True)
        parts = []
        with tqdm(total=len(distinct), desc="prompts", delay=1, leave=False, disable=_is_silent()) as bar:
            for part in order.split(batch_size):
                parts.append(self._encode_tokens(tokens[part].to(self.device), int(lengths[part].max())))
                bar.update(len(part))
        embeddings = torch.cat(parts).float()[order.argsort().to(self.device)]
        broken = (~embeddings.isfinite().all(1)).nonzero().flatten().tolist()
        if broken:
            msg = (
                f"the text tower gives NaN or infinite values for {len(broken)} of {len(distinct)} prompts, first "
                f"{distinct[broken[0]][:200]!r}; use undamaged weights"
            )
            raise ValueError(msg)
        return embeddings[torch.tensor([rows[prompt] for prompt in prompts], device=self.device)]

    def _encode_tokens(self, tokens: Tensor, length: int) -> Tensor:
        """Embed token ids (K, L) as vectors (K, C), reading only the first tokens."""
        overrides: dict[str, Tensor] = {}
        if length < tokens.shape[1]:
            overrides = {f"clip.{name}": tensor for name, tensor in shorter_context(self.clip, length).items()}
        return functional_call(self, overrides, (tokens[:, :length],))

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

    def set_loaded(self, tower: TextTower) -> None:
        """Use a tower that is loaded already."""
        self._tower = tower

    def release(self) -> None:
        """Release the tower's memory."""
        self._tower = None

    def __getstate__(self) -> dict[str, object]:
        """Return the state of a copy or pickle: without the tower."""
        return {"_load": self._load, "_tower": None}


def _is_silent() -> bool | None:
    """Return whether to show no progress: where another process shows it, or, ``None``, where there is no terminal."""
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    return True if distributed and torch.distributed.get_rank() else None
