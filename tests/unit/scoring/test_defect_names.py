"""Shares of words for defects against the slow reference, and what they must keep."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F
from torch.testing import assert_close

from anovl_plugin.scoring.defect_names import (
    DefectMatch,
    defect_cosines,
    region_weights,
    top_pixels,
    word_shares,
)
from anovl_plugin.scoring.description import describe_image, explain
from anovl_plugin.scoring.regions import find_regions
from tests.helpers import reference_defect_names
from tests.helpers.random_tensors import noise
from tests.helpers.tolerances import FLOAT32

WORDS = ("scratch", "crack", "hole", "stain")
WIDTH, TAU = 24, 0.2
# Image size, grid of patches, side of a tile (none without tiles), corners of the tiles.
LAYOUTS = {
    "square": ((16, 16), (4, 4), None, [(0, 0)]),
    "not square": ((12, 20), (3, 2), None, [(0, 0)]),
    "tiles": ((16, 40), (4, 4), 16, [(0, 0), (0, 12), (0, 24)]),
    "rows of tiles": ((28, 28), (2, 2), 16, [(0, 0), (0, 12), (12, 0), (12, 12)]),
}


def scene(layout, seed=0):
    """Return tokens by tile, words' embeddings, the match of an image, and its map."""
    size, grid_size, tile, corners = LAYOUTS[layout]
    tokens = noise(len(corners), grid_size[0] * grid_size[1], WIDTH, seed=seed)
    words = F.normalize(noise(len(WORDS), WIDTH, seed=seed + 1), dim=-1)
    match = DefectMatch(WORDS, defect_cosines(tokens, words), size, grid_size, tile, TAU)
    tiles = {corner: each.unflatten(0, grid_size) for corner, each in zip(corners, tokens, strict=True)}
    return tiles, words, match, noise(*size, seed=seed + 2)


def expected_shares(region, layout, tiles, words):
    size, _, tile, _ = LAYOUTS[layout]
    return reference_defect_names.word_shares(region, tiles, (tile, tile) if tile else size, words, TAU)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("layout", LAYOUTS)
def test_description_equals_the_reference(layout, seed):
    tiles, words, match, values = scene(layout, seed)
    (found,) = find_regions((values > 1.3)[None], values[None])
    assert len(found.regions) > 1
    description = describe_image(found, values, match)
    expected = [expected_shares(found.labels == index + 1, layout, tiles, words) for index in range(len(found.regions))]
    for named, region, shares in zip(description.regions, found.regions, expected, strict=True):
        assert named.region == region
        assert named.shares == pytest.approx(dict(zip(WORDS, shares, strict=True)), abs=1e-5)
        assert list(named.shares.values()) == sorted(named.shares.values(), reverse=True)
    of_image = reference_defect_names.image_shares([region.area for region in found.regions], expected)
    assert description.shares == pytest.approx(dict(zip(WORDS, of_image, strict=True)), abs=1e-5)
    assert explain(description.shares) == reference_defect_names.explanation(
        WORDS, [description.shares[word] for word in WORDS]
    )


@pytest.mark.parametrize("layout", LAYOUTS)
def test_without_regions_the_highest_pixels_tell(layout):
    tiles, words, match, values = scene(layout)
    (found,) = find_regions(torch.zeros(1, *values.shape), values[None])
    description = describe_image(found, values, match)
    assert description.regions == []
    expected = expected_shares(reference_defect_names.highest(values), layout, tiles, words)
    assert description.shares == pytest.approx(dict(zip(WORDS, expected, strict=True)), abs=1e-5)


def test_without_words_there_are_only_regions():
    (found,) = find_regions(torch.eye(4)[None], torch.eye(4)[None])
    description = describe_image(found, torch.eye(4), None)
    assert [named.region for named in description.regions] == found.regions
    assert description.regions[0].shares == description.shares == {}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_single_word_has_all_of_the_share(layout):
    _, _, match, values = scene(layout)
    (found,) = find_regions((values > 0)[None], values[None])
    single = match._replace(words=("scratch",), cosines=match.cosines[..., :1])
    description = describe_image(found, values, single)
    assert description.shares == {"scratch": 1.0}
    assert all(named.shares == {"scratch": 1.0} for named in description.regions)
    assert explain(description.shares) == "scratch 1.00"


def test_what_all_words_have_in_common_changes_nothing():
    """So the embedding of the class, or of the normal state, need not be subtracted."""
    tiles, words, match, values = scene("square")
    (found,) = find_regions((values > 1)[None], values[None])
    tokens = F.normalize(torch.cat([each.flatten(0, 1) for each in tiles.values()]), dim=-1)
    shifted = match._replace(cosines=(tokens @ (words - noise(WIDTH, seed=9)).mT)[None])
    for word, share in describe_image(found, values, shifted).shares.items():
        assert share == pytest.approx(describe_image(found, values, match).shares[word], abs=1e-5)


def test_order_of_words_changes_nothing():
    _, _, match, values = scene("tiles")
    (found,) = find_regions((values > 1)[None], values[None])
    turned = match._replace(words=match.words[::-1], cosines=match.cosines.flip(-1))
    assert describe_image(found, values, turned).shares == pytest.approx(describe_image(found, values, match).shares)


@given(st.integers(1, 4), st.integers(1, 3), st.integers(1, 3), st.integers(1, 4), st.integers(0, 99))
def test_weights_of_a_region_sum_to_1(number, rows, columns, side, seed):
    labels = torch.randint(
        0, number + 1, (2, rows * side, columns * side), generator=torch.Generator().manual_seed(seed)
    )
    labels.view(-1)[:1] = 1
    present = [label for label in range(1, number + 1) if (labels == label).any()]
    weights = region_weights(labels, number, (rows, columns))
    assert weights.shape == (number, 2 * rows * columns)
    for label in present:
        assert float(weights[label - 1].sum()) == pytest.approx(1)
        inside = (labels == label).float()[:, None]
        expected = F.avg_pool2d(inside, side).flatten() * side**2 / inside.sum()
        assert_close(weights[label - 1], expected, **FLOAT32)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_tokens_are_compared_in_float32(dtype):
    tokens, words = noise(2, 5, WIDTH).to(dtype), F.normalize(noise(3, WIDTH), dim=-1)
    cosines = defect_cosines(tokens, words)
    assert cosines.dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(defect_cosines(tokens, words), cosines)
    assert_close(cosines, F.cosine_similarity(tokens.float()[:, :, None], words, dim=-1), **FLOAT32)


def test_a_zero_token_matches_no_word():
    assert torch.equal(defect_cosines(torch.zeros(2, WIDTH), F.normalize(noise(3, WIDTH), dim=-1)), torch.zeros(2, 3))


def test_equal_pixels_are_all_among_the_highest():
    assert top_pixels(torch.ones(5, 5)).all()
    assert torch.equal(
        top_pixels(torch.arange(300.0).view(15, 20)).nonzero(), torch.tensor([[14, 17], [14, 18], [14, 19]])
    )


@pytest.mark.parametrize("layout", ["square", "tiles"])
def test_masks_have_the_size_of_the_images(layout):
    match = scene(layout)[2]
    with pytest.raises(ValueError, match=r"^masks are \(8, 8\) pixels, but images .*; keep masks at the images' size$"):
        word_shares(match, torch.ones(8, 8, dtype=torch.int32), 1)


@pytest.mark.parametrize(
    ("shares", "text"),
    [
        ({"a": 0.3, "b": 0.4, "c": 0.2, "d": 0.1}, "b 0.40, a 0.30, c 0.20"),
        ({"a": 0.2, "b": 0.2, "c": 0.2, "d": 0.2, "e": 0.2}, "a 0.20, b 0.20, c 0.20"),
        ({"a": 0.0999, "b": 0.9001}, "b 0.90"),
        ({str(number): 0.05 for number in range(20)}, ""),
        ({}, ""),
    ],
)
def test_explanation_names_up_to_three_words(shares, text):
    assert explain(shares) == text
