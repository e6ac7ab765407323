"""How anomalib comes to see the model. This file, and the line in ``anovl_plugin.pth`` that leads here, alone know.

anomalib looks models up in three places: the subclasses of ``AnomalibModule``, the namespace of ``anomalib.models``,
and a list of modules it may import from. When Python starts, the ``.pth`` file in site-packages puts a finder in front
of the import system that imports nothing and waits for ``anomalib.models``. Only then is this file imported; the real
import runs, and the model is entered in all three places. A program that imports :mod:`anovl_plugin` itself sets up the
same with :class:`AnomalibModelsFinder`.

Nothing here imports anomalib or torch by itself. ``ANOVL_PLUGIN_DISABLE=1`` switches the automatic registration off.
"""

import os
import sys

HOST = "anomalib.models"
PLUGIN = "anovl_plugin"
MODEL_MODULE = "anovl_plugin.lightning_model"
DISABLE_VARIABLE = "ANOVL_PLUGIN_DISABLE"

_state = {"busy": False}


class AnomalibModelsFinder:
    """Waits on ``sys.meta_path`` until ``anomalib.models`` has been imported."""

    searching = False

    @classmethod
    def find_spec(cls, name: str, *_: object) -> object:
        """Return the real module's spec, with a loader that registers the model afterwards."""
        if name != HOST or cls.searching:
            return None
        # Imported only here: a Python that never meets anomalib should not pay for it.
        from importlib.util import find_spec

        cls.searching = True
        try:
            spec = find_spec(name)
        finally:
            cls.searching = False
        if spec is not None and spec.loader is not None:
            run_module = spec.loader.exec_module

            def exec_module(module: object) -> None:
                # Not before this has worked: a spec may be looked up and left, and an import may fail and be repeated.
                run_module(module)
                sys.meta_path = [finder for finder in sys.meta_path if finder is not cls]
                register()

            spec.loader.exec_module = exec_module
        return spec


def find_models_spec() -> object:
    """Find the spec of ``anomalib.models`` as the finder does; called by the hook that the ``.pth`` file sets up."""
    return AnomalibModelsFinder.find_spec(HOST) if AnomalibModelsFinder in sys.meta_path else None


def install() -> None:
    """See to it that the model is registered: now if ``anomalib.models`` is there, else when it is imported."""
    if os.environ.get(DISABLE_VARIABLE, "0") not in {"", "0"}:
        return
    if HOST in sys.modules:
        register()
    elif AnomalibModelsFinder not in sys.meta_path:
        sys.meta_path.insert(0, AnomalibModelsFinder)


def register() -> None:
    """Enter the model in ``anomalib.models``, or warn once that it cannot be and leave anomalib alone."""
    host = sys.modules.get(HOST)
    being_imported = MODEL_MODULE in sys.modules and not hasattr(sys.modules[MODEL_MODULE], "AnoVL")
    # An import that began with the plugin comes back here when the model's module is complete.
    if _state["busy"] or host is None or being_imported or hasattr(host, "AnoVL") or not hasattr(host, "get_model"):
        return
    # Importing the model's module ends in another call of this function.
    _state["busy"] = True
    try:
        from anovl_plugin.lightning_model import AnoVL

        # anomalib looks a class path up in the module it names, and in no other.
        host.ALLOWED_MODULES.update({PLUGIN, f"{PLUGIN}.benchmark"})
        host.AnoVL = AnoVL
        host.__all__ = sorted([*host.__all__, "AnoVL"])
    except Exception as error:  # noqa: BLE001 - whatever is wrong with the plugin, anomalib must go on
        import warnings

        warnings.warn(
            f"anovl_plugin could not register AnoVL with anomalib ({type(error).__name__}: {error}); anomalib goes on "
            f"without it. {DISABLE_VARIABLE}=1 silences this.",
            stacklevel=2,
        )
    finally:
        _state["busy"] = False
