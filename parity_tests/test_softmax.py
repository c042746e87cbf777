"""The softmax that knows what is masked, with logits of every kind."""

import numpy as np
import pytest
from torch import Tensor

import jattn
import torch_ref
from parity_tests.compare import DTYPES
from parity_tests.conftest import Parity
from parity_tests.test_masks import B, H, Rule, rules

T, S = 5, 7
FLOAT64 = ("float64",)


def ours(logits, *, rule: Rule | None = None):
    return jattn.masked_softmax(logits, None if rule is None else rule.ours)


def theirs(logits: Tensor, *, rule: Rule | None = None) -> Tensor:
    mask = None if rule is None else rule.theirs
    if mask is not None and mask.ndim > logits.ndim:
        mask = mask.squeeze(-3)  # of masks with data, the axis of heads
    return torch_ref.masked_softmax(logits, mask)


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


@pytest.mark.parametrize("shape", [(T, S), (B, T, S), (B, H, T, S), (1, S), (T, 1)])
def test_without_a_mask(parity: Parity, shape: tuple[int, ...]) -> None:
    dtypes = DTYPES if shape == (B, H, T, S) else FLOAT64
    parity("masked_softmax", ours, theirs, {"logits": normal(*shape)}, dtypes=dtypes)


@pytest.mark.parametrize("name", ["causal", "lengths, per query", "dense, per head", "combination, and"])
def test_with_a_mask(parity: Parity, name: str) -> None:
    dtypes = DTYPES if name == "combination, and" else FLOAT64
    parity("masked_softmax", ours, theirs, {"logits": normal(B, H, T, S)}, {"rule": rules(T, S)[name]}, dtypes=dtypes)


@pytest.mark.parametrize("name", ["causal", "lengths, per query"])
def test_logits_without_heads(parity: Parity, name: str) -> None:
    inputs = {"logits": normal(B, T, S)}
    parity("masked_softmax", ours, theirs, inputs, {"rule": rules(T, S)[name]}, dtypes=FLOAT64)


def test_nothing_allowed_at_all(parity: Parity) -> None:
    fixed = {"rule": rules(T, S)["lengths, all zero"]}
    parity("masked_softmax", ours, theirs, {"logits": normal(B, T, S)}, fixed, dtypes=FLOAT64)


@pytest.mark.parametrize("name", [None, "combination, and"])
def test_logits_of_minus_infinity(parity: Parity, name: str | None) -> None:
    """Some, and all of a row."""
    logits = normal(B, H, T, S)
    logits[np.random.default_rng(1).random(logits.shape) < 0.4] = -np.inf
    logits[0, 1, 2], logits[:, 0, 3, 1:] = -np.inf, -np.inf
    dtypes = DTYPES if name else FLOAT64
    fixed = {"rule": None if name is None else rules(T, S)[name]}
    parity("masked_softmax", ours, theirs, {"logits": logits}, fixed, dtypes=dtypes)


@pytest.mark.parametrize("some", [(-9984, -0.5, 0, 0.5, 9984), (9984, 9984 - 64, -9984), (-9984, -9984 - 64)])
def test_large_logits(parity: Parity, some: tuple[float, ...]) -> None:
    """Few numbers that bfloat16 holds: the keys that share the largest of a row share the weight."""
    logits = np.random.default_rng(1).choice(some, (B, H, T, S))
    parity("masked_softmax", ours, theirs, {"logits": logits}, {"rule": rules(T, S)["combination, and"]})


def test_logits_that_are_the_floor(parity: Parity) -> None:
    """The lowest number of a dtype is a number, not a mask: where all are, all keys count the same."""
    logits = normal(B, T, S)
    logits[0, 1] = np.finfo(np.float32).min
    logits[1, 2, :4] = np.finfo(np.float32).min
    parity("masked_softmax", ours, theirs, {"logits": logits}, dtypes=("float64", "float32"))
