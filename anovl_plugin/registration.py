"""Registers AnoVL with anomalib. Together with ``anovl_plugin.pth``, the only code that changes what anomalib sees.

anomalib finds models in three places: the direct subclasses of ``AnomalibModule``, the namespace of
``anomalib.models``, and ``ALLOWED_MODULES``, the modules it may import from. It finds data modules in the namespace of
``anomalib.data``. :func:`register` adds ``AnoVL`` and ``DemoSurfaces`` to them.

When Python starts, the ``.pth`` file in site-packages adds a finder to ``sys.meta_path``. It imports nothing until
``anomalib.models`` is imported; only then is this file imported, and :class:`AnoVLFinder` takes the finder's place. A
program that imports :mod:`anovl_plugin` itself adds the same finder. It stays there, because ``anomalib.models`` may be
imported again.

Nothing here imports anomalib or torch before anomalib itself is imported. ``ANOVL_PLUGIN_DISABLE=1`` switches automatic
registration off; a program that imports AnoVL itself still registers it.
"""

import os
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

HOST = "anomalib.models"
PLUGIN = "anovl_plugin"
MODEL_MODULE = f"{PLUGIN}.lightning_model"
DISABLE_VARIABLE = "ANOVL_PLUGIN_DISABLE"

# Imports and registrations in progress. While there are any, nothing is registered; each ends with a registration.
_in_progress: list[str] = []
_warnings: set[str] = set()


class RegisteringLoader:
    """Runs a module with its own loader, then registers AnoVL.

    Args:
        loader: The module's own loader.
    """

    def __init__(self, loader: Any) -> None:
        self.loader = loader

    def __getattr__(self, name: str) -> object:
        """Return an attribute of the module's own loader, so that source and resources can be read."""
        return getattr(self.loader, name)

    def create_module(self, spec: object) -> ModuleType | None:
        """Return the module that the module's own loader creates."""
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        """Run the module, and register AnoVL if that succeeds."""
        # Restored first, so that the module never sees this class.
        if module.__spec__ is not None:
            module.__spec__.loader = self.loader
        module.__loader__ = self.loader
        # Kept, because a reload of this very file replaces the global before the name is removed.
        in_progress = _in_progress
        in_progress.append(module.__name__)
        try:
            self.loader.exec_module(module)
        finally:
            in_progress.remove(module.__name__)
        register()


# The ``.pth`` file defines a class of the same name, by which each recognizes the other.
class AnoVLFinder:
    """Finder on ``sys.meta_path`` that registers AnoVL once ``anomalib.models`` has been imported.

    It also waits for the plugin's own modules. If a program imports one of them first, that module may import
    ``anomalib.models`` while it is itself incomplete, and AnoVL cannot be registered before it is complete.
    """

    @classmethod
    def find_spec(cls, name: str, path: object = None, target: object = None) -> Any:
        """Return the spec that the finders behind this one find, with a loader that registers AnoVL."""
        is_awaited = name == HOST or name.startswith(f"{PLUGIN}.")
        if not is_awaited or cls not in sys.meta_path:
            return None
        for finder in sys.meta_path[sys.meta_path.index(cls) + 1 :]:
            find_spec = getattr(finder, "find_spec", None)
            spec = find_spec and find_spec(name, path, target)
            if spec is not None:
                if hasattr(spec.loader, "exec_module"):
                    spec.loader = RegisteringLoader(spec.loader)
                return spec
        return None


def install() -> None:
    """Register AnoVL now if ``anomalib.models`` is imported, else as soon as it is."""
    add_finder()
    register()


def add_finder() -> None:
    """Add the finder to ``sys.meta_path``, in place of the one from the ``.pth`` file if there is one.

    The list may be in use by an import, here or in another thread, so no entry is removed or moved.
    """
    for index, finder in enumerate(sys.meta_path):
        if getattr(finder, "__name__", None) == AnoVLFinder.__name__:
            sys.meta_path[index] = AnoVLFinder
            return
    sys.meta_path.insert(0, AnoVLFinder)


def is_disabled() -> bool:
    """Return whether the environment switches automatic registration off."""
    return os.environ.get(DISABLE_VARIABLE, "0") not in {"", "0"}


def register() -> None:
    """Add AnoVL and ``DemoSurfaces`` to anomalib, or warn and let anomalib continue without them.

    Does nothing before ``anomalib.models`` has been imported, and may be called any number of times.
    """
    ready = hasattr(sys.modules.get(HOST), "get_model") and not _in_progress
    if not ready or (is_disabled() and MODEL_MODULE not in sys.modules):
        return
    _in_progress.append("registration")
    try:
        if attempt("AnoVL", add_model):
            attempt("DemoSurfaces", add_demo_data)
    finally:
        _in_progress.remove("registration")


def add_model() -> None:
    """Add AnoVL to each place where anomalib looks for models, once, even if the module was reloaded."""
    from anovl_plugin.lightning_model import AnoVL

    # Not an import: after a second import, the package may still hold the first module as its attribute.
    host: Any = sys.modules[HOST]
    # anomalib looks up a class path only in the module that it names.
    host.ALLOWED_MODULES.update({PLUGIN, f"{PLUGIN}.benchmark"})
    host.AnoVL = AnoVL
    host.__all__ = sorted({*host.__all__, "AnoVL"})


def add_demo_data() -> None:
    """Add the demo's data module where anomalib looks for data modules."""
    import anomalib.data

    from anovl_plugin.demo.datamodule import DemoSurfaces

    vars(anomalib.data)["DemoSurfaces"] = DemoSurfaces


def attempt(what: str, add: Callable[[], None]) -> bool:
    """Return whether a step of the registration succeeds; warn if it does not, once for each reason.

    Args:
        what: What the step adds to anomalib.
        add: The step.
    """
    try:
        add()
    except (Exception, SystemExit) as error:  # noqa: BLE001 - a damaged module can do anything, even end the program
        reason = " ".join(f"{type(error).__name__}: {error}".split())
    else:
        return True
    import gc
    import warnings

    # Otherwise a class from a module whose import failed would stay among the subclasses that anomalib lists.
    gc.collect()
    message = (
        f"anovl_plugin could not register {what} with anomalib ({reason}); anomalib continues without it. "
        f"{DISABLE_VARIABLE}=1 silences this."
    )
    if message not in _warnings:
        _warnings.add(message)
        warnings.warn(message, stacklevel=3)
    return False
