"""Plain data from a YAML file, where every value knows its line.

YAML is read as a tree of nodes, from which only texts, lists and mappings are accepted: nothing is constructed.
"""

from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import yaml

from anovl_plugin.config import shown

_MAX_BYTES = 1_000_000
_MAX_VALUES = 100_000
_MAX_DEPTH = 10
_TAG = "tag:yaml.org,2002:"
# What YAML makes of text without quotes.
_SCALARS = {_TAG + kind for kind in ("str", "null", "bool", "int", "float", "timestamp", "merge", "value")}

# Where a value is: keys of mappings and indices of lists.
Key = tuple[str | int, ...]


class Source(NamedTuple):
    """Data, and where it comes from.

    Attributes:
        name: What errors call it.
        folder: Folder of the file, which other files are relative to.
        data: Texts, lists and mappings.
        lines: Line of each value of a file.
    """

    name: str
    folder: Path
    data: Any
    lines: dict[Key, int]

    def fail(self, key: Key, problem: str, kind: type[Exception] = ValueError, line: int | None = None) -> NoReturn:
        """Raise an error of one line that names the file, the line and the key.

        Args:
            key: Where the mistake is.
            problem: What is wrong, and what to do.
            kind: Class of the error. Default: ``ValueError``.
            line: Line of the mistake. Default: that of the key, or of the closest key that contains it.
        """
        above = [key[:count] for count in range(len(key), 0, -1)]
        line = line or next((self.lines[each] for each in above if each in self.lines), None)
        where = self.name if line is None else f"{self.name}, line {line}"
        names = ".".join(each if each.isidentifier() else shown(each) for each in key if isinstance(each, str))
        msg = f"{where}: {names} {problem}" if names else f"{where}: {problem}"
        raise kind(msg) from None


def is_file(path: Path) -> bool:
    """Return whether a path is that of a regular file."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def open_yaml(path: Path) -> Source:
    """Return what a YAML file holds.

    Raises:
        ValueError: If the file cannot be read, is not valid YAML, holds anything but texts, lists and mappings, or has
            a key twice.
    """
    name = str(path) if str(path).isprintable() else shown(str(path))
    source = Source(name, path.parent, None, {})
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_BYTES + 1)
    except OSError as error:
        source.fail((), f"cannot be read ({error.strerror}); pass a file that can be")
    if len(content) > _MAX_BYTES:
        source.fail((), f"has more than {_MAX_BYTES:,} bytes; write fewer or shorter texts")
    try:
        root = yaml.compose(content.decode("utf-8-sig"), Loader=yaml.SafeLoader)
    except UnicodeDecodeError:
        source.fail((), "is not text in UTF-8; save it as UTF-8")
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
        problem = getattr(error, "problem", None) or getattr(error, "reason", None) or "cannot be parsed"
        hint = "put texts with {} in quotes, and indent evenly"
        source.fail((), f"invalid YAML: {' '.join(problem.split())}; {hint}", line=mark.line + 1 if mark else None)
    except (RecursionError, ValueError, OverflowError):
        source.fail((), "invalid YAML: too many brackets, or an escape sequence that is no character; remove them")
    if root is None:
        source.fail((), "is empty; write at least 'extends: paper'")
    return source._replace(data=_Reader(source).read(root, ()))


class _Reader:
    """Turns YAML nodes into plain data and notes the line of each value."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._count = 0

    def read(self, node: yaml.Node, key: Key) -> Any:
        """Return what a node holds; aliases of aliases could be more than the memory holds."""
        self._source.lines.setdefault(key, node.start_mark.line + 1)
        self._count += 1
        if self._count > _MAX_VALUES or len(key) > _MAX_DEPTH:
            self._source.fail(key, f"is more than {_MAX_DEPTH} levels deep, or value {_MAX_VALUES:,}; write less")
        if isinstance(node, yaml.ScalarNode):
            return self._text(node, key)
        if node.tag not in {f"{_TAG}seq", f"{_TAG}map"}:
            self._source.fail(key, f"has the tag {shown(node.tag)}; remove the tag")
        if isinstance(node, yaml.SequenceNode):
            return [self.read(each, (*key, index)) for index, each in enumerate(node.value)]
        data: dict[str, Any] = {}
        for name_node, value_node in node.value:
            line = name_node.start_mark.line + 1
            if not isinstance(name_node, yaml.ScalarNode):
                self._source.fail(key, "has a list or a mapping as a key; write text instead", line=line)
            inner = (*key, name_node.value)
            if name_node.value in data:
                self._source.fail(inner, "is there twice; remove one", line=line)
            self._source.lines[inner] = line
            data[self._text(name_node, inner)] = self.read(value_node, inner)
        return data

    def _text(self, node: yaml.ScalarNode, key: Key) -> str:
        line = node.start_mark.line + 1
        if node.tag not in _SCALARS:
            self._source.fail(key, f"has the tag {shown(node.tag)}; remove the tag", line=line)
        if node.tag != f"{_TAG}str":
            problem = f"has {shown(node.value)}, which YAML does not read as text; put it in quotes"
            self._source.fail(key, problem if node.value else "has no value; write one, or remove the key", line=line)
        return str(node.value)
