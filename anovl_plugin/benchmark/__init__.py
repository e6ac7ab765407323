"""Models made ready for ``anomalib benchmark``, so that all are measured alike.

``BenchmarkAnoVL``, ``BenchmarkWinClip``, ``BenchmarkPatchcore``, and likewise ``Benchmark`` before the name of any
other model of anomalib's. In a YAML file the class path is, for one, ``anovl_plugin.benchmark.BenchmarkPadim``.

The pipeline makes the model before the data, so importing this package is also what lets it find ``DemoSurfaces``: it
looks for data modules in :mod:`anomalib.data` and nowhere else.
"""

import anomalib.data

from anovl_plugin.benchmark.evaluator import PaperEvaluator
from anovl_plugin.benchmark.models import Benchmarked, BenchmarkWinClip, benchmarked
from anovl_plugin.demo import DemoSurfaces

__all__ = ["BenchmarkWinClip", "Benchmarked", "PaperEvaluator", "benchmarked"]

anomalib.data.DemoSurfaces = DemoSurfaces


def __getattr__(name: str) -> type:
    """Make the benchmark's version of one of anomalib's models when it is first asked for.

    Raises:
        AttributeError: if anomalib has no such model.
    """
    import anomalib.models
    from anomalib.models.components import AnomalibModule

    model = getattr(anomalib.models, name.removeprefix("Benchmark"), None)
    usable = isinstance(model, type) and issubclass(model, AnomalibModule)
    if not name.startswith("Benchmark") or not usable:
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)
    # Kept here, under its own name, so that it can be sent to the processes of several GPUs.
    globals()[name] = benchmarked(model)
    return globals()[name]
