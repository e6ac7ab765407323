"""Where the images of a dataset are, through subsets and concatenations."""

from bisect import bisect_right
from collections.abc import Iterator

from anomalib.data import AnomalibDataset, PredictDataset
from torch.utils.data import ConcatDataset, Dataset, Subset


def leaves(dataset: Dataset) -> Iterator[Dataset]:
    """Iterate over the datasets that make up subsets and concatenations."""
    if isinstance(dataset, Subset):
        yield from leaves(dataset.dataset)
    elif isinstance(dataset, ConcatDataset):
        for part in dataset.datasets:
            yield from leaves(part)
    else:
        yield dataset


def locate(dataset: Dataset, index: int) -> tuple[Dataset, int]:
    """Return the dataset that an item of a subset or a concatenation comes from, and its index there."""
    if type(dataset) is Subset:
        return locate(dataset.dataset, dataset.indices[index])
    if type(dataset) is ConcatDataset:
        part = bisect_right(dataset.cumulative_sizes, index)
        return locate(dataset.datasets[part], index - (dataset.cumulative_sizes[part - 1] if part else 0))
    return dataset, index


def path_of(dataset: AnomalibDataset | PredictDataset, index: int) -> str:
    """Return the path of an image of one of anomalib's datasets."""
    if isinstance(dataset, PredictDataset):
        return str(dataset.image_filenames[index])
    return str(dataset.samples["image_path"].iat[index])


def paths_of(dataset: Dataset) -> list[str] | None:
    """Return the paths of the images of a dataset and of all that it is a part of; ``None`` if they are not known."""
    paths: list[str] = []
    for part in leaves(dataset):
        if isinstance(part, PredictDataset):
            paths += map(str, part.image_filenames)
        elif isinstance(part, AnomalibDataset):
            paths += map(str, part.samples["image_path"])
        else:
            return None
    return paths
