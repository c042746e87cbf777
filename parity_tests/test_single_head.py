"""Attention on arrays without a head axis."""

import numpy as np
import pytest

import jattn
import torch_ref
from parity_tests.compare import DTYPES
from parity_tests.conftest import Parity
from parity_tests.test_multi_head import FLOAT64, WEIGHTS, B, D, E, S, T, normal


@pytest.mark.parametrize(("b", "masked"), [((B,), True), ((B,), False), ((), True), ((3, B), True)])
def test_additive_attention(parity: Parity, b: tuple[int, ...], masked: bool) -> None:
    inputs = {
        "query": normal(*b, T, 3),
        "key": normal(*b, S, D, seed=1),
        "value": normal(*b, S, E, seed=2),
        "w_query": normal(3, 8, seed=3),
        "w_key": normal(D, 8, seed=4),
        "w_value": normal(8, seed=5),
    }
    mask = np.random.default_rng(0).random((*b, T, S)) < 0.6
    mask[..., 2, :] = False
    fixed = WEIGHTS | ({"mask": mask} if masked else {})
    dtypes = DTYPES if b == (B,) and masked else FLOAT64
    parity("additive_attention", jattn.additive_attention, torch_ref.additive_attention, inputs, fixed, dtypes=dtypes)
