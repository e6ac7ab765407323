"""Regions: every pixel of a mask in exactly one, whatever the mask, and the highest first."""

from collections import deque

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from anovl_plugin.scoring.regions import find_regions
from tests.helpers.random_tensors import noise

MASKS = arrays(bool, array_shapes(min_dims=3, max_dims=3, max_side=12))


def maps_for(masks, seed=0):
    """Return maps in which many values are equal."""
    return (3 * noise(*masks.shape, seed=seed)).round()


def components(mask):
    """Return the sets of (x, y) of the connected parts of a mask, found by walking."""
    left = {(x, y) for y, row in enumerate(mask.tolist()) for x, inside in enumerate(row) if inside}
    parts = []
    while left:
        part, queue = set(), deque([left.pop()])
        while queue:
            x, y = queue.popleft()
            part.add((x, y))
            near = {(x + dx, y + dy) for dx in (-1, 0, 1) for dy in (-1, 0, 1)} & left
            left -= near
            queue.extend(near)
        parts.append(part)
    return parts


@settings(deadline=None)
@given(MASKS)
def test_regions_are_the_connected_parts(pixels):
    masks = torch.from_numpy(pixels)
    maps = maps_for(masks)
    for mask, values, found in zip(masks, maps, find_regions(masks, maps), strict=True):
        expected = {frozenset(part) for part in components(mask)}
        assert sum(region.area for region in found.regions) == int(mask.sum())
        assert len(found.regions) == len(expected)
        for index, region in enumerate(found.regions):
            rows, columns = torch.nonzero(found.labels == index + 1, as_tuple=True)
            assert frozenset(zip(columns.tolist(), rows.tolist(), strict=True)) in expected
            x, y, width, height = region.box
            assert (x, y) == (int(columns.min()), int(rows.min()))
            assert (x + width - 1, y + height - 1) == (int(columns.max()), int(rows.max()))
            inside = values[rows, columns]
            assert region.area == len(inside)
            assert region.peak == float(inside.max()) == float(values[region.peak_at[1], region.peak_at[0]])
            first = int(torch.nonzero(inside == inside.max())[0])
            assert region.peak_at == (int(columns[first]), int(rows[first]))
        order = [(-region.peak, -region.area, region.box[1], region.box[0]) for region in found.regions]
        assert order == sorted(order)


@settings(deadline=None)
@given(MASKS, st.randoms(use_true_random=False))
def test_an_image_has_the_same_regions_in_any_batch(pixels, random):
    masks = torch.from_numpy(pixels)
    maps = maps_for(masks)
    order = random.sample(range(len(masks)), len(masks))
    shuffled = find_regions(masks[order], maps[order])
    for index, found in zip(order, shuffled, strict=True):
        (alone,) = find_regions(masks[index : index + 1], maps[index : index + 1])
        assert found.regions == alone.regions
        assert torch.equal(found.labels, alone.labels)


@settings(deadline=None)
@given(MASKS)
def test_a_transposed_image_has_transposed_regions(pixels):
    masks = torch.from_numpy(pixels)
    maps = noise(*masks.shape)  # no two values are equal
    upright, lying = find_regions(masks, maps), find_regions(masks.mT, maps.mT)
    for one, other in zip(upright, lying, strict=True):
        assert [region.box for region in one.regions] == [(x, y, w, h) for y, x, h, w in (r.box for r in other.regions)]
        assert [region.peak for region in one.regions] == [region.peak for region in other.regions]
        assert torch.equal(one.labels, other.labels.T)


def test_an_empty_mask_has_no_region():
    (found,) = find_regions(torch.zeros(1, 1, 5, 7), noise(1, 1, 5, 7))
    assert found.regions == []
    assert not found.labels.any()


def test_a_whole_image_is_one_region():
    (found,) = find_regions(torch.ones(1, 1, 5, 7, dtype=torch.bool), torch.arange(35.0).view(1, 5, 7))
    assert found.regions == [((0, 0, 7, 5), 35, 34.0, (6, 4))]


def test_an_empty_batch():
    assert find_regions(torch.zeros(0, 4, 4), torch.zeros(0, 4, 4)) == []


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_maps_of_any_precision(dtype):
    (found,) = find_regions(torch.eye(3)[None], torch.eye(3, dtype=dtype)[None] / 2)
    assert found.regions == [((0, 0, 3, 3), 3, 0.5, (0, 0))]


@pytest.mark.parametrize(
    ("masks", "maps", "message"),
    [
        (
            (2, 4, 4),
            (2, 4, 5),
            r"^masks have the shape \(2, 4, 4\), but maps \(2, 4, 5\); use the masks of these maps$",
        ),
        ((2, 4, 4), (1, 1, 4, 4), r"^masks have the shape \(2, 4, 4\), but maps \(1, 1, 4, 4\)"),
        ((4, 4), (1, 4, 4), r"^masks have the shape \(4, 4\), but must have \(batch, height, width\)$"),
        ((1, 4, 4), (1, 2, 4, 4), r"^maps have the shape \(1, 2, 4, 4\), but must have"),
        ((1, 0, 4), (1, 0, 4), r"^masks have the shape \(1, 0, 4\), but must have"),
    ],
)
def test_shapes_must_fit(masks, maps, message):
    with pytest.raises(ValueError, match=message):
        find_regions(torch.zeros(masks), torch.zeros(maps))
