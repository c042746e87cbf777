"""How well a key matches a query.

A score is a small frozen pytree, called as ``score(query, key)`` with ``query: *b t h d`` and ``key: *b s h d``, that
gives the logits ``*b h t s`` in float32 or wider. Scores are in the log domain: that of a kernel smoother is the
logarithm of its kernel, so that the softmax over keys is the kernel's own normalisation, and a key out of the kernel's
reach scores minus infinity. Any function of that shape will do as a score; those below are the field's own.
"""

from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from jattn._engine import checks
from jattn._engine.dtypes import at_least_float32, in_one_dtype
from jattn._engine.pairwise import square_of_product, square_of_quotient, sum_over_features, tanh_of_sum
from jattn._engine.pytree import Pytree
from jattn._engine.rule import OF_POSITIONS, FunctionRule, Grid, Shape, function_and_arrays, grid_of

Number = float | Float[Array, ""]


class Score(Pytree):
    """The base of the scores below: widths they accept, what to compute once a token, the pairs of one head.

    A subclass is a frozen dataclass without more ado. As a pytree, a score's integers, strings and functions are
    structure, all else is children.
    """

    # Whether a logit depends on its query's and its key's features alone, and not on their positions, their head or on
    # others, so that a part of the logits can be computed by itself. Whoever writes ``__call__`` anew says so anew.
    by_pair: ClassVar[bool] = False
    reaches_all: ClassVar[bool] = False  # whether no key scores minus infinity, short of an overflow

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if "__call__" in cls.__dict__:
            cls.by_pair = cls.__dict__.get("by_pair", False)
            cls.reaches_all = cls.__dict__.get("reaches_all", False)

    def __call__(self, query: Float[Array, "*b t h c"], key: Float[Array, "*b s h d"]) -> Float[Array, "*b h t s"]:
        """The logits of every query with every key."""
        raise NotImplementedError

    def prepare(
        self, query: Float[Array, "*b t h c"], key: Float[Array, "*b s k d"]
    ) -> tuple[Float[Array, "*b t h m"], Float[Array, "*b s k n"], "Score"]:
        """What can be computed once a token: features of query and key, and a score of those with the same logits.

        It may be given a few of the examples and heads at a time.
        """
        return query, key, self

    def pairs(self, query: Float[Array, "t c"], key: Float[Array, "s d"]) -> Float[Array, "t s"]:
        """The logits of one head."""
        return self(query[:, None], key[:, None])[0]

    def as_products(
        self, query: Float[Array, "*b t h c"], key: Float[Array, "*b s k d"]
    ) -> tuple[Float[Array, "*b t h m"], Float[Array, "*b s k m"], Bool[Array, ""]] | None:
        """Features whose dot products are the logits, and whether those keep their digits; None where there are none.

        It is for scores whose `pairs` take much longer than a product of matrices.
        """
        return None

    def check(self, query_width: int, key_width: int) -> None:
        """Raise ValueError where the score cannot compare features of these widths."""
        if query_width != key_width:
            raise ValueError(
                f"key must have the query's width under {type(self).__name__}. Got query width {query_width} "
                f"and key width {key_width}. Project one of them, or use the Additive score."
            )


class DotProduct(Score):
    """The scaled dot product, ``scale * (query . key)``.

    Args:
        scale: what the products are multiplied by; ``1 / sqrt(d)`` by default.

    Source: Vaswani et al., Attention Is All You Need, 2017, section 3.2.1.

        >>> query, key = jnp.ones((1, 1, 4)), jnp.ones((2, 1, 4))
        >>> DotProduct()(query, key)
        Array([[[2., 2.]]], dtype=float32)
    """

    by_pair: ClassVar[bool] = True
    reaches_all: ClassVar[bool] = True
    scale: Number | None = None

    def __call__(self, query: Float[Array, "*b t h d"], key: Float[Array, "*b s h d"]) -> Float[Array, "*b h t s"]:
        query, key, score = self.prepare(*in_one_dtype(query, key))
        products = jnp.einsum("...thd,...shd->...hts", query, key, preferred_element_type=at_least_float32(query))
        return score._scaled(products, query)

    def pairs(self, query: Float[Array, "t d"], key: Float[Array, "s d"]) -> Float[Array, "t s"]:
        query, key = in_one_dtype(query, key)
        products = jnp.matmul(query, key.T, preferred_element_type=at_least_float32(query))
        return self._scaled(products, query)

    def _scaled(self, products: Array, query: Array) -> Array:
        scale = self.scale_of(query)
        return products if isinstance(scale, float) and scale == 1 else products * jnp.asarray(scale, products.dtype)

    def scale_of(self, query: Float[Array, "... d"]) -> Number:
        """The scale, for queries of this width."""
        return query.shape[-1] ** -0.5 if self.scale is None else self.scale

    def prepare(
        self, query: Float[Array, "*b t h d"], key: Float[Array, "*b s k d"]
    ) -> tuple[Float[Array, "*b t h d"], Float[Array, "*b s k d"], "DotProduct"]:
        if query.dtype != at_least_float32(query, key):  # a scaled query would lose digits
            return query, key, self
        return query * jnp.asarray(self.scale_of(query), query.dtype), key, DotProduct(1.0)

    def check(self, query_width: int, key_width: int) -> None:
        super().check(query_width, key_width)
        if query_width == 0:
            raise ValueError("query must have at least one feature. Got width 0.")
        if self.scale is not None:
            checks.scalar("scale", self.scale)


class Products(Score):
    """What `Score.as_products` is scored by: the dot product in full precision, which is not every device's default."""

    by_pair: ClassVar[bool] = True

    def pairs(self, query: Float[Array, "t m"], key: Float[Array, "s m"]) -> Float[Array, "t s"]:
        return jnp.matmul(query, key.T, precision=lax.Precision.HIGHEST)


class Additive(Score):
    """A small network on both, ``w_value . tanh(query @ w_query + key @ w_key)``, for widths that may differ.

    Args:
        w_query: ``c n``, from the query's width to the hidden width.
        w_key: ``d n``, from the key's width.
        w_value: ``n``, from the hidden width to the score.

    Source: Bahdanau, Cho and Bengio, Neural Machine Translation by Jointly Learning to Align and Translate, 2015.

        >>> score = Additive(w_query=jnp.eye(2), w_key=jnp.ones((3, 2)), w_value=jnp.ones(2))
        >>> score(jnp.zeros((5, 1, 2)), jnp.ones((7, 1, 3))).shape
        (1, 5, 7)
    """

    by_pair: ClassVar[bool] = True
    reaches_all: ClassVar[bool] = True
    w_query: Float[Array, "c n"]
    w_key: Float[Array, "d n"]
    w_value: Float[Array, "n"]

    def __call__(self, query: Float[Array, "*b t h c"], key: Float[Array, "*b s h d"]) -> Float[Array, "*b h t s"]:
        return _hidden_score(_heads_first(query @ self.w_query), _heads_first(key @ self.w_key), self.w_value)

    def prepare(
        self, query: Float[Array, "*b t h c"], key: Float[Array, "*b s k d"]
    ) -> tuple[Float[Array, "*b t h n"], Float[Array, "*b s k n"], Score]:
        return query @ self.w_query, key @ self.w_key, _Hidden(self.w_value)

    def check(self, query_width: int, key_width: int) -> None:
        for name in ("w_query", "w_key", "w_value"):
            if not hasattr(w := getattr(self, name), "dtype"):
                raise ValueError(f"{name} must be an array. Got {type(w).__name__}: {w!r:.80}.")
            checks.real(name, w)
        hidden = jnp.shape(self.w_value)
        for name, w, width in (("w_query", self.w_query, query_width), ("w_key", self.w_key, key_width)):
            if jnp.shape(w) != (width, *hidden) or len(hidden) != 1:
                raise ValueError(
                    f"{name} must map the width {width} to the hidden width of w_value, which has shape {hidden}. "
                    f"Got shape {jnp.shape(w)}."
                )


class _Hidden(Score):
    """`Additive` of queries and keys that are projected already."""

    by_pair: ClassVar[bool] = True
    w_value: Float[Array, "n"]

    def pairs(self, query: Float[Array, "t n"], key: Float[Array, "s n"]) -> Float[Array, "t s"]:
        return _hidden_score(query, key, self.w_value)


def _hidden_score(
    query: Float[Array, "*b t n"], key: Float[Array, "*b s n"], w_value: Float[Array, "n"]
) -> Float[Array, "*b t s"]:
    """``w_value . tanh(query + key)``"""
    dtype = at_least_float32(query, key, w_value)
    return sum_over_features(tanh_of_sum, query.astype(dtype), key.astype(dtype), jnp.asarray(w_value, dtype))


class _Kernel(Score):
    """A kernel of the scaled distance between query and key, ``log K(u)`` with ``u = |query - key| / bandwidth``.

    Give the ``bandwidth``, or its reciprocal, the ``factor`` on the difference (the learnable form: it may pass
    through zero, where every key counts the same). Either is one number or one per feature, ``d``.
    """

    bandwidth: Number | Float[Array, "d"] | None = None
    factor: Number | Float[Array, "d"] | None = None

    def __post_init__(self) -> None:
        if self.bandwidth is not None and self.factor is not None:
            raise ValueError("bandwidth must be None when factor is given, as factor = 1 / bandwidth. Got both.")
        if self.bandwidth is not None:
            checks.positive("bandwidth", self.bandwidth)

    def squared_distance(
        self, query: Float[Array, "*b t h d"], key: Float[Array, "*b s h d"]
    ) -> Float[Array, "*b h t s"]:
        """The square of u, summed directly over the differences: exact, also for features far from zero."""
        dtype = at_least_float32(query, key)
        query, key = _heads_first(query.astype(dtype)), _heads_first(key.astype(dtype))
        if self.bandwidth is not None:
            term, unit = square_of_quotient, self.bandwidth
        else:
            term, unit = square_of_product, 1.0 if self.factor is None else self.factor
        return sum_over_features(term, query, key, jnp.broadcast_to(jnp.asarray(unit, dtype), query.shape[-1:]))

    def _in_units(self, x: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
        """Points in units of bandwidth."""
        if self.bandwidth is not None:
            return x / jnp.asarray(self.bandwidth, x.dtype)
        return x if self.factor is None else x * jnp.asarray(self.factor, x.dtype)

    def check(self, query_width: int, key_width: int) -> None:
        super().check(query_width, key_width)
        for name, scale in (("bandwidth", self.bandwidth), ("factor", self.factor)):
            if scale is None:
                continue
            checks.real(name, scale)
            if jnp.shape(scale) not in ((), (query_width,)):
                raise ValueError(
                    f"{name} must be one number or one per feature, ({query_width},). Got shape {jnp.shape(scale)}."
                )


class Gaussian(_Kernel):
    """The Gaussian kernel, ``log K(u) = -u^2 / 2`` with ``u = |query - key| / bandwidth`` (its constant cancels).

    Args:
        bandwidth: the kernel's standard deviation, one number or one per feature; 1 by default.
        factor: instead of it, what the difference is multiplied by.

    Source: Nadaraya, On Estimating Regression, 1964; Watson, Smooth Regression Analysis, 1964.

        >>> Gaussian(bandwidth=2.0)(jnp.zeros((1, 1, 1)), jnp.array([0.0, 2.0]).reshape(2, 1, 1))
        Array([[[-0. , -0.5]]], dtype=float32)
    """

    by_pair: ClassVar[bool] = True

    def __call__(self, query: Float[Array, "*b t h d"], key: Float[Array, "*b s h d"]) -> Float[Array, "*b h t s"]:
        return -self.squared_distance(query, key) / 2

    def as_products(
        self, query: Float[Array, "*b t h d"], key: Float[Array, "*b s k d"]
    ) -> tuple[Float[Array, "*b t h m"], Float[Array, "*b s k m"], Bool[Array, ""]]:
        """``-|q - k|^2 / 2 = q . k - |q|^2 / 2 - |k|^2 / 2``, of points about the keys' mean in units of bandwidth.

        The three terms are rounded before they cancel, so a logit is off by the dtype's rounding times the square of
        the farthest point's distance from the mean, at most: they hold within 16 bandwidths, `_REACH`, where that is
        3e-5 in float32.
        """
        dtype = at_least_float32(query, key)
        query, key = query.astype(dtype), key.astype(dtype)
        centre = lax.stop_gradient(key.mean(axis=(-3, -2), keepdims=True))  # the distances don't depend on it
        q, k = (self._in_units(x - centre) for x in (query, key))
        squared_q, squared_k = (jnp.sum(x * x, axis=-1, keepdims=True) for x in (q, k))
        farthest = jnp.maximum(squared_q.max(), squared_k.max())
        return (
            jnp.concatenate([q, -squared_q / 2, jnp.ones_like(squared_q)], axis=-1),
            jnp.concatenate([k, jnp.ones_like(squared_k), -squared_k / 2], axis=-1),
            farthest <= _REACH**2,  # false of NaN
        )


_REACH = 16


class Boxcar(_Kernel):
    """The boxcar kernel: the mean over the keys within one bandwidth (``factor``: its reciprocal), edge included.

    It is flat, so the gradient for query, key, bandwidth and factor is zero.

        >>> Boxcar(bandwidth=2.0)(jnp.zeros((1, 1, 1)), jnp.array([0.0, 2.0, 3.0]).reshape(3, 1, 1))
        Array([[[  0.,   0., -inf]]], dtype=float32)
    """

    by_pair: ClassVar[bool] = True

    def __call__(self, query: Float[Array, "*b t h d"], key: Float[Array, "*b s h d"]) -> Float[Array, "*b h t s"]:
        squared = self.squared_distance(query, key)
        return jnp.where(squared <= 1, jnp.zeros_like(squared), -jnp.inf)


class Epanechnikov(_Kernel):
    """The Epanechnikov kernel, ``K(u) = max(0, 1 - u^2)`` with ``u = |query - key| / bandwidth``.

    ``bandwidth`` and ``factor`` as in `Gaussian`.
    Source: Epanechnikov, Non-Parametric Estimation of a Multivariate Probability Density, 1969.

        >>> Epanechnikov()(jnp.zeros((1, 1, 1)), jnp.array([0.0, 1.0]).reshape(2, 1, 1))
        Array([[[ -0., -inf]]], dtype=float32)
    """

    by_pair: ClassVar[bool] = True

    def __call__(self, query: Float[Array, "*b t h d"], key: Float[Array, "*b s h d"]) -> Float[Array, "*b h t s"]:
        squared = self.squared_distance(query, key)
        inside = squared < 1
        # The inner where keeps the logarithm's infinite slope at the edge out of the gradient.
        return jnp.where(inside, jnp.log1p(-jnp.where(inside, squared, 0)), -jnp.inf)


class Constant(Score):
    """Every key the same: average pooling, over the keys that the mask allows.

    >>> Constant()(jnp.ones((1, 1, 4)), jnp.ones((2, 1, 3)))
    Array([[[0., 0.]]], dtype=float32)
    """

    by_pair: ClassVar[bool] = True
    reaches_all: ClassVar[bool] = True

    def __call__(self, query: Float[Array, "*b t h c"], key: Float[Array, "*b s h d"]) -> Float[Array, "*b h t s"]:
        *b, t, h, _ = query.shape
        return jnp.zeros((*b, h, t, key.shape[-3]), at_least_float32(query, key))

    def check(self, query_width: int, key_width: int) -> None:
        pass


def modified(f: Callable[..., Any], /, score: Score | None = None, **arrays: Any) -> "Modified":
    """A score whose logits go through a function of the logit and of the positions of its query and key.

    Args:
        f: ``f(logit, query, key)`` from logits and integer arrays of positions, which broadcast against each other and
            to ``*b h t s``, to logits. It is compiled once, so what changes is given as an array, not captured.
        score: what is modified; ``DotProduct()`` by default.
        arrays: what f is given beside them, by name: an array as it is, to be indexed by positions; or ``(axes,
            array)`` with axes among ``b h t s`` for one that has an entry for each example, head, query or key, which
            arrives broadcast to ``*b h t s``. They have gradients.

    Example (a factor for each head, on what lies in the past):

        >>> past = modified(lambda x, q, k, factor: jnp.where(k < q, factor * x, x), factor=("h", jnp.ones(1) / 2))
        >>> past(jnp.ones((2, 1, 4)), jnp.ones((2, 1, 4)))
        Array([[[2., 2.],
                [1., 2.]]], dtype=float32)

    Source: Dong et al., Flex Attention: A Programming Model for Generating Optimized Attention Kernels, 2024.
    """
    score = DotProduct() if score is None else score
    if not isinstance(score, Score) or isinstance(score, Modified):
        raise ValueError(f"score must be a score of jattn.scores, not modified before. Got {score!r:.80}.")
    return Modified(score, Modification(*function_and_arrays(f, ("logit", "query", "key"), arrays)))


class Modification(FunctionRule):
    """What `modified` does to the logits."""

    def check(self, shape: Shape) -> None:
        super().check(shape)
        ndim = len(shape.batch) + 3
        part = self.aligned(len(shape.batch)).rows(0, 1).columns(0, 1)
        x = jax.ShapeDtypeStruct((*shape.batch, shape.h, 1, 1), jnp.float32)
        jax.eval_shape(lambda x, part: part.formula_of(x, grid_of(1, 1, ndim=ndim)), x, part)

    def formula_of(self, x: Float[Array, "..."], grid: Grid) -> Float[Array, "..."]:
        """The logits of a grid, modified."""
        result = self.of_rank(self.call(x, grid.query, grid.key), grid)
        if jnp.shape(result) != x.shape or not jnp.issubdtype(jnp.result_type(result), jnp.floating):
            raise ValueError(
                f"f must return floating-point logits of the shape {x.shape} that it is given. Got shape "
                f"{jnp.shape(result)}, {jnp.result_type(result)}. {OF_POSITIONS}"
            )
        return result


class Modified(Score):
    """What `modified` returns."""

    score: Score
    modification: Modification

    def __call__(self, query: Float[Array, "*b t h c"], key: Float[Array, "*b s h d"]) -> Float[Array, "*b h t s"]:
        x = self.score(query, key)
        *batch, _, t, s = x.shape
        modification = self.modification.aligned(len(batch))
        return modification.formula_of(x, grid_of(t, s, ndim=len(batch) + 3))

    def check(self, query_width: int, key_width: int) -> None:
        self.score.check(query_width, key_width)


def is_by_pair(score: Any) -> bool:
    """Whether a part of its logits can be computed by itself."""
    return isinstance(score, Score) and score.by_pair


def _heads_first(x: Float[Array, "*b t h d"]) -> Float[Array, "*b h t d"]:
    return jnp.moveaxis(x, -2, -3)
