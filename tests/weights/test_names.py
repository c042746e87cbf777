"""Entries renamed, and one error that stays readable however much differs."""

import re
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jattn import nn
from jattn.weights import load_state_dict
from jattn.weights.names import check_entries, renamed

# ----------------------------------------------------------------------------------------------------------------------
# Renaming.


def test_patterns_apply_in_turn() -> None:
    table = {r"^module\.": "", r"layer\.(\d+)": r"blocks.\1", r"^blocks\.(\d)\.": r"b\1."}
    assert renamed({"module.layer.3.weight": 1, "bias": 2}, table) == {"b3.weight": 1, "bias": 2}


def test_none_drops_an_entry() -> None:
    entries = {"a.position_ids": 1, "a.weight": 2, "head.weight": 3}
    assert renamed(entries, {r"\.position_ids$": None, "^head": None, "^a": "b"}) == {"b.weight": 2}


def test_two_entries_may_change_places() -> None:
    assert renamed({"a": 1, "b": 2}, {"^a$": "c", "^b$": "a", "^c$": "b"}) == {"b": 1, "a": 2}


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("table", "message"),
    [
        (
            {"^a": "x", "^module": "", "^aa": None},
            "rename must have patterns that each match an entry. Got '^module', '^aa' without a match. "
            "They are applied in turn, each to the names that those before it left.",
        ),
        (
            {"[12]": ""},
            "rename must give each entry a name of its own. Got a for a1 and a2.",
        ),
        ({"(": ""}, "rename must map regular expressions to replacements. Got '(': '': missing ), "),
        ({"a": 3}, "rename must map regular expressions to replacements. Got 'a': 3: "),
        ([("a", "b")], "rename must map regular expressions to replacements. Got a list."),
        ({"a": r"\1"}, r"rename must map regular expressions to replacements. Got 'a': '\\1': invalid group reference"),
    ],
)
def test_tables_that_are_wrong(table: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        renamed({"a1": 1, "a2": 2, "b": 3}, table)


# ----------------------------------------------------------------------------------------------------------------------
# The error.

Shapes = dict[str, tuple[int, ...]]


def refuses(expected: Shapes, given: Shapes, *lines: str) -> None:
    """With these lines and no others."""
    with pytest.raises(ValueError, match="entry for entry") as error:
        check_entries(
            "state_dict", "Model", expected, {name: np.zeros(shape, np.float32) for name, shape in given.items()}
        )
    assert str(error.value).split("\n  ") == ["state_dict must fit this Model, entry for entry.", *lines]


def layers(count: int, name: str, *shape: int) -> Shapes:
    return {name.format(i): shape for i in range(count)}


def test_what_fits_passes() -> None:
    check_entries("state_dict", "Model", {"a": (2, 3)}, {"a": np.zeros((2, 3), jnp.bfloat16)})


def test_the_nearest_name() -> None:
    refuses(
        {"attention.query.weight": (8, 8), "attention.key.weight": (8, 8), "attention.query.bias": (8,)},
        {"atention.query.weight": (8, 8), "attention.key.weight": (8, 8), "zzz": (8,)},
        "unknown: atention.query.weight, shape (8, 8); nearest missing: attention.query.weight",
        "unknown: zzz, shape (8,)",
        "missing: attention.query.weight, shape (8, 8)",
        "missing: attention.query.bias, shape (8,)",
    )


def test_the_nearest_name_has_the_shape_if_any_does() -> None:
    refuses(
        {"linear.bias": (3,), "linear2.bias": (5,)},
        {"linear1.bias": (5,), "linears.bias": (4,)},
        "unknown: linear1.bias, shape (5,); nearest missing: linear2.bias",
        "unknown: linears.bias, shape (4,); nearest missing: linear.bias",
        "missing: linear.bias, shape (3,)",
        "missing: linear2.bias, shape (5,)",
    )


def test_a_transposed_matrix() -> None:
    refuses(
        {"a": (2, 3), "b": (2, 3), "c": (2, 3, 4)},
        {"a": (3, 2), "b": (3, 3), "c": (4, 3, 2)},
        "misshapen: a must have shape (2, 3). Got (3, 2); its transpose would fit",
        "misshapen: b must have shape (2, 3). Got (3, 3)",
        "misshapen: c must have shape (2, 3, 4). Got (4, 3, 2); its transpose would fit",
    )


def test_layers_share_a_line() -> None:
    common = layers(12, "blocks.{}.bias", 4)
    expected = {**common, **layers(12, "blocks.{}.attention.weight", 4, 4), **layers(3, "heads.{}.weight", 2, 4)}
    given = {**common, **layers(12, "blocks.{}.atention.weight", 4, 4), **layers(3, "heads.{}.weight", 4, 2)}
    del given["blocks.7.bias"], given["blocks.9.bias"], given["blocks.3.atention.weight"]
    refuses(
        expected,
        given,
        "unknown: blocks.{0,1,2,4,5,6,7,8,9,10,11}.atention.weight, shape (4, 4); "
        "nearest missing: blocks.{0..11}.attention.weight",
        "missing: blocks.{7,9}.bias, shape (4,)",
        "missing: blocks.{0..11}.attention.weight, shape (4, 4)",
        "misshapen: heads.{0..2}.weight must have shape (2, 4). Got (4, 2); its transpose would fit",
    )


def test_hundreds_of_names_hide_no_kind() -> None:
    many = {f"entry_{i}": (i + 1,) for i in range(100)}
    with pytest.raises(ValueError, match="entry for entry") as error:
        check_entries(
            "state_dict",
            "Model",
            {**many, "a": (1,), "b": (1,)},
            {**{f"zz.{i}.{i}.x": np.zeros(i) for i in range(100)}, "a": np.zeros(2), "b": np.zeros(1, np.int64)},
        )
    lines = str(error.value).split("\n  ")
    assert lines[31] == "and 70 more unknown"
    assert lines[62:] == [
        "and 70 more missing",
        "misshapen: a must have shape (1,). Got (2,)",
        "float64: a would lose digits. Turn on jax_enable_x64, or convert it first",
        "int64: b must be floating point",
    ]


# ----------------------------------------------------------------------------------------------------------------------
# Tied weights.


class Tied(nnx.Module):
    """An embedding, and a linear layer whose kernel is the same parameter as another's."""

    def __init__(self) -> None:
        self.one = nnx.Linear(3, 3, use_bias=False, rngs=nnx.Rngs(0))
        self.other = nnx.Linear(3, 3, use_bias=False, rngs=nnx.Rngs(1))
        self.other.kernel = self.one.kernel


@pytest.mark.parametrize("names", [["one.weight"], ["other.weight"], ["one.weight", "other.weight"]])
def test_a_tied_weight_is_given_once_or_twice(names: list[str]) -> None:
    weight = np.arange(9, dtype=np.float32).reshape(3, 3)
    module = load_state_dict(Tied(), dict.fromkeys(names, weight))
    np.testing.assert_array_equal(module.one.kernel[...], weight.T)
    assert module.other.kernel is module.one.kernel


def test_a_tied_weight_is_given() -> None:
    with pytest.raises(ValueError, match=r"missing: one\.weight, shape \(3, 3\)\n  missing: other\.weight"):
        load_state_dict(Tied(), {})


def test_tied_weights_agree_bit_for_bit() -> None:
    weight = np.full((3, 3), np.nan, np.float32)
    load_state_dict(Tied(), {"one.weight": weight, "other.weight": weight.copy()})
    with pytest.raises(ValueError, match="state_dict must agree on a parameter that modules share"):
        load_state_dict(Tied(), {"one.weight": weight, "other.weight": np.zeros((3, 3), np.float32)})


def test_a_table_on_a_module() -> None:
    module = nn.FeedForward(2, 3, rngs=nnx.Rngs(0))
    ones = {"0.weight": (3, 2), "0.bias": (3,), "1.weight": (2, 3), "1.bias": (2,), "0.steps": ()}
    entries = {f"net.{name}": np.ones(shape, np.float32) for name, shape in ones.items()}
    table = {r"\.steps$": None, r"^net\.0": "linear1", r"^net\.1": "linear2"}
    assert load_state_dict(module, entries, rename=table) is module
    np.testing.assert_array_equal(module.linear1.kernel[...], np.ones((2, 3)))
