"""Post-processing: the normalization of scores, and thresholds."""
