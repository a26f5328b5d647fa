"""Every package that the code imports is declared, not only brought along by another one."""

import re
import sys
import tomllib
from collections.abc import Iterable
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from helpers.example import ROOT
from helpers.trees import imports
from sheen.scoring.packaged import VERSIONS

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
installed = cache(packages_distributions)


def canonical(name: str) -> str:
    return re.sub("[-_.]+", "-", name).lower()


def declared(requirements: Iterable[str]) -> set[str]:
    names = (re.match(r"[\w.-]+", requirement) for requirement in requirements)
    return {canonical(name[0]) for name in names if name}


def imported(folder: Path) -> set[str]:
    """Top-level modules that the files below a folder import, at any place."""
    modules = {module for path in folder.rglob("*.py") for module in imports(path)}
    return {module.partition(".")[0] for module in modules} - sys.stdlib_module_names


@pytest.mark.parametrize(
    ("folder", "extras"), [("sheen", ("phonemes", "subtitles", "wandb")), ("tests", ("dev",))]
)
def test_every_imported_package_is_declared(folder: str, extras: tuple[str, ...]) -> None:
    allowed = declared(PROJECT["dependencies"])
    for extra in extras:
        allowed |= declared(EXTRAS[extra])
    distributions = installed()
    missing = {
        module
        for module in imported(ROOT / folder)
        if module in distributions and allowed.isdisjoint(map(canonical, distributions[module]))
    }
    assert missing - {"sheen"} == set()


def test_models_inside_packages_are_declared_with_the_versions_that_errors_name() -> None:
    named = {f"{package}=={version}" for package, version in VERSIONS.items()}
    assert named == set(EXTRAS["scores"])
    in_development = {word for word in EXTRAS["dev"] if word.partition("==")[0] in VERSIONS}
    assert in_development <= named
