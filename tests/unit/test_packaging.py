"""What the package imports is what pyproject.toml requires, and the other way round."""

import ast
import sys
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from tests.helpers.requirements import LARGE, ROOT, lower_bound, lowest_versions, read_project, read_requirements

OWN = {"anovl_plugin", "tests"}
# Tools that are run, not imported, and what a build or the Python of the oldest release needs.
RUN = {
    "anomalib", "codespell", "coverage", "editables", "gradio", "hatchling", "mypy", "pandas-stubs", "pre-commit",
    "pre-commit-hooks", "pytest-cov", "pytest-xdist", "ruff", "tomli",
}  # fmt: skip


def imported_names(code: str) -> set[str]:
    """Return the top-level names of all absolute imports in a module, wherever they stand."""
    return {name.partition(".")[0] for node in ast.walk(ast.parse(code)) for name in names_of(node)}


def names_of(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom) and not node.level:
        yield str(node.module)


def imported_distributions(folder: Path) -> dict[str, set[str]]:
    """Map each distribution that the modules of a folder import to the modules that do."""
    providers, found = packages_distributions(), {}
    for path in sorted(folder.rglob("*.py")):
        for name in imported_names(path.read_text(encoding="utf-8")) - set(sys.stdlib_module_names) - OWN:
            # A name that no installed distribution provides stands for itself, so it shows up as undeclared.
            # anomalib[openvino] brings onnx and openvino for the tests of exports.
            for distribution in {canonicalize_name(each) for each in providers.get(name, [name])}:
                found.setdefault(distribution, set()).add(path.relative_to(ROOT).as_posix())
    return found


@pytest.mark.parametrize(
    ("code", "names"),
    [
        ("import cv2, PIL.Image", {"cv2", "PIL"}),
        ("from skimage.data import brick", {"skimage"}),
        ("def late():\n    import torch.nn as nn", {"torch"}),
        ("from . import scores\nfrom ..text import prompts", set()),
    ],
)
def test_imports_of_any_form_are_found(code, names):
    assert imported_names(code) == names


def test_package_imports_what_it_requires_and_nothing_else():
    imported, required = imported_distributions(ROOT / "anovl_plugin"), set(read_requirements())
    # The openvino extra brings these through anomalib's; they are imported when a graph is quantized or run.
    extra = {"nncf", "openvino", *read_requirements("playground")}
    undeclared = {name: modules for name, modules in imported.items() if name not in required | extra}
    assert not undeclared, f"add these to the dependencies of pyproject.toml: {undeclared}"
    assert not required - set(imported), "these dependencies are never imported"


def test_tests_import_what_the_dev_extra_adds_and_nothing_else():
    imported = set(imported_distributions(ROOT / "tests"))
    required, added = set(read_requirements()), set(read_requirements("dev"))
    exported = {"onnx", "openvino"}  # of anomalib[openvino]
    assert imported - required - added - exported == set()
    assert added - imported - RUN == set()


def test_openvino_is_required_as_anomalib_does():
    (requirement,) = read_requirements("openvino").values()
    assert requirement.extras == {"openvino"}
    assert requirement == read_requirements("dev")["anomalib"]
    assert requirement.specifier == read_requirements()["anomalib"].specifier


def test_only_the_page_of_the_playground_imports_its_extra():
    (requirement,) = read_requirements("playground").values()
    assert requirement == read_requirements("dev")["gradio"]
    assert imported_distributions(ROOT / "anovl_plugin")["gradio"] == {"anovl_plugin/playground/page.py"}


def test_tested_bounds_are_all_but_those_of_torch():
    requirements = read_requirements()
    assert set(lowest_versions()) == {*requirements} - LARGE
    for name, version in lowest_versions().items():
        assert requirements[name].specifier.contains(version)


def test_lower_bound_is_the_lowest_version_allowed():
    assert lower_bound(Requirement("anomalib>=2.7,<3")) == "2.7"
    with pytest.raises(ValueError, match="not enough values to unpack"):
        lower_bound(Requirement("anomalib<3"))


def test_package_says_that_it_is_typed():
    assert (ROOT / "anovl_plugin" / "py.typed").read_text() == ""
    assert "Typing :: Typed" in read_project()["classifiers"]


def test_oldest_python_is_the_one_that_tools_assume():
    project = read_project()
    oldest = str(Version(lower_bound(Requirement(f"python{project['requires-python']}"))))
    listed = [line.rpartition(" ")[2] for line in project["classifiers"] if "Python :: 3." in line]
    assert min(map(Version, listed)) == Version(oldest)
