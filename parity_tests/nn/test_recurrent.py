"""The gated recurrent unit against torch_ref and against torch.nn.GRU, whose state dict it takes as it is."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from jattn import nn
from parity_tests.compare import DTYPES
from parity_tests.conftest import Parity
from parity_tests.nn import blank, both, call, randomised

rng = np.random.default_rng(0)
x = rng.standard_normal((3, 5, 4))  # b t m
valid_lens = np.array([4, 1, 5])
state = rng.standard_normal((3, 3, 6))  # l b n


@pytest.mark.parametrize(
    ("layers", "inputs", "fixed", "dtypes"),
    [
        (1, {"x": x, "state": state[:1]}, {"valid_lens": valid_lens}, DTYPES),
        (1, {"x": x}, {}, ("float64",)),
        (1, {"x": x, "state": state[:1]}, {"valid_lens": np.array([2, 0, 5])}, ("float64",)),
        (3, {"x": x, "state": state}, {"valid_lens": valid_lens}, ("float64",)),
    ],
    ids=["in each dtype", "no state", "nothing to read", "three layers"],
)
def test_gru(
    parity: Parity, layers: int, inputs: dict[str, np.ndarray], fixed: dict[str, Any], dtypes: tuple[str, ...]
) -> None:
    parity("GRU", call, call, inputs, fixed, **both(nn.GRU, 4, 6, layers), dtypes=dtypes)


@pytest.mark.parametrize(("layers", "dtypes"), [(1, ("float64",)), (3, DTYPES)], ids=["one layer", "three layers"])
def test_gru_of_pytorch(parity: Parity, layers: int, dtypes: tuple[str, ...]) -> None:
    parity(
        "GRU / nn.GRU",
        call,
        lambda m, x, state: m(x, state),
        {"x": x, "state": state[:layers]},
        module=blank(lambda: nn.GRU(4, 6, layers, rngs=nnx.Rngs(0))),
        torch_module=randomised(torch.nn.GRU(4, 6, layers, batch_first=True)),
        dtypes=dtypes,
    )


def test_packed_sequences_of_pytorch(parity: Parity) -> None:
    def packed(module: torch.nn.GRU, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        lengths = torch.as_tensor(valid_lens)
        outputs, last = module(pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False))
        return pad_packed_sequence(outputs, batch_first=True, total_length=x.shape[1])[0], last

    parity(
        "GRU / nn.GRU, packed",
        lambda m, x: m(x, valid_lens=jnp.asarray(valid_lens)),
        packed,
        {"x": x},
        module=blank(lambda: nn.GRU(4, 6, 2, rngs=nnx.Rngs(0))),
        torch_module=randomised(torch.nn.GRU(4, 6, 2, batch_first=True)),
        dtypes=("float64",),
    )
