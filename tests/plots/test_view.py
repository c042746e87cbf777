"""What the page of `attention_view` is made from, and what it holds."""

import base64
import json
import re
import zlib
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from jattn.plots import attention_view

TOKENS = ["the", "cat", "sat", "on", "the", "mat"]
T = len(TOKENS)
LAYERS, HEADS = 3, 4
RNG = np.random.default_rng(0)


def softmax(shape: tuple[int, ...], causal: bool = False) -> np.ndarray:
    x = np.exp(2 * RNG.normal(size=shape))
    x = np.tril(x) if causal else x
    return (x / x.sum(-1, keepdims=True)).astype(np.float32)


WEIGHTS = softmax((LAYERS, HEADS, T, T))
SOURCE, TARGET = ["die", "Katze", "saß", "</s>"], ["<s>", "the", "cat", "sat", "."]
PAIRS = [(softmax((2, 5, 5), causal=True), softmax((2, 5, 4))) for _ in range(2)]


def contents(view: Any) -> tuple[dict[str, Any], dict[str, bytes]]:
    """The page's data, and each layer's bytes."""
    elements = re.findall(r'<script type="[\w/]+" id="([\w-]+)">([^<]*)</script>', view.html)
    layers = {name: zlib.decompress(base64.b64decode(text)) for name, text in elements[1:]}
    return json.loads(elements[0][1]), layers


def decoded(layer: bytes, h: int, t: int, s: int) -> np.ndarray:
    largest = np.frombuffer(layer, "<f4", h * t).reshape(h, t, 1)
    return np.frombuffer(layer, np.uint8, offset=4 * h * t).reshape(h, t, s) * (largest / 255)


class TestInputs:
    @pytest.mark.parametrize(
        "weights",
        [
            list(WEIGHTS),
            tuple(WEIGHTS),
            [jnp.asarray(layer) for layer in WEIGHTS],
            tuple(layer[None] for layer in WEIGHTS),  # as BertViz takes them
            WEIGHTS.astype(np.float64),
            WEIGHTS[:, None],
            {"attention": list(WEIGHTS)},
        ],
        ids=["list", "tuple", "jax", "bertviz", "l h t s", "l b h t s", "mapping"],
    )
    def test_forms(self, weights):
        data, layers = contents(attention_view(TOKENS, weights))
        assert data["kinds"] == [{"name": "attention", "queries": 1, "keys": 0, "heads": [HEADS] * LAYERS}]
        assert data["tokens"] == [TOKENS]
        for i in range(LAYERS):
            largest = WEIGHTS[i].max(-1, keepdims=True)
            apart = np.abs(decoded(layers[f"weights-0-{i}"], HEADS, T, T) - WEIGHTS[i])
            assert np.all(apart <= largest / 510 * (1 + 1e-5))
            assert apart.max() > largest.min() / 1020  # they are rounded

    @pytest.mark.parametrize(
        ("weights", "heads"),
        [(WEIGHTS[0, 0], 1), ([WEIGHTS[0, 0]], 1), (WEIGHTS[0], HEADS), ([WEIGHTS[0]], HEADS), (WEIGHTS[:1], HEADS)],
    )
    def test_one_layer(self, weights, heads):
        data, layers = contents(attention_view(TOKENS, weights))
        assert data["kinds"][0]["heads"] == [heads]
        assert layers["weights-0-0"] == contents(attention_view(TOKENS, WEIGHTS[0, :heads]))[1]["weights-0-0"]

    def test_an_example_of_the_batch(self):
        batch = [softmax((3, HEADS, T, T)) for _ in range(LAYERS)]
        chosen = attention_view(TOKENS, batch, example=2)
        assert chosen.html == attention_view(TOKENS, [layer[2] for layer in batch]).html

    def test_a_pruned_model(self):
        data, _ = contents(attention_view(TOKENS, [WEIGHTS[0], WEIGHTS[1, :1], WEIGHTS[2, :0]]))
        assert data["kinds"][0]["heads"] == [4, 1, 0]

    def test_pairs(self):
        data, layers = contents(attention_view(SOURCE, PAIRS, query_tokens=TARGET))
        assert data["tokens"] == [SOURCE, TARGET]
        assert data["kinds"] == [
            {"name": "decoder self-attention", "queries": 1, "keys": 1, "heads": [2, 2]},
            {"name": "cross-attention", "queries": 1, "keys": 0, "heads": [2, 2]},
        ]
        assert [len(layer) for layer in layers.values()] == [2 * 5 * (4 + 5)] * 2 + [2 * 5 * (4 + 4)] * 2

    def test_a_mapping_says_whose_tokens(self):
        weights = {"encoder self-attention": [softmax((3, 4, 4))], "alignment": softmax((5, 4))}
        data, _ = contents(attention_view(SOURCE, weights, query_tokens=TARGET))
        assert [(kind["name"], kind["queries"], kind["keys"]) for kind in data["kinds"]] == [
            ("encoder self-attention", 0, 0),
            ("alignment", 1, 0),
        ]

    @pytest.mark.parametrize("scale", [0, 1e-45, 1e30])
    def test_any_scale(self, scale):
        weights = np.float32(scale) * WEIGHTS[0]
        _, layers = contents(attention_view(TOKENS, weights))
        # The smallest float32 halved is itself or nothing.
        np.testing.assert_allclose(decoded(layers["weights-0-0"], HEADS, T, T), weights, atol=max(scale / 500, 2e-45))

    def test_bfloat16(self):
        assert attention_view(TOKENS, jnp.asarray(WEIGHTS[0], jnp.bfloat16)).html

    @pytest.mark.parametrize(
        ("weights", "options", "message"),
        [
            (WEIGHTS[0, :, :4], {}, "weights of attention, layer 0, must have 6 rows and 6 columns, one"),
            ([WEIGHTS[0], WEIGHTS[1, :, :, :5]], {}, "layer 1, must have 6 rows and 6 columns"),
            (WEIGHTS[0], {"query_tokens": ["a"]}, "must have 1 rows and 6 columns"),
            ([-WEIGHTS[0]], {}, "weights of attention, layer 0, must be finite and at least 0. Got -"),
            (np.full((T, T), np.nan), {}, "must be finite and at least 0. Got nan at (0, 0, 0)."),
            ([], {}, "weights must have at least one layer. Got none. Ask the model"),
            ({}, {}, "weights must have at least one entry. Got an empty mapping."),
            ([None], {}, "weights of attention, layer 0, must be an array. Got None. Ask the model"),
            ([(WEIGHTS[0],)], {}, "weights must have one array for each layer, or one pair"),
            ([WEIGHTS[0], PAIRS[0]], {}, "weights must have one array for each layer, or one pair"),
            (np.ones(3), {}, "weights must have the axes t s, h t s, l h t s or l b h t s. Got shape (3,)."),
            ("abc", {}, "weights must be an array of real numbers"),
            ([[0.5, 0.5], [0.5, 0.5]], {}, "weights must be an array, or a list of arrays. Got a float within the"),
            ([0.5, 0.5], {}, "Make an array of nested lists: np.asarray(weights)."),
            ({"a": [[[0.5]]]}, {}, "weights['a'] must be an array, or a list of arrays. Got a list within the list."),
            ({0: WEIGHTS, "0": WEIGHTS}, {}, "weights must have names that are strings. Got 0."),
            (np.ma.masked_less(WEIGHTS, 0.1), {}, "weights must not be masked, as the mask would be lost."),
            ([np.ma.masked_less(WEIGHTS[0], 0.1)], {}, "layer 0, must not be masked"),
            ([WEIGHTS[0] * 1j], {}, "must be an array of real numbers"),
            (WEIGHTS[:, None][:, [0, 0]], {}, "example must choose one of the batch of 2 that weights of attention"),
            (WEIGHTS[:, None], {"example": 1}, "example must be an integer in [0, 1). Got 1."),
            (WEIGHTS[0], {"example": 0}, "example must be None for weights without a batch. Got 0;"),
            (WEIGHTS[0], {"example": 0}, "of alignments b t s, such as Seq2Seq's, give weights[example]."),
            (WEIGHTS[0], {"title": 3}, "title must be a string. Got 3."),
            (WEIGHTS[0], {"title": None}, "title must be a string. Got None."),
            (WEIGHTS[0], {"tokens": np.array("a")}, "tokens must be a sequence of strings, one for each position."),
            (WEIGHTS[0], {"tokens": set(TOKENS)}, "tokens must be a sequence of strings, one for each position."),
            (WEIGHTS[0], {"tokens": [1] * 6}, "tokens must be strings. Got 1 at 0."),
            (WEIGHTS[0], {"tokens": "thecat"}, "tokens must be a sequence of strings, one for each position."),
            (WEIGHTS[0], {"tokens": []}, "tokens must have at least one token. Got none."),
            (WEIGHTS[0], {"query_tokens": []}, "query_tokens must have at least one token. Got none."),
        ],
    )  # fmt: skip
    @pytest.mark.usefixtures("unchecked")
    def test_mistakes(self, weights, options, message):
        with pytest.raises(ValueError, match=re.escape(message)):
            attention_view(**{"tokens": TOKENS, "weights": weights, **options})

    @pytest.mark.usefixtures("unchecked")
    def test_a_tensor_with_a_gradient(self):
        def refuse(*_: Any, **__: Any) -> None:
            raise RuntimeError("Can't call numpy() on Tensor that requires grad.")

        tensor = type("Tensor", (), {"__array__": refuse})()
        with pytest.raises(ValueError, match=r"Got Tensor: Can't call numpy\(\) on Tensor that requires grad"):
            attention_view(TOKENS, [tensor])

    def test_too_many_weights_for_a_browser(self):
        everything = np.broadcast_to(np.float32(0), (1, 4096, 4096))
        with pytest.raises(ValueError, match=r"at most 268,435,456 entries.*Choose some of the layers or heads"):
            attention_view(["x"] * 4096, [np.broadcast_to(everything, (17, 4096, 4096))])


class TestPage:
    def test_it_is_small_and_loads_nothing(self):
        html = attention_view(["a"], np.ones((1, 1))).html
        assert len(html.encode()) < 200_000
        assert not re.search(r"https?:|@import|<link|<img|src=|url\(", html)

    def test_tokens_cannot_end_their_element(self):
        hostile = ["</script>", "<script>alert(1)</script>", "<!--", "\u2028", "\ud83d", "{{weights}}"]
        view = attention_view(hostile, np.eye(6), title="</title>")
        assert view.html.encode()  # no half of an emoji in it
        start = view.html.index('id="data">') + len('id="data">')
        text = view.html[start : view.html.index("</script>", start)]
        assert "<" not in text
        assert text.isascii()
        assert json.loads(text)["tokens"][0][:3] == hostile[:3]

    def test_saved_as_it_is(self, tmp_path):
        view = attention_view(TOKENS, WEIGHTS)
        view.save(tmp_path / "view.html")
        assert (tmp_path / "view.html").read_bytes() == view.html.encode()
        assert repr(view) == f"AttentionView of {len(view.html) / 1e6:.1f} MB: save(path), then open it in a browser"
