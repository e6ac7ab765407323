"""What prompts are made of, read from a YAML file or a mapping and checked; docs/prompts.md explains the keys."""

import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, NoReturn

from anovl_plugin.config import expanded, shown, to_builtin
from anovl_plugin.text.source import Key, Source, is_file, open_yaml

PAPER = "paper"
# As a key, every class without an entry of its own.
OTHERS = "*"
DEFECT_TEMPLATE = "{} with {defect}"
_MAX_SENTENCES = 100_000
_MAX_CHARACTERS = 1000

_LISTS = ("normal_states", "abnormal_states", "templates")
_MAPPINGS = {
    "domains": "a mapping from domain to list of phrases",
    "auto": "a mapping from class to domain",
    "nouns": "a mapping from class to noun",
    "defects": "a list of defects, or a mapping from class to such a list",
}
_REQUIRED = (*_LISTS, "domains")
# What the texts of a part must have in braces, and what they may have.
_MUST = {
    "normal_states": {"{}"},
    "abnormal_states": {"{}"},
    "templates": {"{}"},
    "defect_template": {"{}", "{defect}"},
}
_MAY = {"templates": {"{phrase}", "{article}"}}
_MEANING = {"{}": "the class name", "{defect}": "the defect"}

Parts = dict[str, Any]


def read_parts(prompts: str | Path | Mapping[str, Any]) -> Parts:
    """Return the parts of prompts, complete and checked.

    Args:
        prompts: ``"paper"``, the path of a YAML file, or a mapping with the keys of such a file.

    Returns:
        The parts that are set: texts, lists, and mappings. ``auto`` has an entry for all other classes, and
        ``defects`` is a mapping.

    Raises:
        TypeError: If a value has the wrong type.
        ValueError: If a file cannot be read, or a value is invalid.
    """
    if isinstance(prompts, str | Path):
        if prompts == PAPER:
            return _paper()
        path = Path(expanded(prompts))
        if not is_file(path):
            msg = f"prompts is {shown(str(prompts))}, but there is no such file; pass a YAML file, 'paper' or a mapping"
            raise ValueError(msg)
        return _read_file(path, ())
    data = to_builtin(prompts)
    if not isinstance(data, Mapping):
        msg = f"prompts is {shown(prompts)}, but must be a YAML file, 'paper' or a mapping with the keys of such a file"
        raise TypeError(msg)
    return _read(Source("prompts", Path(), data, {}), ())


@cache
def _paper() -> Parts:
    return _read_file(Path(__file__).with_name("paper.yaml"), ())


def _read_file(path: Path, extending: tuple[Path, ...]) -> Parts:
    return _read(open_yaml(path), (*extending, path.resolve()))


def _read(source: Source, extending: tuple[Path, ...]) -> Parts:
    if not isinstance(source.data, Mapping):
        source.fail((), f"is {shown(source.data)}, but must be a mapping with keys such as 'defects'", TypeError)
    data = dict(source.data)
    parts = _base(source, data.pop("extends"), extending) if "extends" in data else {}
    added = data.pop("add", {})
    own = _check_parts(source, (), data)
    if "domains" in own:
        parts.pop("auto", None)
    parts |= own
    for name, value in _check_parts(source, ("add",), added).items():
        parts[name] = _add(source, ("add", name), parts.get(name), value)
    _complete(source, parts)
    return parts


def _base(source: Source, name: Any, extending: tuple[Path, ...]) -> Parts:
    """Return a copy of the parts that a source extends."""
    key = ("extends",)
    name = _check_text(source, key, name, plain=True)
    if name == PAPER:
        return dict(_paper())
    path = source.folder / expanded(name)
    if not is_file(path):
        source.fail(key, f"is {shown(name)}, but there is no such file; name a YAML file or 'paper'")
    if path.resolve() in extending:
        source.fail(key, f"is {shown(name)}, but that file extends this one; remove 'extends' from one of them")
    return dict(_read_file(path, extending))


def _check_parts(source: Source, key: Key, data: Any) -> Parts:
    """Return the parts of the top level, or of ``add``, with plain lists and dictionaries."""
    if not isinstance(data, Mapping):
        source.fail(key, f"is {shown(data)}, but must be a mapping", TypeError)
    names = [*_LISTS, *_MAPPINGS] if key else ["extends", "add", *_LISTS, *_MAPPINGS, "defect_template"]
    parts: Parts = {}
    for name, value in data.items():
        inner = (*key, name)
        if name not in names:
            inner = inner if isinstance(name, str) else (*key, shown(name))
            source.fail(inner, f"is not a key that can be set here; use one of {', '.join(names)}")
        if name in _LISTS:
            parts[name] = _check_list(source, inner, value)
        elif name == "defect_template":
            parts[name] = _check_text(source, inner, value)
        elif name == "defects" and isinstance(value, list | tuple):
            parts[name] = {OTHERS: _check_list(source, inner, value)}
        else:
            parts[name] = _check_mapping(source, inner, value)
    return parts


def _check_mapping(source: Source, key: Key, value: Any) -> dict[str, Any]:
    part = str(key[-1])
    if not isinstance(value, Mapping):
        source.fail(key, f"is {shown(value)}, but must be {_MAPPINGS[part]}", TypeError)
    of_lists = part in {"domains", "defects"}
    if of_lists and not value:
        source.fail(key, "is empty; write at least one entry")
    checked: dict[str, Any] = {}
    for name, each in value.items():
        text = _check_text(source, key, name, plain=True)
        inner = (*key, text)
        checked[text] = _check_list(source, inner, each) if of_lists else _check_text(source, inner, each, plain=True)
    return checked


def _check_list(source: Source, key: Key, value: Any) -> list[str]:
    if not isinstance(value, list | tuple):
        source.fail(key, f"is {shown(value)}, but must be a list", TypeError)
    if not value:
        source.fail(key, "is an empty list; write at least one entry")
    texts: dict[str, None] = {}
    for index, each in enumerate(value):
        text = _check_text(source, (*key, index), each)
        if text in texts:
            source.fail((*key, index), f"has {shown(text)} twice; remove one")
        texts[text] = None
    return list(texts)


def _check_text(source: Source, key: Key, text: Any, *, plain: bool = False) -> str:
    """Return a text; braces have no meaning in a plain one."""
    if not isinstance(text, str):
        source.fail(key, f"has {shown(text)}, but must have text", TypeError)
    if not text.strip():
        source.fail(key, f"has {shown(text)}, which is blank; write a text")
    if len(text) > _MAX_CHARACTERS:
        source.fail(key, f"has a text of {len(text):,} characters; write at most {_MAX_CHARACTERS:,}")
    try:
        text.encode()
    except UnicodeEncodeError:
        source.fail(key, f"has {shown(text)}, which is not valid Unicode; use letters that can be encoded as UTF-8")
    if not plain:
        _check_braces(source, key, text)
    return str(text)


def _check_braces(source: Source, key: Key, text: str) -> None:
    part = str(key[1] if key[0] == "add" else key[0])
    must = _MUST.get(part, set())
    allowed = must | _MAY.get(part, set())
    found = re.findall(r"\{[^{}]*\}|[{}]", text)
    for missing in sorted(must.difference(found)):
        source.fail(key, f"has {shown(text)}, which lacks {missing}; write {missing} where {_MEANING[missing]} goes")
    for each in found:
        if each not in allowed:
            remedy = f"use only {', '.join(sorted(allowed))}" if allowed else "remove the braces"
            source.fail(key, f"has {shown(text)}, where {shown(each)} has no meaning; {remedy}")


def _add(source: Source, key: Key, old: Any, new: Any) -> Any:
    """Return lists with the new entries at their end, and mappings with new and changed entries."""
    if isinstance(new, list):
        known = set(old or ())
        for index, text in enumerate(new):
            if text in known:
                source.fail((*key, index), f"has {shown(text)}, which is there already; remove it")
        return [*(old or ()), *new]
    if isinstance(new, dict):
        old = old or {}
        return old | {name: _add(source, (*key, name), old.get(name), each) for name, each in new.items()}
    return new


def _fail(source: Source, key: Key, problem: str) -> NoReturn:
    """Raise an error about parts that do not fit, at the line of the key or of its addition."""
    places = [(*at, *key[:count]) for count in range(len(key), 0, -1) for at in ((), ("add",))]
    source.fail(next((place for place in places if place in source.lines), key), problem)


def _complete(source: Source, parts: Parts) -> None:
    """Complete ``auto``, and check that nothing is missing and that all parts fit together."""
    for name in _REQUIRED:
        if name not in parts:
            _fail(source, (name,), "is missing; write it, or start from the paper's prompts with 'extends: paper'")
    domains, auto = parts["domains"], dict(parts.get("auto", {}))
    if "auto" in domains:
        _fail(source, ("domains", "auto"), "is not a possible name, because 'auto' chooses a domain; use another name")
    if len(domains) == 1:
        auto.setdefault(OTHERS, *domains)
    if OTHERS not in auto:
        _fail(
            source,
            ("auto",),
            f'has no entry for all other classes; add one, such as "{OTHERS}": {shown(next(iter(domains)))}',
        )
    for class_name, domain in auto.items():
        if domain not in domains:
            known = ", ".join(map(shown, domains))
            _fail(source, ("auto", class_name), f"has {shown(domain)}, which is not a domain; use one of {known}")
    parts["auto"] = auto
    _check_states(source, parts)
    _check_number(source, parts)


def _check_states(source: Source, parts: Parts) -> None:
    """Check that no state is there twice, in any wording."""
    owners = dict.fromkeys(parts["normal_states"], "normal_states")
    for state in parts["abnormal_states"]:
        if state in owners:
            _fail(source, ("abnormal_states",), f"has {shown(state)}, which normal_states has, too; remove one")
        owners[state] = "abnormal_states"
    template, defects = parts.get("defect_template", DEFECT_TEMPLATE), parts.get("defects", {})
    of_others = set(defects.get(OTHERS, ()))
    for class_name, words in defects.items():
        key = ("defects",) if class_name == OTHERS else ("defects", class_name)
        for word in words:
            state = template.replace("{defect}", word)
            if state in owners:
                _fail(source, key, f"has {shown(word)}, but {owners[state]} has {shown(state)} already; remove one")
            if class_name != OTHERS and word in of_others:
                _fail(source, key, f"has {shown(word)}, which all classes have already; remove one")


def _check_number(source: Source, parts: Parts) -> None:
    defects = dict(parts.get("defects", {}))
    states = len(parts["normal_states"]) + len(parts["abnormal_states"]) + len(defects.pop(OTHERS, ()))
    states += max(map(len, defects.values()), default=0)
    for domain, phrases in parts["domains"].items():
        number = len(phrases) * len(parts["templates"]) * states
        if number > _MAX_SENTENCES:
            _fail(
                source,
                ("domains", domain),
                f"makes {number:,} sentences, but at most {_MAX_SENTENCES:,} are possible; write fewer phrases, "
                "templates, states or defects",
            )
