"""The shape of the tree: how much is seen in one look, and that unit tests know no Ray."""

import re
from functools import cache
from pathlib import Path

import pytest

from helpers.example import ROOT
from helpers.trees import imports

TESTS = ROOT / "tests"
FLAT = 12
"""Modules of one folder that are seen in one look."""
OPEN_ENDED = {"web", "readers"}
"""Folders of one kind of file each, which grow with what is supported."""


@cache
def knows_ray(path: Path) -> bool:
    """Whether a file of tests imports Ray, or a helper that does."""
    for module in imports(path):
        if module.partition(".")[0] == "ray":
            return True
        helper = TESTS / f"{module.replace('.', '/')}.py"
        if module.startswith("helpers.") and helper.exists() and knows_ray(helper):
            return True
    return False


def test_unit_tests_import_no_ray() -> None:
    """What they test may: it is never started, and a change of it need not wait for a cluster."""
    assert knows_ray(TESTS / "ray" / "test_train.py")
    files = (TESTS / "unit").rglob("*.py")
    assert [str(path.relative_to(ROOT)) for path in files if knows_ray(path)] == []


def test_unit_tests_use_no_cluster(request: pytest.FixtureRequest) -> None:
    """Of those that were collected together with this one."""
    tests = [item for item in request.session.items if isinstance(item, pytest.Function)]
    unit = [item for item in tests if item.path.is_relative_to(TESTS / "unit")]
    assert [item.nodeid for item in unit if "ray_cluster" in item.fixturenames] == []


def test_no_folder_of_the_package_holds_more_modules_than_one_look_takes_in() -> None:
    modules = [path for path in (ROOT / "sheen").rglob("*.py") if path.name != "__init__.py"]
    folders = [path.parent for path in modules]
    sizes = {str(folder.relative_to(ROOT)): folders.count(folder) for folder in {*folders}}
    assert sizes.keys() >= {"sheen", "sheen/data/readers"}
    large = {name: size for name, size in sizes.items() if size > FLAT}
    assert {name for name in large if Path(name).name not in OPEN_ENDED} == set()


def test_the_readme_fits_in_180_lines_and_its_tree_in_20() -> None:
    text = (ROOT / "README.md").read_text("utf-8")
    assert len(text.splitlines()) <= 180
    [tree] = re.findall(r"^```\n(sheen/ .*?)^```", text, re.MULTILINE | re.DOTALL)
    assert len(tree.splitlines()) <= 20


def test_no_test_names_a_folder_of_the_examples() -> None:
    """What lies there is replaced in one place: tests/helpers/example.py."""
    named = re.compile(r"""\bexamples/|/ ["']examples["']""")
    files = [path for path in TESTS.rglob("*.py") if path.name != Path(__file__).name]
    naming = {path.name for path in files if named.search(path.read_text("utf-8"))}
    assert naming == {"example.py"}
