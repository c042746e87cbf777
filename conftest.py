"""For all tests: annotations are checked, what one file compiled is let go before the next, JAX may be strict."""

import contextlib
from collections.abc import Callable, Iterator

import jax
import pytest
from jaxtyping import install_import_hook

# In the tests, and only there, beartype checks every jaxtyping annotation of jattn.
install_import_hook("jattn", "beartype.beartype")


@contextlib.contextmanager
def _checks() -> Iterator[None]:
    jax.config.update("jax_enable_checks", True)
    try:
        yield
    finally:
        jax.config.update("jax_enable_checks", False)


# JAX's strict settings, which careful people turn on.
SETTINGS: dict[str, Callable[[], contextlib.AbstractContextManager[object]]] = {
    "rank_promotion": lambda: jax.numpy_rank_promotion("raise"),
    "dtype_promotion": lambda: jax.numpy_dtype_promotion("strict"),
    "debug_nans": lambda: jax.debug_nans(True),
    "debug_infs": lambda: jax.debug_infs(True),
    "enable_checks": _checks,
    "check_tracer_leaks": jax.checking_leaks,
    "disable_jit": jax.disable_jit,
}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--setting", choices=list(SETTINGS), help="run the tests marked `core` under this strict setting of JAX's"
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "core: of the functions, and also run by --setting")
    config.addinivalue_line("markers", "needs_jit: of what is compiled, or whose arrays are NumPy's without jit")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    setting = config.getoption("--setting")
    if not setting:
        return
    left_out = "needs_jit" if setting == "disable_jit" else None
    kept = [x for x in items if x.get_closest_marker("core") and not (left_out and x.get_closest_marker(left_out))]
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = kept


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
