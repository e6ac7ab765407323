"""What the package uses of anomalib beyond its public API."""

from anomalib.data.utils.tiler import ImageUpscaleMode, Tiler

__all__ = ["ImageUpscaleMode", "Tiler", "count_tiles"]


def count_tiles(tiler: Tiler) -> int:
    """Return the number of tiles per image in the batch that a tiler has cut last."""
    return tiler.num_patches_h * tiler.num_patches_w
