"""Imports within the package run downward only, by the table of floors in docs/architecture.md."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "anovl_plugin"
PAGE = ROOT / "docs" / "architecture.md"
FLOORS = {
    "benchmark/": 7,
    "playground/": 7,
    "report/": 7,
    "__init__.py": 7,
    "demo/": 6,
    "registration.py": 6,
    "lightning_model.py": 5,
    "components/": 4,
    "banked_clip.py": 3,
    "referenced_clip.py": 3,
    "torch_model.py": 3,
    "scoring/": 2,
    "vision/": 1,
    "text/": 1,
    "config.py": 1,
    "hosts/": 0,
}
SEPARATE = {("vision/", "text/"), ("text/", "vision/")}


class Import(NamedTuple):
    """One import of one module of the package by another, both as paths below the package."""

    source: str
    line: int
    target: str


def floors_of_page(text: str) -> dict[str, int]:
    rows = re.findall(r"^\| (\d) \| [^|]+ \| ([^|]+) \|$", text, re.MULTILINE)
    return {name: int(floor) for floor, names in rows for name in re.findall(r"`([^`]+)`", names)}


def entry_of(path: str) -> str | None:
    """Return the entry of the table that a file belongs to."""
    folder, slash, _ = path.partition("/")
    entry = folder + slash
    return entry if entry in FLOORS else None


def module_names(package: Path) -> dict[str, str]:
    """Map each module's dotted name to its path below the package."""
    names = {}
    for path in sorted(package.rglob("*.py")):
        relative = path.relative_to(package)
        parts = relative.parent.parts if path.name == "__init__.py" else relative.with_suffix("").parts
        names[".".join((package.name, *parts))] = relative.as_posix()
    return names


def dotted_names(node: ast.AST, package: str) -> Iterator[tuple[str, str | None]]:
    """Yield the modules that a statement imports, with the name taken from each where there is one."""
    if isinstance(node, ast.Import):
        yield from ((alias.name, None) for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
        base = ".".join([*above, *([node.module] if node.module else [])])
        yield from ((base, alias.name) for alias in node.names)
    elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
        called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", None)
        if called in {"import_module", "__import__"}:
            yield str(node.args[0].value), None


def imports_of(package: Path) -> list[Import]:
    """Return all imports within a package, at the top of files, inside functions, or by ``import_module``."""
    modules = module_names(package)
    found = []
    for name, path in modules.items():
        inside = name if path.endswith("__init__.py") else name.rpartition(".")[0]
        for node in ast.walk(ast.parse((package / path).read_text(encoding="utf-8"))):
            for base, taken in dotted_names(node, inside):
                target = modules.get(f"{base}.{taken}") or modules.get(base)
                if target is not None:
                    found.append(Import(path, node.lineno, target))
    return found


def violations(imports: list[Import]) -> list[str]:
    """Return one line for each import that runs upwards, or between two entries that stay apart."""
    lines = []
    for source, line, target in imports:
        pair = entry_of(source), entry_of(target)
        if None in pair:
            continue
        lower, upper = FLOORS[pair[0]], FLOORS[pair[1]]
        if upper > lower:
            lines.append(f"{source}:{line} (floor {lower}) imports {target} (floor {upper})")
        elif pair in SEPARATE:
            lines.append(f"{source}:{line} imports {target}, but {pair[0]} and {pair[1]} do not import each other")
    return sorted(lines)


def circle(imports: list[Import]) -> list[str]:
    """Return files that import each other in a circle, or an empty list."""
    targets: dict[str, set[str]] = {}
    for source, _, target in imports:
        targets.setdefault(source, set()).add(target)
    done: set[str] = set()

    def visit(path: str, trail: list[str]) -> list[str]:
        if path in trail:
            return [*trail[trail.index(path) :], path]
        if path in done:
            return []
        for target in sorted(targets.get(path, ())):
            if found := visit(target, [*trail, path]):
                return found
        done.add(path)
        return []

    return next((found for path in sorted(targets) if (found := visit(path, []))), [])


def test_table_of_the_page_is_the_one_checked_here():
    assert floors_of_page(PAGE.read_text(encoding="utf-8")) == FLOORS


def test_every_file_has_a_floor():
    homeless = [path for path in module_names(PACKAGE).values() if entry_of(path) is None]
    assert not homeless, f"add these to the table of floors in {PAGE.name} and to FLOORS: {homeless}"


def test_every_entry_of_the_table_exists():
    missing = [name for name in FLOORS if not (PACKAGE / name).exists()]
    assert not missing, f"the table of floors in {PAGE.name} lists what is not there: {missing}"


def test_imports_run_downward_only():
    upwards = violations(imports_of(PACKAGE))
    assert not upwards, "imports against the floors of docs/architecture.md:\n" + "\n".join(upwards)


def test_no_files_import_each_other_in_a_circle():
    found = circle(imports_of(PACKAGE))
    assert not found, "files import each other in a circle: " + " -> ".join(found)


@pytest.mark.parametrize(
    ("path", "code", "line"),
    [
        ("scoring/scores.py", "import anovl_plugin.torch_model", 1),
        ("scoring/scores.py", "from anovl_plugin import torch_model", 1),
        ("scoring/scores.py", "from anovl_plugin.torch_model import AnoVLModel", 1),
        ("scoring/scores.py", "from .. import torch_model", 1),
        ("scoring/scores.py", "from ..torch_model import AnoVLModel", 1),
        ("scoring/__init__.py", "from ..torch_model import AnoVLModel", 1),
        ("scoring/scores.py", "def lazy():\n    from anovl_plugin.torch_model import AnoVLModel", 2),
        ("scoring/scores.py", "import importlib\nimportlib.import_module('anovl_plugin.torch_model')", 2),
        ("scoring/scores.py", "if False:\n    __import__('anovl_plugin.torch_model')", 2),
    ],
)
def test_upward_import_of_any_form_is_found(tmp_path, path, code, line):
    package = make_package(tmp_path, {"torch_model.py": "", path: code})
    assert violations(imports_of(package)) == [f"{path}:{line} (floor 2) imports torch_model.py (floor 3)"]


def test_import_of_the_package_itself_is_an_upward_one(tmp_path):
    package = make_package(tmp_path, {"registration.py": "from anovl_plugin import AnoVL"})
    assert violations(imports_of(package)) == ["registration.py:1 (floor 6) imports __init__.py (floor 7)"]


def test_encoders_stay_apart_and_may_share_what_is_beside_and_below(tmp_path):
    files = {
        "config.py": "",
        "hosts/torch.py": "",
        "vision/views.py": "from anovl_plugin.text import prompts",
        "text/prompts.py": "from anovl_plugin import config\nfrom anovl_plugin.hosts import torch",
    }
    package = make_package(tmp_path, files)
    (line,) = violations(imports_of(package))
    assert line == "vision/views.py:1 imports text/prompts.py, but vision/ and text/ do not import each other"


def test_circle_is_found(tmp_path):
    files = {
        "scoring/a.py": "from anovl_plugin.scoring import b",
        "scoring/b.py": "def lazy():\n    from anovl_plugin.scoring.c import something",
        "scoring/c.py": "import anovl_plugin.scoring.a",
    }
    found = circle(imports_of(make_package(tmp_path, files)))
    assert found == ["scoring/a.py", "scoring/b.py", "scoring/c.py", "scoring/a.py"]


def make_package(folder: Path, files: dict[str, str]) -> Path:
    package = folder / "anovl_plugin"
    for name, code in {"__init__.py": "", **files}.items():
        path = package / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(code, encoding="utf-8")
        (path.parent / "__init__.py").touch()
    return package
