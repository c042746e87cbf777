"""Blocks of queries in jattn, the whole matrix in PyTorch: several blocks, more than one width of a span."""

import functools

import pytest

from parity_tests.compare import DTYPES
from parity_tests.conftest import Parity
from parity_tests.test_masks import rules
from parity_tests.test_multi_head import arrays, normal, ours, theirs

T, S = 150, 280
streamed = functools.partial(ours, implementation="streaming")


@pytest.mark.parametrize(
    "name",
    [
        None,
        "causal",
        "causal, negative offset",
        "window, offset per example",
        "lengths, per example",
        "lengths, per query",
        "segments",
        "dense, per example and head",
        "combination, or",
    ],
)
def test_masks(parity: Parity, name: str | None) -> None:
    rule = None if name is None else rules(T, S)[name]
    dtypes = DTYPES if name in (None, "causal") else ("float64",)
    parity("attention, streaming", streamed, theirs, arrays(t=T, s=S, k=1), {"rule": rule}, dtypes=dtypes)


def test_bias_and_soft_cap(parity: Parity) -> None:
    inputs = arrays(t=T, s=S, k=1) | {"bias": normal(3, T, S, seed=3)}
    fixed = {"rule": rules(T, S)["causal"], "logits_soft_cap": 2.0}
    parity("attention, streaming", streamed, theirs, inputs, fixed, dtypes=("float64",))
