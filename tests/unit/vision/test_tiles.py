"""Large images in tiles, against a slow reference, and what must not depend on how they are cut."""

import itertools
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from anovl_plugin import AnoVL, AnoVLModel, referenced_clip
from anovl_plugin.scoring.adaptation import Adaptation
from anovl_plugin.scoring.image_score import GlobalScore
from anovl_plugin.scoring.scores import abnormality_margin, margin_map, to_probability
from anovl_plugin.vision import image_tower
from anovl_plugin.vision.chunks import in_chunks
from anovl_plugin.vision.tiles import OVERLAP, join_tiles, make_tiler, short_side, split_into_tiles
from anovl_plugin.vision.value_attention import value_wise_forward
from tests.helpers import image_datasets, reference_model
from tests.helpers.engine_runs import run_predict, run_test
from tests.helpers.tolerances import EXACT, REFERENCE

TILE = 32


@pytest.fixture(scope="module")
def make(weights_of):
    def make_model(**options: object) -> AnoVLModel:
        return AnoVLModel("tiny-square", pretrained=weights_of("tiny-square"), class_name="bottle", **options)

    return make_model


def pictures(number: int, height: int, width: int) -> Tensor:
    return torch.randn(number, 3, height, width, generator=torch.Generator().manual_seed(height))


def corners(side: int, count: int) -> list[int]:
    """Return where tiles begin that are spread evenly from one border to the other."""
    return [round(i * (side - TILE) / max(count - 1, 1)) for i in range(count)]


def averaged(weights: str, images: Tensor, counts: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Return scores and maps of tiles that are scored as images and averaged pixel by pixel: VisA's procedure."""
    height, width = images.shape[-2:]
    total, seen, scores = torch.zeros(len(images), 1, height, width).double(), torch.zeros(height, width), []
    for y, x in itertools.product(corners(height, counts[0]), corners(width, counts[1])):
        tiles = images[:, :, y : y + TILE, x : x + TILE]
        score, tile_map = reference_model.published_probabilities("tiny-square", weights, tiles, "bottle")
        total[:, :, y : y + TILE, x : x + TILE] += tile_map.view(len(images), 1, TILE, TILE)
        seen[y : y + TILE, x : x + TILE] += 1
        scores.append(score)
    return torch.stack(scores).mean(0), total / seen


# Sides where an even spacing ends at the border, so that no pixel row has to be repeated.
@pytest.mark.parametrize(
    ("tiles_per_side", "size", "counts"),
    [(1, (32, 44), (1, 2)), (1, (50, 32), (2, 1)), (1, (32, 32), (1, 1)), (2, (56, 72), (2, 3)), (1, (32, 80), (1, 3))],
)
def test_maps_and_scores_equal_the_reference(tiles_per_side, size, counts, make, weights_of):
    images, source = pictures(2, *size), ("tiny-square", weights_of("tiny-square"))
    result = make(tiles_per_side=tiles_per_side)(images)
    scores, maps = averaged(source[1], images, counts)
    assert_close(result.pred_score, reference_model.displayed(scores, *source).float(), **REFERENCE)
    assert_close(result.anomaly_map, reference_model.displayed(maps, *source).float(), **REFERENCE)


@given(st.integers(32, 400), st.integers(32, 400))
def test_tiles_cover_everything_and_overlap(height, width):
    tiler = make_tiler((height, width), TILE)
    image = torch.stack(torch.meshgrid(torch.arange(float(height)), torch.arange(float(width)), indexing="ij"))[None]
    tiles = tiler.tile(image)
    for side, stride, count in (
        (height, tiler.stride_h, tiler.num_patches_h),
        (width, tiler.stride_w, tiler.num_patches_w),
    ):
        assert count == 1 or stride <= TILE * (1 - OVERLAP)
        # The fewest tiles that do.
        assert count == 1 or (count - 2) * TILE * (1 - OVERLAP) + TILE < side
        # Fewer pixel rows are repeated than there are tiles.
        assert 0 <= TILE + (count - 1) * stride - side < max(count - 1, 1)
    # Every pixel was in a tile and is back in place, to within one pixel if pixel rows were repeated.
    joined = torch.cat([join_tiles(tiler, positions) for positions in tiles.split(1, dim=1)], dim=1)
    assert_close(joined, image, rtol=0, atol=1)
    assert_close(joined, tiler.untile(tiles), rtol=0, atol=1e-3)


@given(st.integers(1, 9), st.sampled_from([32, 96, 224, 240]))
def test_the_short_side_holds_as_many_tiles_as_asked(tiles_per_side, tile):
    side = short_side(tile, tiles_per_side)
    tiler = make_tiler((side, side), tile)
    assert tiler.tile(torch.empty(1, 1, side, side)).shape[0] == tiles_per_side**2


def test_an_image_of_one_tile_is_scored_as_without_tiles(make):
    images = pictures(2, TILE, TILE)
    for one, other in zip(make(tiles_per_side=1)(images)[:2], make()(images)[:2], strict=True):
        assert_close(one, other, **EXACT)


def test_images_do_not_affect_each_other(make):
    model, images = make(tiles_per_side=1, image_score="both"), pictures(3, 32, 70)
    together, alone = model(images), [model(image[None]) for image in images]
    assert_close(together.pred_score, torch.cat([result.pred_score for result in alone]), **REFERENCE)
    assert_close(together.anomaly_map, torch.cat([result.anomaly_map for result in alone]), **REFERENCE)


@pytest.mark.parametrize("count", [1, 5])
def test_few_tiles_go_through_the_tower_at_once(count, make, monkeypatch):
    sizes, model, images = [], make(tiles_per_side=1), pictures(2, 32, 120)
    expected = model(images)
    forward = image_tower.value_wise_forward
    monkeypatch.setattr(referenced_clip, "in_chunks", partial(in_chunks, size=count))
    monkeypatch.setattr(
        image_tower,
        "value_wise_forward",
        lambda visual, part, depths: (sizes.append(len(part)), forward(visual, part, depths))[1],
    )
    result = model(images)
    assert max(sizes) == count
    assert sum(sizes) == 2 * 5
    assert_close(result.anomaly_map, expected.anomaly_map, **REFERENCE)


def test_views_of_each_tile_are_averaged(make):
    views, images = ["image", "flip", "rotate 90"], pictures(2, 32, 44)
    result = make(tiles_per_side=1, image_score=GlobalScore(views))(images)
    whole = make(image_score=GlobalScore(views))
    shown = torch.stack([whole(tile).pred_score for tile in (images[..., :32], images[..., 12:])])
    # The inverse of softsign gives the margins that are averaged.
    odds = 2 * shown - 1
    margins = whole.image_tower.temperature * odds / (1 - odds.abs())
    assert_close(result.pred_score, to_probability(margins.mean(0), whole.image_tower.temperature), **REFERENCE)


def test_the_map_score_is_that_of_the_whole_map(make):
    result = make(tiles_per_side=1, image_score="map")(pictures(2, 32, 70))
    assert_close(result.pred_score, result.anomaly_map.flatten(1).max(1).values)


class Shift(Adaptation):
    """Subtracts the mean token of an image, and records the shapes it is given."""

    batch_size = 1

    def __init__(self) -> None:
        self.seen = []

    def adapt(self, tokens: Tensor, text_bank: object) -> Tensor:
        del text_bank
        self.seen.append(tokens.shape)
        return tokens - tokens.mean(1, keepdim=True)


def test_adaptation_sees_all_tiles_of_an_image_together(make):
    adaptation, images = Shift(), pictures(2, 32, 44)
    model = make(tiles_per_side=1, adaptation=adaptation)
    result = model(images)
    assert adaptation.seen == [(1, 2 * 16, model.image_tower.visual.output_dim)] * 2
    tokens = [
        value_wise_forward(model.image_tower.visual, tile).patch_tokens for tile in (images[..., :32], images[..., 12:])
    ]
    mean = torch.cat(tokens, dim=1).mean(1, keepdim=True)
    margins = abnormality_margin(tokens[0] - mean, model.text_bank.state_embeddings)
    left = margin_map(margins, model.image_tower.visual.grid_size, model.image_size)
    assert_close(
        result.anomaly_map[..., :12], to_probability(left, model.image_tower.temperature)[..., :12], **REFERENCE
    )


@pytest.mark.parametrize("default", [torch.bfloat16, torch.float16, torch.float64])
def test_maps_are_joined_in_their_own_precision(default):
    # Lightning sets the default precision to that of the towers.
    tiles, join = split_into_tiles(pictures(2, 32, 50), 32)
    maps = tiles[:, :, :1]
    expected = join(maps)
    torch.set_default_dtype(default)
    try:
        found = join(maps)
        assert torch.get_default_dtype() == default
    finally:
        torch.set_default_dtype(torch.float32)
    assert_close(found, expected, **EXACT)


def test_a_map_of_nan_is_not_joined_to_zero():
    tiles, join = split_into_tiles(pictures(2, 32, 50), 32)
    maps = tiles[:, :, :1].clone()
    maps[1, 0, 0, 3, 4] = torch.nan
    assert join(maps).isnan().nonzero().tolist() == [[1, 0, 3, 4]]


def test_errors(make, weights_of):
    with pytest.raises(ValueError, match=r"images are \(20, 50\) pixels, but tiles are 32 × 32; resize the short side"):
        make(tiles_per_side=1)(pictures(1, 20, 50))
    with pytest.raises(ValueError, match=r"image_size is \(32, 48\), but tiles are square"):
        make(tiles_per_side=1, image_size=(32, 48))
    model = AnoVL("tiny-square", pretrained=weights_of("tiny-square"), class_name="bottle", tiles_per_side=1)
    for export in (model.to_onnx, model.to_openvino):
        with pytest.raises(
            ValueError, match=r"the number of tiles depends on the image size, .* input_size is not set"
        ):
            export("nowhere")


def test_on_the_engine(weights_of, tmp_path):
    images = image_datasets.write_bare(tmp_path / "bare")
    model = AnoVL(
        "tiny-square", pretrained=weights_of("tiny-square"), class_name="bolt", tiles_per_side=2, visualizer=False
    )
    found = run_predict(model, tmp_path / "predict", data_path=images)
    assert min(found.map.shape[-2:]) == short_side(TILE, 2)
    data = image_datasets.MVTecAD(
        image_datasets.write_mvtec(tmp_path / "data"), "bottle", eval_batch_size=2, num_workers=0
    )
    metrics = run_test(model, tmp_path / "test", data)
    assert {"image_AUROC", "pixel_AUROC"} <= set(metrics)
    (checkpoint,) = (tmp_path / "test").rglob("*.ckpt")
    assert AnoVL.load_from_checkpoint(checkpoint).model.tiles_per_side == 2
