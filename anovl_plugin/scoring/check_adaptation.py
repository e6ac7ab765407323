"""Checks that an adaptation keeps the contract of :class:`~anovl_plugin.scoring.adaptation.Adaptation`."""

import random

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from anovl_plugin.config import cause_of, from_config, shown, to_config, whole_number
from anovl_plugin.scoring.adaptation import Adaptation, adapt_tokens, call_adapt
from anovl_plugin.text.text_bank import TextBank

_IMAGES, _PATCHES, _WIDTH, _PROMPTS = 4, 9, 32, 12
_SEED = 1_923_847
# Batched and single matrix products round differently, which some steps of an optimizer enlarge.
_TOLERANCE = 1e-3


def check_adaptation(adaptation: Adaptation) -> None:
    """Raise an error if an adaptation does not keep its contract.

    The adaptation is run on small random tokens on the CPU. The checks are that

    - its settings survive :func:`~anovl_plugin.config.to_config` and :func:`~anovl_plugin.config.from_config`;
    - it returns finite float32 tokens of the same shape on the same device, also for one image and for one patch;
    - it does not change its arguments or the global random state;
    - the same tokens always give the same result;
    - the result for an image does not depend on the other images, their number or their order;
    - it works in inference mode and under autocast.

    Args:
        adaptation: The adaptation, with settings under which it is deterministic.

    Raises:
        TypeError: If it is not an :class:`Adaptation`, or its settings cannot be saved.
        ValueError: If it fails a check. The message names the first one that fails.

    Example:
        >>> from anovl_plugin import TextAdapter
        >>> check_adaptation(TextAdapter(steps=2))
    """
    if not isinstance(adaptation, Adaptation):
        msg = f"adaptation is {shown(adaptation)}, but must be an instance of a subclass of Adaptation"
        raise TypeError(msg)
    with torch.inference_mode(False), torch.enable_grad(), torch.autocast("cpu", enabled=False):
        for check in _CHECKS:
            check(adaptation)


def _check_settings(adaptation: Adaptation) -> None:
    whole_number(adaptation, "batch_size", least=1)
    config = to_config(adaptation)
    copy = to_config(from_config(config, Adaptation))
    if copy != config:
        _fail(adaptation, f"turns its settings {shown(config)} into {shown(copy)}; keep each in a field unchanged")


def _check_result(adaptation: Adaptation) -> None:
    for number, patches in ((_IMAGES, _PATCHES), (1, _PATCHES), (_IMAGES, 1), (1, 1)):
        tokens = _random(number, patches, _WIDTH)
        result = _adapt(adaptation, tokens)
        if result.dtype != torch.float32:
            _fail(adaptation, f"returns {result.dtype} for float32 tokens; return float32")
        if not result.isfinite().all():
            _fail(adaptation, f"returns values that are not finite {_of(tokens)}")


def _check_arguments(adaptation: Adaptation) -> None:
    tokens, bank = _random(_IMAGES, _PATCHES, _WIDTH), _text_bank()
    _adapt(adaptation, tokens, bank)
    if not torch.equal(tokens, _random(_IMAGES, _PATCHES, _WIDTH)):
        _fail(adaptation, "changes its tokens in place; work on a copy, tokens.clone()")
    if any(not torch.equal(*pair) for pair in zip(bank.buffers(), _text_bank().buffers(), strict=True)):
        _fail(adaptation, "changes the text bank in place; work on a copy, text_bank.copy()")


def _check_random_state(adaptation: Adaptation) -> None:
    saved = torch.get_rng_state(), np.random.get_state(), random.getstate()  # noqa: NPY002 - the global one is meant
    try:
        # An adaptation that sets a seed of its own leaves the same state after each call, so start from another.
        for seed in (torch.default_generator.manual_seed, np.random.seed, random.seed):
            seed(_SEED)
        before = _random_states()
        _adapt(adaptation, _random(_IMAGES, _PATCHES, _WIDTH))
        after = _random_states()
    finally:
        torch.set_rng_state(saved[0])
        np.random.set_state(saved[1])  # noqa: NPY002
        random.setstate(saved[2])
    changed = [name for name, state in before.items() if after[name] != state]
    if changed:
        names = ", ".join(changed)
        _fail(adaptation, f"changes the global random state of {names}; use a generator with a seed of its own")


def _check_determinism(adaptation: Adaptation) -> None:
    tokens = _random(_IMAGES, _PATCHES, _WIDTH)
    if not torch.equal(_adapt(adaptation, tokens), _adapt(adaptation, tokens)):
        _fail(adaptation, "returns different results for the same tokens; keep no state, and seed each call")


def _check_independence(adaptation: Adaptation) -> None:
    tokens = _random(_IMAGES, _PATCHES, _WIDTH)
    together = _adapt(adaptation, tokens)
    order = [2, 0, 3, 1]
    if _differ(_adapt(adaptation, tokens[order]), together[order]):
        _fail(adaptation, "returns results that depend on the order of the images; adapt each image by itself")
    if _differ(torch.cat([_adapt(adaptation, part) for part in tokens.split(1)]), together):
        _fail(adaptation, "returns results that depend on how many images a batch has; adapt each image by itself")
    others = torch.cat([tokens[:1], 3 * _random(_IMAGES - 1, _PATCHES, _WIDTH, seed=5)])
    if _differ(_adapt(adaptation, others)[0], together[0]):
        _fail(adaptation, "returns results that depend on the other images of a batch; adapt each image by itself")


def _check_modes(adaptation: Adaptation) -> None:
    tokens = _random(_IMAGES, _PATCHES, _WIDTH)
    expected = adapt_tokens(adaptation, tokens, _text_bank())
    # float16, because the default on the CPU is bfloat16: an adaptation that follows the outer dtype is noticed.
    with torch.inference_mode(), torch.autocast("cpu", torch.float16):
        result = adapt_tokens(adaptation, tokens.clone(), _text_bank())
    if _differ(result, expected):
        _fail(adaptation, "returns other results in inference mode and autocast; leave torch's modes as they are")


_CHECKS = (
    _check_settings,
    _check_result,
    _check_arguments,
    _check_random_state,
    _check_determinism,
    _check_independence,
    _check_modes,
)


def _fail(adaptation: Adaptation, problem: str) -> None:
    msg = f"{type(adaptation).__name__} {problem}"
    raise ValueError(msg)


def _of(tokens: Tensor) -> str:
    number, patches, _ = tokens.shape
    return f"for {number} image{'s' * (number > 1)} of {patches} patch{'es' * (patches > 1)}"


def _differ(result: Tensor, expected: Tensor) -> bool:
    return not torch.allclose(result, expected, atol=_TOLERANCE, rtol=_TOLERANCE)


def _adapt(adaptation: Adaptation, tokens: Tensor, text_bank: TextBank | None = None) -> Tensor:
    try:
        return call_adapt(adaptation, tokens, text_bank or _text_bank()).detach()
    except Exception as error:
        msg = f"{type(adaptation).__name__} fails {_of(tokens)}: {cause_of(error)}"
        raise ValueError(msg) from error


def _random_states() -> dict[str, object]:
    numpy_state = np.random.get_state(legacy=False)  # noqa: NPY002
    return {
        "torch": torch.get_rng_state().tolist(),
        "numpy": repr([(key, np.asarray(value).tolist()) for key, value in sorted(numpy_state["state"].items())]),
        "random": random.getstate(),
    }


def _random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float32, device="cpu")


def _text_bank() -> TextBank:
    bank, base = TextBank(), _random(_WIDTH, seed=1)
    # As close to each other as the embeddings of a CLIP.
    bank.state_embeddings = F.normalize(base + 0.1 * _random(2, _WIDTH, seed=2), dim=-1)
    bank.prompt_embeddings = F.normalize(base + _random(_PROMPTS, _WIDTH, seed=3), dim=-1)
    return bank
