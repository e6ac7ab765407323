"""Image files: reading, bit depth, names, pre-processing, and what cannot be read."""
