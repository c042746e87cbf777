"""The attention modules without heads against torch_ref."""

from functools import partial
from typing import Any

import numpy as np
import pytest

import torch_ref.nn
from jattn import nn
from parity_tests.compare import DTYPES
from parity_tests.conftest import Parity
from parity_tests.nn import both, call_for_weights

rng = np.random.default_rng(0)
queries = rng.standard_normal((2, 5, 12))  # b t m
keys = rng.standard_normal((2, 7, 12))  # b s m
values = rng.standard_normal((2, 7, 12))
narrow_keys = rng.standard_normal((2, 7, 10))
narrow_values = rng.standard_normal((2, 7, 9))
valid_lens = np.array([3, 0])
valid_lens_per_query = np.array([[1, 7, 0, 3, 2], [4, 0, 6, 7, 1]])
mask = rng.random((5, 7)) < 0.6
batch_mask = rng.random((2, 5, 7)) < 0.6
mask[3] = batch_mask[1, 2] = False  # queries with nothing to attend to

each_rule = pytest.mark.parametrize(
    ("fixed", "dtypes"),
    [
        ({}, ("float64",)),
        ({"valid_lens": valid_lens}, ("float64",)),
        ({"valid_lens": valid_lens_per_query}, DTYPES),
        ({"mask": mask}, ("float64",)),
        ({"valid_lens": valid_lens_per_query, "mask": batch_mask}, ("float64",)),
    ],
    ids=["no rule", "lengths", "lengths per query", "mask", "lengths and mask"],
)


def dot_product(parity: Parity, inputs: dict[str, np.ndarray], scale: float | None = None, **options: Any) -> None:
    ours = partial(nn.DotProductAttention(scale=scale), return_weights=True)
    theirs = partial(torch_ref.nn.DotProductAttention(scale=scale), return_weights=True)
    parity("DotProductAttention", ours, theirs, inputs, **options)


@each_rule
def test_dot_product_attention(parity: Parity, fixed: dict[str, Any], dtypes: tuple[str, ...]) -> None:
    dot_product(parity, {"query": queries, "key": keys, "value": narrow_values}, fixed=fixed, dtypes=dtypes)


def test_dot_product_attention_with_a_scale_and_without_a_batch(parity: Parity) -> None:
    inputs = {"query": queries[0], "key": keys[0], "value": values[0]}
    dot_product(parity, inputs, scale=0.7, fixed={"mask": mask}, dtypes=("float64",))


@each_rule
def test_additive_attention(parity: Parity, fixed: dict[str, Any], dtypes: tuple[str, ...]) -> None:
    inputs = {"query": queries, "key": narrow_keys, "value": narrow_values}
    modules = both(nn.AdditiveAttention, 12, 10, 4)
    parity("AdditiveAttention", call_for_weights, call_for_weights, inputs, fixed, **modules, dtypes=dtypes)
