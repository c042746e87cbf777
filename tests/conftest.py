"""Fixtures of the torch-free tests."""

from collections.abc import Iterator

import jax
import pytest
from jaxtyping import config


@pytest.fixture
def unchecked() -> Iterator[None]:
    """Turns the annotations' own checks off, so that wrong input reaches jattn's errors as it does for users."""
    config.update("jaxtyping_disable", True)
    yield
    config.update("jaxtyping_disable", False)


@pytest.fixture
def x64() -> Iterator[None]:
    """Float64 on, for comparisons with a float64 oracle."""
    with jax.enable_x64(True):
        yield
