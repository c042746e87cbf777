"""How the house is built: every room says what it holds, one name stands in one place, imports run in no circle."""

import ast
import graphlib
import importlib
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

import jattn

ROOT = Path(jattn.__file__).parents[1]
FILES = sorted((ROOT / "jattn").rglob("*.py"))

# In two modules, whose names say which is meant: a mask or a bias; the weights of a module, or arrays by name; a random
# key, or fused weights; dropout, or an entry; what follows a prompt, or translates a source; kernels of a TPU, a GPU.
IN_TWO_PLACES = {"dense", "where", "save", "load", "split", "dropped", "beam_search", "run_forward"}
IN_TWO_PLACES |= {"gradients_of_queries", "gradients_of_keys", "gradient_of_pairs"}


def name_of(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(file): ast.parse(file.read_text()) for file in FILES}


def defined(tree: ast.Module) -> Iterator[str]:
    """The names that a module defines at its top, imported ones left out."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Assign):
            yield from (target.id for target in node.targets if isinstance(target, ast.Name))
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            yield node.target.id


def imported(tree: ast.Module) -> Iterator[str]:
    """The modules that a module imports when it runs, wherever the import stands."""
    for_types = {
        id(part)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for part in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in for_types:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.module is not None
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield whole if whole in MODULES else node.module


@pytest.mark.every_case
@pytest.mark.parametrize("name", MODULES)
def test_a_room_says_what_it_holds(name):
    module = importlib.import_module(name)
    if list(defined(MODULES[name])) or list(imported(MODULES[name])):
        assert sorted(set(module.__all__)) == sorted(module.__all__)
        assert all(hasattr(module, one) for one in module.__all__)


def test_others_take_what_a_room_says():
    for name, tree in MODULES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module in MODULES:
                says = getattr(importlib.import_module(node.module), "__all__", ())
                for alias in node.names:
                    assert alias.name in says or f"{node.module}.{alias.name}" in MODULES, f"{name} takes {alias.name}"


def test_no_name_hides_its_module():
    for name in MODULES:
        parent, _, last = name.rpartition(".")
        if parent:
            module = importlib.import_module(name)
            assert getattr(importlib.import_module(parent), last) is module, f"{name} is hidden"


def test_one_name_in_one_place():
    places = defaultdict(list)
    for name, tree in MODULES.items():
        for one in set(defined(tree)) - {"__all__", "__version__"}:
            if not (one.startswith("__") and one.endswith("__")):
                places[one].append(name)
    aliases = set(defined(MODULES["jattn.nn"]))  # of names that a version had
    twice = {one: where for one, where in places.items() if len(where) > 1 and one not in IN_TWO_PLACES | aliases}
    assert not twice
    assert all(len(places[one]) == 2 for one in IN_TWO_PLACES)


def test_imports_run_in_no_circle():
    graph = {name: {other for other in imported(tree) if other in MODULES} - {name} for name, tree in MODULES.items()}
    list(graphlib.TopologicalSorter(graph).static_order())  # which raises where there is a circle


def test_the_functions_need_jax_alone():
    """`import jattn` takes JAX's own time, and no library's that the modules need."""
    code = "import sys, jattn; print(*sorted({'flax', 'optax', 'rich', 'torch', 'matplotlib'} & sys.modules.keys()))"
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == ""


def test_torch_is_imported_by_weights_and_parity_alone():
    of_torch = [name for name, tree in MODULES.items() if any(x.split(".")[0] == "torch" for x in imported(tree))]
    assert {name.split(".")[1] for name in of_torch} == {"weights", "parity"}


def test_the_version_is_said_alike():
    """By the package, by what is to be cited, and, once it is out, by the changelog's newest entry."""
    sources = Path(__file__).parents[1]
    cited = re.search(r"^version: (.+)$", (sources / "CITATION.cff").read_text(), re.MULTILINE)
    newest = re.search(r"^## \[(.+?)\]", (sources / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert cited is not None
    assert newest is not None
    released = "dev" not in jattn.__version__
    assert not released or cited[1] == jattn.__version__
    assert newest[1] == (jattn.__version__ if released else "Unreleased")
