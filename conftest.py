"""For all tests: which of them run, annotations are checked, what a file compiled is let go, JAX may be strict.

``pytest`` runs what a newcomer waits for: of each test the first case, or every case if the test is marked
``every_case``, and none of the tests marked ``whole``. ``pytest --whole``, and ``pytest`` with the names of files or
tests, run every case. What has a name is compiled as users compile it, the rest without LLVM's optimisations, as a
program runs once. ``--resume`` goes on with a run that was stopped.
"""

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import jax
import pytest
from jaxtyping import install_import_hook

from tests.resuming import Resuming
from tests.settings import SETTINGS

# In the tests, and only there, beartype checks every jaxtyping annotation of jattn.
install_import_hook("jattn", "beartype.beartype")


_COMPILED_FAST = ["--xla_backend_optimization_level=0"]
if jax.__version_info__ < (0, 11):  # newer ones end at an option that they don't know
    _COMPILED_FAST.append("--xla_cpu_use_fusion_emitters=false")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--whole", action="store_true", help="run every case of every test")
    parser.addoption("--resume", action="store_true", help="leave out what passed since a run of all tests began")
    parser.addoption("--parity-table", metavar="FILE", help="write the table of errors into this page, too")
    parser.addoption(
        "--setting", choices=list(SETTINGS), help="run the tests marked `core` under this strict setting of JAX's"
    )


def pytest_configure(config: pytest.Config) -> None:
    if hasattr(config, "workerinput"):
        config.option.whole = config.workerinput["whole"]
    elif config.args_source is not config.ArgsSource.TESTPATHS:
        config.option.whole = True  # what is asked for by name is run
    elif not config.option.setting:
        # Compiling is most of the work, and what runs once need not run fast. Processes of xdist's inherit it.
        os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *_COMPILED_FAST])
    config.pluginmanager.register(Resuming(config))
    config.addinivalue_line("markers", "whole: too long for a newcomer, so run by --whole alone")
    config.addinivalue_line("markers", "every_case: all of its cases are run without --whole, too")
    config.addinivalue_line("markers", "core: of the functions, and also run by --setting")
    config.addinivalue_line("markers", "needs_jit: of what is compiled, or whose arrays are NumPy's without jit")


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Tell a process of pytest-xdist's, which can't see what was asked for by name."""
    node.workerinput["whole"] = node.config.option.whole


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    setting = config.getoption("--setting")
    if setting:
        kept = [item for item in items if item.get_closest_marker("core")]
        if setting == "disable_jit":
            kept = [item for item in kept if not item.get_closest_marker("needs_jit")]
    elif not config.option.whole:
        kept = _newcomers(items)
    else:
        return
    chosen = {id(item) for item in kept}
    config.hook.pytest_deselected(items=[item for item in items if id(item) not in chosen])
    items[:] = kept


# Docstrings that build whole models.
_LONG_EXAMPLES = ("jattn/models/", "jattn/heads/", "jattn/nn/torch/")


def _newcomers(items: list[pytest.Item]) -> list[pytest.Item]:
    """What `pytest` alone runs."""
    kept, begun = [], set()
    for item in items:
        test = item.nodeid.partition("[")[0]
        if (
            item.get_closest_marker("whole")
            or test.startswith(_LONG_EXAMPLES)
            or (test in begun and not item.get_closest_marker("every_case"))
        ):
            continue
        begun.add(test)
        kept.append(item)
    return kept


@pytest.fixture(autouse=True)
def _setting(request: pytest.FixtureRequest) -> Iterator[None]:
    name = request.config.getoption("--setting")
    with SETTINGS[name]() if name else contextlib.nullcontext():
        yield


@pytest.fixture(scope="module", autouse=True)
def _let_go_of_compiled_functions() -> Iterator[None]:
    """Thousands of them would fill gigabytes."""
    yield
    jax.clear_caches()
