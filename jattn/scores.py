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
from jaxtyping import Array, Float

from jattn._engine import checks
from jattn._engine.axes import Shape
from jattn._engine.dtypes import at_least_float32, in_one_dtype
from jattn._engine.function_rule import FunctionRule, function_and_arrays
from jattn._engine.grid import Grid, grid_of
from jattn._engine.pairwise import sum_over_features, tanh_of_sum
from jattn._engine.rule import OF_POSITIONS
from jattn._kernels import Boxcar, Epanechnikov, Gaussian
from jattn._score import Number, Score, heads_first

__all__ = [
    "Additive",
    "Boxcar",
    "Constant",
    "DotProduct",
    "Epanechnikov",
    "Gaussian",
    "Modification",
    "Modified",
    "Number",
    "Score",
    "modified",
]


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
    takes_zeros: ClassVar[bool] = True
    reaches_all: ClassVar[bool] = True
    precision: ClassVar[Any] = None  # of the products: JAX's default
    scale: Number | None = None

    def __call__(self, query: Float[Array, "*b t h d"], key: Float[Array, "*b s h d"]) -> Float[Array, "*b h t s"]:
        query, key, score = self.prepare(*in_one_dtype(query, key))
        wide = at_least_float32(query)
        if query.shape[-3] == 1:  # with its axis, XLA on a CPU copies the keys of a single example, features first
            products = jnp.einsum("...hd,...shd->...hs", query[..., 0, :, :], key, preferred_element_type=wide)
            products = products[..., None, :]
        else:
            products = jnp.einsum("...thd,...shd->...hts", query, key, preferred_element_type=wide)
        return score.scaled(products, query)

    def pairs(self, query: Float[Array, "t d"], key: Float[Array, "s d"]) -> Float[Array, "t s"]:
        query, key = in_one_dtype(query, key)
        products = jnp.matmul(query, key.T, preferred_element_type=at_least_float32(query))
        return self.scaled(products, query)

    def scaled(self, products: Float[Array, "*b"], query: Float[Array, "... d"]) -> Float[Array, "*b"]:
        """The scores, of products with queries of this width."""
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
    takes_zeros: ClassVar[bool] = True
    reaches_all: ClassVar[bool] = True
    w_query: Float[Array, "c n"]
    w_key: Float[Array, "d n"]
    w_value: Float[Array, "n"]

    def __call__(self, query: Float[Array, "*b t h c"], key: Float[Array, "*b s h d"]) -> Float[Array, "*b h t s"]:
        query, key, score = self.prepare(query, key)
        return score(query, key)

    def prepare(
        self, query: Float[Array, "*b t h c"], key: Float[Array, "*b s k d"]
    ) -> tuple[Float[Array, "*b t h n"], Float[Array, "*b s k n"], Score]:
        query, key = jnp.matmul(*in_one_dtype(query, self.w_query)), jnp.matmul(*in_one_dtype(key, self.w_key))
        return query, key, _Hidden(self.w_value)

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
    takes_zeros: ClassVar[bool] = True
    w_value: Float[Array, "n"]

    def __call__(self, query: Float[Array, "*b t h n"], key: Float[Array, "*b s h n"]) -> Float[Array, "*b h t s"]:
        return self.pairs(heads_first(query), heads_first(key))

    def pairs(self, query: Float[Array, "*b t n"], key: Float[Array, "*b s n"]) -> Float[Array, "*b t s"]:
        """``w_value . tanh(query + key)``"""
        dtype = at_least_float32(query, key, self.w_value)
        w_value = jnp.asarray(self.w_value, dtype)
        return sum_over_features(tanh_of_sum, query.astype(dtype), key.astype(dtype), w_value)


class Constant(Score):
    """Every key the same: average pooling, over the keys that the mask allows.

    >>> Constant()(jnp.ones((1, 1, 4)), jnp.ones((2, 1, 3)))
    Array([[[0., 0.]]], dtype=float32)
    """

    by_pair: ClassVar[bool] = True
    takes_zeros: ClassVar[bool] = True
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
            to ``*b h t s``, to logits. It is compiled with what it captures, anew where that has changed.
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

    gives = ("floating-point logits", jnp.floating)

    def check_formula(self, name: str, shape: Shape, what: str, dtype: Any) -> None:
        ndim = len(shape.batch) + 3
        part = self.aligned(len(shape.batch)).rows(0, 1).columns(0, 1)
        for rule, lead in ((part, (*shape.batch, shape.h)), (part.of_one(len(shape.batch)), (1,) * (ndim - 2))):
            x = jax.ShapeDtypeStruct((*lead, 1, 1), jnp.float32)
            with self.fitting(name):
                jax.eval_shape(lambda x, rule: rule.formula_of(x, grid_of(1, 1, ndim=ndim)), x, rule)

    def formula_of(self, x: Float[Array, "..."], grid: Grid) -> Float[Array, "..."]:
        """The logits of a grid, modified."""
        result = self.call(grid, x, grid.query, grid.key)
        if jnp.shape(result) != x.shape or not jnp.issubdtype(jnp.result_type(result), jnp.floating):
            raise ValueError(
                f"f must return floating-point logits of the shape {x.shape} that it is given. Got shape "
                f"{jnp.shape(result)}, {jnp.result_type(result)}. {OF_POSITIONS}{self.declared}"
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
