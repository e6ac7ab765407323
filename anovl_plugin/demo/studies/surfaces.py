"""Procedural surfaces and objects, on which the package's small CLIP is trained.

Each family draws a square image with a random generator, and lists the nouns that captions may use for it. No
photograph is used.

Images are float32 arrays of shape (S, S, 3) in [0, 1].
"""

from collections.abc import Callable
from typing import NamedTuple

import cv2
import numpy as np
from numpy.random import Generator

Image = np.ndarray
GENERIC_NOUNS = ("object", "surface", "texture", "material", "product", "item", "part", "sample")


def rescale(values: Image, low: float = 0.0, high: float = 1.0) -> Image:
    """Return an array, rescaled linearly to span [low, high]."""
    span = float(values.max() - values.min())
    return (values - values.min()) / (span + 1e-8) * (high - low) + low


def coordinates(size: int, rng: Generator) -> tuple[Image, Image]:
    """Return pixel coordinates (u, v), rotated by a random angle, slightly sheared and bent."""
    y, x = np.mgrid[:size, :size].astype(np.float32)
    angle = rng.uniform(0, np.pi)
    u = np.cos(angle) * x + np.sin(angle) * y
    v = -np.sin(angle) * x + np.cos(angle) * y
    bend = rng.uniform(0, 2.0)
    return u + bend * np.sin(v / rng.uniform(8, 40)), v * (1 + 0.002 * rng.uniform(-1, 1) * u)


def power_law_noise(size: int, rng: Generator, slope: float, stretch: float = 1.0) -> Image:
    """Return noise whose amplitude falls as 1/fˢˡᵒᵖᵉ; ``stretch`` above 1 makes it fibrous along a random direction."""
    fy, fx = np.meshgrid(np.fft.fftfreq(size), np.fft.rfftfreq(size), indexing="ij")
    angle = rng.uniform(0, np.pi)
    along, across = np.cos(angle) * fx + np.sin(angle) * fy, -np.sin(angle) * fx + np.cos(angle) * fy
    radius = np.sqrt((along * stretch) ** 2 + (across / stretch) ** 2)
    radius[0, 0] = 1.0
    spectrum = np.fft.rfft2(rng.standard_normal((size, size))) / radius**slope
    spectrum[0, 0] = 0.0
    return rescale(np.fft.irfft2(spectrum, s=(size, size)).astype(np.float32))


def band_noise(size: int, rng: Generator) -> Image:
    """Return noise of one scale, isotropic or oriented, as in leather or brushed metal."""
    sigma = rng.uniform(0.6, 4.0)
    ratio = rng.choice([1.0, 1.0, rng.uniform(2, 6)])
    noise = rng.standard_normal((size, size)).astype(np.float32)
    sizes = (sigma, sigma * ratio) if rng.random() < 0.5 else (sigma * ratio, sigma)
    fine = cv2.GaussianBlur(noise, (0, 0), *sizes)
    return rescale(np.tanh(2 * (fine - cv2.GaussianBlur(fine, (0, 0), sigma * 3)) / (fine.std() + 1e-6)))


def smooth_surface(size: int, rng: Generator) -> Image:
    """Return a fractal or band-limited texture."""
    if rng.random() < 0.5:
        return power_law_noise(size, rng, rng.uniform(0.3, 1.8))
    return band_noise(size, rng)


def woven_surface(size: int, rng: Generator) -> Image:
    """Return one to three sets of crossing threads: cloth, carpet, ribbed and striped materials."""
    u, v = coordinates(size, rng)
    total = np.zeros((size, size), np.float32)
    for _ in range(rng.integers(1, 4)):
        period, turn = rng.uniform(3.5, 24), rng.choice([0, np.pi / 2, rng.uniform(0, np.pi)])
        wave = np.sin(2 * np.pi * (np.cos(turn) * u + np.sin(turn) * v) / period + rng.uniform(0, 6.3))
        total += rng.uniform(0.3, 1) * (np.tanh(3 * wave) if rng.random() < 0.3 else wave)
    return rescale(total)


def stone_surface(size: int, rng: Generator) -> Image:
    """Return a heap of shaded pebbles: Voronoi cells with dark gaps, each with its own brightness and slope."""
    spacing = rng.uniform(6, 22)
    count = int((size / spacing) ** 2 * 1.6) + 4
    points = rng.uniform(-spacing, size + spacing, (count, 2)).astype(np.float32)
    pixels = np.stack([*np.mgrid[:size, :size]], -1).astype(np.float32)
    warp = np.stack([power_law_noise(size, rng, 1.5) - 0.5 for _ in range(2)], -1) * spacing * rng.uniform(0, 1)
    offsets = (pixels + warp)[:, :, None] - points
    distance = np.sqrt((offsets**2).sum(-1))
    order = np.argpartition(distance, 1, axis=-1)[..., :2]
    first, second = np.moveaxis(np.sort(np.take_along_axis(distance, order, -1), -1), -1, 0)
    nearest = distance.argmin(-1)
    slope = rng.normal(0, 0.5, (count, 2)).astype(np.float32) / spacing
    shade = rng.normal(0, rng.uniform(0.1, 0.5), count).astype(np.float32)[nearest]
    shade += (np.take_along_axis(offsets, nearest[..., None, None], 2)[:, :, 0] * slope[nearest]).sum(-1)
    gap = np.exp(-(((second - first) / rng.uniform(1.0, 3.5)) ** 2))
    return rescale(np.tanh(shade) - gap * rng.uniform(0.3, 1.2))


def brick_surface(size: int, rng: Generator) -> Image:
    """Return rows of bricks or tiles with joints lighter or darker than the stone."""
    u, v = coordinates(size, rng)
    height, ratio = rng.uniform(9, 34), rng.uniform(1, 4.5)
    row = np.floor(v / height)
    shifted = u / (height * ratio) + row * rng.choice([0.0, 0.5, 0.33, rng.uniform()])
    column = np.floor(shifted)
    edge = np.minimum(
        np.minimum(v / height % 1, 1 - v / height % 1) * height,
        np.minimum(shifted % 1, 1 - shifted % 1) * height * ratio,
    )
    joint = 1 / (1 + np.exp((edge - rng.uniform(0.8, 2.2)) * rng.uniform(1.5, 4)))
    tones = rng.normal(0, rng.uniform(0, 0.15), 4096).astype(np.float32)
    tone = tones[((row * 37 + column * 101) % 4096).astype(int)]
    return rescale(tone + joint * rng.choice([-1, 1]) * rng.uniform(0.4, 1.0) + 0.1 * rng.standard_normal(u.shape))


def fiber_surface(size: int, rng: Generator) -> Image:
    """Return hundreds of overlapping blades, fibers or shavings."""
    canvas = (0.3 * power_law_noise(size, rng, 1.0)).astype(np.float32)
    length, main, spread = rng.uniform(5, 26), rng.uniform(0, np.pi), rng.choice([0.2, 0.7, 3.2])
    count = int(rng.uniform(1.0, 2.5) * size * size / length / 2)
    start = rng.uniform(-8, size + 8, (count, 2))
    angle = main + rng.normal(0, spread, count)
    stop = start + np.stack([np.cos(angle), np.sin(angle)], 1) * (length * rng.uniform(0.4, 1.3, count))[:, None]
    tones, widths = rng.uniform(0, 1, count), rng.choice([1, 1, 2], count)
    for a, b, tone, width in zip((start * 16).astype(int), (stop * 16).astype(int), tones, widths, strict=True):
        cv2.line(canvas, a.tolist(), b.tolist(), float(tone), int(width), cv2.LINE_AA, 4)
    return rescale(cv2.GaussianBlur(canvas, (0, 0), rng.uniform(0.4, 0.9)))


def wooden_surface(size: int, rng: Generator) -> Image:
    """Return wood grain: rings of a trunk cut lengthwise, warped by noise, with fine pores along them."""
    u, v = coordinates(size, rng)
    warp = power_law_noise(size, rng, 1.8, stretch=2.0) * rng.uniform(2, 14)
    rings = np.sin(2 * np.pi * (v + warp + 0.03 * u) / rng.uniform(4, 20))
    return rescale(rings * rng.uniform(0.2, 1) + power_law_noise(size, rng, 0.8, stretch=rng.uniform(2, 4)) * 2)


def perforated_surface(size: int, rng: Generator) -> Image:
    """Return a grid, a mesh or a plate with rows of equal holes or dots."""
    u, v = coordinates(size, rng)
    period = rng.uniform(7, 22)
    a, b = u % period - period / 2, (v + period * 0.5 * (np.floor(u / period) % 2) * rng.integers(0, 2)) % period
    b = b - period / 2
    radius = np.maximum(abs(a), abs(b)) if rng.random() < 0.5 else np.hypot(a, b)
    shape = 1 / (1 + np.exp((radius - period * rng.uniform(0.25, 0.42)) * rng.uniform(1, 3)))
    return rescale(shape * rng.choice([-1, 1]) + 0.15 * power_law_noise(size, rng, 1.0))


def plain_surface(size: int, rng: Generator) -> Image:
    """Return an almost uniform surface: paint, glass, plastic."""
    return 0.5 + rng.uniform(0.02, 0.3) * (power_law_noise(size, rng, rng.uniform(0.2, 2)) - 0.5)


def colorize(gray: Image, rng: Generator) -> Image:
    """Return a gray pattern with random contrast and brightness and, half the time, a ramp between two colors."""
    contrast = rng.uniform(0.25, 0.9)
    gray = 0.5 + contrast * (gray - 0.5) + rng.uniform(-0.5, 0.5) * (1 - contrast)
    if rng.random() < 0.5:
        return np.repeat(gray[..., None], 3, -1).clip(0, 1).astype(np.float32)
    base = rng.uniform(0.35, 1.0, 3)
    tint = base + rng.normal(0, 0.12, 3)
    return (gray[..., None] * base + (1 - gray[..., None]) * (tint - base)).clip(0, 1).astype(np.float32)


def outline(size: int, rng: Generator) -> Image:
    """Return the soft-edged silhouette (S, S) of a part: ellipse, rounded box, polygon or ring."""
    canvas = np.zeros((size, size), np.float32)
    center = (size / 2 + rng.normal(0, size * 0.04, 2)).astype(int).tolist()
    axes = (size * rng.uniform(0.2, 0.46, 2)).astype(int).tolist()
    angle, kind = float(rng.uniform(0, 180)), rng.integers(0, 4)
    if kind == 1:
        box = cv2.boxPoints((center, (axes[0] * 1.7, axes[1] * 1.7), angle)).astype(np.int32)
        cv2.fillPoly(canvas, [box], 1.0)
    elif kind == 2:
        corners = np.array(cv2.ellipse2Poly(center, axes, int(angle), 0, 360, 360 // int(rng.integers(5, 9))))
        cv2.fillPoly(canvas, [corners], 1.0)
    else:
        cv2.ellipse(canvas, center, axes, angle, 0, 360, 1.0, -1)
    if kind == 3:
        cv2.ellipse(canvas, center, [int(a * rng.uniform(0.25, 0.5)) for a in axes], angle, 0, 360, 0.0, -1)
    return cv2.GaussianBlur(canvas, (0, 0), rng.uniform(0.5, 1.5))


def object_image(size: int, rng: Generator) -> Image:
    """Return a part, or four equal ones, on an almost uniform background, with shading."""
    ground = colorize(plain_surface(size, rng), rng)
    body_kinds = (plain_surface, smooth_surface, woven_surface, wooden_surface)
    body = colorize(body_kinds[rng.integers(len(body_kinds))](size, rng), rng)
    shape = outline(size, rng)
    if rng.random() < 0.3:
        small = cv2.resize(shape, (size // 2, size // 2), interpolation=cv2.INTER_AREA)
        shape = np.tile(small, (2, 2))[:size, :size]
        shape = np.pad(shape, ((0, size - shape.shape[0]), (0, size - shape.shape[1])))
    if abs((body - ground).mean()) < 0.15:
        ground = 1 - ground
    y, x = np.mgrid[:size, :size] / size - 0.5
    light = 1 + rng.uniform(-0.5, 0.5) * x + rng.uniform(-0.5, 0.5) * y
    relief = cv2.GaussianBlur(shape, (0, 0), size * rng.uniform(0.03, 0.12)) ** rng.uniform(0, 1)
    body = body * (light * (1 - 0.5 * (1 - relief)))[..., None]
    alpha = shape[..., None]
    return (alpha * body + (1 - alpha) * ground).clip(0, 1).astype(np.float32)


class Family(NamedTuple):
    """A kind of surface or object.

    Attributes:
        draw: Returns a gray pattern (S, S), or a finished image (S, S, 3), for a size S and a generator.
        nouns: Nouns that captions may use for it.
        weight: How often it is drawn, relative to the others.
    """

    draw: Callable[[int, Generator], Image]
    nouns: tuple[str, ...]
    weight: float = 1.0


FAMILIES = {
    "smooth": Family(smooth_surface, ("leather", "stone", "concrete", "plaster", "paper", "metal", "steel", "rust")),
    "woven": Family(woven_surface, ("carpet", "fabric", "textile", "cloth", "denim", "canvas", "rope", "cable")),
    "stone": Family(stone_surface, ("gravel", "pebbles", "granite", "rocks", "rice", "grain"), 1.5),
    "brick": Family(brick_surface, ("brick", "tile", "wall", "pavement", "floor", "roof"), 1.5),
    "fiber": Family(fiber_surface, ("grass", "straw", "felt", "fur", "hair", "hay", "lawn"), 1.5),
    "wooden": Family(wooden_surface, ("wood", "plank", "timber", "oak", "table", "board")),
    "perforated": Family(perforated_surface, ("grid", "mesh", "sieve", "net", "keyboard", "perforated plate")),
    "plain": Family(plain_surface, ("paint", "glass", "plastic", "rubber", "ceramic", "screen")),
    "object": Family(
        object_image,
        ("bottle", "capsule", "hazelnut", "metal_nut", "pill", "screw", "toothbrush", "transistor", "zipper", "candle",
         "capsules", "cashew", "chewinggum", "fryum", "macaroni", "pcb1", "pcb2", "pcb3", "pcb4", "pipe_fryum", "coin",
         "coins", "button", "bolt", "nut", "gear", "lens", "cup", "bearing", "cookie"),
        2.0,
    ),
}  # fmt: skip


def draw_surface(family: str, size: int, rng: Generator) -> Image:
    """Return a normal image of a family.

    Args:
        family: A key of :data:`FAMILIES`.
        size: Side of the square image, in pixels.
        rng: Source of all randomness.

    Returns:
        Image (size, size, 3), float32 in [0, 1].
    """
    pattern = FAMILIES[family].draw(size, rng)
    image = colorize(pattern, rng) if pattern.ndim == 2 else pattern
    # Real light is never uniform.
    shadow = 1 + rng.uniform(0, 0.4) * (power_law_noise(size, rng, 2.0) - 0.5)
    grain = rng.normal(0, rng.uniform(0, 0.04), (size, size, 1))
    blur = rng.uniform(0, 0.8)
    image = cv2.GaussianBlur(image, (0, 0), blur) if blur > 0.3 else image
    return (image * shadow[..., None] + grain).clip(0, 1).astype(np.float32)
