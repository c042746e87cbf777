"""Figures: what is drawn is what was given, and mistakes are named."""

import re
import subprocess
import sys

import numpy as np
import pytest

from jattn.plots import curves, heatmaps
from jattn.plots.grids import largest_of_blocks
from jattn.plots.tokens import visible

pytest.importorskip("matplotlib")
pytestmark = pytest.mark.usefixtures("unchecked")

ROWS, COLUMNS, T, S = 2, 3, 5, 7
WEIGHTS = np.random.default_rng(0).dirichlet(np.ones(S), (ROWS, COLUMNS, T)).astype(np.float32)
KEYS, QUERIES = [f"key{i}" for i in range(S)], [f"query{i}" for i in range(T)]


def pictures(figure):
    return [axis.images[0].get_array() for axis in figure.axes[:-1]]  # the last is the colour bar


def labels(axis):
    return [[label.get_text() for label in x.get_ticklabels()] for x in (axis.xaxis, axis.yaxis)]


def drawn(figure) -> np.ndarray:
    """The figure's pixels, as a file would have them."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())


def refuse(*_, **__):
    raise RuntimeError("Can't call numpy() on Tensor that requires grad.")


TENSOR = type("Tensor", (), {"__array__": refuse})()
MASKED = np.ma.masked_array([0.5, 0.5], [True, False])


def raises(message: str):
    return pytest.raises(ValueError, match=re.escape(message))


def test_importing_needs_no_matplotlib():
    code = """
import sys
sys.modules["matplotlib"] = None
import numpy as np
import jattn
assert jattn.plots.attention_view(["a"], np.ones((1, 1))).html
"""
    subprocess.run([sys.executable, "-c", code], check=True)


class TestHeatmaps:
    def test_a_heatmap_for_each_matrix_on_one_scale(self):
        figure = heatmaps(WEIGHTS, row_titles=["a", "b"], column_titles=["x", "y", "z"])
        np.testing.assert_array_equal(np.array(pictures(figure)).reshape(WEIGHTS.shape), WEIGHTS)
        scales = {axis.images[0].get_clim() for axis in figure.axes[:-1]}
        assert scales == {(WEIGHTS.min(), WEIGHTS.max())}
        assert [axis.get_title() for axis in figure.axes[:3]] == ["x", "y", "z"]
        assert [figure.axes[i].get_ylabel() for i in (0, 3)] == ["a\nquery position", "b\nquery position"]

    @pytest.mark.parametrize("weights", [WEIGHTS[0], WEIGHTS[0, 0]])
    def test_fewer_axes(self, weights):
        np.testing.assert_array_equal(np.squeeze(pictures(heatmaps(weights))), weights)

    @pytest.mark.parametrize(("t", "s"), [(2, 5), (5, 2)])
    def test_a_row_a_query_and_a_column_a_key(self, t, s):
        picture = heatmaps(np.arange(t * s).reshape(t, s)).axes[0].images[0]
        assert picture.get_extent() == [-0.5, s - 0.5, t - 0.5, -0.5]

    def test_the_mean_of_the_heads(self):
        figure = heatmaps(WEIGHTS, average=True, row_titles=["a", "b"], column_titles=["mean"])
        np.testing.assert_allclose(pictures(figure), WEIGHTS.mean(1), rtol=1e-6)

    def test_tokens_at_the_ticks(self):
        figure = heatmaps(WEIGHTS, tokens=KEYS, query_tokens=QUERIES)
        assert labels(figure.axes[3]) == [KEYS, QUERIES]

    def test_tokens_of_keys_are_those_of_queries_too(self):
        assert labels(heatmaps(np.eye(3), tokens=["a", "b", "c"]).axes[0]) == [["a", "b", "c"]] * 2

    def test_tokens_are_not_mathematics(self):
        tokens = ["$x^2$", "$", "_a_", "\\frac{", "a\nb", "\ud83d", "", "x" * 50, " the"]
        figure = heatmaps(np.eye(9), tokens=tokens, size=4)
        assert drawn(figure).std() > 0
        assert labels(figure.axes[0])[0] == [
            *tokens[:4], "a↵b", "⟨U+D83D⟩", "⟨empty⟩", "x" * 19 + "…", "␣the",
        ]  # fmt: skip

    def test_a_single_bright_point_among_thousands_of_positions_is_seen(self):
        weights = np.zeros((1, 2, 4096, 4096), np.float32)
        weights[0, 1, 1234, 4000] = 1
        figure = heatmaps(weights, tokens=[str(i) for i in range(4096)])
        assert all(max(picture.shape) <= 2.2 * 72 for picture in pictures(figure))
        yellow = np.array([253, 231, 37])  # the end of the colour map
        pixels = drawn(figure)[..., :3]
        seen = np.abs(pixels.astype(int) - yellow).max(-1) < 40
        columns = np.flatnonzero(seen.any(0))
        left, right = (axis.get_window_extent() for axis in figure.axes[:2])
        bright = columns[columns < right.x1]  # not the colour bar
        assert len(bright)
        assert bright.min() > left.x1
        at = figure.axes[1].transData.inverted().transform((bright.mean(), 0))[0]
        assert abs(at - 4000) < 60
        names = labels(figure.axes[0])[0]
        assert 5 < len(names) < 30
        assert names == [str(int(place)) for place in figure.axes[0].get_xticks()]

    def test_blocks_keep_the_entry_farthest_from_zero(self):
        x = np.random.default_rng(1).normal(size=(10, 7))
        reduced = largest_of_blocks(x, 4)
        for (i, j), entry in np.ndenumerate(reduced):
            block = x[3 * i : 3 * i + 3, 2 * j : 2 * j + 2]
            assert entry == block.flat[np.abs(block).argmax()]
        assert reduced.shape == (4, 4)

    @pytest.mark.parametrize(
        ("weights", "options", "message"),
        [
            (np.ones(3), {}, "weights must have the axes t s, columns t s, or rows columns t s"),
            (np.ones((1, 1, 1, 2, 2)), {}, "Got shape (1, 1, 1, 2, 2)."),
            (np.ones((0, 2, 2)), {}, "none of them empty. Got shape (0, 2, 2)."),
            (np.array([[1, np.nan]]), {}, "weights must be finite. Got nan at (0, 0, 0, 1)."),
            (np.array([[[1.0, 1]], [[1, -np.inf]]]), {}, "weights must be finite. Got -inf at (0, 1, 0, 1)."),
            (WEIGHTS, {"row_titles": ["a"]}, "row_titles must have 2 entries, one for each. Got 1."),
            (WEIGHTS, {"column_titles": ["a"]}, "column_titles must have 3 entries, one for each. Got 1."),
            (WEIGHTS, {"average": True, "column_titles": list("abc")}, "column_titles must have 1 entries"),
            (WEIGHTS, {"tokens": QUERIES}, "tokens must have 7 entries, one for each of weights' keys. Got 5."),
            (WEIGHTS, {"tokens": KEYS}, "query_tokens must be given, since weights has 5 queries and 7 keys."),
            (WEIGHTS, {"query_tokens": KEYS}, "query_tokens must have 5 entries, one for each of weights' queries."),
            (np.eye(3), {"tokens": "abc"}, "tokens must be a sequence of strings, one for each position. Got 'abc'."),
            (np.eye(3), {"tokens": [5, 6, 7]}, "tokens must be strings. Got 5 at 0. Take the tokenizer's tokens"),
            (np.eye(3), {"tokens": {"a", "b", "c"}}, "tokens must be a sequence of strings, one for each position."),
            (MASKED[None], {}, "mask would be lost. Got a masked array. Use .filled(0)."),
            ([MASKED, MASKED], {}, "weights must not be masked"),
            (np.eye(3) * 1j, {}, "weights must be an array of real numbers"),
            (TENSOR, {}, "Got Tensor: Can't call numpy() on Tensor that requires grad."),
            ([[1], [1, 2]], {}, "weights must be an array of real numbers"),
            ("x", {}, "weights must be an array of real numbers"),
            (np.eye(3), {"size": 0}, "size must be a number in (0, inf). Got 0."),
            (np.eye(3), {"size": -1}, "size must be a number in (0, inf). Got -1."),
            (np.eye(3), {"size": "a"}, "size must be a number in (0, inf). Got 'a'."),
        ],
    )  # fmt: skip
    def test_mistakes(self, weights, options, message):
        with raises(message):
            heatmaps(weights, **options)


class TestCurves:
    def test_the_curves_and_their_bands(self):
        series = {"a": [1.0, 2, 3], "_b $x$": np.array([3, np.nan, 1])}
        figure = curves(series, x=[0, 10, 20], spread={"a": [0.5, 0, 1]}, xlabel="x", ylabel="y", title="t")
        (axis,) = figure.axes
        for line, y in zip(axis.lines, series.values(), strict=True):
            np.testing.assert_array_equal(line.get_xydata(), np.stack([[0, 10, 20], y], axis=1))
        (band,) = axis.collections
        low, high = band.get_datalim(axis.transData).intervaly
        assert (low, high) == (0.5, 4)
        legend = axis.get_legend()
        assert [text.get_text() for text in legend.get_texts()] == list(series)
        assert (axis.get_xlabel(), axis.get_ylabel(), axis.get_title()) == ("x", "y", "t")
        assert drawn(figure).std() > 0

    @pytest.mark.parametrize("n", [12, 24, 40])
    def test_many_curves_are_told_apart_and_named_beside_the_axis(self, n):
        figure = curves({f"a name of some length, {i}": [i, i + 1] for i in range(n)})
        drawn(figure)
        (axis,) = figure.axes
        assert len({(line.get_color(), line.get_linestyle(), line.get_marker()) for line in axis.lines}) == n
        box, names = axis.get_window_extent(), axis.get_legend().get_window_extent()
        assert box.width > 500
        assert box.height > 300
        assert box.x1 <= names.x0
        assert names.x1 <= figure.bbox.x1
        assert 0 <= names.y0 < names.y1 <= figure.bbox.y1

    def test_places_are_counted_if_not_given(self):
        figure = curves({"short": [1, 2], "long": np.arange(100)})
        assert [list(line.get_xdata()) for line in figure.axes[0].lines] == [[0, 1], list(range(100))]

    @pytest.mark.parametrize(
        ("series", "options", "message"),
        [
            ({}, {}, "series must have at least one curve. Got none."),
            ({"a": [[1, 2]]}, {}, "series['a'] must be numbers along one axis. Got shape (1, 2)."),
            ({"a": ["x"]}, {}, "series['a'] must be an array of real numbers"),
            ({"a": [1j]}, {}, "series['a'] must be an array of real numbers"),
            ({"a": [1, [2]]}, {}, "series['a'] must be an array of real numbers"),
            ({"a": TENSOR}, {}, "Got Tensor: Can't call numpy() on Tensor that requires grad."),
            (
                {"a": MASKED},
                {},
                "series['a'] must not be masked, as the mask would be lost. Got a masked array. Use .filled(np.nan).",
            ),
            ([1, 2], {}, "series must be a mapping from names to numbers. Got list: [1, 2]."),
            (None, {}, "series must be a mapping from names to numbers. Got NoneType: None."),
            ({0: [1], "0": [2]}, {}, "series must have names that are strings. Got 0."),
            ({"a": [1, 2]}, {"spread": [1, 2]}, "spread must be a mapping from names to numbers. Got list: [1, 2]."),
            ({"a": [1, 2]}, {"x": [1]}, "series['a'] must have 1 numbers, as x. Got 2."),
            ({"a": [1, 2]}, {"spread": {"b": [1, 2]}}, "spread must belong to the curves, a. Got 'b'."),
            ({"a": [1, 2]}, {"spread": {"a": [1]}}, "spread['a'] must have 2 numbers, as its curve. Got 1."),
            ({"a": [1, 2]}, {"spread": {"a": [1, -2]}}, "spread['a'] must not be negative. Got -2.0."),
        ],
    )
    def test_mistakes(self, series, options, message):
        with raises(message):
            curves(series, **options)


@pytest.mark.parametrize(
    ("token", "shown"),
    [
        ("cat", "cat"),
        (" cat ", "␣cat␣"),
        ("  ", "␣␣"),
        ("row 1", "row 1"),
        ("\t\r\n", "⇥␍↵"),
        ("\x00\x7f", "⟨U+0000⟩⟨U+007F⟩"),
        ("a\u2028b", "a⟨U+2028⟩b"),
        ("\u202eabc", "⟨U+202E⟩abc"),  # would turn the rest of the line around
        ("\u200d", "⟨U+200D⟩"),
        ("👩\u200d🔬", "👩\u200d🔬"),
        ("שלום", "שלום"),
        ("\udc00", "⟨U+DC00⟩"),
    ],
)
def test_visible(token, shown):
    assert visible(token) == shown
