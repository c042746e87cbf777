"""The logits under the softmax: score, modification, bias, soft cap and mask as one value, beside the sinks.

    logits = score(query, key) + bias, where mask allows;  minus infinity elsewhere

`Logits` gives its whole matrix or any tile of it, and says which keys a block of queries can reach, so that whoever
computes attention asks the same value. Its fields and `Logits.after_score` are all that a new ingredient touches.

Axes beyond the usual: g query heads that share a key head, side by side at each position in rg · r query rows of a
tile · w keys of a tile.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float

from jattn._engine.axes import Shape, apart, over
from jattn._engine.checks import is_concrete
from jattn._engine.dtypes import at_least_float32, widest
from jattn._engine.extents import Extent, slice_along
from jattn._engine.grid import Grid, grid_of
from jattn._engine.grouped_heads import as_queries, by_head, by_query_head, in_rows, repeat_heads
from jattn._engine.of_caller import an_array, as_part_of_a_program
from jattn._engine.rule import Rule
from jattn._kernels import Given
from jattn._mask import Mask
from jattn._score import Number, Score, is_by_pair
from jattn._unattended import an_attended, harmless_key
from jattn.biases import Bias
from jattn.scores import Modification

__all__ = ["Logits", "ScoreFn"]

ScoreFn = Callable[[Float[Array, "*b t h c"], Float[Array, "*b s h d"]], Float[Array, "*b h t s"]]

_PAIRS = 2**22  # of positions whose formula is computed while tracing


class Logits(Rule):
    """Query and key, and everything between them and the softmax.

    Fields are as the caller gave them; `aligned` and `by_head` say how they lie in the rest.
    """

    query: Any = apart()  # *b t h c
    key: Any = apart()  # *b s k d
    score: Any = apart()
    modification: Modification | None
    bias: Bias | None
    logits_soft_cap: Number | None
    mask: Mask | None
    sinks: Any = over("bh")  # arrays or None
    query_positions: Any = over("bt")
    key_positions: Any = over("bs")
    # Where these are a part of all queries and keys: the numbers of the first, `Extent`s.
    first_query: Any = 0
    first_key: Any = 0

    @property
    def shape(self) -> Shape:
        *batch, t, h, _ = self.query.shape
        return Shape(tuple(batch), h, t, self.key.shape[-3])

    @property
    def by_pair(self) -> bool:
        """Whether a tile can be computed by itself."""
        return is_by_pair(self.score)

    @property
    def reaches_all(self) -> bool:
        """Whether there are keys, and no logit is minus infinity, short of an overflow."""
        plain = self.modification is None and self.bias is None and self.mask is None
        return plain and isinstance(self.score, Score) and self.score.reaches_all and self.key.shape[-3] != 0

    def called(self) -> "Logits":
        """The same logits, with the scores that a function of the caller's returns in its place.

        It may look at what changes, so it is called each time and is no part of a program that is compiled once.
        """
        if isinstance(self.score, Score):
            return self
        batch, h, t, s, _ = self.shape
        x = _called(self.score, self.query, repeat_heads(self._finite_key(self.attended()), h))
        _check_scores(x, (*batch, h, t, s), "*b h t s")
        return dataclasses.replace(self, score=Given(jnp.asarray(x)))

    def matrix(self, attended: Bool[Array, "..."] | None = None) -> Float[Array, "*b h t s"]:
        """All logits, in float32 or wider; without harm from keys that are not `attended`."""
        batch, _, t, s, _ = self.shape
        rules = self.aligned(len(batch))
        return rules.after_score(self._scores(attended), rules.grid(t, s, ndim=len(batch) + 3))

    def chosen(self, heads: np.ndarray | None, queries: np.ndarray | None) -> "tuple[Array, Array | None]":
        """The logits ``*b h t s`` of these heads and queries, and their sinks ``*b h t``, the others not computed.

        None stands for all of them.
        """
        batch, h, _, s, _ = self.shape
        attended = self.attended()
        if self.by_pair:
            key = harmless_key(self.key, attended, self.score)
            query = _take(self.query, queries, -3)
            if heads is None:
                query = as_queries(query, key.shape[-2])
            else:
                query, key = query[..., heads, :], key[..., heads // (h // key.shape[-2]), :]
            x = _called(self.score, query, key)
            _check_scores(x, (*batch, *query.shape[-2:-4:-1], s), "*b h t s")
            x = by_query_head(x, h) if heads is None else x
        else:  # it may depend on positions and heads, so it sees all of them
            x = _take(_take(self._scores(attended), heads, -3), queries, -2)
        rules = self.aligned(len(batch)).take(heads, queries)
        grid = rules.grid(x.shape[-2], s, ndim=len(batch) + 3)
        if queries is not None:
            rows = self.first_query + jnp.asarray(queries).reshape((1,) * (len(batch) + 1) + (-1, 1))
            grid = dataclasses.replace(grid, row=rows, query=rows if self.query_positions is None else grid.query)
        return rules.after_score(x, grid), None if rules.sinks is None else rules.sinks[..., 0]

    def tile(
        self,
        start: Extent,
        rows: int,
        first: Extent,
        width: int,
        g: int,
        *,
        scores: Float[Array, "rg w"] | None = None,
        within: tuple[int, int] | None = None,
        by_sum: bool = False,
    ) -> tuple[Float[Array, "rg w"], Float[Array, "#rg"] | None]:
        """The logits of one key head for ``rows`` queries and ``width`` keys, and the sinks of its rows.

        The value is that of a block: query ``rg c`` from ``start`` on, key ``d s``, the rules' fields ``g r s``. A
        tile whose ``scores`` are given has no query and key, and its fields may be its own. Queries and keys beyond so
        many ``within`` are where the last one is; ``by_sum`` as of `after_score`.
        """
        rules = self.columns(first, width)
        x = scores
        if x is None:
            assert isinstance(self.score, Score)
            x = _called(self.score.pairs, self.query, slice_along(self.key, first, width, -1).T)
            _check_scores(x, (rows * g, width), "t s")
        fit = functools.partial(in_rows, g=g, rows=rows)
        grid = rules.grid(rows, width, start, first)
        grid = grid if within is None else rules.within(grid, *within)
        x = rules.after_score(x, grid, fit, functools.partial(by_head, g=g), by_sum=by_sum)
        return x, None if rules.sinks is None else fit(rules.sinks)[:, 0]

    def after_score(
        self,
        x: Float[Array, "..."],
        grid: Grid,
        fit: Callable[[Array], Array] = lambda x: x,
        unfit: Callable[[Array], Array] = lambda x: x,
        *,
        by_sum: bool = False,
    ) -> Float[Array, "..."]:
        """Scores with modification, bias, soft cap and mask, in float32 or wider.

        The fields lie as the grid; ``fit`` brings what they say into the layout of the scores, ``unfit`` scores into
        that of the grid. ``by_sum``: what the mask leaves is a sum of itself and zero, for a processor's sake.
        """
        if not jnp.issubdtype(jnp.result_type(x), jnp.floating):
            raise ValueError(f"score must return floating-point logits. Got {jnp.result_type(x)}.")
        x = x.astype(at_least_float32(x))
        if self.modification is not None:
            x = fit(self.modification.formula_of(unfit(x), grid)).astype(x.dtype)
        if self.bias is not None:
            bias = fit(jnp.asarray(self.bias.formula(grid)))
            dtype = widest(x, bias)
            x = x.astype(dtype) + bias.astype(dtype)
        if self.logits_soft_cap is not None:
            cap = jnp.asarray(self.logits_soft_cap, x.dtype)
            ruled_out = x == -jnp.inf
            # The inner where keeps -inf times 0 out of the cap's gradient.
            x = jnp.where(ruled_out, -jnp.inf, cap * jnp.tanh(jnp.where(ruled_out, 0, x) / cap))
        if self.mask is not None:
            allowed = fit(jnp.asarray(self.mask.formula(grid)))
            x = x + _zero(x.dtype) if by_sum else x
            x = lax.select(jnp.broadcast_to(allowed, x.shape), x, jnp.full_like(x, -jnp.inf))
        return x

    def grid(self, t: int, s: int, start: Extent = 0, first: Extent = 0, *, ndim: int = 3, known: bool = False) -> Grid:
        """The positions of t queries from ``start`` on and s keys from ``first`` on; ``known`` ones are NumPy's."""
        return grid_of(
            t,
            s,
            start=_after(self.first_query, start),
            first=_after(self.first_key, first),
            ndim=ndim,
            query=self.query_positions,
            key=self.key_positions,
            known=known,
        )

    def within(self, grid: Grid, t: int, s: int) -> Grid:
        """A grid whose queries after the last of t, and keys after the last of s, are where those are."""
        row = jnp.minimum(grid.row, _after(self.first_query, t - 1))
        column = jnp.minimum(grid.column, _after(self.first_key, s - 1))
        query, key = self.query_positions, self.key_positions
        return Grid(row if query is None else grid.query, column if key is None else grid.key, row, column)

    def key_range(self, start: Extent, rows: int, s: int) -> tuple[Extent, Extent]:
        """The keys [first, last) outside of which none of ``rows`` queries from ``start`` on attends to anything.

        Integers where the mask has no data, scalar arrays where it has; the fields are ``g t s``.
        """
        in_reach = self._keys(start, rows, s, lambda mask, grid: mask.reachable(grid), lambda x, axes: x.any(axis=axes))
        if isinstance(in_reach, bool):
            return 0, s if in_reach else 0
        if isinstance(in_reach, np.ndarray):
            keys = np.flatnonzero(in_reach)
            return (int(keys[0]), int(keys[-1]) + 1) if keys.size else (0, 0)
        first, last = jnp.argmax(in_reach), s - jnp.argmax(in_reach[::-1])
        return jnp.where(in_reach.any(), first, 0), jnp.where(in_reach.any(), last, 0)

    def whole_range(self, start: Extent, rows: int, s: int) -> tuple[Extent, Extent]:
        """Keys [first, last) of which the mask rules out none for any of ``rows`` queries from ``start`` on: the first
        such that lie side by side. Integers and arrays as of `key_range`."""
        whole = self._keys(start, rows, s, lambda mask, grid: mask.whole(grid), lambda x, axes: x.all(axis=axes))
        if isinstance(whole, bool):
            return 0, s if whole else 0
        xp: Any = np if isinstance(whole, np.ndarray) else jnp
        first = xp.argmax(whole)
        after = ~whole & (np.arange(s) > first)
        last = xp.where(whole.any(), xp.where(after.any(), xp.argmax(after), s), first)
        return (int(first), int(last)) if xp is np else (first, last)

    def _keys(
        self,
        start: Extent,
        rows: int,
        s: int,
        keys_of: Callable[[Mask, Grid], Any],
        of_all_heads: Callable[[Any, tuple[int, ...]], Any],
    ) -> Any:
        """Those that the mask names for these queries: True of all, False of none, or for each, NumPy's if known."""
        if self.mask is None:
            return True
        positions = dataclasses.replace(self, bias=None, sinks=None, modification=None).rows(start, rows)
        assert positions.mask is not None
        with np.errstate(all="ignore"):  # what is known while tracing is NumPy's, which would warn of 1 / 0
            keys = keys_of(positions.mask, positions.grid(rows, s, start, known=isinstance(start, int)))
        if isinstance(keys, bool):
            return keys
        xp: Any = np if is_concrete(keys) and isinstance(start, int) else jnp
        keys = xp.asarray(keys)
        return xp.broadcast_to(of_all_heads(keys, tuple(range(keys.ndim - 1))), s)

    def attended(self) -> Bool[Array, "*b s k 1"] | None:
        """Which keys some query may attend to; None if all of them. The others may hold anything, also NaN, unless the
        mask knows better."""
        batch, h, t, s, _ = self.shape
        if self.mask is None or self.mask.finite_keys or (isinstance(t, int) and t == 0):
            return None
        rules = self.aligned(len(batch))
        assert rules.mask is not None
        grid = functools.partial(rules.grid, t, s, ndim=len(batch) + 3)
        known = isinstance(t, int) and isinstance(s, int)
        pairs = grid if not known or t * s > _PAIRS or jax.tree.leaves(rules.mask) else None
        with np.errstate(all="ignore"):
            attended = rules.mask.attended(dataclasses.replace(grid(known=known), in_program=pairs))
        if is_concrete(attended) and np.all(np.asarray(attended)):
            return None
        attended = jnp.asarray(attended)
        attended = attended.reshape((1,) * (len(batch) + 3 - attended.ndim) + attended.shape)
        k = self.key.shape[-2]
        if attended.shape[-3] != 1:
            attended = attended.reshape(*attended.shape[:-3], k, h // k, *attended.shape[-2:]).any(axis=-3)
        return jnp.moveaxis(attended, -1, -3)

    def sinks_of_rows(self) -> Float[Array, "*b h #t"] | None:
        """The sinks of all queries."""
        aligned = self.aligned(self.query.ndim - 3).sinks
        return None if aligned is None else aligned[..., 0]

    def _scores(self, attended: Bool[Array, "..."] | None) -> Array:
        batch, h, t, s, _ = self.shape
        if not self.by_pair:
            x = _called(self.score, self.query, repeat_heads(self._finite_key(attended), h))
            _check_scores(x, (*batch, h, t, s), "*b h t s")
            return x
        k = self.key.shape[-2]
        query = as_queries(self.query, k)
        # The derivatives of a modification and of the soft cap look at the logits, so these must be numbers.
        if self.modification is None and self.logits_soft_cap is None:
            x = _scores(self.score, query, self.key, attended)
        else:
            x = _called(self.score, query, harmless_key(self.key, attended, self.score))
        _check_scores(x, (*batch, k, h // k * t, s), "*b k g·t s")
        return by_query_head(x, h)

    def _finite_key(self, attended: Bool[Array, "..."] | None) -> Array:
        """Keys for a score that may compare them with each other: as they are, where they are finite."""
        if attended is None or isinstance(self.score, Given):
            return self.key
        finite = jnp.isfinite(self.key).all(axis=-1, keepdims=True)
        return jnp.where(attended | finite, self.key, an_attended(self.key, attended))


def _zero(dtype: Any) -> Array:
    """One that XLA doesn't know until nothing is simplified any more."""
    return lax.optimization_barrier(jnp.zeros((), dtype))


def _after(first: Extent, number: Extent) -> Extent:
    return number if isinstance(first, int) and first == 0 else first + number


@jax.custom_jvp
def _scores(score: Score, query: Array, key: Array, attended: Array | None) -> Array:
    """The scores, whose derivatives look at no key that nobody attends to.

    Their logits are minus infinity in any case, so that the keys need no pass of their own before the product.
    """
    return _called(score, query, key)


@_scores.defjvp
def _scores_jvp(primals: Any, tangents: Any) -> tuple[Array, Array]:
    score, query, key, attended = primals
    harmless = harmless_key(key, attended, score)
    _, tangent = jax.jvp(lambda *x: x[0](*x[1:]), (score, query, harmless), tangents[:3])
    return score(query, key), tangent


def _called(score: Callable[..., Any], query: Array, key: Array) -> Any:
    with as_part_of_a_program("score"):
        return score(query, key)


def _check_scores(x: Any, shape: tuple[Any, ...], axes: str) -> None:
    an_array("score", x, f"an array of the shape {shape}, the axes {axes}")
    if jnp.shape(x) != shape:
        raise ValueError(f"score must return the shape {shape}, the axes {axes}. Got shape {jnp.shape(x)}.")


def _take(x: Array, indices: np.ndarray | None, axis: int) -> Array:
    return x if indices is None else jnp.take(x, indices, axis=axis)
