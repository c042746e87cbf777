"""Lookup tables: torch.nn's, and Gemma's, which scales what it looks up."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from jattn import nn
from jattn.weights import load_state_dict, to_numpy
from parity_tests.compare import DTYPES
from parity_tests.conftest import Parity
from parity_tests.nn import blank, both, randomised

M = 12
FLOAT64 = ("float64",)
tokens = np.array([[3, 0, 7, 3, 1], [0, 0, 5, 7, 2]])
x = np.random.default_rng(1).standard_normal((2, 5, M))


def look_up(module: Any, tokens: Any) -> Any:
    return module(tokens)


def look_up_and_attend(module: Any, x: Any, tokens: Any) -> Any:
    return module(tokens), module.attend(x)


@pytest.mark.parametrize("padding_idx", [None, 0, 3, -3])
def test_embedding(parity: Parity, padding_idx: int | None) -> None:
    """The row for padding is looked up as it is, and has no gradient."""
    parity(
        "Embed / nn.Embedding",
        look_up,
        look_up,
        {},
        {"tokens": tokens},
        module=blank(lambda: nn.Embed(8, M, padding_idx=padding_idx, rngs=nnx.Rngs(0))),
        torch_module=randomised(torch.nn.Embedding(8, M, padding_idx)),
        dtypes=DTYPES if padding_idx == 0 else FLOAT64,
    )


@pytest.mark.parametrize("padding_idx", [0, -2])
def test_the_row_for_padding_begins_as_zero(padding_idx: int) -> None:
    ours = np.asarray(nn.Embed(8, M, padding_idx=padding_idx, rngs=nnx.Rngs(0)).embedding[...])
    theirs = torch.nn.Embedding(8, M, padding_idx).weight.detach().numpy()
    np.testing.assert_array_equal((ours == 0).all(axis=1), (theirs == 0).all(axis=1))


@pytest.mark.parametrize("padding_idx", [None, 0])
def test_scale(parity: Parity, padding_idx: int | None) -> None:
    """Of what is looked up, and not of the products with all vectors."""
    modules = both(nn.Embed, 8, M, padding_idx=padding_idx, scale=M**0.5)
    parity("Embed, scale", look_up_and_attend, look_up_and_attend, {"x": x}, {"tokens": tokens}, **modules)


def test_scale_of_gemma(parity: Parity) -> None:
    """Bit for bit: the scale is rounded before it is multiplied."""
    reason = "no transformers: the scale was not compared with Gemma's"
    gemma = pytest.importorskip("transformers.models.gemma.modeling_gemma", reason=reason)
    theirs = randomised(gemma.GemmaTextScaledWordEmbedding(8, M, 0, embed_scale=M**0.5))
    theirs.embed_scale = torch.tensor(M**0.5, dtype=torch.float64)  # it is made in float32
    module = blank(lambda: nn.Embed(8, M, padding_idx=0, scale=M**0.5, rngs=nnx.Rngs(0)))
    options: dict[str, Any] = dict(module=module, torch_module=theirs)
    parity("Embed, scale / GemmaTextScaledWordEmbedding", look_up, look_up, {}, {"tokens": tokens}, **options)
    for dtype in (torch.float32, torch.bfloat16):
        narrow = theirs.to(dtype)
        ours = nn.Embed(8, M, padding_idx=0, scale=M**0.5, rngs=nnx.Rngs(0))
        wanted = narrow(torch.as_tensor(tokens)).detach()
        np.testing.assert_array_equal(to_numpy(wanted), load_state_dict(ours, narrow.state_dict())(jnp.asarray(tokens)))
