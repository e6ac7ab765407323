"""Pluggable parts of the model to and from the plain data that commands, YAML files and checkpoints hold.

A part is an instance of a dataclass whose fields are its settings. It has a base class, such as
:class:`~anovl_plugin.scoring.adaptation.Adaptation`, which gives the model's argument its name: ``adaptation``.
"""

import dataclasses
import inspect
import os.path
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import reduce
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import numpy as np

PACKAGE = __name__.partition(".")[0]
Part = TypeVar("Part")
_loading_checkpoint = ContextVar("loading_checkpoint", default=False)


@contextmanager
def loading_checkpoint() -> Iterator[None]:
    """Mark what is built in this context as coming from a checkpoint, which may have been downloaded."""
    token = _loading_checkpoint.set(True)
    try:
        yield
    finally:
        _loading_checkpoint.reset(token)


def is_loading_checkpoint() -> bool:
    """Return whether settings come from a checkpoint, for which nothing may be imported or looked up."""
    return _loading_checkpoint.get()


def from_config(value: object, base: type[Part], *, allow_import: bool = True) -> Part | None:
    """Return a part from an instance, a class path or a config.

    Args:
        value: An instance of ``base``; the path of a class, or the bare name of one that is imported already; a
            mapping of ``class_path`` and ``init_args``; or ``None``.
        base: The class that all parts of this kind inherit from.
        allow_import: Whether a module may be imported for the class. Set it to ``False`` for data that may come from
            somebody else, such as a checkpoint: importing a module runs it. Then only classes of this package, and
            subclasses of ``base`` that the program has imported already, are accepted. Default: ``True``.

    Returns:
        The part, or ``None`` if ``value`` is ``None``.

    Raises:
        TypeError: If the value has none of these types.
        ValueError: If the class does not exist, may not or cannot be imported, is not a concrete subclass of
            ``base``, or does not accept the arguments.

    Example:
        >>> from anovl_plugin import Adaptation
        >>> from_config({"class_path": "anovl_plugin.TextAdapter", "init_args": {"steps": 3}}, Adaptation).steps
        3
    """
    if value is None or isinstance(value, base):
        return value
    path, arguments = _path_and_arguments(to_builtin(value), base)
    part = _find_class(path, base, allow_import=allow_import)
    if inspect.isabstract(part):
        missing = ", ".join(sorted(getattr(part, "__abstractmethods__", ())))
        _fail(base, path, f"which is abstract; name a subclass that implements {missing}")
    try:
        return part(**arguments)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        msg = f"{_argument(base)}: {_shorten(path)} does not accept {shown(dict(arguments))}: {cause_of(error)}"
        raise ValueError(msg) from error


def to_config(part: object) -> dict[str, Any] | None:
    """Return a part as the plain data that :func:`from_config` reads.

    Raises:
        TypeError: If the part is not a dataclass whose fields are its settings, or a setting is not plain data:
            numbers, strings, ``None``, and lists, tuples and dictionaries of them.

    Example:
        >>> from anovl_plugin import LinearAdapter
        >>> to_config(LinearAdapter(steps=2))["init_args"]["steps"]
        2
    """
    if part is None:
        return None
    kind = type(part)
    fields = [field.name for field in dataclasses.fields(kind) if field.init] if dataclasses.is_dataclass(kind) else []
    if not dataclasses.is_dataclass(kind) or set(inspect.signature(kind).parameters) != set(fields):
        msg = (
            f"{kind.__name__} is not a dataclass whose fields are all its arguments, so its settings cannot be saved; "
            "put @dataclass above it and do not write an __init__"
        )
        raise TypeError(msg)
    return {"class_path": _path_of(kind), "init_args": {name: _plain_setting(part, name) for name in fields}}


def to_builtin(value: Any) -> Any:
    """Return omegaconf's lists and mappings, at any depth, as a list or dict, and everything else unchanged.

    Example:
        >>> from omegaconf import OmegaConf
        >>> to_builtin(OmegaConf.create({"views": ["image", "flip"]}))
        {'views': ['image', 'flip']}
    """
    foreign = type(value).__module__.partition(".")[0] == "omegaconf"
    if type(value) is dict or (foreign and isinstance(value, Mapping)):
        return {key: to_builtin(each) for key, each in value.items()}
    if type(value) is list or (foreign and isinstance(value, Sequence)):
        return [to_builtin(each) for each in value]
    return value


def check_flag(name: str, value: object) -> None:
    """Raise TypeError if an argument is not a bool."""
    if not isinstance(value, bool):
        msg = f"{name} is {shown(value)}, but must be true or false"
        raise TypeError(msg)


def check_choice(name: str, value: object, choices: Sequence[str]) -> None:
    """Raise an error if an argument is neither one of some words nor ``None``.

    Raises:
        TypeError: If it is neither a string nor ``None``.
        ValueError: If it is another string.
    """
    msg = f"{name} is {shown(value)}, but must be {', '.join(map(repr, choices))} or None"
    if not isinstance(value, str | None):
        raise TypeError(msg)
    if value not in {*choices, None}:
        raise ValueError(msg)


def whole_number(part: object, name: str, least: int) -> int:
    """Return a setting that must be a whole number, at least ``least`` and less than 2⁶³, as an ``int``.

    Raises:
        TypeError: If it is not an ``int`` or a NumPy integer.
        ValueError: If it is out of range.
    """
    value = getattr(part, name)
    msg = f"{name} of {type(part).__name__} is {shown(value)}, but must be a whole number of at least {least}"
    return to_int(value, least, 2**63 - 1, msg, f"{msg} and less than 2**63")


def to_int(value: object, least: int, most: int, type_message: str, range_message: str) -> int:
    """Return a whole number as an ``int``, or raise an error with one of two messages.

    Raises:
        TypeError: If it is not an ``int`` or a NumPy integer.
        ValueError: If it is not from ``least`` to ``most``.
    """
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(type_message)
    if not least <= value <= most:
        raise ValueError(range_message)
    return int(value)


def number(part: object, name: str, least: float, most: float) -> float:
    """Return a setting that must be a number in [``least``, ``most``], as a ``float`` or ``int``.

    Raises:
        TypeError: If it is not a ``float``, an ``int`` or a NumPy number.
        ValueError: If it is out of range or NaN.
    """
    value = getattr(part, name)
    msg = f"{name} of {type(part).__name__} is {shown(value)}, but must be a number from {least} to {most}"
    if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating):
        raise TypeError(msg)
    if not least <= value <= most:
        raise ValueError(msg)
    return int(value) if isinstance(value, int | np.integer) else float(value)


def expanded(path: str | Path) -> str:
    """Return a path with the home folder in place of a leading ``~`` or ``~USER``, as in a shell; YAML has none."""
    try:
        return os.path.expanduser(path)  # noqa: PTH111 - pathlib's raises an error where there is no such user
    except ValueError:  # a null character
        return str(path)


def shown(value: object) -> str:
    """Return the ``repr`` of a value for an error message: one line of at most 100 characters."""
    try:
        return _shorten(repr(value))
    except Exception:  # noqa: BLE001 - of an integer with too many digits, or of a user's own class
        return f"a value of type {type(value).__name__}"


def cause_of(error: BaseException) -> str:
    """Return the type and message of an exception: one line of at most 250 characters."""
    try:
        message = str(error)
    except Exception:  # noqa: BLE001 - a user's own class
        message = ""
    return _shorten(f"{type(error).__name__}: {message}".removesuffix(": "), 250)


def _shorten(text: str, limit: int = 100) -> str:
    # Spaces within a value are part of it.
    line = " ".join(filter(None, map(str.strip, text[: 10 * limit].splitlines())))
    return line if len(line) <= limit else f"{line[: limit - 1]}…"


def _argument(base: type) -> str:
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", base.__name__).lower()


def _path_of(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _fail(base: type, path: str, problem: str, error: BaseException | None = None) -> NoReturn:
    msg = f"{_argument(base)} is {shown(path)}, {problem}"
    raise ValueError(msg) from error


def _plain_setting(part: object, name: str) -> Any:
    value = getattr(part, name)
    try:
        return _plain(value)
    except TypeError:
        msg = (
            f"{name} of {type(part).__name__} is {shown(value)}, but a setting must be a number, a string, None, or a "
            "list, tuple or dictionary of these"
        )
        raise TypeError(msg) from None


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or type(value) in {bool, int, float, str}:
        return value
    if type(value) in {list, tuple}:
        return type(value)(_plain(each) for each in value)
    if type(value) is dict and all(type(key) is str for key in value):
        return {key: _plain(each) for key, each in value.items()}
    raise TypeError


def _path_and_arguments(value: object, base: type) -> tuple[str, Mapping[str, Any]]:
    argument = _argument(base)
    config = {"class_path": value} if isinstance(value, str) else value
    if not isinstance(config, Mapping):
        wanted = f"an instance of {base.__name__} or name its class; use {_choices(base)}"
        msg = f"{argument} is {shown(value)}, but must be {wanted}"
        raise TypeError(msg)
    unknown = [key for key in config if key not in {"class_path", "init_args"}]
    if unknown or "class_path" not in config:
        msg = (
            f"{argument} is {shown(value)}, but its keys must be class_path and, for the settings, init_args; "
            f"for class_path, use {_choices(base)}"
        )
        raise ValueError(msg)
    path, arguments = config["class_path"], config.get("init_args")
    if not isinstance(path, str):
        msg = f"class_path of {argument} is {shown(path)}, but must be a string; use {_choices(base)}"
        raise TypeError(msg)
    if not isinstance(arguments, Mapping | None):
        msg = f"init_args of {argument} is {shown(arguments)}, but must be a mapping of settings to values"
        raise TypeError(msg)
    return path, arguments or {}


def _choices(base: type) -> str:
    known = sorted(
        kind.__name__
        for kind in _imported(base)
        if kind.__module__.startswith(f"{PACKAGE}.") and not inspect.isabstract(kind)
    )
    return ", ".join([*known, f"{'or ' if known else ''}the class path of your own subclass of {base.__name__}"])


def _imported(base: type) -> list[type]:
    children: list[type] = base.__subclasses__()
    return [base, *(each for child in children for each in _imported(child))]


def _find_class(path: str, base: type[Part], *, allow_import: bool) -> type[Part]:
    is_bare = "." not in path
    # By path, so that a class that was defined again, as in a notebook, takes the place of the old one.
    found = {_path_of(kind): kind for kind in _imported(base) if path == (kind.__name__ if is_bare else _path_of(kind))}
    if len(found) > 1:
        _fail(base, path, f"but {_shorten(' and '.join(found), 200)} have that name; use the class path")
    if found:
        return next(iter(found.values()))
    if is_bare:
        _fail(base, path, f"but no imported class has that name; use {_choices(base)}")
    if not allow_import and path.partition(".")[0] != PACKAGE:
        _fail(
            base,
            path,
            f"which is neither part of {PACKAGE} nor imported, and a checkpoint must not import modules; "
            "import the module that defines the class first",
        )
    try:
        kind = _import(path) if allow_import else _own(path)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # noqa: BLE001 - a module may raise anything, SystemExit included
        _fail(base, path, f"but importing it failed: {cause_of(error)}; use {_choices(base)}", error)
    if not (isinstance(kind, type) and issubclass(kind, base)):
        _fail(base, path, f"which is not a subclass of {base.__name__}; use {_choices(base)}")
    return kind


def _own(path: str) -> object:
    module, _, name = path.rpartition(".")
    if "__main__" in module.split("."):
        return None
    return getattr(import_module(module), name)


def _import(path: str) -> object:
    parts = path.split(".")
    if not all(map(str.isidentifier, parts)):
        msg = "not a class path"
        raise ImportError(msg)
    for count in range(len(parts) - 1, 1, -1):
        module = ".".join(parts[:count])
        try:
            return reduce(getattr, parts[count:], import_module(module))
        except ModuleNotFoundError as error:
            # The rest may be classes within the module. What the module itself fails to import is an error.
            if not f"{module}.".startswith(f"{error.name}."):
                raise
    return reduce(getattr, parts[1:], import_module(parts[0]))
