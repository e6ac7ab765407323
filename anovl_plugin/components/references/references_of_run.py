"""The reference images of the current run, and the bank that is built of them."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torchvision.transforms.v2 import Compose

from anovl_plugin.components.classes.classes_of_run import ClassesMixin
from anovl_plugin.components.references.reference_images import (
    ReferenceImageError,
    check_k_shot,
    check_source_path,
    choose,
    evaluated_files,
    files_in_folder,
    folder_of_class,
    hash_files,
    read_references,
    training_files,
)
from anovl_plugin.components.thresholds.post_processor import ZeroShotPostProcessor
from anovl_plugin.config import is_loading_checkpoint, shown, to_builtin, to_config
from anovl_plugin.scoring.reference_bank import parse_references
from anovl_plugin.text.text_bank import TextBank

logger = logging.getLogger(__name__)


def parse_few_shot(k_shot: object, few_shot_source: object, references: object) -> dict[str, Any]:
    """Return the settings of reference images as plain data, by name.

    Args:
        k_shot: Number of reference images.
        few_shot_source: Folder of reference images.
        references: What compares images with them.

    Raises:
        TypeError: If one has the wrong type.
        ValueError: If one is invalid.
    """
    part = parse_references(to_builtin(references), allow_import=not is_loading_checkpoint())
    return {
        "references": to_config(part),
        "k_shot": check_k_shot(k_shot),
        "few_shot_source": check_source_path(few_shot_source),
    }


class ReferencesMixin(ClassesMixin):
    """Chooses and reads the reference images of a run, and has the banks built."""

    # In a tuple, or a module would be a part of the model.
    _augmentations: tuple[Callable[[Tensor], Tensor], ...] = ()

    def build_text_bank(self) -> None:
        """Load the CLIP and build the text bank and the reference bank of each class, unless the model has them."""
        super().build_text_bank()
        self.build_reference_banks()

    @property
    def has_references(self) -> bool:
        """Whether the model has the reference bank of each class, or needs none."""
        banks = self.model.reference_banks
        return banks is None or all(banks.find(bank.class_name) is not None for bank in self.model.text_banks)

    def build_reference_banks(self) -> None:
        """Build the reference bank of each class, unless the model is zero-shot or has the bank already.

        The images come from ``few_shot_source``, else from the normal training images of the data module. A bank that
        came with a checkpoint is kept, and so is the bank of an earlier run if there are no training data now.

        Raises:
            ReferenceImageError: If there are no or too few images, or one cannot be read.
        """
        if self.model.reference_banks is None:
            return
        classes = self._classes
        for text_bank in self.model.text_banks:
            is_asked_for = classes is None or text_bank.class_name in classes.names
            if not self._keeps_bank(text_bank, is_asked_for=is_asked_for):
                self._build_reference_bank(text_bank)

    def _keeps_bank(self, text_bank: TextBank, *, is_asked_for: bool) -> bool:
        banks, references = self.model.reference_banks, self.model.references
        if banks is None or references is None:
            return True
        if not banks.fits(self.model.reference_identity(text_bank), references):
            return False
        has_source = self.datamodule is not None or self.settings["few_shot_source"] is not None
        return self.keeps_references or not has_source or not is_asked_for

    def _build_reference_bank(self, text_bank: TextBank) -> None:
        banks: Any = self.model.reference_banks
        class_name = str(text_bank.class_name)
        files, origin = self._find_references(class_name)
        transform = self._transform()
        present, source = banks.find(class_name), hash_files(files, transform)
        wanted = self.model.reference_identity(text_bank, len(files), source)
        if present is not None and present.is_for(wanted, self.model.references):
            return
        self.model.build_reference_bank(read_references(files, transform), class_name, source)
        size = banks.find(class_name).num_bytes / 1e6
        count = f"{len(files)} image{'' if len(files) == 1 else 's'}"
        logger.info("Reference bank of class %r: %s from %s, %.2g MB.", class_name, count, origin, size)
        shared = len({path.resolve() for path in files} & evaluated_files(self.datamodule))
        if shared:
            text = "%d of %d reference images are also tested; they score lower than others, so metrics are too good."
            logger.warning(text, shared, len(files))
        # Thresholds are only valid for the references that they were set with.
        if present is not None and isinstance(self.post_processor, ZeroShotPostProcessor):
            self.post_processor.reset()

    def _transform(self) -> nn.Module | None:
        """Return what is done to a test image: the augmentations of the data module, then the pre-processor's part.

        Without a data module, those of the run before count, as those of a checkpoint do.
        """
        if self.datamodule is not None:
            is_wanted = getattr(self.datamodule, "test_augmentations", None) is not None
            # As anomalib has changed them: it puts the model's resizing in place of another.
            augmentations = getattr(getattr(self.datamodule, "test_data", None), "augmentations", None)
            self._augmentations = (augmentations,) if is_wanted and augmentations is not None else ()
        transform: nn.Module | None = getattr(self.pre_processor, "transform", None)
        steps = [*self._augmentations, *([] if transform is None else [transform])]
        return Compose(steps) if self._augmentations else transform

    def _find_references(self, class_name: str) -> tuple[list[Path], str]:
        folder, k_shot = self.settings["few_shot_source"], self.settings["k_shot"]
        of_path = None if self._classes is None else self._classes.of_path
        several = len(self.model.text_banks) > 1 or of_path is not None
        if folder is not None:
            # If images may show several classes, each has a folder of its name, whichever classes this run shows.
            own = folder_of_class(folder, class_name, is_only_class=not several)
            may_be_abnormal = getattr(self.model.references, "unlabelled", False)
            files = files_in_folder(own, source=folder, may_be_abnormal=may_be_abnormal)
            return choose(files, k_shot, shown(own)), shown(own)
        if not k_shot:
            msg = (
                f"references is {type(self.model.references).__name__}, but there are no reference images; set k_shot, "
                "to take them from training data, or few_shot_source"
            )
            raise ReferenceImageError(msg)
        files = training_files(self.datamodule)
        if of_path is not None:
            files = [path for path in files if of_path(str(path)) == class_name]
        origin = f"the training data of class {shown(class_name)}" if several else "the training data"
        return choose(files, k_shot, origin), origin
