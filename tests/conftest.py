"""Fixtures of the torch-free tests."""

import shutil
from collections.abc import Iterator
from typing import Any

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


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium without a window."""
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    installed = next(filter(None, map(shutil.which, names)), None)
    with api.sync_playwright() as playwright:
        try:
            browser = playwright.chromium.launch(executable_path=installed)
        except api.Error as error:
            if installed:
                raise
            pytest.skip(f"there is no Chromium: {error.message.splitlines()[0]}")
        yield browser
        browser.close()
