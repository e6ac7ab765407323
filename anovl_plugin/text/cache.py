"""Text banks on disk, so that a process that has seen neither the text tower nor the sentences need not encode them.

A bank is found by what its embeddings depend on: the text tower, the sentences, the words for defects, and how the
device multiplies. Which tower a file of weights holds is remembered, too, so that a bank can be found before the tower
is loaded. The cache is never needed: where it cannot be read or written, banks are built.
"""

import hashlib
import json
import logging
import os
import tempfile
import warnings
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

import open_clip
import platformdirs
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from anovl_plugin.hosts.open_clip import is_causal
from anovl_plugin.text.prompts import Prompts
from anovl_plugin.text.text_bank import EMBEDDINGS, TextBank, hash_prompts
from anovl_plugin.text.text_tower import TextTower

FOLDER_VARIABLE = "ANOVL_CACHE"
# Change it whenever the same key could mean other embeddings.
_FORMAT = "2"
_PROBE = "A  Photo of 2 Wälzlager's 螺栓 &amp; bolts!"

logger = logging.getLogger(__name__)


def tower_fingerprint(tower: TextTower) -> str | None:
    """Return what identifies a text tower: all that changes its embeddings.

    Returns:
        A SHA-256 over weights, architecture and vocabulary, as 64 hexadecimal digits; ``None`` if the tokenizer is of
        a kind that does not tell its vocabulary.
    """
    vocabulary = _vocabulary(tower.tokenizer)
    if vocabulary is None:
        return None
    text = nn.ModuleDict({name: part for name, part in tower.clip.named_children() if name != "visual"})
    traits = {
        "causal": is_causal(tower.clip),
        "config": repr([getattr(module, "config", None) for module in text.modules() if hasattr(module, "config")]),
        "heads": [module.num_heads for module in text.modules() if hasattr(module, "num_heads")],
        "modules": repr(text),
        "tokenizer": type(tower.tokenizer).__qualname__,
        "tokens": tower.tokenizer([_PROBE]).tolist(),
        "vocabulary": sorted(vocabulary.items()),
    }
    digest = hashlib.sha256(json.dumps(traits, sort_keys=True).encode())
    for name, weight in sorted(tower.clip.state_dict().items()):
        if not name.startswith("visual."):
            digest.update(f"{name} {tuple(weight.shape)}".encode())
            digest.update(weight.detach().to("cpu", torch.float32).contiguous().numpy())
    return digest.hexdigest()


class TextBankCache:
    """Text banks in a folder; several processes may use it at once.

    Args:
        folder: Where the files are. Default: the environment variable ``ANOVL_CACHE``, else ``anovl_plugin`` in the
            user's cache folder.
        max_files: How many files are kept, those used last. A text bank of the paper's prompts and CLIP takes 2.4 MB.
            Default: 256.
    """

    def __init__(self, folder: Path | None = None, max_files: int = 256) -> None:
        own = os.environ.get(FOLDER_VARIABLE) or platformdirs.user_cache_path("anovl_plugin")
        self.folder = Path(own if folder is None else folder)
        self.max_files = max_files

    def find(
        self,
        fingerprint: str | None,
        class_names: Sequence[str],
        domain: str = "auto",
        prompts: Prompts | None = None,
        device: torch.device | str = "cpu",
    ) -> dict[str, TextBank]:
        """Return the text banks of classes, as far as they are in the cache.

        Args:
            fingerprint: Of the text tower, see :meth:`recall`.
            class_names: What images show, as the dataset spells it.
            domain: Domain of the prompts. Default: ``auto``, by class name.
            prompts: What prompts are made of. Default: the paper's.
            device: Where the banks are used. Default: the CPU.

        Returns:
            Banks by class name.
        """
        found = {name: self.load(fingerprint, name, domain, prompts, device) for name in class_names}
        return {name: bank for name, bank in found.items() if bank is not None}

    def store(self, weights: Path, backbone: str, tower: TextTower, banks: Iterable[TextBank]) -> None:
        """Store text banks for :meth:`find`.

        Args:
            weights: File of the CLIP's weights, which the tower was loaded from.
            backbone: The architecture.
            tower: The text tower that the banks were built with.
            banks: The banks.
        """
        fingerprint = tower_fingerprint(tower)
        for bank in banks:
            self.save(fingerprint, bank)
        self.remember(weights, backbone, fingerprint)

    def load(
        self,
        fingerprint: str | None,
        class_name: str,
        domain: str = "auto",
        prompts: Prompts | None = None,
        device: torch.device | str = "cpu",
    ) -> TextBank | None:
        """Return the text bank of a class, or ``None`` if it is not in the cache.

        Args:
            fingerprint: Of the text tower, see :func:`tower_fingerprint`; ``None`` finds nothing.
            class_name: What the images show, as the dataset spells it.
            domain: Domain of the prompts. Default: ``auto``, by class name.
            prompts: What prompts are made of. Default: the paper's.
            device: Where the bank is used. Default: the CPU.

        Raises:
            TypeError: If the class name is not a string.
            ValueError: If the class name or the domain is invalid.
        """
        prompts, bank = Prompts.load(prompts), TextBank()
        resolved = prompts.resolve_domain(class_name, domain)
        prompts_hash = hash_prompts(prompts.ensemble(class_name, resolved))
        if fingerprint is None:
            return None
        words = tuple(prompts.defect_states(class_name))
        key = _key(fingerprint, prompts_hash, words, torch.device(device))
        path = self._path(key)
        try:
            tensors = _read(path, key)
        except FileNotFoundError:
            return None
        except (OSError, SafetensorError, ValueError) as error:
            reason = " ".join(str(error).split())[:200]
            msg = f"the cached text bank {path} cannot be used ({reason}), so it is built again"
            warnings.warn(msg, UserWarning, stacklevel=2)
            return None
        with suppress(OSError):
            os.utime(path)
        for name in EMBEDDINGS:
            setattr(bank, name, tensors[name].to(device))
        bank.class_name, bank.domain, bank.prompts_hash, bank.defect_words = class_name, resolved, prompts_hash, words
        return bank

    def save(self, fingerprint: str | None, bank: TextBank) -> None:
        """Store a text bank; nothing happens if the fingerprint is ``None``, or the folder cannot be written to."""
        if fingerprint is None or bank.prompts_hash is None:
            return
        tensors = {name: getattr(bank, name).detach().cpu().contiguous() for name in EMBEDDINGS}
        key = _key(fingerprint, bank.prompts_hash, bank.defect_words, bank.state_embeddings.device)
        self._write(self._path(key), save(tensors, {"sha256": _checksum(tensors, key)}))

    def recall(self, weights: Path, backbone: str) -> str | None:
        """Return the fingerprint of the text tower in a file of weights, or ``None`` if it is not remembered.

        Args:
            weights: The file. If it has changed since, nothing is remembered of it.
            backbone: The architecture.
        """
        with suppress(OSError, ValueError):
            fingerprint = self._source_path(weights, backbone).read_text(encoding="ascii")
            if len(bytes.fromhex(fingerprint)) == hashlib.sha256().digest_size:
                return fingerprint
        return None

    def remember(self, weights: Path, backbone: str, fingerprint: str | None) -> None:
        """Remember the fingerprint of the text tower in a file of weights."""
        with suppress(OSError):
            if fingerprint is not None:
                self._write(self._source_path(weights, backbone), fingerprint.encode())

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}.safetensors"

    def _source_path(self, weights: Path, backbone: str) -> Path:
        status = weights.stat()
        # open_clip 2.23 has no __version__.
        open_clip_version = version("open_clip_torch")
        source = [str(weights.resolve()), status.st_size, status.st_mtime_ns, backbone, open_clip_version, _FORMAT]
        return self.folder / f"{hashlib.sha256(json.dumps(source).encode()).hexdigest()}.fingerprint"

    def _write(self, path: Path, content: bytes) -> None:
        """Write a file as a whole or not at all, and remove the files that were not used for longest."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=self.folder, suffix=".tmp", delete=False) as file:
                try:
                    file.write(content)
                    file.close()
                    Path(file.name).replace(path)
                except BaseException:
                    Path(file.name).unlink(missing_ok=True)
                    raise
            self._prune()
        except OSError as error:
            logger.debug("%s is not written: %s", path, error)

    def _prune(self) -> None:
        kinds = (".safetensors", ".fingerprint", ".tmp")
        ages = []
        for path in self.folder.iterdir():
            with suppress(OSError):
                if path.suffix in kinds:
                    ages.append((path.stat().st_mtime, path))
        for _, path in sorted(ages, reverse=True)[self.max_files :]:
            path.unlink(missing_ok=True)


def _vocabulary(tokenizer: Callable[[list[str]], Tensor]) -> dict[str, int] | None:
    """Return ids by token, of open_clip's own tokenizer or of one that wraps one of the transformers package."""
    if isinstance(tokenizer, open_clip.SimpleTokenizer):
        return dict(tokenizer.encoder)
    get_vocabulary = getattr(getattr(tokenizer, "tokenizer", None), "get_vocab", None)
    return None if get_vocabulary is None else dict(get_vocabulary())


def _key(fingerprint: str, prompts_hash: str, words: tuple[str, ...], device: torch.device) -> str:
    parts = [_FORMAT, fingerprint, prompts_hash, words, device.type, torch.get_float32_matmul_precision()]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _checksum(tensors: dict[str, Tensor], key: str) -> str:
    digest = hashlib.sha256(key.encode())
    for name in EMBEDDINGS:
        digest.update(f"{name} {tuple(tensors[name].shape)} {tensors[name].dtype}".encode())
        digest.update(tensors[name].numpy().tobytes())
    return digest.hexdigest()


def _read(path: Path, key: str) -> dict[str, Tensor]:
    # So that a missing file is one, whatever safetensors makes of it.
    path.stat()
    with safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in EMBEDDINGS}
        if (file.metadata() or {}).get("sha256") != _checksum(tensors, key):
            msg = "its checksum is not that of its content"
            raise ValueError(msg)
    return tensors
