"""Results of the validation that precedes a test or prediction, to use where it has the very same batches.

anomalib's ``test`` validates first, to set thresholds, and where the validation set is the test set (the default for
MVTec AD and VisA) it would score every image twice. So does ``predict`` on a data module.
"""

import hashlib
from typing import Any, cast

import torch
from anomalib.data import InferenceBatch
from torch import Tensor

from anovl_plugin.hosts.torch import state_version
from anovl_plugin.torch_model import AnoVLModel, ScoredImages

MAX_BYTES = 512 * 2**20


class ValidatedResults:
    """Scores, maps and matches of batches, before post-processing, by the content of the batch.

    A batch is found only if every pixel and every class is the same, in the same order, and the model has not changed
    since, so that a result is the one that the model would compute again. Batches beyond the limit are not kept.

    Args:
        max_bytes: Limit of the memory that results take. Default: 512 MiB, some 2,300 images of 240 × 240 pixels.
    """

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self.max_bytes = max_bytes
        self._bytes = 0
        self._results: dict[bytes, ScoredImages] = {}
        self._state: Any = None

    def __len__(self) -> int:
        """Return the number of batches."""
        return len(self._results)

    def clear(self) -> None:
        """Forget all results."""
        self._bytes, self._results, self._state = 0, {}, None

    def keep(self, model: AnoVLModel, images: Tensor, class_index: Tensor | None, scored: ScoredImages) -> None:
        """Keep the results of a batch, as far as the limit allows.

        Args:
            model: The model that computed them.
            images: The batch as the model got it, shape (B, 3, H, W).
            class_index: Index of each image's class, shape (B,); ``None`` if there is one class.
            scored: Scores (B,), maps (B, 1, H, W), and matches with words for defects.
        """
        state = _state_of(model)
        if state != self._state:
            self.clear()
            self._state = state
        scores, matches = scored
        size = sum(cast("Tensor", tensor).nbytes for tensor in (scores.pred_score, scores.anomaly_map))
        size += sum(match.cosines.nbytes for match in matches if match is not None)
        if self._bytes + size <= self.max_bytes:
            self._bytes += size
            self._results[_key(images, class_index)] = ScoredImages(_copy(scores, "cpu"), matches)

    def find(self, model: AnoVLModel, images: Tensor, class_index: Tensor | None) -> ScoredImages | None:
        """Return the results of the very same batch by the very same model, or ``None``.

        Args:
            model: The model that is about to score the batch.
            images: The batch as the model would get it, shape (B, 3, H, W).
            class_index: Index of each image's class, shape (B,); ``None`` if there is one class.
        """
        if not self._results or _state_of(model) != self._state:
            return None
        found = self._results.get(_key(images, class_index))
        if found is None:
            return None
        return found._replace(scores=_copy(found.scores, images.device))

    def __getstate__(self) -> dict[str, Any]:
        """Return the state of a copy or pickle: without results."""
        return {"max_bytes": self.max_bytes, "_bytes": 0, "_results": {}, "_state": None}


def _copy(scores: InferenceBatch, device: torch.device | str) -> InferenceBatch:
    score, anomaly_map = (cast("Tensor", each) for each in (scores.pred_score, scores.anomaly_map))
    return InferenceBatch(pred_score=score.to(device, copy=True), anomaly_map=anomaly_map.to(device, copy=True))


def _key(images: Tensor, class_index: Tensor | None) -> bytes:
    digest = hashlib.blake2b(digest_size=32)
    for tensor in (images, class_index):
        if tensor is not None:
            digest.update(f"{tensor.dtype} {tuple(tensor.shape)} {tensor.device.type}".encode())
            pixels: Any = tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
            digest.update(pixels)
    return digest.digest()


def _state_of(model: AnoVLModel) -> Any:
    """Return what a model's results depend on besides the images."""
    return (
        state_version(model),
        model.image_tower.fingerprint,
        [bank.get_extra_state() for bank in model.text_banks],
        [bank.get_extra_state() for bank in model.reference_banks or ()],
        repr(model.references),
        repr(model.image_score),
        repr(model.adaptation),
        model.tiles_per_side,
        torch.is_autocast_enabled(),
        torch.get_float32_matmul_precision(),
    )
