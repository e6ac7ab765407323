"""The classes of the current run: their text banks, and which class each image shows."""

import logging
from typing import Any, cast

import torch
from anomalib.data import Batch
from torch import Tensor

from anovl_plugin.components.checkpoints.checkpoint import CheckpointMixin
from anovl_plugin.components.checkpoints.settings import CheckpointError
from anovl_plugin.components.classes.image_classes import (
    FALLBACK,
    FROM_FOLDER,
    ClassError,
    ImageClasses,
    by_category,
    by_folder,
    by_mapping,
    image_paths,
)
from anovl_plugin.components.thresholds.post_processor import ZeroShotPostProcessor
from anovl_plugin.config import shown
from anovl_plugin.hosts.lightning import attached_trainer

logger = logging.getLogger(__name__)

_BANKS = "the text bank that the model had"


class ClassesMixin(CheckpointMixin):
    """Finds the classes of a run, has their text banks built, and tells the class of each image."""

    _classes: ImageClasses | None = None

    def build_text_bank(self) -> None:
        """Load the CLIP and build the text bank of each class of the run, unless the model has it already.

        The class is the ``class_name`` argument, else the category of the data module, else the class of the text bank
        (of a checkpoint, if there is a data module), else ``object``. With several classes, the banks that the model
        has stay.

        Raises:
            CheckpointError: If the checkpoint does not have one of several classes.
            ClassError: If the classes cannot be told.
        """
        before = self.model.text_banks.class_names
        self._classes = classes = self._find_classes()
        self._check_paths(classes)
        unknown = [name for name in classes.names if name not in self.checkpoint_classes]
        if len(self.checkpoint_classes) > 1 and unknown:
            known = ", ".join(map(shown, self.checkpoint_classes))
            msg = f"class {shown(unknown[0])} (from {classes.origin}) is not in the checkpoint, only {known}"
            raise CheckpointError(msg)
        keep = classes.of_path is not None or set(classes.names) <= set(before)
        wanted = dict.fromkeys([*(before if keep else ()), *classes.names])
        built = self.model.build_text_banks(list(wanted), self.settings["domain"])
        self.set_default_transform()
        if built:
            self._log_text_banks(classes, built)
        if isinstance(self.post_processor, ZeroShotPostProcessor):
            # Thresholds are only valid for the text bank that they were set with.
            if before and not set(before) <= set(self.model.text_banks.class_names) - set(built):
                self.post_processor.reset()
            self.post_processor.resize(len(wanted) if len(wanted) > 1 else 0)

    def class_index_of(self, batch: Batch) -> Tensor | None:
        """Return the index of the class of each image of a batch (B,); ``None`` if the model has one class.

        Raises:
            ClassError: If the class of an image cannot be told.
        """
        classes = self._classes
        if classes is None:
            return None
        if classes.of_path is None:
            only = self.only_class_index()
            images = cast("Tensor", batch.image)
            return None if only is None else torch.full((len(images),), only, device=images.device)
        paths = getattr(batch, "image_path", None)
        if not paths:
            msg = f"the images have no paths, but their class comes from {classes.origin}; set class_name to one class"
            raise ClassError(msg)
        index = self.model.text_banks.index([classes.of_path(str(path)) for path in paths])
        return None if len(self.model.text_banks) == 1 else index.to(cast("Tensor", batch.image).device)

    def only_class_index(self) -> int | None:
        """Return the index of the run's only class; ``None`` if the model has one class, or the run several."""
        classes = self._classes
        if len(self.model.text_banks) == 1 or classes is None or classes.of_path is not None:
            return None
        return self.model.text_banks.class_names.index(classes.names[0])

    def classes_to_choose_from(self) -> tuple[str, ...]:
        """Return the classes of the model if each image's must be told, in the order of their indices; else none."""
        several = len(self.model.text_banks) > 1 and self._classes is not None and self._classes.of_path is not None
        return self.model.text_banks.class_names if several else ()

    def class_names_of(self, batch: Batch) -> list[str]:
        """Return the class that each image of a scored batch was compared with."""
        names = self.model.text_banks.class_names
        index = getattr(batch, "class_index", None)
        if index is None:
            return [names[0]] * len(cast("Tensor", batch.image))
        return [names[each] for each in index.tolist()]

    def _find_classes(self) -> ImageClasses:
        class_name: Any = self.settings["class_name"]
        if isinstance(class_name, dict):
            return by_mapping(class_name)
        if class_name is not None and class_name != FROM_FOLDER:
            return ImageClasses((class_name,), "the class_name argument")
        several = getattr(self.datamodule, "category_of", None)
        if several is not None:
            return by_category(several)
        if self.categories:
            return ImageClasses(self.categories, "the data module's category")
        if class_name == FROM_FOLDER:
            return self._find_folders()
        return self._classes_of_banks()

    def _classes_of_banks(self) -> ImageClasses:
        """Return the classes of the text banks of a checkpoint or an earlier run, else the fallback."""
        has: tuple[str, ...] = self.checkpoint_classes
        if self.datamodule is None:
            has = self.model.text_banks.class_names
        if len(has) < 2:
            return ImageClasses(has, _BANKS) if has else ImageClasses((FALLBACK,), "the fallback")
        if not self._is_running:
            # Whoever calls the model, or the exported graph, says which class each image shows.
            return by_mapping({name: name for name in has}, _BANKS)
        msg = (
            f"the model has text banks of {', '.join(map(shown, has))}, and nothing says which the images show; "
            "set class_name to one of them, to a mapping from folder names to classes, or to 'from_folder'"
        )
        raise ClassError(msg)

    @property
    def _is_running(self) -> bool:
        trainer = attached_trainer(self)
        return trainer is not None and (trainer.evaluating or trainer.predicting or trainer.training)

    def _check_paths(self, classes: ImageClasses) -> None:
        """Raise an error before the first batch if the class of an image cannot be told."""
        trainer = attached_trainer(self)
        if isinstance(self.settings["class_name"], dict) and trainer is not None and self._is_running:
            for path in image_paths(trainer):
                cast("Any", classes.of_path)(path)

    def _find_folders(self) -> ImageClasses:
        trainer = attached_trainer(self)
        if trainer is None or not self._is_running:
            known = self.model.text_banks.class_names
            if known:
                return by_mapping({name: name for name in known}, _BANKS)
            msg = (
                "class_name is 'from_folder', but there is no run whose images tell the classes; validate or test "
                "first, or set class_name to a mapping from folder names to classes"
            )
            raise ClassError(msg)
        return by_folder(image_paths(trainer), getattr(self.datamodule, "root", None))

    def _log_text_banks(self, classes: ImageClasses, built: list[str]) -> None:
        for bank in self.model.text_banks:
            if bank.class_name not in built:
                continue
            noun, count = self.model.prompts.noun(str(bank.class_name)), len(bank.prompt_embeddings)
            text = "Text bank of class %r (from %s), domain %r: %d sentences about %r."
            logger.info(text, bank.class_name, classes.origin, bank.domain, count, noun)
            alike = ", ".join(map(repr, bank.indistinct_words()))
            if alike:
                logger.warning("The CLIP does not tell %s apart, so no defect can be named; use other words.", alike)
            for name in self.model.prompts.misspelled(str(bank.class_name)):
                logger.warning("The prompts have an entry for %r, but the class is %r.", name, bank.class_name)
            if classes.origin == "the fallback":
                logger.warning("Nothing says what the images show; set class_name, e.g. to 'bottle'.")
            elif not any(letter.isalpha() for letter in noun):
                logger.warning("The prompts speak of %r; say what that is with a class_name or nouns in prompts.", noun)
