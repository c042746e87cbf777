"""Attention and its other signatures: every argument, alone and with the others."""

import functools
import types
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention.bias import causal_lower_right

import jattn
import torch_ref
from jattn import scores
from jattn._engine.dropout import dropout_keep
from parity_tests.compare import DTYPES
from parity_tests.conftest import Parity
from parity_tests.test_masks import Rule, rules

B, T, S, H, D, E = 2, 5, 7, 3, 4, 6
FLOAT64 = ("float64",)
WEIGHTS = {"return_weights": True}


def ours(*, rule: Rule | None = None, **arguments: Any) -> Any:
    return jattn.attention(**arguments, mask=None if rule is None else rule.ours)


def theirs(*, rule: Rule | None = None, **arguments: Any) -> Any:
    return torch_ref.attention(**arguments, mask=None if rule is None else rule.theirs)


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


def arrays(
    b: tuple[int, ...] = (B,), t: int = T, s: int = S, h: int = H, k: int | None = None
) -> dict[str, np.ndarray]:
    """Query, key and value; more than H heads get a width of 8, so that no two axes are equally long."""
    d, k = D if h <= H else 8, h if k is None else k
    return {"query": normal(*b, t, h, d), "key": normal(*b, s, k, d, seed=1), "value": normal(*b, s, k, E, seed=2)}


def weights_under(name: str | None, t: int = T, s: int = S) -> dict[str, Any]:
    """The arguments that ask for the weights too, under that one of the masks."""
    return {"return_weights": True, "rule": None if name is None else rules(t, s)[name]}


@pytest.mark.parametrize(("b", "h"), [((B,), H), ((B,), 1), ((), H), ((3, B), H)])
def test_batch_axes_and_heads(parity: Parity, b: tuple[int, ...], h: int) -> None:
    dtypes = DTYPES if (b, h) == ((B,), H) else FLOAT64
    parity("attention, no mask", ours, theirs, arrays(b, h=h), WEIGHTS, dtypes=dtypes)


@pytest.mark.parametrize(("t", "s"), [(7, 5), (1, 7), (5, 1), (1, 1)])
def test_lengths_of_query_and_key(parity: Parity, t: int, s: int) -> None:
    parity("attention, no mask", ours, theirs, arrays(t=t, s=s), dtypes=FLOAT64)


@pytest.mark.parametrize("name", rules(T, S))
@pytest.mark.every_case
def test_mask(parity: Parity, name: str) -> None:
    dtypes = DTYPES if name in ("causal", "lengths, per query", "combination, and") else FLOAT64
    kind = name.split(",")[0]
    pair = {"causal": "causal", "window": "causal", "lengths": "valid lengths"}.get(kind, "other masks")
    parity(f"attention, {pair}", ours, theirs, arrays(), weights_under(name), dtypes=dtypes)


@pytest.mark.parametrize(("t", "s"), [(7, 5), (1, 7)])
@pytest.mark.parametrize("name", ["causal", "causal, lower right", "lengths, per query"])
def test_mask_of_other_lengths(parity: Parity, name: str, t: int, s: int) -> None:
    """Where queries outnumber keys, lower right leaves the first ones with nothing."""
    pair = "attention, valid lengths" if name.startswith("lengths") else "attention, causal"
    parity(pair, ours, theirs, arrays(t=t, s=s), weights_under(name, t, s), dtypes=FLOAT64)


@pytest.mark.parametrize("shape", [(1, S), (T, 1), (H, 1, 1), (B, 1, T, S), (3, B, H, T, S)])
def test_mask_as_an_array(parity: Parity, shape: tuple[int, ...]) -> None:
    fixed = {"mask": np.random.default_rng(0).random(shape) < 0.6}
    inputs = arrays((3, B) if len(shape) == 5 else (B,))
    parity("attention, other masks", jattn.attention, torch_ref.attention, inputs, fixed, dtypes=FLOAT64)


def test_some_queries_with_nothing_to_attend_to(parity: Parity) -> None:
    mask = np.random.default_rng(0).random((B, H, T, S)) < 0.6
    mask[0, 1, 2], mask[:, 0, 4], mask[1] = False, False, False
    fixed = {"mask": mask} | WEIGHTS
    inputs = arrays() | {"bias": normal(H, T, S, seed=3)}
    parity("attention, empty rows", jattn.attention, torch_ref.attention, inputs, fixed)


def test_all_queries_with_nothing_to_attend_to(parity: Parity) -> None:
    parity("attention, empty rows", ours, theirs, arrays(), weights_under("lengths, all zero"), dtypes=FLOAT64)


def test_queries_that_the_bias_leaves_with_nothing(parity: Parity) -> None:
    inputs = arrays() | {"bias": normal(B, H, T, S, seed=3)}
    inputs["bias"][:, :, 1], inputs["bias"][0, 1, :, 2:] = -np.inf, -np.inf
    for fixed in (WEIGHTS, weights_under("causal") | {"logits_soft_cap": 2.0}):
        parity("attention, empty rows", ours, theirs, inputs, fixed, dtypes=FLOAT64)


@pytest.mark.parametrize("name", [None, "combination, and"])
def test_logits_of_every_size(parity: Parity, name: str | None) -> None:
    """From one query to the next they grow, up to where a softmax has a single 1."""
    inputs = arrays()
    inputs["query"] *= np.geomspace(1, 1e4, T)[:, None, None]
    parity("attention, extreme logits", ours, theirs, inputs, weights_under(name), dtypes=FLOAT64)


@pytest.mark.parametrize(("sign", "name"), [(1, None), (-1, "combination, and")])
def test_extreme_logits_close_together(parity: Parity, sign: int, name: str | None) -> None:
    """+-1e4 in common and a few units apart, of numbers that bfloat16 holds and whose sums float32 holds.

    Were logits of that size rounded, the weights of two correct programs would differ by as much.
    """
    rng = np.random.default_rng(0)
    inputs = arrays()
    inputs["query"] = rng.integers(-8, 9, (B, T, H, D)) / 8
    inputs["key"] = rng.integers(-8, 9, (B, S, H, D)) / 8
    inputs["query"][..., 0], inputs["key"][..., 0] = sign * 19968, 1
    parity("attention, extreme logits", ours, theirs, inputs, weights_under(name))


@pytest.mark.parametrize("value", [-1e9, 1e4])
def test_extreme_bias(parity: Parity, value: float) -> None:
    """What an additive mask brings: the same large number on some keys, and on all keys of a query."""
    inputs = arrays() | {"bias": np.zeros((B, 1, T, S))}
    inputs["bias"][:, :, :, 5:], inputs["bias"][0, :, 2] = value, value
    parity("attention, extreme logits", ours, theirs, inputs, WEIGHTS, dtypes=FLOAT64)


@pytest.mark.parametrize("k", [1, 2, 4])
@pytest.mark.parametrize("name", [None, "lengths, per query"])
def test_grouped_heads(parity: Parity, k: int, name: str | None) -> None:
    dtypes = DTYPES if k == 2 else FLOAT64
    parity("attention, grouped heads", ours, theirs, arrays(h=4, k=k), weights_under(name), dtypes=dtypes)


@pytest.mark.parametrize("shape", [(S,), (H, 1, 1), (B, 1, T, S), (B, H, T, S)])
def test_bias(parity: Parity, shape: tuple[int, ...]) -> None:
    dtypes = DTYPES if shape == (B, H, T, S) else FLOAT64
    inputs = arrays() | {"bias": normal(*shape, seed=3)}
    parity("attention, bias and soft cap", ours, theirs, inputs, WEIGHTS, dtypes=dtypes)


def test_scale(parity: Parity) -> None:
    pair = "attention, bias and soft cap"
    parity(pair, ours, theirs, arrays(), {"scale": 0.3}, dtypes=FLOAT64)
    parity(pair, ours, theirs, arrays() | {"scale": np.array(-0.3)}, dtypes=FLOAT64)


@pytest.mark.parametrize(("cap", "name"), [(0.5, "combination, and"), (0.5, None), (50.0, None)])
def test_soft_cap(parity: Parity, cap: float, name: str | None) -> None:
    inputs = arrays() | {"bias": normal(H, T, S, seed=3)}
    fixed = weights_under(name) | {"logits_soft_cap": cap, "scale": 0.7}
    dtypes = DTYPES if name else FLOAT64
    parity("attention, bias and soft cap", ours, theirs, inputs, fixed, dtypes=dtypes)


@pytest.mark.parametrize("shape", [(H,), (B, H), (3, B, H)])
def test_head_gates(parity: Parity, shape: tuple[int, ...]) -> None:
    inputs = arrays((3, B) if len(shape) == 3 else (B,)) | {"head_gates": normal(*shape, seed=3)}
    inputs["head_gates"][..., 1] = 0
    dtypes = DTYPES if shape == (B, H) else FLOAT64
    parity("attention, dropout and gates", ours, theirs, inputs, WEIGHTS, dtypes=dtypes)


@pytest.mark.parametrize("shape", [(H,), (B, H), (3, B, H)])
def test_sinks(parity: Parity, shape: tuple[int, ...]) -> None:
    inputs = arrays((3, B) if len(shape) == 3 else (B,)) | {"sinks": normal(*shape, seed=3)}
    dtypes = DTYPES if shape == (H,) else FLOAT64
    parity("attention, sinks", ours, theirs, inputs, WEIGHTS, dtypes=dtypes)


@pytest.mark.parametrize("k", [1, 2])
@pytest.mark.parametrize("name", ["lengths, per query", "causal, negative offset", "lengths, all zero"])
def test_sinks_of_grouped_heads_under_a_mask(parity: Parity, k: int, name: str) -> None:
    """Also one that leaves a query nothing but the sink: its output is zero, and it gives the sink no gradient."""
    inputs = arrays(h=4, k=k) | {"sinks": normal(B, 4, seed=3)}
    dtypes = DTYPES if (k, name) == (2, "lengths, per query") else FLOAT64
    parity("attention, sinks", ours, theirs, inputs, weights_under(name), dtypes=dtypes)


@pytest.mark.parametrize("name", ["causal, negative offset", "lengths, per query"])
def test_sinks_in_blocks(parity: Parity, name: str) -> None:
    t, s = 150, 128
    streamed = functools.partial(ours, implementation="streaming")
    inputs = arrays(t=t, s=s, h=4, k=1) | {"sinks": normal(B, 4, seed=3)}
    dtypes = ("float64", "bfloat16") if name.startswith("causal") else FLOAT64
    parity("attention, sinks", streamed, theirs, inputs, {"rule": rules(t, s)[name]}, dtypes=dtypes)


def test_sinks_of_every_size(parity: Parity) -> None:
    """From what takes nothing, as if there were no sink, to what takes all, beside logits of every size."""
    inputs = arrays(h=6, k=2) | {"sinks": np.array([-np.inf, -1e4, -3, 3, 30, 1e4])}
    inputs["query"] *= np.geomspace(1, 1e3, T)[:, None, None]
    for name in (None, "lengths, per query"):
        parity("attention, sinks", ours, theirs, inputs, weights_under(name), dtypes=FLOAT64)


@pytest.mark.parametrize("dtype", DTYPES)
def test_sinks_and_everything_else(parity: Parity, dtype: str) -> None:
    """Bias, some of it minus infinity, and a soft cap come before the sinks, dropout and gates after them."""
    rng, rate = jax.random.key(0), 0.4
    with jax.enable_x64(dtype == "float64"):
        keep = torch.tensor(np.asarray(dropout_keep(rng, rate, (B, 4, T, S))))
    inputs = arrays(h=4, k=2) | {"bias": normal(4, T, S, seed=3), "sinks": 3 + normal(4, seed=4)}
    inputs["bias"][:, 2], inputs["bias"][1, :, 3] = -np.inf, -np.inf
    parity(
        "attention, sinks",
        functools.partial(ours, dropout_rng=rng),
        functools.partial(theirs, keep=keep),
        inputs | {"head_gates": normal(B, 4, seed=5)},
        weights_under("causal, offset") | {"logits_soft_cap": 2.0, "scale": 0.7, "dropout_rate": rate},
        dtypes=(dtype,),
    )


@pytest.mark.parametrize(("heads", "queries"), [(None, None), ([3, 0, 1], [4, 1])])
def test_attention_weights_beside_sinks(parity: Parity, heads: list[int] | None, queries: list[int] | None) -> None:
    inputs = arrays(h=4, k=2) | {"sinks": normal(B, 4, seed=3)}
    del inputs["value"]
    rule = rules(T, S)["lengths, per query"]
    parity(
        "attention_weights",
        lambda **x: jattn.attention_weights(**x, mask=rule.ours, heads=heads, queries=queries),
        lambda **x: torch_ref.attention_weights(**x, mask=rule.theirs, heads=heads, queries=queries),
        inputs,
        dtypes=FLOAT64,
    )


@pytest.mark.parametrize("implementation", ["dense", "streaming"])
@pytest.mark.parametrize("name", [None, "causal", "lengths, per query"])
def test_sinks_are_those_of_gpt_oss(parity: Parity, implementation: str, name: str | None) -> None:
    """Of which the mask is an additive one."""
    gpt_oss = pytest.importorskip(
        "transformers.models.gpt_oss.modeling_gpt_oss", reason="no transformers: sinks were not compared with gpt-oss"
    )
    dense = implementation == "dense"
    rule = None if name is None else rules(T, S)[name]
    additive = None if rule is None else torch.zeros(rule.theirs.shape).masked_fill(~rule.theirs, -torch.inf)

    def original(query: Tensor, key: Tensor, value: Tensor, sinks: Tensor) -> Any:
        module = types.SimpleNamespace(sinks=sinks, num_key_value_groups=2, training=False)
        query, key, value = (x.transpose(1, 2) for x in (query, key, value))
        output, weights = gpt_oss.eager_attention_forward(module, query, key, value, additive, query.shape[-1] ** -0.5)
        return (output, weights) if dense else output

    parity(
        "attention, sinks / gpt-oss",
        functools.partial(ours, implementation=implementation, return_weights=dense, rule=rule),
        original,
        arrays(h=4, k=2) | {"sinks": normal(4, seed=3)},
        dtypes=("float64", "float32") if dense else FLOAT64,
    )


@pytest.mark.parametrize("dtype", DTYPES)
def test_dropout_and_everything_else(parity: Parity, dtype: str) -> None:
    """With the mask that jattn draws handed to PyTorch, and something to do for every step from score to output."""
    rng, rate = jax.random.key(0), 0.4
    with jax.enable_x64(dtype == "float64"):
        keep = torch.tensor(np.asarray(dropout_keep(rng, rate, (B, 4, T, S))))
    assert 0.4 < keep.float().mean() < 0.8
    parity(
        "attention, dropout and gates",
        functools.partial(ours, dropout_rng=rng),
        functools.partial(theirs, keep=keep),
        arrays(h=4, k=2) | {"bias": normal(4, T, S, seed=3), "head_gates": normal(B, 4, seed=4)},
        weights_under("causal, offset") | {"logits_soft_cap": 3.0, "scale": 0.7, "dropout_rate": rate},
        dtypes=(dtype,),
    )


@pytest.mark.parametrize(
    ("kernel", "name"),
    [
        ("gaussian", None),
        ("gaussian", "combination, and"),
        ("boxcar", "lengths, per query"),
        ("epanechnikov", "lengths, per query"),
        ("additive", "lengths, per query"),
        ("constant", "lengths, per query"),
    ],
)
def test_other_scores(parity: Parity, kernel: str, name: str | None) -> None:
    """The kernels' points lie on a lattice, of which none is near an edge; each has its parameters' gradients."""
    kind, reference = getattr(scores, kernel.title()), getattr(torch_ref, kernel)
    rng = np.random.default_rng(0)
    inputs = arrays(h=4, k=2)
    inputs["query"] = rng.integers(-1, 2, (B, T, 4, 8)) / 2
    inputs["key"] = rng.integers(-1, 2, (B, S, 2, 8)) / 2
    parameters = {
        "additive": {"w_query": normal(8, 6, seed=3), "w_key": normal(8, 6, seed=4), "w_value": normal(6, seed=5)},
        "constant": {},
    }.get(kernel, {"bandwidth": np.full(8, 1.375)})

    def with_score(f: Callable[..., Any], score: Callable[..., Any]) -> Callable[..., Any]:
        def run(**x: Any) -> Any:
            return f(score=score({name: x.pop(name) for name in parameters}), **x)

        return run

    parity(
        "attention, other scores",
        with_score(ours, lambda p: kind(**p)),
        with_score(theirs, lambda p: lambda query, key: reference(query, key, **p)),
        inputs | parameters,
        weights_under(name),
        dtypes=DTYPES if kernel == "additive" or name is None else FLOAT64,
    )


@pytest.mark.parametrize("name", ["no mask", "causal", "causal, lower right", "boolean mask", "bias", "grouped heads"])
@pytest.mark.parametrize("e", [D, E])
def test_attention_and_sdpa(parity: Parity, name: str, e: int) -> None:
    """A second witness, PyTorch's own attention. Every query sees a key here, as PyTorch promises nothing otherwise."""
    inputs = arrays(h=4, k=2) if name == "grouped heads" else arrays()
    inputs["value"] = inputs["value"][..., :e]
    mask = np.random.default_rng(0).random((B, H, T, S)) < 0.6
    mask[..., 3] = True
    ours_, sdpa = {
        "causal": ({"mask": jattn.masks.causal()}, {"is_causal": True}),
        "causal, lower right": (
            {"mask": jattn.masks.causal_lower_right(T, S)},
            {"attn_mask": causal_lower_right(T, S)},
        ),
        "boolean mask": ({"mask": jax.numpy.asarray(mask)}, {"attn_mask": torch.tensor(mask)}),
        "grouped heads": ({}, {"enable_gqa": True}),
    }.get(name, ({}, {}))
    if name == "bias":
        inputs["bias"] = np.where(mask, normal(B, H, T, S, seed=3), -np.inf)

    def heads_first(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None = None, **rest: Any) -> Tensor:
        rest = sdpa | rest | ({} if bias is None else {"attn_mask": bias})
        query, key, value = (x.transpose(1, 2) for x in (query, key, value))
        return F.scaled_dot_product_attention(query, key, value, **rest).transpose(1, 2)

    f = functools.partial(jattn.attention, **ours_)
    if e == D:
        parity("attention / F.sdpa", f, heads_first, inputs, dtypes=FLOAT64 if "right" in name else DTYPES)
    else:
        parity("attention / F.sdpa", f, heads_first, inputs, {"scale": 0.3}, dtypes=FLOAT64)


@pytest.mark.parametrize(
    ("heads", "queries"), [(None, None), (2, -1), (slice(0, 2), [0, 3]), ([3, 0, 1], slice(1, None, 2)), (None, 0)]
)
@pytest.mark.parametrize("name", [None, "combination, and"])
def test_attention_weights(parity: Parity, heads: Any, queries: Any, name: str | None) -> None:
    inputs = arrays(h=4, k=2) | {"bias": normal(B, 4, T, S, seed=3)}
    del inputs["value"]
    mask = None if name is None else rules(T, S)[name]
    listed = {
        what: None if chosen is None else np.atleast_1d(np.arange(n)[chosen]).tolist()
        for what, chosen, n in (("heads", heads, 4), ("queries", queries, T))
    }
    parity(
        "attention_weights",
        lambda **x: jattn.attention_weights(**x, mask=mask and mask.ours, heads=heads, queries=queries),
        lambda **x: torch_ref.attention_weights(**x, mask=mask and mask.theirs, **listed),
        inputs,
        {"scale": 0.7, "logits_soft_cap": 2.0},
        dtypes=DTYPES if heads == 2 and name else FLOAT64,
    )
