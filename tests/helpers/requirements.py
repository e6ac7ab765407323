"""What pyproject.toml requires, and its direct dependencies at their lower bounds.

``python -m tests.helpers.requirements`` prints those bounds as pins for pip; with ``--check FOLDER`` it raises unless
the pinned versions are the installed ones and lie in the folder.
"""

import argparse
from importlib.metadata import distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    import tomli as tomllib

ROOT = Path(__file__).parents[2]
# Their old releases on PyPI are CUDA builds of several gigabytes.
LARGE = {"torch", "torchvision"}
# Imported by old releases, but no longer required by the newer ones installed beside them: pandas 2 needs it.
NEEDED_BY_OLD_RELEASES = ("pytz",)


def read_project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def read_requirements(extra: str | None = None) -> dict[str, Requirement]:
    """Return the direct dependencies, or those of an extra, by their normalized names."""
    project = read_project()
    lines = project["optional-dependencies"][extra] if extra else project["dependencies"]
    return {canonicalize_name(requirement.name): requirement for requirement in map(Requirement, lines)}


def lower_bound(requirement: Requirement) -> str:
    """Return the version that a requirement allows at the lowest; every requirement has one."""
    (bound,) = [specifier.version for specifier in requirement.specifier if specifier.operator == ">="]
    return bound


def lowest_versions() -> dict[str, str]:
    """Return the lower bounds that are tested, by normalized names."""
    return {name: lower_bound(each) for name, each in read_requirements().items() if name not in LARGE}


def check_installed(folder: Path) -> None:
    """Raise if a distribution is not at its lower bound, or lies outside the folder."""
    for name, version in lowest_versions().items():
        found = distribution(name)
        home = Path(found.locate_file("")).resolve()
        if Version(found.version) != Version(version) or home != folder.resolve():
            msg = f"{name} is version {found.version} in {home}, but must be {version} in {folder}"
            raise RuntimeError(msg)


def main() -> None:
    parser = argparse.ArgumentParser(description="Print the lower bounds of the direct dependencies as pins for pip.")
    parser.add_argument("--check", type=Path, metavar="FOLDER", help="raise unless they are installed in this folder")
    folder = parser.parse_args().check
    if folder:
        check_installed(folder)
    else:
        pins = [f"{name}=={version}" for name, version in lowest_versions().items()]
        print(*pins, *NEEDED_BY_OLD_RELEASES)  # noqa: T201 - pip's arguments


if __name__ == "__main__":
    main()
