"""The benchmark's metrics by scikit-learn."""

import numpy as np
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score


def scikit_learn_metrics(scores, truth):
    """Return AUROC, F1-max, and average precision."""
    scores, truth = np.asarray(scores).ravel(), np.asarray(truth).ravel().astype(int)
    precision, recall, _ = precision_recall_curve(truth, scores)
    return {
        "AUROC": roc_auc_score(truth, scores),
        "F1Max": np.max(2 * precision * recall / np.maximum(precision + recall, 1e-12)),
        "AUPR": average_precision_score(truth, scores),
    }
