"""For all tests: annotations are checked, and what one file compiled is let go before the next."""

from collections.abc import Iterator

import jax
import pytest
from jaxtyping import install_import_hook

# In the tests, and only there, beartype checks every jaxtyping annotation of jattn.
install_import_hook("jattn", "beartype.beartype")


@pytest.fixture(scope="module", autouse=True)
def _let_go_of_compiled_functions() -> Iterator[None]:
    """Thousands of them would fill gigabytes."""
    yield
    jax.clear_caches()
