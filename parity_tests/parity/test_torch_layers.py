"""Mistakes in the use of `jattn.nn.torch`'s transformer layers are found in their attention, and named."""

from typing import Any

import numpy as np
import pytest
import torch
from flax import nnx

from jattn.nn import torch as ours
from jattn.parity import compare
from parity_tests.nn import randomised

rng = np.random.default_rng(0)
x, memory = rng.standard_normal((2, 7, 16)), rng.standard_normal((2, 5, 16))
future = ~np.tri(7, dtype=bool)
padding = np.arange(7) >= np.array([[7], [4]])
memory_padding = np.arange(5) >= np.array([[5], [3]])
ENCODER, DECODER = "TransformerEncoderLayer", "TransformerDecoderLayer"

MISTAKES: dict[str, tuple[str, dict[str, Any], dict[str, Any], dict[str, Any], str]] = {
    "inverted mask": (ENCODER, {}, {"src_mask": future}, {"src_mask": ~future}, "inverted mask"),
    "inverted padding": (
        ENCODER,
        {},
        {"src_key_padding_mask": padding},
        {"src_key_padding_mask": ~padding},
        "inverted mask",
    ),
    "no mask": (ENCODER, {}, {"src_mask": future}, {}, "missing causal mask"),
    "pre-norm": (ENCODER, {"norm_first": True}, {}, {}, "pre-norm for post-norm"),
    "heads": (ENCODER, {"nhead": 2}, {}, {}, "number of heads"),
    "activation": (ENCODER, {"activation": "gelu"}, {}, {}, "another activation"),
    "epsilon": (ENCODER, {"layer_norm_eps": 1e-3}, {}, {}, "layer-norm epsilon"),
    "memory": (
        DECODER,
        {},
        {"memory_key_padding_mask": memory_padding},
        {"memory_key_padding_mask": ~memory_padding},
        "inverted mask",
    ),
    "pre-norm of a decoder": (DECODER, {"norm_first": True}, {}, {}, "pre-norm for post-norm"),
    "activation of a decoder": (DECODER, {"activation": "gelu"}, {}, {}, "another activation"),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("kind", "changed", "torch_masks", "masks", "cause"), MISTAKES.values(), ids=MISTAKES.keys())
def test_named(
    kind: str, changed: dict[str, Any], torch_masks: dict[str, Any], masks: dict[str, Any], cause: str
) -> None:
    options: dict[str, Any] = dict(d_model=16, nhead=4, dim_feedforward=32, dropout=0.0, batch_first=True)
    theirs = randomised(getattr(torch.nn, kind)(**options))
    port = getattr(ours, kind)(**{**options, **changed}, rngs=nnx.Rngs(0))
    inputs: dict[str, Any] = {"src": x} if kind == ENCODER else {"tgt": x, "memory": memory}
    given = {"flax_inputs": inputs | masks} if torch_masks else {}
    report = compare(theirs, port, inputs | torch_masks, **given, dtypes=("float64",), gradients=False)
    assert report.parting is not None
    assert report.parting.diagnosis is not None, report.finding
    assert report.parting.diagnosis.cause == cause
