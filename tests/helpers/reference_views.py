"""The 22 views of a square image (AnoVL, section 3.3), written out slowly in float64.

Nothing here is shared with the package, and nothing is clever: the package is checked against it.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

ANGLES = [sign * step * math.pi / 16 for step in (1, 2, 3, 4) for sign in (1, -1)]
SHIFTS = [(x, y) for step in (0.2, 0.1) for x in (step, -step) for y in (step, -step)]


def mirror(position: float, last: int) -> float:
    """Fold a position back between the first sample, 0, and the last, neither of which is repeated."""
    while not 0 <= position <= last:
        position = -position if position < 0 else 2 * last - position
    return position


def between(channel: list[list[float]], x: float, y: float) -> float:
    """Interpolate a square channel between its pixels."""
    last = len(channel) - 1
    x, y = mirror(x, last), mirror(y, last)
    left, top = math.floor(x), math.floor(y)
    right, bottom = min(left + 1, last), min(top + 1, last)
    along, down = x - left, y - top
    upper = channel[top][left] * (1 - along) + channel[top][right] * along
    lower = channel[bottom][left] * (1 - along) + channel[bottom][right] * along
    return upper * (1 - down) + lower * down


def warp(image: Tensor, theta: list[list[float]]) -> Tensor:
    """Sample each pixel (u, v) at theta (u, v, 1); -1 and 1 are the centers of the border pixels."""
    last, places = image.shape[-1] - 1, []
    for row in range(last + 1):
        for column in range(last + 1):
            u, v = 2 * column / last - 1, 2 * row / last - 1
            x, y = (a * u + b * v + c for a, b, c in theta)
            places.append(((x + 1) / 2 * last, (y + 1) / 2 * last))
    channels = [[between(channel, x, y) for x, y in places] for channel in image.tolist()]
    return torch.tensor(channels, dtype=torch.float64).reshape(image.shape)


def turned(image: Tensor, angle: float) -> Tensor:
    """Rotate the picture counterclockwise: each pixel is read from a position clockwise of it, as rows run downward."""
    cos, sin = math.cos(angle), math.sin(angle)
    return warp(image, [[cos, -sin, 0.0], [sin, cos, 0.0]])


def moved(image: Tensor, x: float, y: float) -> Tensor:
    """Move the picture right and down: each pixel is read from a position to its left and above."""
    return warp(image, [[1.0, 0.0, -x], [0.0, 1.0, -y]])


def flipped(image: Tensor) -> Tensor:
    columns = range(image.shape[-1])
    return torch.stack([image[..., len(columns) - 1 - column] for column in columns], dim=-1).double()


def gray(image: Tensor) -> Tensor:
    red, green, blue = image.double()
    return torch.stack(3 * [0.299 * red + 0.587 * green + 0.114 * blue])


def views(image: Tensor) -> Tensor:
    """Return the 22 views (22, 3, S, S) of an image (3, S, S)."""
    result = [image.double()]
    result += [turned(image, angle) for angle in ANGLES]
    result += [moved(image, x, y) for x, y in SHIFTS]
    result += [flipped(image), gray(image)]
    result += [torch.rot90(image.double(), turns, (1, 2)) for turns in (1, 2, 3)]
    return torch.stack(result)


def mean_over_views(score: Callable[[Tensor], float], image: Tensor) -> float:
    """Average a score of an image (3, S, S) over its views."""
    total = 0.0
    for view in views(image):
        total += score(view)
    return total / 22
