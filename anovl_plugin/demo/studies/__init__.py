"""Studies: the training of the package's small CLIP, and measurements on it."""
