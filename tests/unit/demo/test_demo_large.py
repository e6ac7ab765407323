"""Large demo images: what they show, and that tiles find it."""

import numpy as np
import pytest
import torch
from skimage import data

from anovl_plugin import AnoVL
from anovl_plugin.demo.studies.large import (
    DIAMETER,
    HEIGHT,
    SURFACES,
    WIDTH,
    LargeImage,
    compute_map,
    make_image,
    peak_is_on,
)


@pytest.mark.parametrize("surface", SURFACES)
def test_image_is_a_photograph_with_one_small_hole(surface):
    image = make_image(surface, 0)
    assert image.pixels.shape == (HEIGHT, WIDTH, 3)
    assert image.pixels.dtype == np.float32
    rows, columns = np.nonzero(image.mask)
    assert abs(max(np.ptp(rows), np.ptp(columns)) + 1 - DIAMETER) <= DIAMETER / 10
    clean = np.pad(getattr(data, surface)() / 255, [(0, HEIGHT - 512), (0, WIDTH - 512)], mode="reflect")
    assert np.array_equal((abs(image.pixels - clean[..., None]) > 1 / 255).any(-1), image.mask)


def test_images_are_always_the_same_and_differ_by_seed():
    first, again, other = make_image("brick", 1), make_image("brick", 1), make_image("brick", 2)
    assert np.array_equal(first.pixels, again.pixels)
    assert not np.array_equal(first.mask, other.mask)


def test_peak_on_the_hole_is_distinguished_from_one_beside_it():
    mask = np.zeros((HEIGHT, WIDTH), dtype=bool)
    mask[400:440, 800:840] = True
    anomaly_map = torch.zeros(HEIGHT // 4, WIDTH // 4)
    anomaly_map[105, 205] = 1
    assert peak_is_on(anomaly_map, mask)
    anomaly_map[130, 205] = 2
    assert not peak_is_on(anomaly_map, mask)


def test_tiles_find_what_the_resized_image_does_not_show():
    image = make_image("brick", 0)
    found = {}
    for count in (None, 8):
        model = AnoVL("anovl-demo", class_name="brick", domain="texture", tiles_per_side=count)
        model.build_text_bank()
        found[count] = peak_is_on(compute_map(model, LargeImage(*image)), image.mask)
    assert found == {None: False, 8: True}
