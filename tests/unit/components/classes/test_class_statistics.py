"""Thresholds and ranges of each class are those that its images alone would give."""

import pytest
import torch
from anomalib.data import ImageBatch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from anovl_plugin import ZeroShotPostProcessor
from anovl_plugin.components.classes.class_statistics import rows_of
from tests.helpers.tolerances import EXACT

SIDE = 4


def scored_batch(number: int, seed: int, class_index: list[int] | None = None) -> ImageBatch:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(number) % 2 == 1
    batch = ImageBatch(
        image=torch.zeros(number, 3, SIDE, SIDE),
        pred_score=torch.rand(number, generator=generator),
        anomaly_map=torch.rand(number, 1, SIDE, SIDE, generator=generator),
        gt_label=labels,
        gt_mask=labels.view(-1, 1, 1) & (torch.rand(number, SIDE, SIDE, generator=generator) > 0.5),
    )
    if class_index is not None:
        batch.class_index = torch.tensor(class_index)
    return batch


def select(batch: ImageBatch, rows: list[int]) -> ImageBatch:
    names = ("image", "pred_score", "anomaly_map", "gt_label", "gt_mask")
    return ImageBatch(**{name: getattr(batch, name)[rows] for name in names})


def validated(batches: list[ImageBatch], number: int = 0) -> ZeroShotPostProcessor:
    post = ZeroShotPostProcessor()
    post.resize(number)
    for batch in batches:
        post.on_validation_batch_end(None, None, batch)
    post.on_validation_epoch_end(None, None)
    return post


@given(st.permutations([0, 0, 0, 0, 1, 1, 1, 1]), st.integers(0, 99))
@settings(max_examples=20)
def test_each_class_has_what_it_would_have_alone(places, seed):
    # Both kinds of images in each class, in any order.
    index = [places[at] for at in (0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7)]
    whole = scored_batch(16, seed, index)
    post, common = validated([whole], 2), validated([scored_batch(16, seed)])
    for number in (0, 1):
        rows = [row for row, each in enumerate(index) if each == number]
        alone = validated([select(whole, rows)])
        for name in ("image_threshold", "pixel_threshold", "image_min", "image_max", "pixel_min", "pixel_max"):
            assert_close(getattr(post.class_statistics, name)[number], getattr(alone, name), **EXACT)
        one, other = select(whole, rows), select(whole, rows)
        one.class_index = torch.full((len(rows),), number)
        post.post_process_batch(one)
        alone.post_process_batch(other)
        for field in ("pred_score", "pred_label", "anomaly_map", "pred_mask"):
            assert_close(getattr(one, field), getattr(other, field), **EXACT)
    for name in ("image_threshold", "pixel_threshold", "image_min", "image_max", "pixel_min", "pixel_max"):
        assert_close(getattr(post, name), getattr(common, name), **EXACT)


def test_class_without_both_kinds_of_images_has_the_common_threshold():
    # Class 1 has normal images alone, class 2 has none.
    post = validated([scored_batch(8, 1, [0, 0, 1, 0, 1, 0, 0, 0])], 3)
    index = torch.tensor([0, 1, 2])
    own, *others = post.image_thresholds(index)
    assert own == post.class_statistics.image_threshold[0] != post.image_threshold
    assert others == [post.image_threshold] * 2
    assert post.class_statistics.image_min.isnan().tolist() == [False, False, True]
    assert post.pixel_thresholds(index)[1:].tolist() == [post.pixel_threshold.item()] * 2


def test_fixed_thresholds_hold_for_all_classes():
    post = ZeroShotPostProcessor(image_threshold=0.3)
    post.resize(2)
    post.on_validation_batch_end(None, None, scored_batch(8, 1, [0, 0, 0, 0, 1, 1, 1, 1]))
    post.on_validation_epoch_end(None, None)
    assert_close(post.image_thresholds(torch.tensor([0, 1])), torch.tensor(0.3))


def test_classes_are_added_kept_and_forgotten():
    post = validated([scored_batch(8, 1, [0, 0, 0, 0, 1, 1, 1, 1])], 2)
    known = post.class_statistics.image_threshold.clone()
    post.resize(3)
    assert_close(post.class_statistics.image_threshold[:2], known, **EXACT)
    assert post.class_statistics.image_threshold[2].isnan()
    post.reset()
    assert post.class_statistics.image_threshold.isnan().all()
    post.resize(0)
    assert post.image_thresholds(torch.tensor([0])) == 0.5


def test_state_dict_holds_the_classes():
    post = validated([scored_batch(8, 1, [0, 0, 0, 0, 1, 1, 1, 1])], 2)
    loaded = ZeroShotPostProcessor()
    loaded.load_state_dict(post.state_dict())
    index = torch.tensor([1, 0])
    assert_close(loaded.image_thresholds(index), post.image_thresholds(index), **EXACT)


@pytest.mark.parametrize("rows", [[True] * 3, [False] * 3, [True, False, True]])
def test_rows_of_a_batch(rows):
    batch = scored_batch(3, 1)
    found = rows_of(batch, torch.tensor(rows))
    assert_close(found.pred_score, batch.pred_score[torch.tensor(rows)], **EXACT)
    assert not hasattr(found, "pred_label")
