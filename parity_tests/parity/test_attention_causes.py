"""Mistakes in the attention of modern decoders are named, in surroundings that hide them from a simpler recipe."""

import dataclasses
from typing import Any

import pytest

from jattn import parity
from parity_tests.nn import randomised
from parity_tests.parity.attentions import D, ModernAttention, Settings, TorchModernAttention, inputs_of

SURROUNDINGS: dict[str, dict[str, Any]] = {
    "plain": {"causal": False},
    "rotary": {"rotary": "half", "groups": 2},
    "computed rotary": {"rotary": "interleaved", "tables": False, "mask": "lengths"},
    "partly rotary": {"rotary": "half", "width": 4, "packed": "(h 3 d)", "mask": "boolean", "causal": False},
    "additive mask": {"rotary": "half", "groups": 2, "mask": "additive", "norms": True, "base": 5e5},
    "window": {"rotary": "half", "groups": 1, "window": 4, "mask": "additive", "cap": 2.0, "scale": 0.3},
    "sinks": {"rotary": "half", "groups": 2, "window": 3, "sinks": True},
    "alibi": {"bias": "alibi", "packed": "(h 3 d)", "mask": "tokens", "left": True},
    "buckets": {"bias": "buckets", "scale": 1.0, "causal": False, "mask": "boolean"},
    "given bias": {"bias": "given", "mask": "pairs", "causal": False, "packed": "(3 h d)"},
    "groups packed": {"packed": "(g r d)", "groups": 2, "rotary": "interleaved", "window": 5},
    "weights": {"rotary": "half", "weights": True, "groups": 2},
}

ROTARY = ("rotary", "computed rotary", "partly rotary", "additive mask", "window", "sinks", "groups packed", "weights")
GROUPED = ("rotary", "additive mask", "sinks", "groups packed")
UNGROUPED = ("plain", "computed rotary", "partly rotary", "alibi", "buckets", "given bias")
CAUSAL = ("rotary", "computed rotary", "additive mask", "window", "sinks", "alibi", "groups packed")

# The mistake, its name, and where it is planted.
MISTAKES: list[tuple[dict[str, Any], str, tuple[str, ...]]] = [
    ({"rotary": ""}, "missing rotary positions", ROTARY),
    ({"rotary": "half"}, "missing rotary positions", ("plain", "alibi")),
    ({"rotary": "other"}, "pairs of rotary features", ROTARY),
    ({"layout": "other"}, "pairs of rotary features", ("rotary", "window", "groups packed")),
    ({"on": "q"}, "rotary positions of queries or keys alone", ROTARY),
    ({"on": "k"}, "rotary positions of queries or keys alone", ("rotary", "sinks")),
    ({"ahead": 1}, "rotary positions off by one", ("rotary", "computed rotary", "window", "sinks")),
    ({"sign": -1}, "direction of rotary positions", ("rotary", "partly rotary", "sinks")),
    ({"base": 1e6}, "rotary base", ROTARY),
    ({"width": 2}, "rotary width", ("rotary", "computed rotary", "partly rotary", "additive mask")),
    ({"width": D}, "rotary width", ("partly rotary",)),
    ({"over": D}, "rotary width", ("partly rotary",)),
    ({"last": True}, "rotary width", ("partly rotary",)),
    ({"factor": 4.0}, "rotary scaling", ("rotary", "window")),
    ({"scale": 1.0}, "missing scale", ("plain", "rotary", "computed rotary", "alibi", "given bias", "window", "sinks")),
    ({"scale": 1 / D}, "another scale", ("plain", "rotary", "partly rotary", "alibi", "sinks", "buckets")),
    ({"scale": (4 * D) ** -0.5}, "another scale", ("plain", "rotary", "window", "given bias")),
    ({"scale": D**-0.5}, "another scale", ("window", "buckets")),
    ({"cap": None}, "soft cap", ("window",)),
    ({"cap": 50.0}, "soft cap", ("window", "rotary", "plain")),
    ({"sinks": False}, "attention sinks", ("sinks",)),
    ({"tiled": True}, "order of grouped heads", GROUPED),
    ({"packed": "(3 h d)"}, "order in a packed projection", ("partly rotary", "alibi")),
    ({"packed": "(h 3 d)"}, "order in a packed projection", ("given bias",)),
    ({"packed": "queries first"}, "order in a packed projection", ("groups packed",)),
    ({"swapped": "keys"}, "query and key swapped", ("plain", "computed rotary", "partly rotary", "alibi", "buckets")),
    ({"swapped": "values"}, "key and value swapped", ("plain", "rotary", "sinks", "alibi")),
    ({"split": "time"}, "heads and time swapped", ("plain", "rotary", "alibi", "buckets")),
    ({"merged": "time"}, "heads and time swapped", ("plain", "rotary", "window", "sinks")),
    ({"split": "(d h)"}, "order of heads and features", ("plain", "computed rotary", "partly rotary")),
    ({"merged": "(d h)"}, "order of heads and features", ("rotary", "alibi", "sinks")),
    ({"heads": 2, "groups": 2}, "number of heads", ("plain",)),
    ({"heads": 2, "groups": 2, "width": 2 * D}, "number of heads", ("computed rotary",)),
    ({"axis": -2}, "softmax over the wrong axis", ("plain", "buckets", "rotary")),
    ({"axis": 1}, "softmax over the wrong axis", ("plain", "given bias")),
    ({"norms": False}, "missing norm of queries and keys", ("additive mask",)),
    ({"causal": False}, "missing causal mask", CAUSAL),
    ({"causal": True}, "missing causal mask", ("plain", "partly rotary", "buckets")),
    ({"shift": 1}, "causal mask off by one", CAUSAL),
    ({"shift": -1}, "causal mask off by one", ("rotary", "alibi")),
    ({"upper": True}, "causal mask over the wrong axis", ("rotary", "computed rotary", "window")),
    ({"window": None}, "missing window", ("window", "sinks", "groups packed")),
    ({"window": "more"}, "window off by one", ("window", "sinks", "groups packed")),
    ({"window": "fewer"}, "window off by one", ("window", "sinks", "groups packed")),
    ({"window": 7}, "another window", ("window", "rotary")),
    ({"mask": ""}, "missing mask", ("computed rotary", "partly rotary", "additive mask", "window", "alibi", "buckets")),
    ({"mask": "", "causal": False}, "missing mask", ("additive mask", "computed rotary")),
    ({"mask": "", "causal": False, "window": None}, "missing mask", ("window",)),
    ({"inverted": True}, "inverted mask", ("partly rotary", "buckets", "given bias", "alibi")),
    ({"left": True}, "padding on the other side", ("computed rotary", "partly rotary", "additive mask", "buckets")),
    ({"left": False}, "padding on the other side", ("alibi",)),
    ({"queries": True}, "mask over the wrong axis", ("partly rotary", "buckets", "given bias")),
    ({"bias": ""}, "missing bias of the logits", ("alibi", "buckets", "given bias")),
    ({"bias": "alibi"}, "missing bias of the logits", ("rotary", "plain")),
    ({"bias_sign": -1.0}, "sign of the bias", ("alibi", "buckets", "given bias")),
    ({"bias_turned": True}, "transposed bias", ("given bias", "buckets")),
    ({"bias_scaled": True}, "bias before the scale", ("alibi", "given bias")),
    ({"slopes": "zero"}, "slopes of ALiBi", ("alibi",)),
    ({"slopes": "integers"}, "slopes of ALiBi", ("alibi",)),
    ({"both": False}, "buckets of relative positions", ("buckets",)),
    ({"farthest": 128}, "buckets of relative positions", ("buckets",)),
    ({"averaged": True}, "weights averaged over heads", ("weights",)),
]


def planted(theirs: Settings, mistake: dict[str, Any]) -> Settings:
    """The port's settings."""
    mistake = dict(mistake)
    for name in ("rotary", "layout"):
        if mistake.get(name) == "other":
            mistake[name] = "interleaved" if theirs.rotary == "half" else "half"
    if isinstance(mistake.get("window"), str):
        assert theirs.window is not None
        mistake["window"] = theirs.window + (1 if mistake["window"] == "more" else -1)
    return dataclasses.replace(theirs, **mistake)


def causes(report: parity.Report) -> list[str]:
    """All that are named."""
    assert report.parting is not None
    diagnosis = report.parting.diagnosis
    return [] if diagnosis is None else [diagnosis.cause, *(other.cause for other in diagnosis.others)]


def compared(theirs: Settings, ours: Settings) -> parity.Report:
    return parity.compare(
        randomised(TorchModernAttention(theirs)),
        ModernAttention(ours, theirs),
        inputs_of(theirs),
        gradients=False,
        dtypes=("float64",),
    )


@pytest.mark.parametrize("name", SURROUNDINGS)
def test_the_port_without_a_mistake_is_equal(name: str) -> None:
    settings = Settings(**SURROUNDINGS[name])
    compared(settings, settings).assert_equal()


CASES = [(mistake, cause, name) for mistake, cause, names in MISTAKES for name in names]


def _id(case: tuple[dict[str, Any], str, str]) -> str:
    return f"{case[2]}: {', '.join(f'{name} {x}' for name, x in case[0].items())}"


@pytest.mark.parametrize("case", CASES, ids=map(_id, CASES))
def test_a_mistake_in_attention_is_named(case: tuple[dict[str, Any], str, str]) -> None:
    mistake, cause, name = case
    theirs = Settings(**SURROUNDINGS[name])
    assert causes(compared(theirs, planted(theirs, mistake))) == [cause]


@pytest.mark.parametrize(
    ("name", "mistakes"),
    [
        ("rotary", {"base": 1e6, "scale": 1 / D}),
        ("window", {"cap": None, "window": 7}),
        ("additive mask", {"tiled": True, "rotary": "interleaved"}),
        ("alibi", {"slopes": "zero", "packed": "(3 h d)"}),
        ("buckets", {"both": False, "left": True}),
        ("plain", {"scale": 1.0, "cap": 3.0}),
    ],
)
def test_nothing_is_named_that_is_but_half_of_it(name: str, mistakes: dict[str, Any]) -> None:
    theirs = Settings(**SURROUNDINGS[name])
    report = compared(theirs, planted(theirs, mistakes))
    assert causes(report) == []
    assert "No known cause" in report.finding
