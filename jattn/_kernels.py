"""Scores that are the logarithms of kernels, which `jattn.scores` exports; and the products that stand in for one."""

from typing import Any, ClassVar

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from jattn._engine import checks
from jattn._engine.dtypes import at_least_float32
from jattn._engine.pairwise import square_of_product, square_of_quotient, sum_over_features
from jattn._score import Number, Score, heads_first

__all__ = ["Boxcar", "Epanechnikov", "Gaussian", "Given", "Products"]


class Products(Score):
    """What `Score.as_products` is scored by: the dot product in full precision, which is not every device's default."""

    by_pair: ClassVar[bool] = True
    takes_zeros: ClassVar[bool] = True
    precision: ClassVar[Any] = lax.Precision.HIGHEST

    def pairs(self, query: Float[Array, "t m"], key: Float[Array, "s m"]) -> Float[Array, "t s"]:
        return jnp.matmul(query, key.T, precision=self.precision)

    def scaled(self, products: Float[Array, "*b"], query: Float[Array, "... m"]) -> Float[Array, "*b"]:
        """The scores, of products: themselves."""
        return products


class Given(Score):
    """Logits that are there already."""

    logits: Float[Array, "*b h t s"]

    def __call__(self, query: Float[Array, "*b t h d"], key: Float[Array, "*b s h d"]) -> Float[Array, "*b h t s"]:
        return self.logits


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
            checks.positive("bandwidth", self.bandwidth, finite=True)

    def squared_distance(
        self, query: Float[Array, "*b t h d"], key: Float[Array, "*b s h d"]
    ) -> Float[Array, "*b h t s"]:
        """The square of u, summed directly over the differences: exact, also for features far from zero."""
        dtype = at_least_float32(query, key)
        query, key = heads_first(query.astype(dtype)), heads_first(key.astype(dtype))
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
    takes_zeros: ClassVar[bool] = True

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
    takes_zeros: ClassVar[bool] = True

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
    takes_zeros: ClassVar[bool] = True

    def __call__(self, query: Float[Array, "*b t h d"], key: Float[Array, "*b s h d"]) -> Float[Array, "*b h t s"]:
        squared = self.squared_distance(query, key)
        inside = squared < 1
        # The inner where keeps the logarithm's infinite slope at the edge out of the gradient.
        return jnp.where(inside, jnp.log1p(-jnp.where(inside, squared, 0)), -jnp.inf)
