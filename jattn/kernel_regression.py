"""Nadaraya-Watson kernel regression: attention whose score is the logarithm of a kernel of the distance."""

from typing import Any, Literal, TypedDict, Unpack, overload

import jax
from jaxtyping import Array, Bool, Float

from jattn._engine import checks
from jattn._mask import Mask
from jattn.scores import Boxcar, Constant, Epanechnikov, Gaussian, Number, Score
from jattn.single_head import single_head_attention

__all__ = ["KERNELS", "Estimate", "EstimateAndWeights", "Kernel", "kernel_average", "nadaraya_watson"]

Kernel = Literal["gaussian", "boxcar", "epanechnikov", "constant"]

Estimate = Float[Array, "..."]
EstimateAndWeights = tuple[Estimate, Float[Array, "..."]]

KERNELS = {"gaussian": Gaussian, "boxcar": Boxcar, "epanechnikov": Epanechnikov}


class _Smoothing(TypedDict, total=False):
    bandwidth: Number | Float[Array, "d"]
    kernel: Kernel
    mask: Mask | Bool[Array, "..."] | None


@overload
def nadaraya_watson(
    query: Array, key: Array, value: Array, *, return_weights: Literal[True], **options: Unpack[_Smoothing]
) -> EstimateAndWeights: ...
@overload
def nadaraya_watson(
    query: Array, key: Array, value: Array, *, return_weights: Literal[False] = False, **options: Unpack[_Smoothing]
) -> Estimate: ...
@overload
def nadaraya_watson(
    query: Array, key: Array, value: Array, *, return_weights: bool, **options: Unpack[_Smoothing]
) -> Estimate | EstimateAndWeights: ...


def nadaraya_watson(
    query: Float[Array, "..."],
    key: Float[Array, "..."],
    value: Float[Array, "..."],
    *,
    bandwidth: Number | Float[Array, "d"] = 1.0,
    kernel: Kernel = "gaussian",
    mask: Mask | Bool[Array, "..."] | None = None,
    return_weights: bool = False,
) -> Estimate | EstimateAndWeights:
    """The Nadaraya-Watson estimate: at each query, the average of the values, weighted by the kernel of the distance.

    ``output(x) = sum_i K(|x - x_i| / bandwidth) y_i  /  sum_j K(|x - x_j| / bandwidth)``

    A query that no key is within reach of (or that the mask leaves without keys) gives zero. Products are in full
    float32, which is not every device's default.

    Args:
        query: where to estimate: scalars ``t``, or features ``*b t d``.
        key: where the values were observed: ``s``, or ``*b s d``.
        value: what was observed: ``s``, ``*b s``, or ``*b s e``.
        bandwidth: the unit of distance, positive; one number, or one per feature ``d``.
        kernel: ``"gaussian"``, ``"boxcar"``, ``"epanechnikov"``, or ``"constant"`` (average pooling).
        mask: a value of `jattn.masks` (an array inside it as ``*b 1 t s``) or a boolean array that broadcasts to
            ``*b t s``, ``True`` where an observation may be used. ``~sliding_window(0, 0)`` leaves each point's own
            observation out.
        return_weights: also return the weights ``*b t s``.

    Returns:
        ``t``, ``*b t`` or ``*b t e``, as value; with return_weights also the weights.

    Example:

        >>> import jax.numpy as jnp
        >>> x = jnp.array([0.0, 1.0, 2.0, 3.0])
        >>> nadaraya_watson(jnp.array([0.0, 1.5]), x, x**2, bandwidth=0.5).round(2)
        Array([0.12, 2.54], dtype=float32)

    Source: Nadaraya, On Estimating Regression, 1964; Watson, Smooth Regression Analysis, 1964.
    """
    checks.one_of("kernel", kernel, (*KERNELS, "constant"))
    checks.positive("bandwidth", bandwidth)
    score = Constant() if kernel == "constant" else KERNELS[kernel](bandwidth=bandwidth)
    return kernel_average(query, key, value, score=score, mask=mask, return_weights=return_weights)


def kernel_average(
    query: Array,
    key: Array,
    value: Array,
    *,
    score: Score,
    mask: Mask | Bool[Array, "..."] | None = None,
    return_weights: bool = False,
) -> Any:
    """`nadaraya_watson` with any score, which holds the bandwidth."""
    query = checks.floating("query", query, "t, or *b t d", 1)
    key = checks.floating("key", key, "s, or *b s d", 1)
    value = checks.floating("value", value, "s, *b s, or *b s e", 1)
    if key.ndim != query.ndim:
        raise ValueError(
            f"key must have as many axes as query. Got shapes {key.shape} and {query.shape}. Scalars are t and s, "
            "features *b t d and *b s d."
        )
    if query.ndim == 1:
        query, key = query[:, None], key[:, None]
    if value.ndim not in (key.ndim - 1, key.ndim):
        raise ValueError(
            f"value must have the axes *b s or *b s e for a key of shape {key.shape}. Got shape {value.shape}. "
            "For a batch of scalars, give query and key a feature axis: query[..., None]."
        )
    scalar = value.ndim == key.ndim - 1
    if scalar:
        value = value[..., None]
    with jax.default_matmul_precision("highest"):
        result = single_head_attention(query, key, value, score=score, mask=mask, return_weights=return_weights)
    output, *weights = result if return_weights else (result,)
    output = output[..., 0] if scalar else output
    return (output, *weights) if return_weights else output
