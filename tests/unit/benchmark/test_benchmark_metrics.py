"""The benchmark's metrics against scikit-learn, for scores of any range."""

import numpy as np
import torch
from anomalib.data import ImageBatch
from sklearn.metrics import auc, roc_curve
from torch import Tensor

from anovl_plugin.benchmark import PaperEvaluator
from tests.helpers.scikit_learn_metrics import scikit_learn_metrics


def region_overlap(maps, masks, limit=0.3):
    """Return AUPRO for masks of one region each: the mean of the regions' recalls over the false positives."""
    normal = maps[masks == 0]
    grid = np.linspace(0, limit, 2001)
    curves = []
    for scores, mask in zip(maps, masks, strict=True):
        region = scores[mask == 1]
        truth = np.concatenate([np.zeros(len(normal)), np.ones(len(region))])
        false, true, _ = roc_curve(truth, np.concatenate([normal, region]), drop_intermediate=False)
        curves.append(np.interp(grid, false, true))
    return auc(grid, np.mean(curves, 0)) / limit


def fake_batches(*, masks=True):
    """Yield three batches with scores in the range of a Patchcore's, maps of 16 x 16 pixels and one square each."""
    generator = torch.Generator().manual_seed(1)
    for size in (4, 4, 2):
        labels = torch.arange(size) % 2 == 0
        truth = torch.zeros(size, 16, 16, dtype=torch.bool)
        truth[:, 3:8, 4:9] = True
        noise = torch.rand(size, 1, 16, 16, generator=generator) + torch.rand(size, 1, 1, 1, generator=generator)
        yield ImageBatch(
            image=torch.zeros(size, 3, 16, 16),
            pred_score=20 + 30 * torch.rand(size, generator=generator) + 6 * labels,
            gt_label=labels,
            anomaly_map=30 + 20 * noise + 8 * truth.unsqueeze(1),
            gt_mask=truth if masks else None,
        )


def evaluate(batches):
    evaluator, logged = PaperEvaluator(), {}
    evaluator.log = logged.__setitem__
    for batch in batches:
        evaluator.on_test_batch_end(None, None, None, batch, 0)
    evaluator.on_test_epoch_end(None, None)
    return logged


def test_metrics_are_those_of_scikit_learn_for_scores_of_any_range():
    batches = list(fake_batches())
    score, label, maps, masks = (
        torch.cat([getattr(batch, name).as_subclass(Tensor) for batch in batches]).numpy()
        for name in ("pred_score", "gt_label", "anomaly_map", "gt_mask")
    )
    image = {f"image_{name}": value for name, value in scikit_learn_metrics(score, label).items()}
    pixel = {f"pixel_{name}": value for name, value in scikit_learn_metrics(maps, masks).items()}
    expected = {**image, **pixel, "pixel_AUPRO": region_overlap(maps, masks)}
    torch.testing.assert_close(evaluate(batches), expected, rtol=0, atol=2e-4)
    # Neither side is trivial.
    assert all(0.1 < value < 0.98 for value in expected.values())


def test_metrics_of_a_second_test_set_do_not_depend_on_the_first():
    batches, evaluator, logged = list(fake_batches()), PaperEvaluator(), []
    evaluator.log = lambda *pair: logged.append(pair)
    for part in (batches[:1], batches):
        for batch in part:
            evaluator.on_test_batch_end(None, None, None, batch, 0)
        evaluator.on_test_epoch_end(None, None)
    assert dict(logged[7:]) == evaluate(batches) != dict(logged[:7])


def test_metrics_of_pixels_are_nan_without_masks():
    logged = evaluate(fake_batches(masks=False))
    assert {name for name, value in logged.items() if np.isnan(value)} == {
        f"pixel_{name}" for name in ("AUROC", "F1Max", "AUPR", "AUPRO")
    }


def test_metrics_of_images_are_nan_where_all_labels_are_equal():
    batches = list(fake_batches())
    for batch in batches:
        batch.gt_label = torch.ones_like(batch.gt_label)
    logged = evaluate(batches)
    assert [name for name, value in logged.items() if np.isnan(value)] == ["image_AUROC", "image_F1Max", "image_AUPR"]
