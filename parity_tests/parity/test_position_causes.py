"""Mistakes in positions are named where a module of its own turns heads, makes angles, or looks a bias up."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from jattn import parity
from parity_tests.nn import randomised
from parity_tests.parity.attentions import D, Settings, T, bucket, tables, torch_turned, turned
from parity_tests.parity.test_attention_causes import causes, planted

B, H = 2, 3
M = H * D
x = np.random.default_rng(0).standard_normal((B, T, M))


def compared(theirs: torch.nn.Module, ours: nnx.Module) -> parity.Report:
    return parity.compare(randomised(theirs), ours, (x,), gradients=False, dtypes=("float64",))


# ----------------------------------------------------------------------------------------------------------------------
# A module that turns heads, b h t d, of what a linear layer gives.


class TorchTurn(torch.nn.Module):
    def __init__(self, s: Settings) -> None:
        super().__init__()
        self.s, self.base = s, s.base

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch_turned(x, *(torch.as_tensor(y, dtype=x.dtype) for y in tables(self.s)), self.s)


class TorchTurned(torch.nn.Module):
    def __init__(self, s: Settings) -> None:
        super().__init__()
        self.num_heads, self.linear, self.turn = H, torch.nn.Linear(M, M), TorchTurn(s)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.turn(self.linear(x).view(B, T, H, D).transpose(1, 2))


class Turn(nnx.Module):
    def __init__(self, s: Settings) -> None:
        self.s = s

    def __call__(self, x: jax.Array) -> jax.Array:
        return turned(x, self.s, self.s.ahead) if self.s.rotary else 1 * x


class Turned(nnx.Module):
    def __init__(self, s: Settings) -> None:
        self.linear, self.turn = nnx.Linear(M, M, rngs=nnx.Rngs(0)), Turn(s)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.turn(self.linear(x).reshape(B, T, H, D).swapaxes(1, 2))


TURNS: list[tuple[dict[str, Any], str]] = [
    ({"rotary": ""}, "missing rotary positions"),
    ({"rotary": "other"}, "pairs of rotary features"),
    ({"base": 5e5}, "rotary base"),
    ({"ahead": 1}, "rotary positions off by one"),
    ({"sign": -1}, "direction of rotary positions"),
    ({"width": 4}, "rotary width"),
    ({"factor": 2.0}, "rotary scaling"),
]


@pytest.mark.parametrize("rotary", ["half", "interleaved"])
@pytest.mark.parametrize(("mistake", "cause"), TURNS, ids=str)
def test_a_mistake_in_a_module_that_turns_is_named(rotary: str, mistake: dict[str, Any], cause: str) -> None:
    theirs = Settings(rotary=rotary)
    assert causes(compared(TorchTurned(theirs), Turned(planted(theirs, mistake)))) == [cause]


# ----------------------------------------------------------------------------------------------------------------------
# A module that makes cosines and sines.


class TorchAngles(torch.nn.Module):
    def __init__(self, s: Settings) -> None:
        super().__init__()
        self.s = s

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        cos, sin = tables(self.s)
        return torch.as_tensor(cos, dtype=x.dtype), torch.as_tensor(sin, dtype=x.dtype)


class TorchWithAngles(torch.nn.Module):
    def __init__(self, s: Settings) -> None:
        super().__init__()
        self.linear, self.rotary_emb = torch.nn.Linear(D, D), TorchAngles(s)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        cos, sin = self.rotary_emb(x)
        return self.linear(x[..., :D] * cos + sin)


class Angles(nnx.Module):
    def __init__(self, s: Settings) -> None:
        self.s = s

    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        cos, sin = tables(self.s)
        return jnp.asarray(cos), jnp.asarray(sin)


class WithAngles(nnx.Module):
    def __init__(self, s: Settings) -> None:
        self.linear, self.rotary_emb = nnx.Linear(D, D, rngs=nnx.Rngs(0)), Angles(s)

    def __call__(self, x: jax.Array) -> jax.Array:
        cos, sin = self.rotary_emb(x)
        return self.linear(x[..., :D] * cos + sin)


SCALED = Settings(rotary="half", factor=4.0, amplitude=1.2)
ANGLES: list[tuple[Settings, dict[str, Any], str]] = [
    (Settings(rotary="half"), {"base": 1e6}, "rotary base"),
    (Settings(rotary="interleaved", base=5e5), {"base": 1e4}, "rotary base"),
    (Settings(rotary="half"), {"layout": "other"}, "pairs of rotary features"),
    (SCALED, {"factor": 1.0, "amplitude": 1.0}, "rotary scaling"),
    (SCALED, {"amplitude": 1.0}, "rotary scaling"),
    (SCALED, {"factor": 1.0}, "rotary scaling"),
]


@pytest.mark.parametrize(("theirs", "mistake", "cause"), ANGLES, ids=str)
def test_a_mistake_in_cosines_and_sines_is_named(theirs: Settings, mistake: dict[str, Any], cause: str) -> None:
    assert causes(compared(TorchWithAngles(theirs), WithAngles(planted(theirs, mistake)))) == [cause]


# ----------------------------------------------------------------------------------------------------------------------
# A table that is looked up by buckets.


class TorchRelative(torch.nn.Module):
    def __init__(self, both: bool) -> None:
        super().__init__()
        self.num_heads, self.max_distance, self.both = H, 16, both
        self.relative_attention_bias = torch.nn.Embedding(8, H)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        away = np.arange(T) - np.arange(T)[:, None]
        bias = self.relative_attention_bias(torch.as_tensor(bucket(away, 8, 16, self.both)))
        return (x @ x.mT)[:, None] + bias.permute(2, 0, 1)


class Relative(nnx.Module):
    def __init__(self, both: bool, farthest: int = 16, sign: int = 1) -> None:
        self.relative_attention_bias = nnx.Embed(8, H, rngs=nnx.Rngs(0))
        self.settings = both, farthest, sign

    def __call__(self, x: jax.Array) -> jax.Array:
        both, farthest, sign = self.settings
        away = sign * (np.arange(T) - np.arange(T)[:, None])
        bias = self.relative_attention_bias(jnp.asarray(bucket(away, 8, farthest, both)))
        return (x @ x.swapaxes(-1, -2))[:, None] + bias.transpose(2, 0, 1)


@pytest.mark.parametrize(
    ("both", "ours"), [(True, (False,)), (False, (True,)), (True, (True, 128)), (True, (True, 16, -1))], ids=str
)
def test_a_mistake_in_buckets_is_named(both: bool, ours: tuple[Any, ...]) -> None:
    assert causes(compared(TorchRelative(both), Relative(*ours))) == ["buckets of relative positions"]
