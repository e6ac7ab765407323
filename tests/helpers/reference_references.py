"""Distances to reference images and their scale, written out slowly in float64; nothing is shared with the package.

Lists of images are lists of lists of unit vectors: ``images[r][p]`` is patch p of image r.
"""

import math

import numpy as np

Vector = list[float]
Image = list[Vector]


def cosine(one: Vector, other: Vector) -> float:
    dot = sum(a * b for a, b in zip(one, other, strict=True))
    return dot / math.sqrt(sum(a * a for a in one) * sum(b * b for b in other))


def nearest(patch: Vector, image: Image) -> float:
    """Return the smallest ½ (1 − cos) between a patch and the patches of an image."""
    return min((1 - cosine(patch, other)) / 2 for other in image)


def memory_distance(patch: Vector, images: list[Image], lowest_share: float | None = None) -> float:
    """Return the distance to the nearest patch, or the mean of the lowest share of those to the single images."""
    by_image = sorted(nearest(patch, image) for image in images)
    count = 1 if lowest_share is None else max(1, round(lowest_share * len(images)))
    return sum(by_image[:count]) / count


def subspace_distance(patch: Vector, images: list[Image], variance: float, *, trimmed: bool = False) -> float:
    """Return the length of what the mean and the first singular vectors leave of a patch.

    Trimmed, they are those of the nine tenths of the patches of which least is left, found anew three times.
    """
    patches = [each for image in images for each in image]
    kept = patches
    for _ in range(3 if trimmed else 0):
        left = sorted(patches, key=lambda each: rest_of(each, kept, variance))
        kept = left[: len(left) - len(left) // 10]
    return rest_of(patch, kept, variance)


def rest_of(patch: Vector, patches: list[Vector], variance: float) -> float:
    rows = np.array(patches, dtype=np.float64)
    mean = rows.mean(0)
    _, singular, directions = np.linalg.svd(rows - mean, full_matrices=False)
    shares = singular**2 / (singular**2).sum()
    kept, total = [], 0.0
    for share, direction in zip(shares, directions, strict=True):
        if total >= variance:
            break
        kept.append(direction)
        total += share
    rest = np.array(patch) - mean
    for direction in kept:
        rest = rest - (rest @ direction) * direction
    return math.sqrt(float(rest @ rest))


def splits(images: list[Image]) -> list[tuple[Image, list[Image]]]:
    """Return each image and all others, or, of one image, its two halves, both ways."""
    if len(images) == 1:
        (only,) = images
        first, second = only[: len(only) // 2], only[len(only) // 2 :]
        return [(first, [second]), (second, [first])]
    return [(image, images[:at] + images[at + 1 :]) for at, image in enumerate(images)]


def mean_and_deviation(values: list[float]) -> tuple[float, float]:
    mean = sum(values) / len(values)
    return mean, math.sqrt(sum((value - mean) ** 2 for value in values) / len(values))
