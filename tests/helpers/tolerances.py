"""How close numbers have to be, as arguments for ``torch.testing.assert_close``."""

# The same bits.
EXACT = {"atol": 0, "rtol": 0}
# What the package computes in float32 against a reference in float64, for embeddings, scores, and maps up to about 1.
REFERENCE = {"atol": 1e-5, "rtol": 0}
# A sampled place is off by some 1e-6 of a pixel in float32, and neighboring pixels of noise differ by up to 6.
RESAMPLED = {"atol": 5e-5, "rtol": 0}
# A GPU against the CPU, both in float32.
DEVICE = {"atol": 1e-3, "rtol": 0}
