"""Explanations in the results of engine runs: the name of the defect, for images and for regions."""

from collections.abc import Sequence

from anomalib.data import Batch, ImageBatch
from lightning.pytorch import Callback
from torch import Tensor

from anovl_plugin.components.pictures.display_copies import BatchEndCallback
from anovl_plugin.scoring.defect_names import DefectMatch
from anovl_plugin.scoring.description import Description, describe_image, explain
from anovl_plugin.scoring.regions import find_regions

# The attribute of a batch that holds how its images match the words for defects; anomalib has no field for it.
_MATCHES = "defect_matches"


def with_explanations(callbacks: Sequence[Callback], post_processor: object) -> list[Callback]:
    """Return callbacks among which one explains each batch as soon as it has masks.

    Args:
        callbacks: Callbacks of the model.
        post_processor: The one among them that adds masks, if there is one.
    """
    index = next((index for index, each in enumerate(callbacks, start=1) if each is post_processor), 0)
    return [*callbacks[:index], BatchEndCallback(_explain_batch), *callbacks[index:]]


def keep_matches(batch: Batch, matches: Sequence[DefectMatch | None]) -> None:
    """Let :func:`describe` name the defects of a batch.

    Args:
        batch: The batch, which the matches become an attribute of.
        matches: How each image matches the words for its defects; ``None`` if there are no words.
    """
    setattr(batch, _MATCHES, list(matches))


def matches_of(batch: Batch) -> list[DefectMatch | None]:
    """Return what :func:`keep_matches` kept with a batch; an empty list if nothing was."""
    return getattr(batch, _MATCHES, [])


def describe(batch: ImageBatch) -> list[Description]:
    """Return the regions of each image of a batch, with words for defects and their shares if the prompts have any.

    Args:
        batch: Predictions of an engine run, as they are: copies of a batch, and its single items, have no words.

    Returns:
        For each image its regions, from the predicted mask, and shares of words for each region and for the image.
        Boxes and positions are in pixels of the map. Without masks there are no regions.

    Raises:
        ValueError: If the batch has no maps, or masks or images of another size.
    """
    maps, masks = batch.anomaly_map, batch.pred_mask
    if maps is None:
        msg = "the batch has no anomaly_map, so it cannot be described; pass what engine.predict returns"
        raise ValueError(msg)
    maps = maps.as_subclass(Tensor)
    maps = maps[:, 0] if maps.ndim == 4 else maps
    regions = find_regions(maps.new_zeros(maps.shape) if masks is None else masks, maps)
    matches = matches_of(batch) or [None] * len(maps)
    return [describe_image(*image) for image in zip(regions, maps.float(), matches, strict=True)]


def _explain_batch(batch: ImageBatch) -> None:
    if any(matches_of(batch)):
        batch.explanation = [explain(description.shares) for description in describe(batch)]
