"""Biases, modified scores and positions: attention with each, dense and streaming, and the original code of each.

The originals are those of Hugging Face's `transformers`: BLOOM's ALiBi, and the relative positions of T5 and MPNet.
"""

import functools
import importlib
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch import Tensor

import jattn
import torch_ref
from jattn import biases, masks, scores
from parity_tests.compare import DTYPES
from parity_tests.conftest import Parity
from parity_tests.test_masks import rules
from parity_tests.test_multi_head import B, E, normal

H, D = 4, 8
FLOAT64 = ("float64",)
SIZES = SMALL, LARGE = ((5, 7), (150, 128))  # queries and keys; the large ones are several blocks, of several widths


class Options(NamedTuple):
    """Options of attention that are made of parameters, on either side."""

    ours: Callable[..., dict[str, Any]]
    theirs: Callable[..., dict[str, Any]]
    parameters: dict[str, np.ndarray]


def assert_parity(
    parity: Parity,
    pair: str,
    options: Options,
    t: int,
    s: int,
    *,
    h: int = H,
    k: int | None = None,
    mask: str | None = None,
    dtypes: tuple[str, ...] = FLOAT64,
    **fixed: Any,
) -> None:
    """Attention with these options, under one of `rules`: dense with its weights on few tokens, else streaming."""
    few = max(t, s) < 100
    rule = None if mask is None else rules(t, s)[mask]

    def with_options(f: Callable[..., Any], side: str) -> Callable[..., Any]:
        def run(**x: Any) -> Any:
            made = getattr(options, side)(**{name: x.pop(name) for name in options.parameters})
            return f(**({} if rule is None else {"mask": getattr(rule, side)}) | made | x)

        return run

    def ours(**x: Any) -> Any:
        return jattn.attention(**x, implementation="dense" if few else "streaming", return_weights=few)

    def theirs(**x: Any) -> Any:
        return torch_ref.attention(**x, return_weights=few)

    k = h if k is None else k
    inputs = {"query": normal(B, t, h, D), "key": normal(B, s, k, D, seed=1), "value": normal(B, s, k, E, seed=2)}
    parity(
        pair,
        with_options(ours, "ours"),
        with_options(theirs, "theirs"),
        inputs | options.parameters,
        fixed,
        dtypes=dtypes,
    )


def of_bias(ours: Callable[..., Any], theirs: Callable[..., Tensor], **parameters: np.ndarray) -> Options:
    return Options(lambda **p: {"bias": ours(**p)}, lambda **p: {"bias": theirs(**p)}, parameters)


def decayed(i: Any, j: Any, decay: Any, at: Any) -> Any:
    """One factor for each head, and a number that is looked up."""
    return at[j % 3] - decay * abs(i - j)


def of_every_axis(i: Any, j: Any, heads: Any, rows: Any, columns: Any) -> Any:
    return heads * ((i + j) % 2) + rows * columns


def all_biases(t: int, s: int) -> dict[str, Options]:
    """Of H heads."""
    table = normal(12, H, seed=3)
    return {
        "alibi": of_bias(
            biases.alibi, lambda slopes: torch_ref.alibi(slopes, t, s), slopes=torch_ref.alibi_slopes(H).numpy()
        ),
        "alibi, per example": of_bias(
            biases.alibi, lambda slopes: torch_ref.alibi(slopes, t, s), slopes=normal(B, H, seed=3)
        ),
        "relative": of_bias(
            lambda table: biases.relative(table, max_distance=40),
            lambda table: torch_ref.relative(table, t, s, max_distance=40),
            table=table,
        ),
        "relative, one direction": of_bias(
            lambda table: biases.relative(table, bidirectional=False, max_distance=20),
            lambda table: torch_ref.relative(table, t, s, bidirectional=False, max_distance=20),
            table=table,
        ),
        "dense": of_bias(biases.dense, lambda array: array, array=normal(B, 1, t, s, seed=3)),
        "where": of_bias(
            lambda decay, at: biases.where(decayed, decay=("h", decay), at=at),
            lambda decay, at: torch_ref.biases.where(lambda i, j: decayed(i, j, decay[:, None, None], at), t, s),
            decay=normal(H, seed=3),
            at=normal(3, seed=4),
        ),
        "where, every axis": of_bias(
            lambda heads, rows, columns: biases.where(
                of_every_axis, heads=("bh", heads), rows=("ht", rows), columns=("bs", columns)
            ),
            lambda heads, rows, columns: torch_ref.biases.where(
                lambda i, j: of_every_axis(i, j, heads[..., None, None], rows[..., None], columns[:, None, None]), t, s
            ),
            heads=normal(B, H, seed=3),
            rows=normal(H, t, seed=4),
            columns=normal(B, s, seed=5),
        ),
        "sum": of_bias(
            lambda slopes, table, array: biases.alibi(slopes) + biases.relative(table) + array,
            lambda slopes, table, array: torch_ref.alibi(slopes, t, s) + torch_ref.relative(table, t, s) + array,
            slopes=torch_ref.alibi_slopes(H).numpy(),
            table=table,
            array=normal(t, s, seed=4),
        ),
    }


def pair_of(name: str) -> str:
    kind = name.split(",")[0]
    return f"attention, {kind}" if kind in ("alibi", "relative") else "attention, other biases"


@pytest.mark.parametrize("name", all_biases(*SMALL))
@pytest.mark.every_case
def test_bias(parity: Parity, name: str) -> None:
    options = all_biases(*SMALL)[name]
    mask = "causal, negative offset" if name == "relative, one direction" else None
    dtypes = DTYPES if name in ("alibi", "relative", "where") else FLOAT64
    assert_parity(parity, pair_of(name), options, *SMALL, mask=mask, k=2, dtypes=dtypes)


@pytest.mark.parametrize("name", ["alibi, per example", "relative", "dense", "where, every axis"])
def test_bias_in_blocks(parity: Parity, name: str) -> None:
    """Under a mask of whose keys the blocks see different ones."""
    assert_parity(parity, pair_of(name), all_biases(*LARGE)[name], *LARGE, mask="causal, negative offset", k=1)


@pytest.mark.parametrize("name", ["alibi", "relative"])
def test_slopes_and_tables_of_bfloat16(parity: Parity, name: str) -> None:
    """Whose gradients are sums of many terms."""
    t, s = 400, 300
    assert_parity(parity, pair_of(name), all_biases(t, s)[name], t, s, dtypes=("bfloat16",))


@pytest.mark.parametrize(("h", "t", "s"), [(4, *SMALL), (6, *SMALL), (6, *LARGE)])
def test_alibi_of_a_number_of_heads(parity: Parity, h: int, t: int, s: int) -> None:
    options = of_bias(lambda: biases.alibi(h), lambda: torch_ref.alibi(torch_ref.alibi_slopes(h).float(), t, s))
    dtypes = DTYPES if (h, t) == (6, SMALL[0]) else FLOAT64
    assert_parity(parity, "attention, alibi", options, t, s, h=h, mask="causal", dtypes=dtypes)


@pytest.mark.parametrize(("t", "s"), SIZES)
def test_bias_with_everything(parity: Parity, t: int, s: int) -> None:
    """A sum, under a soft cap, beside sinks, under a mask that empties rows and decides by data what a block sees."""
    total = all_biases(t, s)["sum"]
    options = Options(
        lambda sinks, **p: total.ours(**p) | {"sinks": sinks},
        lambda sinks, **p: total.theirs(**p) | {"sinks": sinks},
        total.parameters | {"sinks": normal(B, H, seed=5)},
    )
    fixed = {"logits_soft_cap": 2.0, "scale": 0.7}
    assert_parity(parity, "attention, other biases", options, t, s, mask="lengths, per query", k=1, **fixed)


def test_a_bias_of_minus_infinity(parity: Parity) -> None:
    """A function may rule keys out, and all keys of a query; the gradients of its arrays stay finite."""
    t, s = SMALL

    def ours(decay: Any) -> biases.Bias:
        return biases.where(
            lambda q, k, decay: jnp.where((k > q) | (q == 3), -jnp.inf, -decay * abs(q - k)), decay=("h", decay)
        )

    def theirs(decay: Tensor) -> Tensor:
        return torch_ref.biases.where(
            lambda i, j: torch.where((j > i) | (i == 3), -torch.inf, -decay[:, None, None] * (i - j).abs()), t, s
        )

    assert_parity(parity, "attention, other biases", of_bias(ours, theirs, decay=normal(H, seed=3)), t, s)


def squashed(x: Any, i: Any, j: Any, factor: Any, at: Any) -> Any:
    """One factor for each head on what lies in the past, and a number that is looked up."""
    return x * (1 + factor * (j < i)) + at[(i - j) % 3] * x * x


@pytest.mark.parametrize(("score", "t", "s"), [("dot_product", *SMALL), ("gaussian", *SMALL), ("gaussian", *LARGE)])
def test_modified_score(parity: Parity, score: str, t: int, s: int) -> None:
    """After the score's scale, before bias and soft cap. A Gaussian streams as a product."""
    original = {"dot_product": scores.DotProduct(0.4), "gaussian": scores.Gaussian(1.5)}[score]
    reference = {
        "dot_product": functools.partial(torch_ref.dot_product, scale=0.4),
        "gaussian": functools.partial(torch_ref.gaussian, bandwidth=1.5),
    }[score]

    def theirs(factor: Tensor, at: Tensor, bias: Tensor) -> dict[str, Any]:
        def modified(query: Tensor, key: Tensor) -> Tensor:
            return squashed(reference(query, key), *torch_ref.masks.positions(t, s), factor[:, None, None], at)

        return {"score": modified, "bias": bias}

    options = Options(
        lambda factor, at, bias: {
            "score": scores.modified(squashed, original, factor=("h", factor), at=at),
            "bias": bias,
        },
        theirs,
        {"factor": normal(H, seed=3), "at": normal(3, seed=4) / 4, "bias": normal(t, s, seed=5)},
    )
    fixed = {"logits_soft_cap": 3.0}
    dtypes = DTYPES if (score, t) == ("dot_product", SMALL[0]) else FLOAT64
    pair = "attention, modified score"
    assert_parity(parity, pair, options, t, s, mask="causal, negative offset", k=1, dtypes=dtypes, **fixed)


# Documents that are packed into one sequence: how long they are, for each example.
DOCUMENTS = {"few": ((3, 4), (2, 2, 3)), "many": ((60, 90), (20, 71, 59))}


def apart(documents: Sequence[Sequence[int]], bias: Callable[..., Tensor], mask: Callable[[int, int], Tensor]) -> Any:
    """Attention of PyTorch to each document by itself, beginning at position 0: output and weights."""

    def run(query: Tensor, key: Tensor, value: Tensor, **parameters: Tensor) -> tuple[Tensor, Tensor]:
        _, t, h, _ = query.shape
        output, weights = (
            value.new_zeros(B, t, h, E),
            torch.zeros(B, h, t, t, dtype=torch.promote_types(value.dtype, torch.float32)),
        )
        for b, lengths in enumerate(documents):
            start = t - sum(lengths)
            for n in lengths:
                own = slice(start, start + n)
                output[b, own], weights[b, :, own, own] = torch_ref.attention(
                    query[b, own],
                    key[b, own],
                    value[b, own],
                    mask=mask(n, n),
                    bias=bias(n, n, **parameters),
                    return_weights=True,
                )
                start += n
        return output, weights

    return run


def assert_parity_with_documents(
    parity: Parity,
    documents: Sequence[Sequence[int]],
    mask: str,
    bias: str,
    apart_from_others: masks.Mask,
    positions: np.ndarray,
    dtypes: tuple[str, ...],
) -> None:
    """One sequence with those positions, and each of its documents by itself."""
    t = positions.shape[-1]
    few = t < 100
    ours_, theirs_ = {
        "causal": (masks.causal(), torch_ref.causal),
        "window": (masks.sliding_window(3, 1), lambda t, s: torch_ref.sliding_window(t, s, 3, 1)),
    }[mask]
    of_ours, of_theirs, parameters = {
        "alibi": (biases.alibi, lambda t, s, slopes: torch_ref.alibi(slopes, t, s), {"slopes": normal(H, seed=3)}),
        "relative": (
            biases.relative,
            lambda t, s, table: torch_ref.relative(table, t, s),
            {"table": normal(8, H, seed=3)},
        ),
    }[bias]

    def ours(query: Any, key: Any, value: Any, query_positions: Any, key_positions: Any, **parameters: Any) -> Any:
        return jattn.attention(
            query,
            key,
            value,
            mask=ours_ & apart_from_others,
            bias=of_ours(*parameters.values()),
            query_positions=query_positions,
            key_positions=key_positions,
            implementation="dense" if few else "streaming",
            return_weights=few,
        )

    def theirs(query_positions: Tensor, key_positions: Tensor, **arrays: Tensor) -> Any:
        output, weights = apart(documents, of_theirs, theirs_)(**arrays)
        return (output, weights) if few else output

    inputs = {"query": normal(B, t, H, D), "key": normal(B, t, 1, D, seed=1), "value": normal(B, t, 1, E, seed=2)}
    fixed = {"query_positions": positions, "key_positions": positions}
    parity("attention, positions", ours, theirs, inputs | parameters, fixed, dtypes=dtypes)


@pytest.mark.parametrize(
    ("how_many", "mask", "bias"),
    [
        ("few", "causal", "alibi"),
        ("few", "window", "relative"),
        ("many", "causal", "relative"),
        ("many", "window", "alibi"),
    ],
)
def test_packed_documents(parity: Parity, how_many: str, mask: str, bias: str) -> None:
    """Positions start anew with each document, as its own sequence would have them."""
    documents = DOCUMENTS[how_many]
    positions = np.array([np.concatenate([np.arange(n) for n in lengths]) for lengths in documents])
    ids = jnp.array([np.repeat(np.arange(len(lengths)), lengths) for lengths in documents])
    dtypes = DTYPES if (how_many, mask) == ("few", "causal") else FLOAT64
    assert_parity_with_documents(parity, documents, mask, bias, masks.segments(ids), positions, dtypes)


@pytest.mark.parametrize(
    ("t", "padding", "mask", "bias"),
    [
        (7, (3, 0), "causal", "alibi"),
        (7, (3, 0), "window", "alibi"),
        (150, (97, 20), "causal", "alibi"),
    ],
)
def test_left_padding(parity: Parity, t: int, padding: tuple[int, ...], mask: str, bias: str) -> None:
    """The padding has negative positions, and neither sees nor is seen."""
    positions = np.arange(t) - np.array(padding)[:, None]
    real = masks.where(lambda q, k: (q >= 0) & (k >= 0))
    dtypes = DTYPES if (t, mask, bias) == (7, "causal", "alibi") else FLOAT64
    assert_parity_with_documents(parity, [[t - n] for n in padding], mask, bias, real, positions, dtypes)


def at_positions(t: int, s: int, query: Tensor, key: Tensor) -> dict[str, Options]:
    """What depends on positions, with queries and keys at these."""
    table = normal(8, H, seed=3)

    def modified(factor: Tensor, at: Tensor) -> Any:
        i, j = torch_ref.masks.positions(t, s, query, key)
        return lambda q, k: squashed(torch_ref.dot_product(q, k), i, j, factor[:, None, None], at)

    return {
        "alibi": of_bias(
            biases.alibi, lambda slopes: torch_ref.alibi(slopes, t, s, query, key), slopes=normal(B, H, seed=3)
        ),
        "relative": of_bias(
            lambda table: biases.relative(table, max_distance=9),
            lambda table: torch_ref.relative(table, t, s, True, 9, query, key),
            table=table,
        ),
        "relative, one direction": of_bias(
            lambda table: biases.relative(table, bidirectional=False, max_distance=9),
            lambda table: torch_ref.relative(table, t, s, False, 9, query, key),
            table=table,
        ),
        "where": of_bias(
            lambda decay, at: biases.where(decayed, decay=("h", decay), at=at),
            lambda decay, at: torch_ref.biases.where(
                lambda i, j: decayed(i, j, decay[:, None, None], at), t, s, query, key
            ),
            decay=normal(H, seed=3),
            at=normal(3, seed=4),
        ),
        "modified score": Options(
            lambda factor, at: {"score": scores.modified(squashed, factor=("h", factor), at=at)},
            lambda factor, at: {"score": modified(factor, at)},
            {"factor": normal(H, seed=3), "at": normal(3, seed=4) / 4},
        ),
    }


def any_positions(t: int, s: int) -> tuple[np.ndarray, np.ndarray]:
    """One for all examples, and for each example its own; in no order, with gaps, some twice."""
    rng = np.random.default_rng(0)
    return rng.integers(-3, t + 3, t), rng.integers(-3, s + 3, (B, s))


@pytest.mark.parametrize("name", at_positions(1, 1, torch.zeros(1), torch.zeros(1)))
def test_any_positions(parity: Parity, name: str) -> None:
    assert_parity_at_positions(parity, name, *SMALL, dtypes=DTYPES if name == "relative" else FLOAT64)


def test_any_positions_in_blocks(parity: Parity) -> None:
    assert_parity_at_positions(parity, "modified score", *LARGE, dtypes=FLOAT64)


def assert_parity_at_positions(parity: Parity, name: str, t: int, s: int, dtypes: tuple[str, ...]) -> None:
    """Under lengths, which count keys as they lie in their array."""
    query, key = any_positions(t, s)
    options = at_positions(t, s, torch.tensor(query), torch.tensor(key))[name]

    def ours(**parameters: Any) -> dict[str, Any]:
        return options.ours(**parameters) | {"query_positions": jnp.asarray(query), "key_positions": jnp.asarray(key)}

    options_at = Options(ours, options.theirs, options.parameters)
    assert_parity(parity, "attention, positions", options_at, t, s, mask="lengths, per query", k=1, dtypes=dtypes)


def test_alibi_of_keys_far_away(parity: Parity) -> None:
    """Distances of some 1,000, which bfloat16 would round to multiples of 4."""
    (t, s), here = SMALL, np.arange(5) + 1000
    options = of_bias(
        biases.alibi,
        lambda slopes: torch_ref.alibi(slopes, t, s, torch.tensor(here)),
        slopes=torch_ref.alibi_slopes(H).numpy(),
    )

    def ours(slopes: Any) -> dict[str, Any]:
        return options.ours(slopes=slopes) | {"query_positions": jnp.asarray(here)}

    options_at = Options(ours, options.theirs, options.parameters)
    assert_parity(parity, "attention, positions", options_at, t, s, dtypes=DTYPES)


@pytest.mark.parametrize("heads", [None, [3, 0, 1]])
def test_weights_of_some_heads_and_queries(parity: Parity, heads: list[int] | None) -> None:
    """With everything that depends on positions or heads."""
    (t, s), queries = SMALL, [4, 1, 2]
    query_positions, key_positions = any_positions(t, s)
    every = at_positions(t, s, torch.tensor(query_positions), torch.tensor(key_positions))
    parameters = {"sinks": normal(B, H, seed=6)}
    for name in ("alibi", "relative", "modified score"):
        parameters |= every[name].parameters

    def some(side: str, p: dict[str, Any]) -> dict[str, Any]:
        of = {name: getattr(every[name], side) for name in every}
        bias = of["alibi"](slopes=p.pop("slopes"))["bias"] + of["relative"](table=p.pop("table"))["bias"]
        return {"bias": bias} | of["modified score"](factor=p.pop("factor"), at=p.pop("at"))

    rule = rules(t, s)["lengths, per query"]
    at = {"query_positions": jnp.asarray(query_positions), "key_positions": jnp.asarray(key_positions)}
    parity(
        "attention_weights",
        lambda **x: jattn.attention_weights(**some("ours", x), **x, **at, mask=rule.ours, heads=heads, queries=queries),
        lambda **x: torch_ref.attention_weights(
            **some("theirs", x), **x, mask=rule.theirs, heads=heads, queries=queries
        ),
        {"query": normal(B, t, H, D), "key": normal(B, s, 2, D, seed=1)} | parameters,
        dtypes=FLOAT64,
    )


# ----------------------------------------------------------------------------------------------------------------------
# The original code.


def transformers(name: str) -> ModuleType:
    path = f"transformers.models.{name}.modeling_{name}"
    return pytest.importorskip(path, reason=f"no transformers: biases were not compared with its {name}")


@pytest.mark.parametrize("num_heads", [1, 2, 3, 4, 6, 8, 12, 16, 20, 71, 112, 128])
def test_slopes_are_those_of_bloom(num_heads: int) -> None:
    """Theirs are powers in float32 of a base that is rounded to it, unless the slopes are whole powers of 2."""
    bloom = transformers("bloom").build_alibi_tensor(torch.ones(1, 2), num_heads, torch.float32)[:, 0, 1].numpy()
    power = 2 ** int(np.log2(num_heads))
    rtol = 0 if power <= 8 and (power == num_heads or power <= 4) else 2 * power * np.finfo(np.float32).eps
    for slopes in (biases.alibi_slopes(num_heads), torch_ref.alibi_slopes(num_heads).numpy()):
        assert slopes.shape == (num_heads,)
        np.testing.assert_allclose(slopes, bloom, rtol=rtol, atol=0)


def test_weights_are_those_of_bloom_under_a_causal_mask(parity: Parity) -> None:
    """Theirs adds slope * j, which differs by one number for all keys of a query."""
    t = 7
    bloom = transformers("bloom").build_alibi_tensor(torch.ones(1, t), 6, torch.float64).reshape(6, 1, t)
    inputs = {"query": normal(B, t, 6, D), "key": normal(B, t, 6, D, seed=1)}
    parity(
        "attention_weights, BLOOM",
        lambda **x: jattn.attention_weights(**x, mask=masks.causal(), bias=biases.alibi(6)),
        lambda **x: torch_ref.attention_weights(**x, mask=torch_ref.causal(t, t), bias=bloom),
        inputs,
        dtypes=FLOAT64,
    )


FAR = 600
BUCKETS = [(n, far, both) for n in (32, 16, 8) for far in (128, 64, 20) for both in (True, False)]
BUCKETS += [(10, 160, False), (20, 160, True), (20, 320, False)]  # where a logarithm in float64 would give others


def buckets(n: int, far: int, both: bool) -> np.ndarray:
    """Of the distances -FAR to FAR: the table's entries are the buckets' numbers."""
    table = jnp.arange(n, dtype=jnp.float32)[:, None]
    matrix = np.asarray(biases.relative(table, bidirectional=both, max_distance=far).as_array(FAR + 1, FAR + 1))
    assert np.array_equal(matrix[1:, 1:], matrix[:-1, :-1])  # nothing but the distance decides
    return np.concatenate([matrix[:, 0][::-1], matrix[0, 1:]])


def reference_buckets(n: int, far: int, both: bool) -> np.ndarray:
    distances, here = torch.arange(-FAR, FAR + 1), torch.zeros(1, dtype=torch.long)
    table = torch.arange(n, dtype=torch.float32)[:, None]
    return torch_ref.relative(table, 1, 2 * FAR + 1, both, far, here, distances).flatten().numpy()


@pytest.mark.parametrize(("n", "far", "both"), BUCKETS)
def test_buckets_are_those_of_t5(n: int, far: int, both: bool) -> None:
    """Exactly: the other side of a rounding is another bucket."""
    attention = transformers("t5").T5Attention
    theirs = attention._relative_position_bucket(torch.arange(-FAR, FAR + 1), both, n, far).numpy()
    assert len(set(theirs)) > 1
    assert np.array_equal(reference_buckets(n, far, both), theirs)
    assert np.array_equal(buckets(n, far, both), theirs)


@pytest.mark.every_case
@pytest.mark.parametrize("both", [True, False])
def test_bias_is_that_of_t5(both: bool) -> None:
    """Of the whole module: an encoder's looks in both directions, a decoder's in one."""
    config = importlib.import_module("transformers").T5Config(num_heads=3, is_decoder=not both)
    module = transformers("t5").T5Attention(config, has_relative_attention_bias=True, layer_idx=0)
    table = module.relative_attention_bias.weight.detach()
    theirs = module.compute_bias(200, 300)[0].detach().numpy()
    ours = biases.relative(jnp.asarray(table.numpy()), bidirectional=both).as_array(200, 300)
    assert np.array_equal(ours, theirs)
    assert np.array_equal(torch_ref.relative(table, 200, 300, both), theirs)


@pytest.mark.parametrize(("n", "far"), [(n, far) for n, far, both in BUCKETS if both])
def test_buckets_are_those_of_mpnet(n: int, far: int) -> None:
    distances = torch.arange(-FAR, FAR + 1)
    theirs = transformers("mpnet").MPNetEncoder.relative_position_bucket(distances, n, far).numpy()
    assert np.array_equal(buckets(n, far, True), theirs)
