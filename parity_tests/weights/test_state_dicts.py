"""State dicts from PyTorch and back: every bit, every entry, and one error for all that does not fit."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.torch
import torch
from flax import nnx

import torch_ref.nn
from jattn import models, nn
from jattn.weights import load_state_dict, save, state_dict, to_numpy, to_tensor
from parity_tests.conftest import Parity
from parity_tests.nn import blank, both, randomised

rng = np.random.default_rng(0)
FLOATS = ("float32", "float64", "bfloat16", "float16")


def normal(*shape: int) -> torch.Tensor:
    return torch.as_tensor(rng.standard_normal(shape))


def tokens(*shape: int) -> torch.Tensor:
    return torch.as_tensor(rng.integers(0, 8, shape))


def kernel_regression() -> dict[str, Any]:
    torch_module = randomised(torch_ref.nn.NadarayaWatson())
    return {"module": nn.NadarayaWatson(), "torch_module": torch_module}


def layer_norm() -> dict[str, Any]:
    module = blank(lambda: nn.LayerNorm(12, rngs=nnx.Rngs(0)))
    return {"module": module, "torch_module": randomised(torch.nn.LayerNorm(12))}


WIDE: dict[str, Any] = {"num_kv_heads": 1, "qkv_features": 24, "value_head_features": 6, "out_features": 8}
BLOCK: dict[str, Any] = {"num_heads": 3, "features": 12, "feedforward_features": 10}
SEQ2SEQ: dict[str, Any] = {"embedding_features": 4, "hidden_features": 6}
x, y = normal(2, 5, 12), normal(2, 7, 12)
sentences = (tokens(2, 7), tokens(2, 5))

# What makes the modules of either side, and what PyTorch's is called with.
MODULES: dict[str, tuple[Callable[[], dict[str, Any]], tuple[torch.Tensor, ...]]] = {
    "AdditiveAttention": (lambda: both(nn.AdditiveAttention, 12, 12, 4), (x, y, y)),
    "MultiHeadAttention": (lambda: both(nn.MultiHeadAttention, 3, 12), (x, y)),
    "MultiHeadAttention, all options": (
        lambda: both(nn.MultiHeadAttention, 3, 12, use_bias=True, normalize_qk=True, **WIDE),
        (x, y),
    ),
    "WideMultiHeadSelfAttention": (lambda: both(nn.WideMultiHeadSelfAttention, 12, 3), (x,)),
    "NadarayaWatson": (kernel_regression, (normal(5), normal(7), normal(7))),
    "LearnedPositions": (lambda: both(nn.LearnedPositions, 9, 12), (x,)),
    "layer_norm": (layer_norm, (x,)),
    "Embed": (lambda: both(nn.Embed, 8, 12, padding_idx=3, scale=0.5), (tokens(2, 5),)),
    "Conv": (lambda: both(nn.Conv, 12, 8, 3, strides=2, padding=1), (x,)),
    "Conv, image": (lambda: both(nn.Conv, 12, 8, (3, 2), feature_group_count=2), (normal(2, 5, 7, 12),)),
    "FeedForward": (lambda: both(nn.FeedForward, 12, 10), (x,)),
    "TransformerBlock": (lambda: both(nn.TransformerBlock, **BLOCK), (x,)),
    "TransformerBlock, all options": (
        lambda: both(nn.TransformerBlock, **BLOCK, cross_attention=True, use_bias=False, normalize_qk=True),
        (x, y),
    ),
    "GRU": (lambda: both(nn.GRU, 12, 6, num_layers=3), (x,)),
    "AttentionRegressor": (lambda: both(models.AttentionRegressor, 6), (normal(2, 5),)),
    "TransformerRegressor": (lambda: both(models.TransformerRegressor, 5, 12, 3), (normal(2, 5),)),
    "RecallClassifier": (lambda: both(models.RecallClassifier, 8, 12, 3, num_layers=2), (tokens(2, 5),)),
    "RecallClassifier, no positions": (lambda: both(models.RecallClassifier, 8, 12, 3, positions=False), sentences[:1]),
    "Seq2Seq, additive": (lambda: both(models.Seq2Seq, 8, 8, **SEQ2SEQ), sentences),
    "Seq2Seq, dot": (lambda: both(models.Seq2Seq, 8, 8, **SEQ2SEQ, score="dot"), sentences),
    "DigitsClassifier": (lambda: both(models.DigitsClassifier, features=12, num_heads=3), (normal(2, 8, 8),)),
}


def bits(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().view(torch.uint8).numpy().tobytes() if tensor.ndim else bits(tensor[None])


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("name", MODULES)
def test_there_and_back(name: str, dtype: str, tmp_path: Path) -> None:
    make, inputs = MODULES[name]
    made = make()
    module, torch_module = made["module"], made["torch_module"].to(getattr(torch, dtype))
    given = torch_module.state_dict()
    with jax.enable_x64(dtype == "float64"):
        load_state_dict(module, given)
        assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(module, nnx.Param))} == {jnp.dtype(dtype)}
        back = state_dict(module)
        save(module, tmp_path / "a.safetensors")
        save(load_state_dict(module, tmp_path / "a.safetensors"), tmp_path / "b.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    from_file = safetensors.torch.load_file(tmp_path / "b.safetensors")
    assert {n: bits(t) for n, t in from_file.items()} == {n: bits(t) for n, t in given.items()}
    assert {n: (t.dtype, t.shape, bits(t)) for n, t in back.items()} == {
        n: (t.dtype, t.shape, bits(t)) for n, t in given.items()
    }

    inputs = tuple(i.to(getattr(torch, dtype)) if i.is_floating_point() else i for i in inputs)
    wanted = torch_module(*inputs)
    other = randomised(torch_module, seed=1).to(getattr(torch, dtype))
    other.load_state_dict(from_file, strict=True)
    torch.testing.assert_close(other(*inputs), wanted, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", FLOATS)
def test_every_value_survives(dtype: str) -> None:
    """Also those that arithmetic would change."""
    tiny = torch.finfo(getattr(torch, dtype)).smallest_normal / 4
    special = torch.tensor([[torch.nan, torch.inf], [-torch.inf, -0.0], [tiny, -tiny]], dtype=getattr(torch, dtype))
    with jax.enable_x64(dtype == "float64"):
        module = nnx.Linear(2, 3, use_bias=False, rngs=nnx.Rngs(0))
        back = state_dict(load_state_dict(module, {"weight": special}))
    assert bits(back["weight"]) == bits(special)


# ----------------------------------------------------------------------------------------------------------------------
# Where state dicts come from.


def given_to(module: nnx.Module, convert: Callable[[Any], Any]) -> nnx.Module:
    """``module`` with numbers that are the same in each test."""
    random = np.random.default_rng(1)
    entries = {n: random.standard_normal(t.shape).astype(np.float32) for n, t in state_dict(module).items()}
    return load_state_dict(module, {n: convert(a) for n, a in entries.items()})


def block() -> nnx.Module:
    return blank(lambda: nn.TransformerBlock(**BLOCK, rngs=nnx.Rngs(0)))


def same(one: nnx.Module, other: nnx.Module) -> None:
    jax.tree.map(np.testing.assert_array_equal, *(nnx.to_pure_dict(nnx.state(m, nnx.Param)) for m in (one, other)))


@pytest.mark.parametrize("convert", [jnp.asarray, to_tensor, lambda a: torch.nn.Parameter(to_tensor(a))])
def test_arrays_of_any_kind(convert: Callable[[Any], Any]) -> None:
    same(given_to(block(), convert), given_to(block(), np.asarray))


@pytest.mark.parametrize("kind", [str, Path])
def test_files(kind: type, tmp_path: Path) -> None:
    module = given_to(block(), np.asarray)
    torch.save(state_dict(module), tmp_path / "weights.pt")
    safetensors.torch.save_file(state_dict(module), tmp_path / "weights.safetensors")
    for path in (tmp_path / "weights.pt", tmp_path / "weights.safetensors", tmp_path):
        same(load_state_dict(block(), kind(path)), module)


class Encoder(nnx.Module):
    def __init__(self, *, rngs: nnx.Rngs) -> None:
        self.blocks = nnx.List([nn.TransformerBlock(3, 12, 10, rngs=rngs) for _ in range(2)])

    def __call__(self, x: jax.Array) -> jax.Array:
        for block in self.blocks:
            x = block(x)
        return x


def test_a_model_with_names_of_its_own(parity: Parity) -> None:
    """torch.nn.TransformerEncoder: its packed matrices are cut in three, and the rest is a matter of names."""
    layer = torch.nn.TransformerEncoderLayer(12, 3, 10, dropout=0.0, batch_first=True)
    theirs = randomised(torch.nn.TransformerEncoder(layer, 2, enable_nested_tensor=False))
    entries: dict[str, torch.Tensor] = {}
    for name, tensor in theirs.state_dict().items():
        cut, names = (3, ("query.", "key.", "value.")) if "in_proj_" in name else (1, ("",))
        for part, new in zip(tensor.chunk(cut), names, strict=True):
            entries[name.replace("in_proj_", new)] = part
    rename = {
        r"^layers\.": "blocks.",
        r"\.self_attn\.": ".attention.",
        r"\.out_proj\.": ".out.",
        r"\.(linear\d)\.": r".feed_forward.\1.",
    }
    with jax.enable_x64(True):
        ours = load_state_dict(blank(lambda: Encoder(rngs=nnx.Rngs(0))), entries, rename=rename)
    inputs = {"x": x.numpy()}
    parity("nn.TransformerEncoder, renamed", lambda x: ours(x), lambda x: theirs(x), inputs, dtypes=("float64",))


# ----------------------------------------------------------------------------------------------------------------------
# Strictness.


def feed_forward() -> nnx.Module:
    return given_to(blank(lambda: nn.FeedForward(2, 3, rngs=nnx.Rngs(0))), np.asarray)


def refuses(entries: dict[str, Any], message: str, **options: Any) -> None:
    """With this message and no change at all."""
    module = feed_forward()
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        load_state_dict(module, entries, **options)
    same(module, feed_forward())


def test_one_error_lists_everything() -> None:
    entries = {
        "linear2.bias": torch.ones(4),
        "linear1.weight": torch.ones(2, 3),
        "linear2.weight": torch.ones(2, 3),
        "linear3.weight": torch.ones(1),
        "linear1.scale": torch.ones(()),
    }
    refuses(
        entries,
        "state_dict must fit this FeedForward, entry for entry.\n"
        "  unknown: linear3.weight, shape (1,)\n"
        "  unknown: linear1.scale, shape ()\n"
        "  missing: linear1.bias, shape (3,)\n"
        "  misshapen: linear1.weight must have shape (3, 2). Got (2, 3); its transpose would fit\n"
        "  misshapen: linear2.bias must have shape (2,). Got (4,)",
    )


def test_float64_needs_x64_and_integers_are_refused() -> None:
    entries = {name: torch.ones(tensor.shape) for name, tensor in state_dict(feed_forward()).items()}
    refuses(
        {
            **entries,
            "linear1.bias": torch.ones(3, dtype=torch.float64),
            "linear2.bias": torch.ones(2, dtype=torch.int32),
        },
        "state_dict must fit this FeedForward, entry for entry.\n"
        "  float64: linear1.bias would lose digits. Turn on jax_enable_x64, or convert it first\n"
        "  int32: linear2.bias must be floating point",
    )


def test_renamed_entries_must_not_collide() -> None:
    entries = {name: torch.ones(tensor.shape) for name, tensor in state_dict(feed_forward()).items()}
    refuses(
        entries,
        "rename must give each entry a name of its own. Got linear.weight for linear1.weight and linear2.weight.",
        rename={r"^linear\d\.weight": "linear.weight"},
    )


def test_names_are_strings() -> None:
    refuses({"linear1.bias": torch.ones(3), 3: torch.ones(2)}, "state_dict must have names that are strings. Got 3.")


def test_renaming_is_no_excuse() -> None:
    refuses(
        {"first.weight": torch.ones(3, 2), "first.bias": torch.ones(3)},
        "state_dict must fit this FeedForward, entry for entry.\n"
        "  missing: linear2.weight, shape (2, 3)\n"
        "  missing: linear2.bias, shape (2,)",
        rename={"first": "linear1"},
    )


# ----------------------------------------------------------------------------------------------------------------------
# Memory: both sides write into theirs.


def large(dtype: Any) -> nnx.Module:
    """Large enough for JAX to take over an array as it is, where it would."""
    return nnx.Linear(64, 64, param_dtype=dtype, bias_init=nnx.initializers.ones_init(), rngs=nnx.Rngs(0))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_what_was_dumped_is_a_copy(dtype: Any) -> None:
    module = large(dtype)
    for tensor in state_dict(module).values():
        tensor.zero_()
    same(module, large(dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("convert", [lambda tensor: tensor, to_numpy], ids=["PyTorch", "NumPy"])
def test_what_was_loaded_is_a_copy(dtype: torch.dtype, convert: Callable[[Any], Any]) -> None:
    tensors = {"weight": torch.ones(64, 64, dtype=dtype), "bias": torch.ones(64, dtype=dtype)}
    module = load_state_dict(large(jnp.float32), {name: convert(tensor) for name, tensor in tensors.items()})
    for tensor in tensors.values():
        tensor.zero_()
    for leaf in jax.tree.leaves(nnx.state(module, nnx.Param)):
        np.testing.assert_array_equal(leaf, np.ones_like(leaf))


# ----------------------------------------------------------------------------------------------------------------------
# Nothing is left out.


class Holder(nnx.Module):
    """A module of the user's, around others."""

    def __init__(self, **attributes: Any) -> None:
        for name, value in attributes.items():
            setattr(self, name, value)


def linear(seed: int = 0) -> nnx.Linear:
    return nnx.Linear(3, 3, rngs=nnx.Rngs(seed))


def test_plain_containers() -> None:
    names = state_dict(Holder(heads=nnx.data({"a": linear(), "b": [linear(1)]}))).keys()
    assert list(names) == ["heads.a.weight", "heads.a.bias", "heads.b.0.weight", "heads.b.0.bias"]


@pytest.mark.parametrize("layer", [nnx.ConvTranspose(3, 3, (3,), rngs=nnx.Rngs(0)), nnx.BatchNorm(3, rngs=nnx.Rngs(0))])
def test_layers_without_a_map(layer: nnx.Module) -> None:
    with pytest.raises(ValueError, match=r"module must be made of layers that have a map to PyTorch's\. Got .*other\."):
        state_dict(Holder(one=linear(), other=layer))


def test_several_models_in_one() -> None:
    message = r"module must hold one model\. Got weight of a kernel of shape \(3, (4, )?2, 5\)"
    for make in (lambda rng: nnx.Linear(2, 5, rngs=nnx.Rngs(rng)), lambda rng: nnx.Conv(2, 5, 4, rngs=nnx.Rngs(rng))):
        ensemble = nnx.vmap(make)(jax.random.split(jax.random.key(0), 3))
        with pytest.raises(ValueError, match=message):
            state_dict(ensemble)


def test_shared_parameters_must_agree() -> None:
    shared = linear()
    holder = Holder(a=shared, b=shared)
    entries = {name: torch.ones(tensor.shape) for name, tensor in state_dict(holder).items()}
    load_state_dict(holder, entries)
    entries["b.weight"] = torch.zeros(3, 3)
    with pytest.raises(ValueError, match=r"state_dict must agree on a parameter that modules share\."):
        load_state_dict(holder, entries)
    assert float(shared.kernel[...].min()) == 1
