"""Several categories of a dataset in one run."""

import copy
from collections.abc import Sequence
from typing import Any

import pandas as pd
from anomalib.data import AnomalibDataModule
from anomalib.data.datasets.base.image import AnomalibDataset

from anovl_plugin.config import shown, to_builtin
from anovl_plugin.hosts.anomalib import PreSplitDataModule

_SUBSETS = ("train_data", "val_data", "test_data")


class MultiCategory(PreSplitDataModule):
    """Joins categories of one of anomalib's data modules, each with the splits that it has on its own.

    AnoVL compares each image with the text bank of its category, and reports metrics for each category.

    Args:
        datamodule: Data module of any of the categories; its batch sizes, workers and augmentations hold for all.
        categories: The categories, at least one.

    Attributes:
        categories: The categories, in order.
        category_of: Category by path of the image; empty before setup.

    Raises:
        TypeError: If an argument has the wrong type, or the data module has no categories.
        ValueError: If there is no category, or one is there twice.

    Example:
        >>> from anomalib.data import MVTecAD
        >>> MultiCategory(MVTecAD(root="datasets/MVTecAD"), ["bottle", "cable"]).categories
        ('bottle', 'cable')
    """

    def __init__(self, datamodule: AnomalibDataModule, categories: list[str]) -> None:
        if not isinstance(datamodule, AnomalibDataModule):
            msg = f"datamodule is {shown(datamodule)}, but must be one of anomalib's data modules, e.g. MVTecAD()"
            raise TypeError(msg)
        if not datamodule.category:
            msg = f"datamodule is a {type(datamodule).__name__} without a category; use a folder for each class instead"
            raise TypeError(msg)
        super().__init__(
            train_batch_size=datamodule.train_batch_size,
            eval_batch_size=datamodule.eval_batch_size,
            num_workers=datamodule.num_workers,
            train_augmentations=datamodule.train_augmentations,
            val_augmentations=datamodule.val_augmentations,
            test_augmentations=datamodule.test_augmentations,
            val_split_mode=datamodule.val_split_mode,
            val_split_ratio=datamodule.val_split_ratio,
            test_split_mode=datamodule.test_split_mode,
            test_split_ratio=datamodule.test_split_ratio,
            seed=datamodule.seed,
        )
        self.categories = _check_categories(categories)
        self.category_of: dict[str, str] = {}
        self._dataset_name = datamodule.name
        self._parts = [_of_category(datamodule, category) for category in self.categories]

    @property
    def name(self) -> str:  # type: ignore[override] # as anomalib's
        """Name of the joined data module, for the folder of results."""
        return self._dataset_name

    def prepare_data(self) -> None:
        """Prepare every category, as its own data module does."""
        for part in self._parts:
            part.prepare_data()

    def _setup(self, _stage: str | None = None) -> None:
        for part in self._parts:
            part.setup(_stage)
        for subset in _SUBSETS:
            datasets = [getattr(part, subset) for part in self._parts if hasattr(part, subset)]
            if datasets:
                setattr(self, subset, _join(datasets))
        self.category_of = {
            str(path): category
            for part, category in zip(self._parts, self.categories, strict=True)
            for subset in _SUBSETS
            if hasattr(part, subset)
            for path in getattr(part, subset).samples["image_path"]
        }


def _check_categories(categories: Any) -> tuple[str, ...]:
    categories = to_builtin(categories)
    msg = f"categories is {shown(categories)}, but must be a list of category names, e.g. [bottle, cable]"
    if isinstance(categories, str) or not isinstance(categories, Sequence):
        raise TypeError(msg)
    if not all(isinstance(category, str) for category in categories):
        raise TypeError(msg)
    if not categories:
        raise ValueError(msg)
    twice = next((category for category in categories if list(categories).count(category) > 1), None)
    if twice is not None:
        msg = f"categories has {shown(twice)} twice; name each category once"
        raise ValueError(msg)
    return tuple(categories)


def _of_category(datamodule: AnomalibDataModule, category: str) -> AnomalibDataModule:
    part = copy.deepcopy(datamodule)
    part.category = category
    return part


def _join(datasets: list[AnomalibDataset]) -> AnomalibDataset:
    tasks = {dataset.task for dataset in datasets}
    if len(tasks) > 1:
        msg = "some categories have masks and others have none, which cannot be tested in one run; test them separately"
        raise ValueError(msg)
    # anomalib's own concatenation makes copies, and a discarded copy of synthetic data deletes its images.
    joined = copy.copy(datasets[0])
    samples = pd.concat([dataset.samples for dataset in datasets], ignore_index=True)
    samples.attrs["task"] = tasks.pop()
    joined.samples = samples
    return joined
