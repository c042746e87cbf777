"""The user's file that mypy and pyright check, `tests/user_types.py`, leaves nothing public out."""

import ast
import importlib
import inspect
import typing
from collections.abc import Iterator
from pathlib import Path

import pytest

import jattn

ROOT = Path(jattn.__file__).parents[1]
USER = ast.parse((ROOT / "tests/user_types.py").read_text())
PUBLIC = [file.stem for file in sorted((ROOT / "docs/api").glob("*.rst"))]  # the modules that the site lists


def used() -> Iterator[str]:
    """The whole names of what the file takes from jattn."""
    modules = {}
    for node in ast.walk(USER):
        if isinstance(node, ast.Import):
            modules |= {alias.asname or alias.name: alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            modules |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    for node in ast.walk(USER):
        if isinstance(node, ast.Attribute):
            first, *rest = ast.unparse(node).split(".")
            if first in modules:
                yield ".".join([modules[first], *rest])


def asked_for_pairs() -> Iterator[tuple[str, typing.Any]]:
    """The public functions and the calls of public classes that return more on request, by their whole names."""
    for module in PUBLIC:
        for name in importlib.import_module(module).__all__:
            one = getattr(importlib.import_module(module), name)
            calls = {name: one} if inspect.isfunction(one) else {}
            if inspect.isclass(one) and one.__module__.startswith("jattn"):
                own = {f"{name}.{method}": f for method, f in vars(one).items() if inspect.isfunction(f)}
                calls = {whole: f for whole, f in own.items() if not f.__name__.startswith("_") or "__call__" in whole}
            for whole, f in calls.items():
                if {"return_weights", "return_residual", "return_hidden"} & inspect.signature(f).parameters.keys():
                    yield f"{module}.{whole}", f


@pytest.mark.every_case
@pytest.mark.parametrize("module", PUBLIC)
def test_the_file_uses_every_public_name(module):
    known = set(used())
    public = importlib.import_module(module)
    names = {name for name in public.__all__ if not inspect.ismodule(getattr(public, name))}
    assert not {f"{module}.{name}" for name in names} - known


def test_what_is_returned_on_request_is_overloaded():
    always_alike = {
        "jattn.explain",
        "jattn.models.CLIP.__call__",
        "jattn.nn.torch.MultiheadAttention.with_head_weights",
    }
    found = dict(asked_for_pairs())
    assert len(found) > 25
    without = {name for name, f in found.items() if not typing.get_overloads(inspect.unwrap(f))}
    assert without == always_alike
