"""The text bank: "normal" and "abnormal" in CLIP's joint space, with the class they belong to.

Shapes: K prompts of both states together, D words for defects, C joint embedding width.
"""

import hashlib
from collections.abc import Sequence
from typing import Any

import torch
from anomalib.models.components import DynamicBufferMixin
from torch import Tensor, nn
from torch.nn import functional as F

from anovl_plugin.config import shown
from anovl_plugin.hosts.torch import Float32Buffers
from anovl_plugin.text.prompts import PromptEnsemble, Prompts
from anovl_plugin.text.text_tower import PromptTooLongError, TextTower


def state_embedding(embeddings: Tensor) -> Tensor:
    """Return the embedding of one state: t_s = normalize(mean of the unnormalized embeddings).

    Args:
        embeddings: Prompt embeddings of shape (..., K, C), not normalized.

    Returns:
        Unit vectors of shape (..., C).
    """
    return F.normalize(embeddings.mean(-2), dim=-1)


def hash_prompts(ensemble: PromptEnsemble) -> str:
    """Return the SHA-256 of an ensemble's sentences, in order, as 64 hexadecimal digits."""
    return hashlib.sha256("\0".join([*ensemble.normal, "", *ensemble.abnormal]).encode()).hexdigest()


# Difference of cosines below which two unit vectors are the same one, rounded; different words are 1e-3 and more apart.
_SAME = 1e-6
# The tensors of a text bank.
EMBEDDINGS = ("state_embeddings", "prompt_embeddings", "defect_embeddings")


class TextBank(DynamicBufferMixin, Float32Buffers):
    """Text embeddings of a class, and which class and prompts they belong to.

    Kept in float32 whatever precision the model is moved to: the two states differ by some 1e-3 in cosine, which half
    precision cannot hold. The identity travels with the embeddings in the state dict, whose size need not match.

    Attributes:
        state_embeddings: Unit vectors of "normal" and "abnormal", shape (2, C); empty until built.
        prompt_embeddings: Each prompt's own unit vector, the normal ones first, shape (K, C); empty until built.
        defect_embeddings: Unit vectors of the words for defects, shape (D, C); each is formed like a state embedding,
            from the prompts with its word. Empty until built.
        defect_words: The D words.
        class_name: The class the bank was built for; ``None`` until built.
        domain: The domain of its prompts, such as ``object``; ``None`` until built.
        prompts_hash: SHA-256 of the sentences; ``None`` until built.
    """

    state_embeddings: Tensor
    prompt_embeddings: Tensor
    defect_embeddings: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("state_embeddings", torch.empty(0))
        self.register_buffer("prompt_embeddings", torch.empty(0))
        self.register_buffer("defect_embeddings", torch.empty(0))
        self.defect_words: tuple[str, ...] = ()
        self.class_name: str | None = None
        self.domain: str | None = None
        self.prompts_hash: str | None = None
        self.register_load_state_dict_post_hook(_check_loaded)

    @property
    def is_built(self) -> bool:
        """Whether the bank holds the embeddings of a class."""
        return self.class_name is not None

    def is_for(self, class_name: str, domain: str, prompts: Prompts | None = None) -> bool:
        """Return whether the bank was built for this class and domain, and from the very sentences of the prompts."""
        prompts = Prompts.load(prompts)
        return (
            self.class_name == class_name
            and self.domain == prompts.resolve_domain(class_name, domain)
            and self.prompts_hash == hash_prompts(prompts.ensemble(class_name, domain))
            and self.defect_words == tuple(prompts.defect_states(class_name))
        )

    def build(self, tower: TextTower, class_name: str, domain: str = "auto", prompts: Prompts | None = None) -> None:
        """Fill the bank with the embeddings of a class's prompts, on the device of the text tower.

        Args:
            tower: The text side of the CLIP.
            class_name: What the images show, as the dataset spells it.
            domain: Domain of the prompts. Default: ``auto``, by class name.
            prompts: What prompts are made of. Default: the paper's.

        Raises:
            PromptTooLongError: If a sentence does not fit into the tower's context.
            ValueError: If the class name or the domain is invalid, or the embeddings are not finite.
        """
        (bank,) = build_text_banks(tower, [class_name], domain, prompts)
        self.set_extra_state(bank.get_extra_state())
        for name in EMBEDDINGS:
            setattr(self, name, getattr(bank, name))

    def copy(self) -> "TextBank":
        """Return a copy of the bank with tensors of its own; ordinary ones if made outside of inference mode."""
        bank = TextBank()
        bank.set_extra_state(self.get_extra_state())
        for name in EMBEDDINGS:
            setattr(bank, name, getattr(self, name).clone())
        return bank

    def indistinct_words(self) -> list[str]:
        """Return the words for defects that have the same embedding as another one, so that none can be told apart.

        A CLIP that has never seen two words may encode them alike, as ``anovl-demo`` does.
        """
        alike = self.defect_embeddings @ self.defect_embeddings.mT > 1 - _SAME
        return [word for word, row in zip(self.defect_words, alike, strict=True) if row.sum() > 1]

    def get_extra_state(self) -> dict[str, Any]:
        """Return the identity of the bank, for the state dict."""
        return {
            "class_name": self.class_name,
            "domain": self.domain,
            "prompts_hash": self.prompts_hash,
            "defect_words": list(self.defect_words),
        }

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Restore the identity of the bank from the state dict."""
        self.class_name, self.domain = state["class_name"], state["domain"]
        self.prompts_hash, self.defect_words = state["prompts_hash"], tuple(state["defect_words"])


def build_text_banks(
    tower: TextTower, class_names: Sequence[str], domain: str = "auto", prompts: Prompts | None = None
) -> list[TextBank]:
    """Return the text banks of several classes; sentences that they share are encoded once.

    Args:
        tower: The text side of the CLIP.
        class_names: What the images show, as the dataset spells it.
        domain: Domain of the prompts. Default: ``auto``, by class name.
        prompts: What prompts are made of. Default: the paper's.

    Raises:
        PromptTooLongError: If a sentence does not fit into the tower's context.
        ValueError: If a class name or the domain is invalid, or embeddings are not finite.
    """
    prompts = Prompts.load(prompts)
    ensembles = [prompts.ensemble(class_name, domain) for class_name in class_names]
    # Lightning calls this in inference mode; inference tensors cannot be loaded into later.
    with torch.inference_mode(False), torch.no_grad(), torch.autocast(tower.device.type, enabled=False):
        try:
            embeddings = tower.encode([sentence for ensemble in ensembles for state in ensemble for sentence in state])
        except PromptTooLongError as error:
            sentence, length = error.prompt, error.context_length
            at = next(at for at, ensemble in enumerate(ensembles) if any(sentence in state for state in ensemble))
            remedy = _what_to_shorten(tower, prompts, class_names[at], domain, sentence)
            raise PromptTooLongError(sentence, length, remedy) from None
        sizes = [len(state) for ensemble in ensembles for state in ensemble]
        of_states = embeddings.split(sizes)
        return [
            _bank(prompts, class_name, domain, *pair)
            for class_name, pair in zip(class_names, zip(of_states[::2], of_states[1::2], strict=True), strict=True)
        ]


def _bank(prompts: Prompts, class_name: str, domain: str, normal: Tensor, abnormal: Tensor) -> TextBank:
    bank, words = TextBank(), tuple(prompts.defect_states(class_name))
    bank.state_embeddings = torch.stack([state_embedding(normal), state_embedding(abnormal)])
    bank.prompt_embeddings = F.normalize(torch.cat([normal, abnormal]), dim=-1)
    # For each template, the states of the defects come last.
    by_state = abnormal.unflatten(0, (-1, len(prompts.abnormal_states) + len(words))).transpose(0, 1)
    bank.defect_embeddings = state_embedding(by_state[len(prompts.abnormal_states) :])
    _check_finite(bank, f"of {class_name!r}")
    bank.class_name, bank.domain = class_name, prompts.resolve_domain(class_name, domain)
    bank.prompts_hash, bank.defect_words = hash_prompts(prompts.ensemble(class_name, domain)), words
    return bank


def _what_to_shorten(tower: TextTower, prompts: Prompts, class_name: str, domain: str, sentence: str) -> str:
    """Return what to do about a sentence that is too long: the class name is, or else what it is put into."""
    noun = prompts.noun(class_name)
    try:
        tower.tokenize([sentence.replace(noun, "object")])
    except PromptTooLongError:
        template, state = prompts.origin(class_name, domain, sentence)
        return f"shorten its template {shown(template)} or its state {shown(state)}"
    if noun != class_name:
        return f"use a shorter noun for class_name {shown(class_name)}"
    return "use a shorter class_name"


def _check_finite(bank: TextBank, whose: str) -> None:
    if not all(getattr(bank, name).isfinite().all() for name in EMBEDDINGS):
        msg = f"the text bank {whose} holds NaN or infinite values, so the weights or the checkpoint are damaged"
        raise ValueError(msg)


def _check_loaded(bank: nn.Module, incompatible_keys: object) -> None:
    del incompatible_keys
    if isinstance(bank, TextBank):
        _check_finite(bank, f"of {bank.class_name!r} in the checkpoint")
