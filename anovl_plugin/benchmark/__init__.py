"""anomalib's models with the metrics and the clock of the benchmark, for ``anomalib benchmark``.

Each model is here under its name with ``Benchmark`` in front: ``BenchmarkAnoVL``, ``BenchmarkWinClip``,
``BenchmarkPatchcore`` and so on. In YAML, the class path is, for example, ``anovl_plugin.benchmark.BenchmarkPadim``.
"""

from typing import Any

from anovl_plugin.benchmark.evaluator import PaperEvaluator
from anovl_plugin.benchmark.models import BenchmarkAnoVL, Benchmarked, benchmarked
from anovl_plugin.benchmark.winclip import BenchmarkWinClip

__all__ = ["BenchmarkAnoVL", "BenchmarkWinClip", "Benchmarked", "PaperEvaluator", "benchmarked"]


def __getattr__(name: str) -> type:
    """Return the benchmark's version of one of anomalib's models, created on first use.

    Raises:
        AttributeError: If anomalib does not have such a model.
    """
    import anomalib.models
    from anomalib.models.components import AnomalibModule

    model: Any = getattr(anomalib.models, name.removeprefix("Benchmark"), None)
    is_model = isinstance(model, type) and issubclass(model, AnomalibModule)
    if not name.startswith("Benchmark") or not is_model:
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)
    # Stored under its own name, so that it can be pickled for the processes of several GPUs.
    globals()[name] = benchmarked(model)
    return globals()[name]
