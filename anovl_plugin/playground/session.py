"""What the playground computes: a CLIP that is loaded once, and the scores of an image by some words."""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import RLock
from time import perf_counter
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from anomalib.data import ImageBatch
from anomalib.pre_processing import PreProcessor
from PIL import Image
from torch import Tensor

from anovl_plugin.components.images.image_file import read_image
from anovl_plugin.components.images.pre_processor import naming
from anovl_plugin.components.pictures.picture import Content
from anovl_plugin.components.pictures.visualizer import content_of
from anovl_plugin.components.references.reference_images import hash_files
from anovl_plugin.components.results.explanation import describe, keep_matches, matches_of
from anovl_plugin.components.thresholds.post_processor import DEFAULT_THRESHOLD, ZeroShotPostProcessor
from anovl_plugin.components.thresholds.shown_thresholds import shown_thresholds
from anovl_plugin.config import cause_of, shown
from anovl_plugin.lightning_model import AnoVL
from anovl_plugin.playground.words import Words
from anovl_plugin.scoring.defect_names import DefectMatch
from anovl_plugin.scoring.description import Description, explain
from anovl_plugin.text.text_bank import TextBank, build_text_banks
from anovl_plugin.text.text_tower import TextTower, Tokenizer
from anovl_plugin.vision.backbone import load_backbone

# Cosine above which two states are the same to the CLIP; the paper's differ by 1e-3 and more.
_SAME = 1 - 1e-6
# Longest side of an image that is kept to be shown, in pixels.
_SHOWN = 896
_MOST_SENTENCES, _MOST_MODELS, _MOST_RESULTS = 50_000, 8, 16


@dataclass(frozen=True)
class Settings:
    """What a model is made of.

    Args:
        backbone: The CLIP.
        words: What an image is compared with.
        pretrained: Weights of the CLIP. Default: those of :class:`~anovl_plugin.AnoVL`.
        references: Folder of reference images. Default: none.
    """

    backbone: str
    words: Words
    pretrained: str | None = None
    references: Path | None = None

    def arguments(self) -> dict[str, Any]:
        """Return the arguments of :class:`~anovl_plugin.AnoVL`, as plain data.

        Raises:
            ValueError: If the class name is invalid.
        """
        arguments: dict[str, Any] = {"backbone": self.backbone}
        if self.pretrained is not None:
            arguments["pretrained"] = self.pretrained
        arguments |= self.words.arguments()
        if self.references is not None:
            arguments["few_shot_source"] = str(self.references)
        return arguments


class Scored(NamedTuple):
    """An image with its scores, before any threshold.

    Attributes:
        path: Image file.
        settings: What the model was made of.
        pixels: The image as it is shown, at most 896 pixels a side, RGB, uint8, shape (h', w', 3).
        size: Height and width of the image in pixels.
        score: Image score in [0, 1], shape (1,).
        anomaly_map: Scores of pixels in [0, 1], shape (1, h, w).
        match: How the patches match the words for defects; ``None`` if no defect can be named.
        domain: Domain of the prompts.
        sentences: Number of prompts.
        notes: What is worth knowing about the words, each in a line.
        milliseconds: Time that the encoding of new words, reading and scoring took.
    """

    path: Path
    settings: Settings
    pixels: np.ndarray
    size: tuple[int, int]
    score: Tensor
    anomaly_map: Tensor
    match: DefectMatch | None
    domain: str
    sentences: int
    notes: tuple[str, ...]
    milliseconds: float


class Judged(NamedTuple):
    """An image with its verdict.

    Attributes:
        scored: Its scores.
        threshold: Score above which an image, or a pixel, is abnormal.
        content: What pictures show of it.
        description: Its regions, in pixels of the map, and what they are called.
    """

    scored: Scored
    threshold: float
    content: Content
    description: Description


def judge(scored: Scored, threshold: float = DEFAULT_THRESHOLD) -> Judged:
    """Return the verdict on an image and its regions, without running the model.

    Args:
        scored: Scores of the image.
        threshold: Score above which an image, and a pixel, is abnormal, between 0 and 1. Default: 0.5.

    Raises:
        ValueError: If the threshold is not between 0 and 1.
    """
    post_processor = ZeroShotPostProcessor(**threshold_arguments(threshold))
    # anomalib wants an image in a batch, and reads nothing of it.
    image = scored.anomaly_map.unsqueeze(1).expand(-1, 3, -1, -1)
    batch = ImageBatch(image=image, pred_score=scored.score, anomaly_map=scored.anomaly_map)
    keep_matches(batch, [scored.match])
    post_processor.post_process_batch(batch)
    (description,) = describe(batch)
    (item,) = batch
    content = content_of(item, shown_thresholds(post_processor))
    content = content._replace(image=scored.pixels, explanation=explain(description.shares))
    return Judged(scored, threshold, content, description)


def threshold_arguments(threshold: float) -> dict[str, Any]:
    """Return the arguments of the post-processor with one threshold for images and pixels, defaults left out.

    Scores then stay as the model gives them, so that they can be compared with those of other thresholds.

    Example:
        >>> threshold_arguments(0.5), threshold_arguments(0.4)["image_threshold"]
        ({}, 0.4)
    """
    if threshold == DEFAULT_THRESHOLD:
        return {}
    return {"image_threshold": threshold, "pixel_threshold": threshold, "enable_normalization": False}


class RememberingTower(TextTower):
    """A text tower that encodes no sentence twice."""

    def __init__(self, clip: Any, tokenizer: Tokenizer) -> None:
        super().__init__(clip, tokenizer)
        self._known: OrderedDict[str, Tensor] = OrderedDict()
        self.encoded = 0

    def encode(self, prompts: Sequence[str], batch_size: int = 64, *, truncate_context: bool = True) -> Tensor:
        """Embed sentences, only the new ones by the network; see :meth:`TextTower.encode`."""
        new = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._known]
        if new:
            embeddings = super().encode(new, batch_size, truncate_context=truncate_context)
            self._known.update(zip(new, embeddings, strict=True))
            self.encoded += len(new)
        rows = [self._known[prompt] for prompt in prompts]
        while len(self._known) > _MOST_SENTENCES:
            self._known.popitem(last=False)
        return torch.stack(rows)


class Session:
    """A CLIP, with the models of the words that were used last. Several threads may use it.

    Args:
        backbone: The CLIP, as for :class:`~anovl_plugin.AnoVL`.
        pretrained: Its weights. Default: those of :class:`~anovl_plugin.AnoVL`.
        device: Where it runs. Default: ``cpu``.

    Raises:
        BackboneError: If the CLIP cannot be loaded.
        ValueError: If there is no such device.
    """

    def __init__(self, backbone: str, pretrained: str | None = None, device: str = "cpu") -> None:
        self.device = _check_device(device)
        self.backbone, self.pretrained = backbone, pretrained
        # The model checks its arguments before anything is loaded.
        self._clip = load_backbone(*self._new_model(self.settings(Words("object"))).model.source)
        self._tower = RememberingTower(self._clip.clip, cast("Tokenizer", self._clip.tokenizer)).to(self.device)
        self._lock = RLock()
        self._models: OrderedDict[tuple, tuple[AnoVL, TextBank]] = OrderedDict()
        self._results: OrderedDict[tuple, Scored] = OrderedDict()

    def settings(self, words: Words, references: Path | None = None) -> Settings:
        """Return the settings of a model of this CLIP."""
        return Settings(self.backbone, words, self.pretrained, references)

    @property
    def encoded(self) -> int:
        """How many sentences were encoded so far."""
        return self._tower.encoded

    def score(self, path: Path, words: Words, references: Path | None = None) -> Scored:
        """Return the scores of an image.

        Args:
            path: Image file.
            words: What to compare it with.
            references: Folder of reference images. Default: none.

        Raises:
            ReferenceImageError: If a reference image cannot be read.
            TypeError: If the words are invalid.
            ValueError: If the words are invalid, the CLIP does not tell them apart, or the image cannot be read.
        """
        settings = self.settings(words, references)
        with self._lock:
            key = (_identity(path), *self._key(settings))
            if key not in self._results:
                self._results[key] = self._score(path, settings)
            _keep_last(self._results, key, _MOST_RESULTS)
            return self._results[key]

    def _score(self, path: Path, settings: Settings) -> Scored:
        start = perf_counter()
        model, bank = self._model(settings)
        pixels = _read(path)
        transform = cast("PreProcessor", model.pre_processor).transform
        with torch.no_grad(), naming([str(path)]):
            images = pixels[None].to(self.device)
            batch = ImageBatch(image=images if transform is None else transform(images))
            model.predict_step(batch)
        (match,) = matches_of(batch)
        return Scored(
            path=path,
            settings=settings,
            pixels=_shrink(pixels),
            size=(pixels.shape[1], pixels.shape[2]),
            score=cast("Tensor", batch.pred_score).cpu(),
            anomaly_map=cast("Tensor", batch.anomaly_map).as_subclass(Tensor).cpu(),
            match=match,
            domain=str(bank.domain),
            sentences=len(bank.prompt_embeddings),
            notes=_notes(bank),
            milliseconds=1000 * (perf_counter() - start),
        )

    def _model(self, settings: Settings) -> tuple[AnoVL, TextBank]:
        key = self._key(settings)
        if key not in self._models:
            model = self._new_model(settings)
            model.model.image_tower.set_loaded(self._clip)
            model.load()
            arguments = settings.arguments()
            (bank,) = build_text_banks(
                self._tower, [arguments["class_name"]], arguments.get("domain", "auto"), model.model.prompts
            )
            _check_states(bank)
            model.model.text_banks.replace([bank])
            model.build_text_bank()
            self._models[key] = model, bank
        _keep_last(self._models, key, _MOST_MODELS)
        return self._models[key]

    def _new_model(self, settings: Settings) -> AnoVL:
        model = AnoVL(**settings.arguments(), cache=False, evaluator=False, visualizer=False)
        return model.to(self.device).eval()

    def _key(self, settings: Settings) -> tuple:
        folder = settings.references
        return settings, None if folder is None else hash_files(sorted(folder.iterdir()))


def _check_device(device: str) -> torch.device:
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        msg = f"device is {shown(device)}, which cannot be used here ({cause_of(error)}); use cpu"
        raise ValueError(msg) from None


def _check_states(bank: TextBank) -> None:
    normal, abnormal = bank.state_embeddings
    if float(normal @ abnormal) > _SAME:
        msg = (
            "the CLIP does not tell these normal states from the abnormal ones, so all scores would be 0.5; use other "
            "words"
        )
        raise ValueError(msg)


def _notes(bank: TextBank) -> tuple[str, ...]:
    alike = ", ".join(map(repr, bank.indistinct_words()))
    if not alike:
        return ()
    return (f"The CLIP does not tell {alike} apart, so no defect is named; use other words.",)


def _read(path: Path) -> Tensor:
    try:
        return read_image(path)
    except Exception as error:
        msg = f"{path.name} cannot be read as an image ({cause_of(error)}); save it again, or use another"
        raise ValueError(msg) from error


def _shrink(pixels: Tensor) -> np.ndarray:
    """Return an image (3, H, W) in a size to show, so that results of large images fit into memory."""
    shown = Image.fromarray(np.rint(pixels.permute(1, 2, 0).numpy() * 255).astype(np.uint8))
    shown.thumbnail((_SHOWN, _SHOWN), Image.Resampling.LANCZOS)
    return np.array(shown)


def _identity(path: Path) -> tuple[str, int, int]:
    try:
        status = path.stat()
    except OSError as error:
        msg = f"{path.name} cannot be read ({error.strerror}); use another image"
        raise ValueError(msg) from None
    return str(path), status.st_size, status.st_mtime_ns


def _keep_last(cache: OrderedDict, key: tuple, most: int) -> None:
    cache.move_to_end(key)
    while len(cache) > most:
        cache.popitem(last=False)
