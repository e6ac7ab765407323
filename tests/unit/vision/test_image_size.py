"""Image sizes other than the one an architecture was made for."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F
from torch.testing import assert_close

from anovl_plugin.vision.backbone import check_image_size, check_size, load_backbone


@pytest.fixture
def square(weights_of):
    return weights_of("tiny-square")


def interpolated(weights: str, grid: tuple[int, int], new_grid: tuple[int, int]) -> Tensor:
    """Lay out the position embeddings of a file over a grid and resample them to another."""
    positions = load_file(weights)["visual.positional_embedding"]
    image = positions[1:].unflatten(0, grid).permute(2, 0, 1)[None]
    image = F.interpolate(image, new_grid, mode="bicubic", antialias=True)[0]
    return torch.cat([positions[:1], image.flatten(1).T])


@pytest.mark.parametrize(
    ("size", "heights", "widths"),
    [
        ((30, 32), (24, 32), (32, 40)),
        (33, (32, 40), (32, 40)),
        ((32, 7), (32, 40), (8,)),
        ((17, 95), (16, 24), (88, 96)),
    ],
)
def test_a_size_that_cuts_patches_is_an_error_that_names_the_nearest(square, size, heights, widths):
    with pytest.raises(ValueError, match="must be multiples of the patches of 'tiny-square'") as caught:
        load_backbone("tiny-square", square, size)
    assert "\n" not in str(caught.value)
    assert f"(8 pixels); nearest heights {heights}, nearest widths {widths}" in str(caught.value)


def test_sizes():
    assert check_image_size(None) is None
    sizes = (240, np.int64(240), [240, 240], (np.uint16(240), 240), torch.Size([240, 240]))
    for pair in map(check_image_size, sizes):
        assert pair == (240, 240)
        assert {type(side) for side in pair} == {int}
    assert check_image_size((240, 320)) == (240, 320)
    assert check_image_size(16_384) == (16_384, 16_384)


def test_sizes_with_too_many_patches(square):
    message = r"^image_size is \(1032, 1024\), which is 16512 patches of 'tiny-square', .* use a smaller image_size"
    with pytest.raises(ValueError, match=message):
        load_backbone("tiny-square", square, (1032, 1024))
    check_size((1024, 1024), (8, 8), "tiny-square")


@pytest.mark.parametrize("size", [32, 64, (48, 64), (24, 80), [40, 32], (16, 64), (64, 16)])
def test_position_embeddings_are_interpolated_over_the_grid(square, size):
    height, width = (size, size) if isinstance(size, int) else size
    loaded = load_backbone("tiny-square", square, size)
    expected = interpolated(square, (4, 4), (height // 8, width // 8))
    assert loaded.image_size == (height, width)
    assert loaded.visual.grid_size == (height // 8, width // 8)
    assert_close(loaded.visual.positional_embedding, expected, atol=1e-5, rtol=0)
    assert loaded.visual(torch.zeros(1, 3, height, width)).shape == (1, 24)


@pytest.mark.parametrize("size", [(32, 48), (48, 32), (64, 96)])
def test_positions_of_a_wide_architecture_are_interpolated(weights_of, size):
    weights = weights_of("tiny-wide")
    loaded = load_backbone("tiny-wide", weights, size)
    expected = interpolated(weights, (2, 3), (size[0] // 16, size[1] // 16))
    assert_close(loaded.visual.positional_embedding, expected, atol=1e-5, rtol=0)
    assert loaded.visual(torch.zeros(1, 3, *size)).shape == (1, 40)
