"""The parts of the model that are made for anomalib."""
