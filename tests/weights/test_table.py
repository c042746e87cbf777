"""Tables: each line both ways, bit for bit; and one error that lists all that is wrong."""

import re
from typing import Any

import hypothesis
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import strategies as st

from jattn import nn
from jattn.weights import (
    Table,
    convert,
    dropped,
    files,
    load_state_dict,
    merge,
    part,
    prefixed,
    rename,
    save,
    split,
    tied,
    transposed,
    zeros,
)
from jattn.weights.table import moved, moved_name
from tests.errors import raises

Shapes = dict[str, tuple[int, ...]]
FLOATS = ("float32", "bfloat16", "float16", "float64")
QKV = ("query", "key", "value")


def random_bits(shapes: Shapes, dtype: Any, seed: int = 0) -> dict[str, np.ndarray]:
    """All kinds of numbers, NaN and infinities among them."""
    rng = np.random.default_rng(seed)
    dtype = np.dtype(jnp.dtype(dtype))
    size = {name: int(np.prod(shape)) for name, shape in shapes.items()}
    return {n: np.frombuffer(rng.bytes(size[n] * dtype.itemsize), dtype).reshape(s) for n, s in shapes.items()}


def same(one: dict[str, Any], other: dict[str, Any]) -> None:
    """Names, dtypes, shapes and bits, in whatever order."""
    assert one.keys() == other.keys()
    for name in one:
        a, b = np.asarray(one[name]), np.asarray(other[name])
        assert (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes()), name


# ----------------------------------------------------------------------------------------------------------------------
# Each line.

# What a line is, the shapes that go in, and those that it makes of them.
LINES: dict[str, tuple[Any, Shapes, Shapes]] = {
    "rename": (
        [rename("h.#.ln", "blocks.#.norm")],
        {"h.0.ln.weight": (2,), "h.12.ln.bias": (3,), "h.0.ln2.bias": (4,), "ah.0.ln.bias": (5,)},
        {"blocks.0.norm.weight": (2,), "blocks.12.norm.bias": (3,), "h.0.ln2.bias": (4,), "ah.0.ln.bias": (5,)},
    ),
    "rename, two numbers": (
        [rename("stages.#.layers.#", "blocks.#.#")],
        {"stages.1.layers.2.weight": (2,)},
        {"blocks.1.2.weight": (2,)},
    ),
    "rename, a regular expression": (
        [rename(r"^enc_(\d)", r"encoder.\1", back=(r"^encoder\.(\d)", r"enc_\1"))],
        {"enc_0.weight": (2,), "norm.weight": (3,)},
        {"encoder.0.weight": (2,), "norm.weight": (3,)},
    ),
    "rename, in a circle": (
        [rename("a", "c"), rename("b", "a"), rename("c", "b")],
        {"a.weight": (2,), "b.weight": (3,)},
        {"b.weight": (2,), "a.weight": (3,)},
    ),
    "prefixed": (
        [prefixed("model.", but="head")],
        {"model.norm.weight": (2,), "head.weight": (3,)},
        {"norm.weight": (2,), "head.weight": (3,)},
    ),
    "prefixed, another": ([prefixed("", "encoder.")], {"norm.weight": (2,)}, {"encoder.norm.weight": (2,)}),
    "transposed": (
        [transposed("h.#.fc", "blocks.#.linear")],
        {"h.0.fc.weight": (2, 3), "h.0.fc.bias": (3,)},
        {"blocks.0.linear.weight": (3, 2), "blocks.0.linear.bias": (3,)},
    ),
    "transposed, axes": ([transposed(r"\.conv$", axes=(2, 0, 1))], {"a.conv": (2, 3, 4)}, {"a.conv": (4, 2, 3)}),
    "split": (
        [split("h.#.qkv", [f"h.#.{p}" for p in QKV])],
        {"h.1.qkv.weight": (6, 5), "h.1.qkv.bias": (6,)},
        {f"h.1.{p}.{kind}": (2, *rest) for p in QKV for kind, rest in (("weight", (5,)), ("bias", ()))},
    ),
    "split, by head, along the last axis": (
        [split("qkv", QKV, num_heads=4, axis=-1)],
        {"qkv.weight": (5, 24), "qkv.bias": (24,)},
        {f"{p}.{kind}": (*rest, 8) for p in QKV for kind, rest in (("weight", (5,)), ("bias", ()))},
    ),
    "split, grouped heads": (
        [split("qkv", QKV, sizes=(4, 2, 2))],
        {"qkv.weight": (16, 5)},
        {"query.weight": (8, 5), "key.weight": (4, 5), "value.weight": (4, 5)},
    ),
    "merge": (
        [merge(("q", "k", "v"), "qkv", sizes=(2, 1, 1), num_heads=3)],
        {"q.bias": (12,), "k.bias": (6,), "v.bias": (6,)},
        {"qkv.bias": (24,)},
    ),
    "tied": (
        [tied("head.weight", "wte.weight"), rename("wte", "embedding")],
        {"head.weight": (3, 2), "wte.weight": (3, 2)},
        {"embedding.weight": (3, 2)},
    ),
    "convert": (
        [convert(("a", "b"), "ab", lambda a, b: np.stack([a, b]), lambda ab: tuple(ab))],
        {"a.bias": (3,), "b.bias": (3,)},
        {"ab.bias": (2, 3)},
    ),
}


@pytest.mark.every_case
@pytest.mark.parametrize("name", LINES)
@hypothesis.settings(deadline=None, derandomize=True, max_examples=12)
@hypothesis.given(dtype=st.sampled_from(FLOATS), seed=st.integers(0, 2**16))
def test_there_and_back(name: str, dtype: str, seed: int) -> None:
    lines, theirs, ours = LINES[name]
    entries = random_bits(theirs, dtype, seed)
    if name == "tied":
        entries["wte.weight"] = entries["head.weight"].copy()
    made = Table(lines).load(entries)
    assert {n: np.shape(x) for n, x in made.items()} == ours
    assert {np.asarray(x).dtype for x in made.values()} == {np.dtype(jnp.dtype(dtype))}
    same(Table(lines).dump(made), entries)


def rows(*numbers: int) -> np.ndarray:
    """A matrix whose rows say which they are."""
    return np.array(numbers, np.float32)[:, None] + np.zeros(2, np.float32)


def test_the_orders_of_fused_weights() -> None:
    """Three parts, two heads of two features: 1 and 2 are the first head's, tens are keys', hundreds values'."""
    after = rows(1, 2, 3, 4, 10, 20, 30, 40, 100, 200, 300, 400)
    by_head = rows(1, 2, 10, 20, 100, 200, 3, 4, 30, 40, 300, 400)
    expected = {"query": rows(1, 2, 3, 4), "key": rows(10, 20, 30, 40), "value": rows(100, 200, 300, 400)}
    for fused, options in ((after, {}), (by_head, {"num_heads": 2})):
        same(Table([split("qkv", QKV, **options)]).load({"qkv": fused}), expected)
        same(
            Table([split("qkv", QKV, axis=1, **options)]).load({"qkv": fused.T}), {n: x.T for n, x in expected.items()}
        )
    grouped = rows(1, 2, 3, 4, 10, 20, 100, 200)  # as many features, but one head of keys
    expected |= {"key": rows(10, 20), "value": rows(100, 200)}
    same(Table([split("qkv", QKV, sizes=(2, 1, 1))]).load({"qkv": grouped}), expected)
    same(Table([split("qkv", QKV, sizes=(4, 2, 2))]).load({"qkv": grouped}), expected)
    falcon = rows(1, 2, 10, 100, 3, 4, 20, 200)  # two groups of two heads of one feature
    same(Table([split("qkv", QKV, sizes=(2, 1, 1), num_heads=2)]).load({"qkv": falcon}), expected)


@pytest.mark.parametrize(
    ("where", "options", "kept"),
    [
        (slice(2, None), {}, [12, 13, 14]),
        (slice(None, -1), {}, [10, 11, 12, 13]),
        (slice(1, 3), {"size": 5}, [11, 12]),
        (slice(-2, None), {"size": 5}, [13, 14]),
    ],
)
def test_a_part_and_what_is_filled_in(where: slice, options: dict[str, Any], kept: list[int]) -> None:
    for x in (np.arange(10, 15, dtype=np.float16), np.arange(10, 15)[None] + np.zeros((3, 1))):
        table = Table([part("pos", "positions", where, axis=-1, fill=0, **options)])
        ours = table.load({"pos": x})["positions"]
        np.testing.assert_array_equal(ours, np.broadcast_to(kept, ours.shape))
        back = table.dump({"positions": ours})["pos"]
        assert back.dtype == x.dtype
        np.testing.assert_array_equal(back, np.where(np.isin(x, kept), x, 0))


def test_tied_weights_are_given_once_or_twice() -> None:
    table = Table([tied("head.weight", "wte.weight")])
    x = np.ones((2, 3))
    for given in (["head.weight"], ["wte.weight"], ["head.weight", "wte.weight"]):
        same(table.load(dict.fromkeys(given, x)), {"wte.weight": x})
    same(table.dump({"wte.weight": x}), {"head.weight": x, "wte.weight": x})


def test_zeros_are_added_and_left_out() -> None:
    entries = {"0.query.bias": np.ones(3, np.float16), "0.key.weight": np.ones((3, 2), np.float16)}
    for line, shapes in ((zeros("#.key.bias", like="#.query.bias"), None), (zeros("#.key.bias"), {"0.key.bias": (3,)})):
        ours = Table([line]).load(entries, shapes)
        same(ours, {**entries, "0.key.bias": np.zeros(3, np.float16)})
        same(Table([line]).dump(ours), entries)
    lenient = Table([zeros("#.key.bias", like="#.query.bias", optional=True)])
    other = {**entries, "0.key.bias": np.ones(3, np.float16)}
    same(lenient.load(other), other)
    same(lenient.dump(other), other)
    same(lenient.load({}), {})


def test_what_is_dropped_does_not_come_back() -> None:
    table = Table([dropped(r"\.inv_freq$"), dropped("pooler"), dropped("cls", optional=True)])
    entries = {"a.inv_freq": np.ones(2), "pooler.dense.weight": np.ones(2), "norm.weight": np.ones(3)}
    ours = table.load(entries)
    assert list(ours) == ["norm.weight"]
    same(table.dump(ours), ours)


def test_what_is_only_for_loading() -> None:
    """Older names, and what a wrapper put in front."""
    table = Table(
        [
            prefixed("bert.", optional=True, back=False),
            rename(r"\.gamma$", ".weight", optional=True, back=False),
            rename("LayerNorm", "norm"),
        ]
    )
    for entries in ({"bert.LayerNorm.gamma": 1}, {"LayerNorm.gamma": 1}, {"LayerNorm.weight": 1}):
        assert table.load(entries) == {"norm.weight": 1}
    assert table.dump({"norm.weight": 1}) == {"LayerNorm.weight": 1}


def test_a_table_says_what_it_is() -> None:
    table = Table([rename("a", "b"), split("c", ["d", "e"], num_heads=2), zeros("f")])
    assert repr(table) == "Table([rename('a', 'b'), split('c', ['d', 'e']), zeros('f')])"


# ----------------------------------------------------------------------------------------------------------------------
# On a module.

VARIANTS = Table(  # of two models: one has fused weights, (in, out), and a bias; the other has neither
    [
        prefixed("model.", optional=True),
        transposed("c_fc", optional=True),
        rename("c_fc", "linear1", optional=True),
        rename("up", "linear1", optional=True, back=False),
        rename("down", "linear2"),
        zeros(r"\.bias$", optional=True),
        dropped("inv_freq", optional=True),
    ]
)


def feed_forward(fill: float = 5.0) -> nn.FeedForward:
    module = nn.FeedForward(2, 3, rngs=nnx.Rngs(0))
    for layer in (module.linear1, module.linear2):
        layer.kernel[...] = jnp.full_like(layer.kernel[...], fill)
        layer.bias[...] = jnp.full_like(layer.bias[...], fill)
    return module


def test_one_table_serves_two_variants() -> None:
    first = random_bits({"model.c_fc.weight": (2, 3), "model.down.weight": (2, 3)}, "float32")
    first |= {"model.c_fc.bias": np.ones(3, np.float32), "model.down.bias": np.ones(2, np.float32)}
    second = {"up.weight": first["model.c_fc.weight"].T, "down.weight": first["model.down.weight"]}
    one = load_state_dict(feed_forward(), first, rename=VARIANTS)
    other = load_state_dict(feed_forward(), {**second, "inv_freq": np.arange(3)}, rename=VARIANTS)
    for module, bias in ((one, 1.0), (other, 0.0)):
        assert module.linear1.kernel[...].tobytes() == first["model.c_fc.weight"].tobytes()
        np.testing.assert_array_equal(module.linear1.bias[...], np.full(3, bias))
        np.testing.assert_array_equal(module.linear2.bias[...], np.full(2, bias))


def test_a_file_there_and_back(tmp_path: Any) -> None:
    pytest.importorskip("safetensors")
    table = Table([prefixed("mlp."), transposed("fc", "linear1"), rename("proj", "linear2")])
    shapes: Shapes = {"mlp.fc.weight": (2, 3), "mlp.fc.bias": (3,), "mlp.proj.weight": (2, 3), "mlp.proj.bias": (2,)}
    entries = random_bits(shapes, jnp.bfloat16)
    files.save(tmp_path / "a.safetensors", entries)
    module = load_state_dict(feed_forward(), tmp_path / "a.safetensors", rename=table)
    save(module, tmp_path / "b.safetensors", rename=table)
    same(files.load(tmp_path / "b.safetensors"), entries)


ENTRIES: dict[str, np.ndarray] = {
    "fc.weight": np.ones((2, 3), np.float32),
    "fc.bias": np.ones(3, np.float32),
    "proj.weight": np.ones((2, 3), np.float32),
    "proj.bias": np.ones(2, np.float32),
}
FITS = [transposed("fc", "linear1"), rename("proj", "linear2")]


def refuses(entries: dict[str, Any], table: Any, *lines: str) -> None:
    """With these lines and no others, and no change at all."""
    module = feed_forward()
    with pytest.raises(ValueError, match="must fit this FeedForward, entry for entry") as error:
        load_state_dict(module, entries, rename=table if isinstance(table, Table) else Table(table))
    assert str(error.value).split("\n  ") == ["state_dict must fit this FeedForward, entry for entry.", *lines]
    assert all(bool((x[...] == 5).all()) for x in (module.linear1.kernel, module.linear2.bias))


def test_one_error_lists_everything() -> None:
    refuses(
        {**ENTRIES, "ln.weight": np.ones(4, np.float32), "qkv.bias": np.ones(7), "scale": np.ones(2)},
        [
            transposed("fcc", "linear1"),
            rename("proj", "linear2"),
            rename("layer.#.norm", "blocks.#.norm"),
            split("qkv", QKV),
            rename("scale", "gain"),
            rename("ln", "linear2"),
        ],
        "unmatched: transposed('fcc', 'linear1') finds no name; nearest: fc",
        "unmatched: rename('layer.#.norm', 'blocks.#.norm') finds no name",
        "unfit: qkv.bias must be cut 1:1:1 along axis 0, of size 7",
        "written twice: linear2.weight of proj.weight, and of ln.weight",
        "unknown: fc.weight, shape (2, 3)",
        "unknown: fc.bias, shape (3,)",
        "unknown: gain, shape (2,), from scale",
        "missing: linear1.weight, shape (3, 2)",
        "missing: linear1.bias, shape (3,)",
        "misshapen: linear2.weight must have shape (2, 3). Got (4,), from ln.weight",
    )


@pytest.mark.parametrize(
    ("change", "lines", "expected"),
    [
        (
            {"lm.weight": np.ones((2, 3), np.float32)},
            [*FITS, tied("lm.weight", "linear2.weight")],
            [],
        ),
        (
            {"lm.weight": np.zeros((2, 3), np.float32)},
            [*FITS, tied("lm.weight", "linear2.weight")],
            [
                "unfit: lm.weight must be equal: the table has lm.weight tied to linear2.weight. Got other numbers",
            ],
        ),
        (
            {"a.0.w": np.ones((3, 2)), "a.1.w": np.ones((3, 2))},
            [*FITS, split("a.#.w", ("a.#.u", "a.#.v"), axis=2)],
            ["unfit: a.{0,1}.w must have an axis 2. Got shape (3, 2)"],
        ),
        (
            {"q.weight": np.ones((3, 2)), "q.bias": np.ones(3)},
            [*FITS, merge(("q", "k"), "qk")],
            ["incomplete: q.weight needs k.weight beside it", "incomplete: q.bias needs k.bias beside it"],
        ),
        (
            {"q.bias": np.ones(3), "k.bias": np.ones(4)},
            [*FITS, merge(("q", "k"), "qk")],
            ["unfit: q.bias must be put together 1:1 along axis 0. Got shapes (3,), (4,)"],
        ),
        (
            {"q.bias": np.ones(3), "k.bias": np.ones(3, np.float32)},
            [*FITS, merge(("q", "k"), "qk")],
            ["unfit: q.bias must be of one dtype with its other parts. Got float64, float32"],
        ),
        (
            {"conv": np.ones((3, 2))},
            [*FITS, transposed("conv", axes=(2, 0, 1))],
            ["unfit: conv must have 3 axes to be transposed. Got shape (3, 2)"],
        ),
        (
            {"w": np.ones(2)},
            [*FITS, convert("w", ("u", "v"), lambda w: w, lambda u, v: u)],
            ["unfit: w must become 2, by convert('w', ('u', 'v')). Got 1"],
        ),
        (
            {},
            [*FITS, zeros("linear1.bias")],
            ["written twice: linear1.bias as zeros, and it is there; optional=True leaves it"],
        ),
        (
            {},
            [*FITS, rename(r"(fc|linear1)\.bias", "bias", optional=True), rename(r"linear\d\.weight", "w")],
            [
                "written twice: w of linear1.weight, and of linear2.weight",
                "unknown: w, shape (2, 3), from proj.weight",
                "unknown: bias, shape (3,), from fc.bias",
                "missing: linear1.weight, shape (3, 2)",
                "missing: linear1.bias, shape (3,)",
                "missing: linear2.weight, shape (2, 3)",
            ],
        ),
        (
            {"blocks.0.norm.weight": np.ones(2), "blocks.1.norm.weight": np.ones(2)},
            [*FITS, rename("block.#.norm", "norms.#")],
            [
                "unmatched: rename('block.#.norm', 'norms.#') finds no name; nearest: blocks.#.norm",
                "unknown: blocks.{0,1}.norm.weight, shape (2,)",
            ],
        ),
    ],
)
def test_what_a_line_refuses(change: dict[str, Any], lines: list[Any], expected: list[str]) -> None:
    if expected:
        refuses({**ENTRIES, **change}, lines, *expected)
    else:
        load_state_dict(feed_forward(), {**ENTRIES, **change}, rename=Table(lines))


# ----------------------------------------------------------------------------------------------------------------------
# The way back.


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (
            [rename(r"^layers_(\d)", r"\1"), rename("a", "c"), part("b", "b", slice(2, None))],
            [
                "unfit: b.weight is a part, and nothing says what is in the rest; give fill",
                "unmatched: rename('a', 'c') finds no name",
                "one way: rename('^layers_(\\\\d)', '\\\\1') has no way back; write it with # for numbers, "
                "or give back=(pattern, replacement), or back=False",
            ],
        ),
        ([part("b", "b", slice(0, 9), fill=0)], ["unfit: b.weight is a part of something of unknown size; give size"]),
        (
            [part("b", "b", slice(0, 9), fill=0, size=12)],
            ["unfit: b.weight must have 9 along axis 0 to be that part of 12. Got 3"],
        ),
        ([zeros("b.weight")], ["unfit: b.weight must be zero, as zeros('b.weight') leaves it out"]),
        ([zeros("c.weight")], ["unmatched: zeros('c.weight') finds no name; nearest: b.weight"]),
        ([rename("c", "b"), rename("c", "d")], ["unmatched: rename('c', 'd') finds no name"]),
        ([split("c", ("b", "d"))], ["incomplete: b.weight needs d.weight beside it"]),
    ],
)
def test_what_does_not_lead_back(lines: list[Any], expected: list[str]) -> None:
    with pytest.raises(ValueError, match="table must lead back") as error:
        Table(lines).dump({"b.weight": np.ones(3)})
    assert str(error.value).split("\n  ") == ["table must lead back from each entry of the module.", *expected]


def test_patterns_do_not_lead_back(tmp_path: Any, unchecked: None) -> None:
    with raises("rename must be a jattn.weights.Table on the way back", "Got a dict."):
        save(feed_forward(), tmp_path / "a.safetensors", rename={"a": "b"})  # type: ignore[arg-type]


@pytest.mark.usefixtures("unchecked")
def test_what_is_no_table() -> None:
    with raises("rename must map regular expressions to replacements. Got a list."):
        load_state_dict(feed_forward(), ENTRIES, rename=FITS)  # type: ignore[arg-type]


# ----------------------------------------------------------------------------------------------------------------------
# Prefixes.


def prefixed_with(prefix: str) -> dict[str, np.ndarray]:
    return {f"{prefix}{name}": x for name, x in ENTRIES.items()}


@pytest.mark.parametrize(
    ("given", "lines", "line"),
    [
        (
            "module.",
            FITS,
            "without 'module.' in front of the names, 4 of 4 would fit. Put prefixed('module.') first in",
        ),
        ("a.b.", FITS, "without 'a.b.' in front of the names, 4 of 4 would fit. Put prefixed('a.b.') first in"),
        (
            "",
            [
                rename("model.fc.bias", "linear1.bias"),
                transposed("model.fc", "linear1"),
                rename("model.proj", "linear2"),
            ],
            "with 'model.' in front of the names, 4 of 4 would fit. Put prefixed('', 'model.') first in",
        ),
        (
            "",
            [transposed("net.fc", "linear1"), rename("net.proj", "linear2")],
            "with 'net.' in front of the names, 4 of 4 would fit. Put prefixed('', 'net.') first in",
        ),
    ],
)
def test_a_prefix_that_is_all_that_differs(given: str, lines: list[Any], line: str) -> None:
    refuses(prefixed_with(given), lines, f"prefix: {line} the table")
    remedy = eval(line.partition("Put ")[2].partition(" first")[0])
    load_state_dict(feed_forward(), prefixed_with(given), rename=Table([remedy, *lines]))


OWN = {"linear1.weight": (3, 2), "linear1.bias": (3,), "linear2.weight": (2, 3), "linear2.bias": (2,)}


@pytest.mark.parametrize(
    ("goes", "comes", "table"),
    [
        ("module.", "", "{'^module\\\\.': ''}"),
        ("_orig_mod.", "", "{'^_orig_mod\\\\.': ''}"),
        ("model.module.", "", "{'^model\\\\.module\\\\.': ''}"),
        ("", "encoder.", "{'^': 'encoder.'}"),
    ],
)
def test_a_prefix_without_a_table(goes: str, comes: str, table: str) -> None:
    entries = random_bits({f"{goes}{name}": shape for name, shape in OWN.items()}, "float32")
    module: nnx.Module = feed_forward()
    kind = "FeedForward"
    if comes:
        module, kind = nnx.Dict(encoder=module), "Dict"
    change = f"without {goes!r}" if goes else f"with {comes!r}"
    message = (
        f"state_dict must fit this {kind}, entry for entry.\n"
        f"  prefix: {change} in front of the names, 4 of 4 would fit. Write rename={table}"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        load_state_dict(module, entries)
    load_state_dict(module, entries, rename=eval(table))


def test_a_prefix_beside_patterns() -> None:
    patterns = {r"^fc\.": "linear1.", r"^proj\.": "linear2."}
    entries = {f"module.{name}": x for name, x in {**ENTRIES, "fc.weight": ENTRIES["fc.weight"].T}.items()}
    message = (
        "state_dict must fit this FeedForward, entry for entry.\n  prefix: without 'module.' in front of the names, 4 "
        "of 4 would fit. Put '^module\\\\.': '' first in rename"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        load_state_dict(feed_forward(), entries, rename=patterns)
    load_state_dict(feed_forward(), entries, rename={r"^module\.": "", **patterns})


def test_what_else_is_wrong_stands_behind_the_prefix() -> None:
    refuses(
        {**prefixed_with("module."), "module.head.weight": np.ones(2), "module.proj.bias": np.ones(3, np.float32)},
        [*FITS, rename("ln", "norm")],
        "prefix: without 'module.' in front of the names, 4 of 5 would fit. Put prefixed('module.') first in the table",
        "unmatched: rename('ln', 'norm') finds no name",
        "unknown: head.weight, shape (2,)",
        "misshapen: linear2.bias must have shape (2,). Got (3,), from proj.bias",
    )


def test_a_prefix_that_is_not_there() -> None:
    refuses(ENTRIES, [prefixed("model."), *FITS], "unmatched: prefixed('model.') finds no name")


def test_a_prefix_of_some_names_is_no_remedy() -> None:
    """Where most names would still not fit."""
    given = {"module.linear1.bias": np.ones(3), "module.a": np.ones(3), "module.b": np.ones(3), "c": np.ones(3)}
    with pytest.raises(ValueError, match="entry for entry") as error:
        load_state_dict(feed_forward(), given)
    assert "prefix" not in str(error.value)


# ----------------------------------------------------------------------------------------------------------------------
# Lines that can't be.


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: rename("a.#", "b"),
            "rename('a.#', 'b') must have as many # in each name. Got a.#, b.",
        ),
        (lambda: rename("", "b"), "rename('', 'b')'s name must be a name, with # for a number. Got ''."),
        (lambda: rename("a", None), "rename('a', None)'s name must be a name, with # for a number. Got None."),
        (
            lambda: rename("a", r"b$"),
            "rename('a', 'b$')'s name must be a name, with # for a number. Got the regular expression 'b$'.",
        ),
        (
            lambda: rename("(", "b"),
            "rename('(', 'b')'s name must be a regular expression that re.sub takes. Got '(': missing ), unterminated "
            "subpattern at position 0.",
        ),
        (
            lambda: rename("a+", "b", back=("b", r"\1")),
            "back of rename('a+', 'b') must be a regular expression that re.sub takes. Got 'b': invalid group "
            "reference 1 at position 1.",
        ),
        (lambda: prefixed("model"), "prefixed('model') must have prefixes that end in a dot. Got 'model'."),
        (lambda: split("a", "b"), "split('a', 'b') must have several parts. Got 'b'."),
        (lambda: merge(("a", "a"), "b"), "merge(('a', 'a'), 'b') must name each entry once. Got one twice."),
        (
            lambda: split("a", QKV, sizes=(2, 1)),
            "split('a', ('query', 'key', 'value')) must have a positive integer in sizes for each part, and for "
            "num_heads. Got sizes=(2, 1) and num_heads=1.",
        ),
        (
            lambda: split("a", QKV, num_heads=0),
            "split('a', ('query', 'key', 'value')) must have a positive integer in sizes for each part, and for "
            "num_heads. Got sizes=None and num_heads=0.",
        ),
        (
            lambda: part("a", "b", slice(0, 4, 2)),
            "part('a', 'b', slice(0, 4, 2)) must have a slice in steps of one. Got slice(0, 4, 2).",
        ),
        (
            lambda: Table([rename("a", "b"), "c"]),
            "lines must be made by functions of jattn.weights, such as rename. Got str.",
        ),
    ],
)
def test_lines_that_are_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        make()


# ----------------------------------------------------------------------------------------------------------------------
# What parity asks.


def test_parts_of_a_state_dict_move_too() -> None:
    """Gradients, of which there may be fewer, and none of what was added."""
    table = Table(
        [
            tied("head.weight", "wte.weight"),
            rename("wte", "embedding"),
            zeros("k.bias", like="q.bias"),
            merge(("q", "k"), "in_proj"),
            zeros("out.bias"),
        ]
    )
    assert moved({"wte.weight": 1}, table) == {"embedding.weight": 1}
    same(moved({"q.bias": np.ones(2)}, Table([table.lines[2]])), {"q.bias": np.ones(2)})
    assert [table.adds(name) for name in ("out.bias", "in_proj.bias", "embedding.weight")] == [True, False, False]


@pytest.mark.parametrize(
    ("name", "new"),
    [
        ("h.3.ln.", "blocks.3.norm."),  # one to one
        ("h.3.qkv.", None),  # one to several
        ("q.", None),  # several to one
        ("head.", None),
        ("gone.", None),
        ("other.", "other."),
    ],
)
def test_modules_that_move(name: str, new: str | None) -> None:
    table = Table(
        [
            rename("h.#.ln", "blocks.#.norm"),
            split("h.#.qkv", ("h.#.q", "h.#.k")),
            merge(("q", "k"), "qk"),
            tied("head", "wte"),
            dropped("gone"),
        ]
    )
    assert moved_name(name, table) == new
