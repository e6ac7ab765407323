"""Image files of more than 8 bits a channel, and their 8-bit originals."""

from pathlib import Path

import cv2
import numpy as np


def gray_levels(*shape: int) -> np.ndarray:
    """Return random gray levels of 8 bits that reach from black to white."""
    levels = np.random.default_rng(sum(shape)).integers(0, 256, shape, dtype=np.uint8)
    levels.flat[:2] = 0, 255
    return levels


def write_16_bit_png(path: Path, pixels: np.ndarray) -> None:
    """Write uint16 pixels, shape (H, W), (H, W, 3) RGB or (H, W, 4) RGBA, which Pillow cannot write."""
    codes = {2: None, 3: cv2.COLOR_RGB2BGR, 4: cv2.COLOR_RGBA2BGRA}
    code = codes[pixels.ndim if pixels.ndim == 2 else pixels.shape[2]]
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), pixels if code is None else cv2.cvtColor(pixels, code))
