"""Imports between modules: they point one way, form no cycle, and cross folders by public names alone."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# From the bottom to the top: a module may import from its own place and from places further down.
PLACES = [
    "errors",
    "progress",
    "serialization",
    "modality",
    "context",
    "noise",
    "media",
    "storage",
    "weights",
    "models",
    "encoders",
    "data",
    "autoencoders",
    "sampling",
    "latents",
    "input",
    "training",
    "objectives",
    "representation",
    "evaluation",
    "config",
    "run",
    "planning",
    "benchmark",
    "interop",
    "sweep",
    "tasks",
    "report",
    "cli",
    "__main__",
]
# Experiment files and notebooks are read by users and import what they show.
FREE = ("selfflow", "experiments")


def _modules(root: Path) -> dict[str, Path]:
    """Dotted name -> file of all modules of the package below a root."""
    modules = {}
    for folder, package in (("selfflow", ()), ("data", ("data",)), ("experiments", ("experiments",))):
        for path in sorted((root / folder).rglob("*.py")):
            parts = path.relative_to(root / folder).with_suffix("").parts
            if parts[-1] == "__init__":
                parts = parts[:-1]
            modules[".".join(("selfflow", *package, *parts))] = path
    return modules


def _imports(path: Path, modules: dict[str, Path]) -> list[tuple[str, str]]:
    """(module, name) of all imports of the package in a file, those in functions and under TYPE_CHECKING included."""
    imports = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            imports += [(alias.name, "") for alias in node.names if alias.name in modules]
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "selfflow":
            for alias in node.names:
                submodule = f"{node.module}.{alias.name}"
                imports.append((submodule, "") if submodule in modules else (node.module, alias.name))
    return imports


def _place(module: str) -> str:
    """The file or folder directly in `selfflow/`, or `data` or `experiments`."""
    return (module.split(".") + ["selfflow"])[1] if "." in module else "selfflow"


def _cycle(graph: dict[str, set[str]]) -> list[str]:
    """The nodes of a cycle, or []."""
    done: set[str] = set()
    path: list[str] = []

    def visit(node: str) -> list[str]:
        if node in path:
            return [*path[path.index(node) :], node]
        if node in done:
            return []
        path.append(node)
        for target in sorted(graph.get(node, ())):
            if cycle := visit(target):
                return cycle
        path.pop()
        done.add(node)
        return []

    for node in sorted(graph):
        if cycle := visit(node):
            return cycle
    return []


def _graph(root: Path) -> dict[str, set[str]]:
    modules = _modules(root)
    return {
        module: {target for target, _ in _imports(path, modules) if target in modules} - {module}
        for module, path in modules.items()
    }


def test_no_file_imports_in_a_circle():
    assert _cycle(_graph(ROOT)) == []


def test_arrows_point_down():
    upward = []
    for module, targets in _graph(ROOT).items():
        source = _place(module)
        for target in targets:
            if source not in FREE and _place(target) not in FREE:
                if PLACES.index(_place(target)) > PLACES.index(source):
                    upward.append(f"{module} -> {target}")
    assert upward == []


def test_every_place_is_on_the_list():
    assert {_place(module) for module in _modules(ROOT)} - set(FREE) == set(PLACES)


def test_private_names_stay_in_their_folder():
    modules = _modules(ROOT)
    private = []
    for module, path in modules.items():
        for target, name in _imports(path, modules):
            if name.startswith("_") and not name.startswith("__") and _place(target) != _place(module):
                private.append(f"{module}: {target}.{name}")
    assert private == []


def test_notebooks_do_not_import_the_command_line():
    modules = _modules(ROOT)
    for path in (ROOT / "notebooks").glob("*.py"):
        assert not [target for target, _ in _imports(path, modules) if _place(target) == "cli"], path.name


@pytest.mark.parametrize("folder", ["selfflow", "data", "experiments", "notebooks"])
def test_text_files_are_utf_8_in_every_locale(folder):
    # Ruff's PLW1514 sees calls whose object is certainly a path.
    calls = []
    for path in sorted((ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "attr", "") in ("read_text", "write_text"):
                calls.append((path, node))
    missing = [f"{path}:{node.lineno}" for path, node in calls if "encoding" not in {k.arg for k in node.keywords}]
    assert missing == []
    assert calls or folder in ("experiments", "notebooks")


def test_the_top_of_the_package_is_short():
    names = {path.name for path in (ROOT / "selfflow").iterdir() if path.name != "__pycache__"}
    assert len(names) <= 32, sorted(names)


@pytest.fixture
def tree(tmp_path):
    """A package of two files in two folders."""
    for name, text in {"models/a.py": "", "cli/b.py": "from selfflow.models.a import x\n"}.items():
        path = tmp_path / "selfflow" / name
        path.parent.mkdir(parents=True)
        path.write_text(text)
    return tmp_path


def test_the_check_itself_can_fail(tree):
    assert _cycle(_graph(tree)) == []
    (tree / "selfflow/models/a.py").write_text(
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from selfflow.cli.b import y\n"
    )
    assert _cycle(_graph(tree)) == ["selfflow.cli.b", "selfflow.models.a", "selfflow.cli.b"]
