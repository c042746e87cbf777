"""Numbers that no table lists, from what they make."""

import numpy as np
import pytest

from jattn.parity.fitted import fitting_numbers

X = np.random.default_rng(0).normal(size=(4, 5))


def cap(c: float) -> np.ndarray:
    return c * np.tanh(X / c)


@pytest.mark.parametrize("number", [0.7, 30.0, 12.345, 0.1, 1000.0])
def test_the_number_comes_first_and_with_few_digits(number: float) -> None:
    assert next(fitting_numbers(cap, cap(number), 0.1, 1e3)) == number


def test_a_number_of_many_digits_is_as_good_as_all_of_them() -> None:
    wanted = cap(np.pi)
    best = list(fitting_numbers(cap, wanted, 0.1, 1e3))[-1]
    np.testing.assert_allclose(cap(best), wanted, rtol=1e-12)


def test_what_is_not_finite_does_not_count() -> None:
    wanted = np.where(X > 1, np.nan, cap(3.0))
    assert next(fitting_numbers(cap, wanted, 0.1, 1e3)) == 3.0


def test_nothing_fits_what_is_made_otherwise() -> None:
    assert list(fitting_numbers(cap, 0.5 * X**2, 0.1, 1e3)) == []
    assert list(fitting_numbers(cap, 0.5 * X, 0.1, 1e3)) == []


def test_nothing_is_found_outside_of_the_limits() -> None:
    assert list(fitting_numbers(cap, cap(3.0), 5.0, 1e3)) == []
