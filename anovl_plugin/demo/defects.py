"""Painted defects with exact masks: scratches, cracks, holes, stains and foreign pieces.

Images are float32 arrays (S, S, 3) in [0, 1]; masks are boolean arrays (S, S), true where the image was changed.
"""

import cv2
import numpy as np
from numpy.random import Generator

Image = np.ndarray
DEFECT_KINDS = ("scratch", "crack", "hole", "stain", "foreign")
# A defect is drawn again if its mean change is below this or below the standard deviation of the surface, because it is
# not obvious then, or if it covers less than this share of the image, because most of it lies outside then.
MIN_CONTRAST = 0.1
MIN_SHARE = 0.004


def line_mask(size: int, rng: Generator, *, jagged: bool) -> Image:
    """Return a soft line (S, S): a slightly curved scratch, or a jagged crack that may have two branches."""
    canvas = np.zeros((size, size), np.float32)
    thickness = max(1, round(size * rng.uniform(0.012, 0.03)))
    for _ in range(rng.integers(1, 3) if jagged else 1):
        point = rng.uniform(0.15, 0.85, 2) * size
        # Roughly toward the center, so that the line stays in the image.
        angle = np.arctan2(*(size / 2 - point)[::-1]) + rng.normal(0, 0.8)
        turn = 0.7 if jagged else 0.12
        points = [point]
        for _ in range(rng.integers(5, 12)):
            angle += rng.normal(0, turn)
            point = point + size * rng.uniform(0.035, 0.08) * np.array([np.cos(angle), np.sin(angle)])
            points.append(point)
        cv2.polylines(canvas, [(np.array(points) * 16).astype(np.int32)], False, 1.0, thickness, cv2.LINE_AA, 4)
    return canvas


def blob_mask(size: int, rng: Generator, low: float, high: float) -> Image:
    """Return a soft irregular blob (S, S) with a radius between ``low`` and ``high``, as shares of the side."""
    angles = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    wobble = sum(rng.normal(0, 0.16 / k) * np.cos(k * angles + rng.uniform(0, 6.3)) for k in range(1, 5))
    radius = size * rng.uniform(low, high) * (1 + wobble) * np.array([[1.0], [rng.uniform(0.6, 1.0)]])
    center = rng.uniform(0.12, 0.88, (2, 1)) * size
    points = (center + radius * np.stack([np.cos(angles), np.sin(angles)])).T
    canvas = np.zeros((size, size), np.float32)
    cv2.fillPoly(canvas, [(points * 16).astype(np.int32)], 1.0, cv2.LINE_AA, 4)
    return canvas


def defect_layer(image: Image, kind: str, rng: Generator) -> tuple[Image, Image]:
    """Return the opacity of a defect (S, S), in [0, 1], and its colors (S, S, 3)."""
    size, mean = len(image), float(image.mean())
    dark_or_light = np.full(3, rng.uniform(0, 0.15) if mean > rng.uniform(0.25, 0.75) else rng.uniform(0.85, 1.0))
    gray = rng.random() < 0.5
    color = np.full(3, rng.uniform()) if gray else rng.uniform(0, 1, 3)
    if kind == "scratch":
        return line_mask(size, rng, jagged=False), np.broadcast_to(dark_or_light, image.shape)
    if kind == "crack":
        return line_mask(size, rng, jagged=True), np.broadcast_to(np.full(3, rng.uniform(0, 0.12)), image.shape)
    if kind == "hole":
        opacity = blob_mask(size, rng, 0.04, 0.11)
        rim = cv2.GaussianBlur(opacity, (0, 0), size * 0.012)
        inside = rng.uniform(0, 0.12) + 0.5 * (1 - rim)[..., None]
        return opacity, np.broadcast_to(inside, image.shape)
    if kind == "stain":
        opacity = cv2.GaussianBlur(blob_mask(size, rng, 0.07, 0.17), (0, 0), size * 0.012) * rng.uniform(0.6, 0.9)
        return opacity, np.broadcast_to(color, image.shape)
    if kind == "foreign":
        opacity = blob_mask(size, rng, 0.05, 0.13)
        noise = cv2.GaussianBlur(rng.standard_normal((size, size)).astype(np.float32), (0, 0), rng.uniform(0.8, 3))
        return opacity, (color + rng.uniform(0.05, 0.4) * (noise / noise.std())[..., None]).clip(0, 1)
    msg = f"kind is {kind!r}, but must be one of {', '.join(DEFECT_KINDS)}"
    raise ValueError(msg)


def paint_defect(image: Image, kind: str, rng: Generator) -> tuple[Image, Image]:
    """Return an image with one obvious defect painted on it.

    Args:
        image: Image (S, S, 3), float32 in [0, 1]; it is not modified.
        kind: One of :data:`DEFECT_KINDS`.
        rng: Source of all randomness.

    Returns:
        The abnormal image (S, S, 3) and the mask (S, S) of the pixels that changed.

    Raises:
        ValueError: If the kind is unknown.

    Example:
        >>> import numpy as np
        >>> abnormal, mask = paint_defect(np.full((64, 64, 3), 0.5, np.float32), "hole", np.random.default_rng(0))
        >>> bool((abnormal[~mask] == 0.5).all()), bool((abnormal[mask] != 0.5).all())
        (True, True)
    """
    best, best_contrast = (image, np.zeros(image.shape[:2], bool)), -1.0
    required = max(MIN_CONTRAST, float(image.std()))
    # A defect may have the color of its background, or lie outside the image. If no attempt will do, the best is kept.
    for _ in range(12):
        opacity, colors = defect_layer(image, kind, rng)
        opacity = np.where(opacity < 0.1, 0, opacity)[..., None]
        abnormal = (opacity * colors + (1 - opacity) * image).astype(np.float32)
        mask = (abs(abnormal - image) > 1 / 255).any(-1)
        contrast = float(abs(abnormal - image).mean(-1)[mask].mean()) if mask.mean() > MIN_SHARE else 0.0
        if contrast > best_contrast:
            best, best_contrast = (np.where(mask[..., None], abnormal, image), mask), contrast
        if contrast >= required:
            break
    return best
