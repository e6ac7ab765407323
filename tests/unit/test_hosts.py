"""The hosts still have the names that the package uses and they do not document as public."""

import pytest
from anomalib.metrics import F1AdaptiveThreshold, MinMax
from anomalib.post_processing import PostProcessor
from torch import Tensor

from anovl_plugin.hosts import anomalib as anomalib_host

POST_PROCESSOR_NAMES = {
    "_image_threshold": Tensor,
    "_pixel_threshold": Tensor,
    "_image_threshold_metric": F1AdaptiveThreshold,
    "_pixel_threshold_metric": F1AdaptiveThreshold,
    "_image_min_max_metric": MinMax,
    "_pixel_min_max_metric": MinMax,
}


@pytest.mark.parametrize("name", POST_PROCESSOR_NAMES)
def test_post_processor_of_anomalib(name):
    value = getattr(PostProcessor(), name, None)
    assert isinstance(value, POST_PROCESSOR_NAMES[name]), f"anomalib changed PostProcessor.{name}"


def test_thresholds_of_anomalib_are_nan_until_validation():
    assert all(threshold.isnan() for threshold in anomalib_host.validated_thresholds(PostProcessor()))


def test_replaced_metrics_are_those_that_anomalib_uses():
    class Other(F1AdaptiveThreshold):
        pass

    post_processor = PostProcessor()
    before = [metric.fields for metric in anomalib_host.threshold_metrics(post_processor)]
    anomalib_host.replace_threshold_metrics(post_processor, Other)
    metrics = anomalib_host.threshold_metrics(post_processor)
    assert [type(metric) for metric in metrics] == [Other, Other]
    assert [metric.fields for metric in metrics] == before
    assert {"_image_threshold_metric", "_pixel_threshold_metric"} <= dict(post_processor.named_children()).keys()


@pytest.mark.parametrize("name", ["preds", "target"])
def test_threshold_metric_of_anomalib_keeps_scores_and_labels(name):
    value = getattr(F1AdaptiveThreshold(fields=["pred_score", "gt_label"]), name, None)
    assert isinstance(value, list), f"anomalib changed F1AdaptiveThreshold.{name}; see components/threshold.py"
