"""How close numbers have to be, as arguments for ``torch.testing.assert_close``, or ``pytest.approx`` for metrics."""

# The same bits.
EXACT = {"atol": 0, "rtol": 0}
# Two ways to compute the same in float64, for numbers up to about 1.
FLOAT64 = {"atol": 1e-12, "rtol": 0}
# Two ways to compute the same in a few steps of float32, for numbers up to about 1.
FLOAT32 = {"atol": 1e-6, "rtol": 0}
# The package in float32 against a reference in float64, or an image alone against the same image in a batch, for
# embeddings, scores, and maps up to about 1.
REFERENCE = {"atol": 1e-5, "rtol": 0}
# A sampled position is off by some 1e-6 of a pixel in float32, and neighboring pixels of noise differ by up to 6.
RESAMPLED = {"atol": 5e-5, "rtol": 0}
# An exported graph against the model.
EXPORTED = {"atol": 1e-4, "rtol": 0}
# A GPU against the CPU, both in float32.
DEVICE = {"atol": 1e-3, "rtol": 0}
# Half precision against float32, for scores and maps.
HALF_PRECISION = {"atol": 2e-2, "rtol": 0}
# A metric of the same images from two runs.
METRIC = {"abs": 1e-6}
