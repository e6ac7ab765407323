"""All that it takes to try AnoVL offline: the data module ``DemoSurfaces`` and the small CLIP ``anovl-demo``."""

__all__ = ["DemoSurfaces"]


def __getattr__(name: str) -> object:
    """Import the data module, and anomalib with it, on first use."""
    if name != "DemoSurfaces":
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)
    from anovl_plugin.demo.datamodule import DemoSurfaces

    return DemoSurfaces
