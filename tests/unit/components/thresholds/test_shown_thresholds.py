"""Thresholds in the units of the scores of a run."""

import pytest
import torch
from anomalib.data import InferenceBatch
from anomalib.post_processing import PostProcessor

from anovl_plugin import ZeroShotPostProcessor
from anovl_plugin.components.thresholds.shown_thresholds import shown_thresholds

SCORES = torch.linspace(0, 1, 201)


def validated(**settings) -> ZeroShotPostProcessor:
    made = ZeroShotPostProcessor(**settings)
    made._image_threshold.fill_(0.4)
    made._pixel_threshold.fill_(0.7)
    for name, value in {"image_min": 0.2, "image_max": 0.9, "pixel_min": 0.1, "pixel_max": 0.95}.items():
        getattr(made, name).fill_(value)
    return made


@pytest.mark.parametrize("normalized", [True, False])
@pytest.mark.parametrize("sensitivity", [0.3, 0.5, 0.8])
@pytest.mark.parametrize("make", [ZeroShotPostProcessor, validated])
def test_labels_are_those_of_the_post_processor(make, sensitivity, normalized):
    made = make(enable_normalization=normalized, image_sensitivity=sensitivity, pixel_sensitivity=sensitivity)
    found = made(InferenceBatch(pred_score=SCORES, anomaly_map=SCORES.view(-1, 1, 1, 1)))
    shown = shown_thresholds(made)
    assert torch.equal(found.pred_score > shown.image, found.pred_label)
    assert torch.equal(found.anomaly_map > shown.pixel, found.pred_mask)


def test_thresholds_before_normalization():
    shown = shown_thresholds(validated(), normalized=False)
    assert shown == pytest.approx((0.4, 0.7), abs=1e-6)
    assert shown_thresholds(validated()) == (0.5, 0.5)


def test_nothing_is_too_abnormal_for_a_sensitivity_of_0():
    assert shown_thresholds(validated(image_sensitivity=0.0), normalized=False).image == 1


@pytest.mark.parametrize("other", [None, torch.nn.Identity(), ZeroShotPostProcessor(enable_thresholding=False)])
def test_no_thresholds(other):
    assert shown_thresholds(other) == (None, None)


def test_post_processor_of_anomalib():
    assert shown_thresholds(PostProcessor(image_sensitivity=0.25)) == (0.75, 0.5)
