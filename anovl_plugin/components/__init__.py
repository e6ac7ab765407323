"""Components of the model for anomalib."""
