"""Nadaraya-Watson kernel regression with a learnable bandwidth."""

from typing import Any, Literal, overload

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jattn._engine import checks
from jattn.kernel_regression import KERNELS, Estimate, EstimateAndWeights, kernel_average
from jattn.masks import sliding_window

__all__ = ["NadarayaWatson"]


class NadarayaWatson(nnx.Module):
    """Parametric attention pooling: kernel regression whose ``factor`` on the difference is learned.

    ``output(x) = sum_i softmax_i(-((x - x_i) factor)^2 / 2) y_i``, and likewise with the other kernels. The bandwidth
    is ``1 / |factor|``.

    Args:
        keys, values: the observations, if they are fixed, as in `jattn.nadaraya_watson`; otherwise give them per call.
        factor: where learning starts; one number, or one per feature ``d``.
        kernel: ``"gaussian"``, ``"epanechnikov"`` or ``"boxcar"`` (whose factor gets no gradient).
        param_dtype: of factor.

    Example:

        >>> x = jnp.linspace(0, 5, 50)
        >>> model = NadarayaWatson(x, jnp.sin(x))
        >>> model(jnp.array([1.0, 2.0])).shape
        (2,)
        >>> fitted = model(x, leave_one_out=True)  # what the other points say at each point

    Source: Nadaraya, On Estimating Regression, 1964; Watson, Smooth Regression Analysis, 1964.
    """

    def __init__(
        self,
        keys: Float[Array, "..."] | None = None,
        values: Float[Array, "..."] | None = None,
        *,
        factor: float | Float[Array, "..."] = 1.0,
        kernel: Literal["gaussian", "epanechnikov", "boxcar"] = "gaussian",
        param_dtype: Any = jnp.float32,
    ) -> None:
        checks.one_of("kernel", kernel, tuple(KERNELS))
        if (keys is None) != (values is None):
            raise ValueError("keys and values must be given together. Got only one of them.")
        self.factor = nnx.Param(jnp.asarray(factor, param_dtype))
        self.keys = None if keys is None else nnx.Variable(jnp.asarray(keys))
        self.values = None if values is None else nnx.Variable(jnp.asarray(values))
        self.kernel = kernel

    @overload
    def __call__(
        self,
        query: Array,
        key: Array | None = None,
        value: Array | None = None,
        *,
        return_weights: Literal[True],
        leave_one_out: bool = False,
    ) -> EstimateAndWeights: ...
    @overload
    def __call__(
        self,
        query: Array,
        key: Array | None = None,
        value: Array | None = None,
        *,
        return_weights: Literal[False] = False,
        leave_one_out: bool = False,
    ) -> Estimate: ...
    @overload
    def __call__(
        self,
        query: Array,
        key: Array | None = None,
        value: Array | None = None,
        *,
        return_weights: bool,
        leave_one_out: bool = False,
    ) -> Estimate | EstimateAndWeights: ...

    def __call__(
        self,
        query: Float[Array, "..."],
        key: Float[Array, "..."] | None = None,
        value: Float[Array, "..."] | None = None,
        *,
        leave_one_out: bool = False,
        return_weights: bool = False,
    ) -> Estimate | EstimateAndWeights:
        """Estimate at ``query``.

        Args:
            query: scalars ``t`` or features ``*b t d``.
            key, value: the observations, as in `jattn.nadaraya_watson`; those of the construction by default.
            leave_one_out: query i does not see observation i, so that the training points can be queries.
            return_weights: also return the weights ``*b t s``.

        Returns:
            As value, at the queries; with return_weights also the weights.

        Raises:
            ValueError: if observations are missing, given in part, or don't fit.
        """
        if (key is None) != (value is None):
            raise ValueError("key and value must be given together. Got only one of them.")
        if key is None or value is None:
            if self.keys is None or self.values is None:
                raise ValueError("key and value must be given to a module made without keys and values. Got None.")
            key, value = self.keys[...], self.values[...]
        mask = None
        if leave_one_out:
            if jnp.shape(query) != jnp.shape(key):
                raise ValueError(
                    f"query must be the keys themselves when leave_one_out=True. Got shape {jnp.shape(query)} "
                    f"and keys of shape {jnp.shape(key)}."
                )
            mask = ~sliding_window(0, 0)
        score = KERNELS[self.kernel](factor=self.factor[...])
        return kernel_average(query, key, value, score=score, mask=mask, return_weights=return_weights)
