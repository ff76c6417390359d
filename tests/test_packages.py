"""A wheel holds what a clone holds."""

import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_every_package_is_in_the_wheel():
    told = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    found = {
        ".".join((name, *file.parent.relative_to(ROOT / top).parts))
        for name, top in told["package-dir"].items()
        for file in (ROOT / top).rglob("__init__.py")
    }
    assert found and set(told["packages"]) == found
