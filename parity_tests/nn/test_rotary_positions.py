"""Rotary positions and their scalings against torch_ref, and against `transformers`."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from jattn import nn
from parity_tests.conftest import Parity
from parity_tests.nn.hugging_face import Wide
from parity_tests.tolerances import FLOAT64
from torch_ref.nn import rotary_positions as reference

rng = np.random.default_rng(0)
N, D = 8, 12  # how many features turn, and how many there are
BASE = 500.0
heads = rng.standard_normal((2, 5, 3, D))  # b t h d
SHORT, LONG = (1.0, 1.1, 1.3, 2.0), (1.5, 3.0, 5.0, 9.0)


class Kind(NamedTuple):
    """A scaling on each side, whose arguments have the same names."""

    ours: Callable[..., nn.RotaryScaling]
    reference: Callable[..., reference.Scaling]
    theirs: str  # transformers' rope_type


KINDS = {
    "linear": Kind(nn.LinearScaling, reference.linear_scaling, "linear"),
    "dynamic": Kind(nn.DynamicNTKScaling, reference.dynamic_ntk_scaling, "dynamic"),
    "YaRN": Kind(nn.YaRNScaling, reference.yarn_scaling, "yarn"),
    "Llama 3": Kind(nn.Llama3Scaling, reference.llama3_scaling, "llama3"),
    "LongRoPE": Kind(nn.LongRoPEScaling, reference.long_rope_scaling, "longrope"),
}
YARN: dict[str, Any] = {"factor": 4.0, "original_max_length": 1000}
LLAMA: dict[str, Any] = {"low_frequency_factor": 1.0, "high_frequency_factor": 4.0, "original_max_length": 200}
LONG_ROPE: dict[str, Any] = {"short_factors": SHORT, "long_factors": LONG, "original_max_length": 30, "factor": 4.0}
SCALINGS: dict[str, tuple[str, dict[str, Any]]] = {
    "linear": ("linear", {"factor": 3.0}),
    "dynamic": ("dynamic", {"factor": 3.0, "max_length": 20}),
    "dynamic, longer than all": ("dynamic", {"factor": 3.0, "max_length": 2000}),
    "YaRN": ("YaRN", YARN),
    "YaRN, not rounded": ("YaRN", {**YARN, "truncate": False}),
    "YaRN, where turns": ("YaRN", {**YARN, "beta_fast": 20.0, "beta_slow": 3.0}),
    "YaRN, one pair": ("YaRN", {**YARN, "beta_fast": 4.0, "beta_slow": 4.0, "truncate": False}),
    "YaRN, all fast": ("YaRN", {"factor": 4.0, "original_max_length": 10**9}),
    "YaRN, all slow": ("YaRN", {"factor": 4.0, "original_max_length": 3}),
    "YaRN, given a factor": ("YaRN", {**YARN, "attention_factor": 0.7}),
    "YaRN, DeepSeek": ("YaRN", {**YARN, "mscale": 0.7, "mscale_all_dim": 1.3}),
    "YaRN, no mscale_all_dim": ("YaRN", {**YARN, "mscale": 0.7, "mscale_all_dim": 0.0}),
    "YaRN, shorter": ("YaRN", {**YARN, "factor": 0.5}),
    "Llama 3": ("Llama 3", {"factor": 8.0, **LLAMA}),
    "LongRoPE, long": ("LongRoPE", LONG_ROPE),
    "LongRoPE, short": ("LongRoPE", {**LONG_ROPE, "original_max_length": 2000}),
    "LongRoPE, given a factor": ("LongRoPE", {**LONG_ROPE, "attention_factor": 1.7}),
    "LongRoPE, shorter": ("LongRoPE", {**LONG_ROPE, "factor": 0.5}),
}
LAYOUTS: dict[str, dict[str, Any]] = {
    "halves": {},
    "interleaved": {"interleaved": True},
    "some, halves": {"features": N},
    "some, interleaved": {"features": N, "interleaved": True},
}
POSITIONS: dict[str, dict[str, Any]] = {
    "0 to t - 1": {},
    "given": {"positions": np.array([3, 900, 0, 7, 31])},
    "of each example": {"positions": rng.integers(0, 1000, (2, 5))},
    "of one example for all": {"positions": rng.integers(0, 1000, (1, 5))},
    "fractions": {"positions": 1000 * rng.random((2, 5))},
}


def both(scaling: str | None = None, base: float = BASE, **layout: Any) -> tuple[nn.Rotary, reference.Rotary]:
    """`Rotary` on each side."""
    if scaling is None:
        return nn.Rotary(base, **layout), reference.Rotary(base, **layout)
    kind, options = SCALINGS[scaling]
    return (
        nn.Rotary(base, **layout, scaling=KINDS[kind].ours(**options)),
        reference.Rotary(base, **layout, scaling=KINDS[kind].reference(**options)),
    )


def compare(parity: Parity, ours: nn.Rotary, theirs: Callable[..., Any], x: np.ndarray, **rest: Any) -> None:
    name = "Rotary" if ours.scaling is None else type(ours.scaling).__name__
    parity(name, lambda **inputs: ours(**inputs), lambda **inputs: theirs(**inputs), {"x": x}, **rest)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("positions", POSITIONS)
def test_rotary(parity: Parity, layout: str, positions: str) -> None:
    compare(parity, *both(**LAYOUTS[layout]), heads, fixed=POSITIONS[positions])


@pytest.mark.parametrize("scaling", SCALINGS)
@pytest.mark.parametrize(("layout", "positions"), [("some, halves", "of each example"), ("interleaved", "given")])
def test_scaled(parity: Parity, scaling: str, layout: str, positions: str) -> None:
    x = heads if "some" in layout else heads[..., :N]
    compare(parity, *both(scaling, **LAYOUTS[layout]), x, fixed=POSITIONS[positions])


def test_without_a_batch(parity: Parity) -> None:
    compare(parity, *both("LongRoPE, long", features=N), heads[0], fixed=POSITIONS["given"], dtypes=("float64",))


def test_gradients_of_positions(parity: Parity) -> None:
    ours, theirs = both("linear", features=N)
    inputs = {"x": heads, **POSITIONS["fractions"]}
    parity("Rotary", lambda **xs: ours(**xs), lambda **xs: theirs(**xs), inputs, dtypes=("float64",))


# transformers


@contextmanager
def in_float64(*names: str) -> Iterator[list[ModuleType]]:
    """These modules of transformers, which compute in float32 whatever the dtype, here in float64."""
    pytest.importorskip("transformers", reason="no transformers: rotary positions were not compared with theirs")
    modules = [import_module(f"transformers.{name}") for name in ("modeling_rope_utils", *names)]
    default = torch.get_default_dtype()
    with pytest.MonkeyPatch.context() as patch:
        for module in modules:
            patch.setattr(module, "torch", Wide())
        patch.setattr(torch.Tensor, "float", torch.Tensor.double)
        torch.set_default_dtype(torch.float64)
        try:
            yield modules
        finally:
            torch.set_default_dtype(default)


LLAMA_MODULE, NEOX_MODULE, GPTJ_MODULE = (
    "models.llama.modeling_llama",
    "models.gpt_neox.modeling_gpt_neox",
    "models.gptj.modeling_gptj",
)
THEIR_NAMES = {
    "original_max_length": "original_max_position_embeddings",
    "low_frequency_factor": "low_freq_factor",
    "high_frequency_factor": "high_freq_factor",
    "short_factors": "short_factor",
    "long_factors": "long_factor",
}


def their_config(name: str, scaling: str | None, d: int) -> Any:
    """The configuration of a Llama or a GPT-NeoX with heads of d features, n of which turn."""
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": BASE, "partial_rotary_factor": N / d}
    sizes: dict[str, Any] = {"hidden_size": 2 * d, "num_attention_heads": 2}
    if scaling is not None:
        kind, options = SCALINGS[scaling]
        settings = {THEIR_NAMES.get(key, key): list(x) if isinstance(x, tuple) else x for key, x in options.items()}
        sizes["max_position_embeddings"] = settings.pop("max_length", 5000)
        rope |= {**settings, "rope_type": KINDS[kind].theirs}
    return getattr(import_module("transformers"), f"{name}Config")(**sizes, rope_parameters=rope)


@pytest.mark.every_case
@pytest.mark.parametrize("scaling", SCALINGS)
@pytest.mark.parametrize("length", [7, 31, 300])
def test_frequencies_of_transformers(scaling: str, length: int) -> None:
    with in_float64() as (module,):
        kind, options = SCALINGS[scaling]
        function = module.ROPE_INIT_FUNCTIONS[KINDS[kind].theirs]
        theirs, their_factor = function(their_config("Llama", scaling, 2 * N), seq_len=length)
    with jax.enable_x64(True):
        ours, factor = KINDS[kind].ours(**options).frequencies(BASE, N, jnp.arange(length, dtype=float))
        np.testing.assert_allclose(ours, theirs.numpy(), rtol=FLOAT64)
    assert factor == pytest.approx(their_factor, rel=FLOAT64)


@pytest.mark.parametrize(("name", "module", "d"), [("Llama", LLAMA_MODULE, N), ("GPTNeoX", NEOX_MODULE, D)])
@pytest.mark.parametrize("scaling", [None, "linear", "dynamic", "YaRN", "Llama 3", "LongRoPE, long", "LongRoPE, short"])
def test_heads_of_transformers(parity: Parity, name: str, module: str, d: int, scaling: str | None) -> None:
    """Llama turns all features of a head, GPT-NeoX here 8 of 12."""

    def theirs(x: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        with in_float64(module) as (_, model):
            embedding = getattr(model, f"{name}RotaryEmbedding")(their_config(name, scaling, d))
            return model.apply_rotary_pos_emb(x, x, *embedding(x, positions), unsqueeze_dim=2)[0]

    ours, _ = both(scaling, features=None if d == N else N)
    compare(parity, ours, theirs, heads[..., :d], fixed=POSITIONS["of each example"], dtypes=("float64",))


def test_gptj(parity: Parity) -> None:
    """Interleaved pairs, 8 of 12 features, and the base 10,000."""

    def theirs(x: torch.Tensor) -> torch.Tensor:
        with in_float64(GPTJ_MODULE) as (_, model):
            sin, cos = model.create_sinusoidal_positions(x.shape[1], N)[None].split(N // 2, dim=-1)
            return torch.cat([model.apply_rotary_pos_emb(x[..., :N], sin, cos), x[..., N:]], dim=-1)

    compare(parity, nn.Rotary(features=N, interleaved=True), theirs, heads, dtypes=("float64",))
