"""Convolutions over a sequence or an image, channels last."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

from flax import nnx
from jaxtyping import Array, Float

from jattn._engine import checks
from jattn.nn.layers import add_bias

__all__ = ["Conv"]

_AXES = {1: "*b t m", 2: "*b height width m"}
_PADDINGS = ("SAME", "VALID", "CIRCULAR", "REFLECT", "CAUSAL")


class Conv(nnx.Conv):
    """`flax.nnx.Conv` as PyTorch's ``Conv1d`` and ``Conv2d`` mean it, over ``*b t m`` or ``*b height width m``.

        output[t] = bias + sum_i kernel[i]^T x[strides t + i - padding]

    Nothing is padded unless it is asked for; Flax pads as ``"SAME"``, which with strides begins elsewhere than
    PyTorch's padding. The bias gets its gradient summed in float32 or wider, as that of `Linear`.

    Args:
        in_features: m, how many channels come in.
        out_features: how many go out.
        kernel_size: an integer for a sequence, (height, width) for an image; PyTorch's Conv2d takes one for both.
        strides: the steps from one output to the next, one for each axis or one for all.
        padding: how many zeros stand at both ends, one number for each axis or one for all, or a pair (before, after)
            for each axis; or a name that ``flax.nnx.Conv`` knows.
        feature_group_count: PyTorch's ``groups``.
        rngs, options: as in ``flax.nnx.Conv``; PyTorch's ``dilation`` is ``kernel_dilation``.

    Example:

        >>> import jax.numpy as jnp
        >>> stem = Conv(80, 16, 3, strides=2, padding=1, rngs=nnx.Rngs(0))  # Whisper's, over frames of a spectrogram
        >>> stem(jnp.zeros((2, 100, 80))).shape
        (2, 50, 16)
        >>> patches = Conv(3, 16, (8, 8), strides=8, rngs=nnx.Rngs(0))  # a vision transformer's, of 8 x 8 pixels
        >>> patches(jnp.zeros((2, 32, 24, 3))).shape
        (2, 4, 3, 16)
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        kernel_size: int | Sequence[int],
        *,
        strides: int | Sequence[int] = 1,
        padding: str | int | Sequence[int | tuple[int, int]] = 0,
        feature_group_count: int = 1,
        rngs: nnx.Rngs,
        **options: Any,
    ) -> None:
        checks.rngs(rngs)
        checks.positive_integers(
            in_features=in_features, out_features=out_features, feature_group_count=feature_group_count
        )
        size = tuple(kernel_size) if isinstance(kernel_size, Sequence) else (kernel_size,)
        if len(size) not in _AXES or not _all_at_least(1, size):
            raise ValueError(f"kernel_size must be one positive integer or two. Got {kernel_size!r:.80}.")
        for name, features in (("in_features", in_features), ("out_features", out_features)):
            checks.divides("feature_group_count", feature_group_count, name, features)
        super().__init__(
            in_features,
            out_features,
            size,
            strides=_strides(strides, len(size)),
            padding=_padding(padding, len(size)),
            feature_group_count=feature_group_count,
            rngs=rngs,
            **options,
        )

    def __call__(self, inputs: Float[Array, "... m"], out_sharding: Any = None) -> Float[Array, "... n"]:
        n = len(self.kernel_size)
        inputs = checks.floating("inputs", inputs, _AXES[n], n + 1)
        checks.width("inputs", inputs, self.in_features)
        bias = None if self.bias is None else self.bias[...]
        inputs, _, bias = self.promote_dtype((inputs, self.kernel[...], bias), dtype=self.dtype)
        without_bias: Any = SimpleNamespace(**{**vars(self), "bias": None, "use_bias": False})
        return add_bias(nnx.Conv.__call__(without_bias, inputs, out_sharding=out_sharding), bias)


def _strides(strides: Any, n: int) -> tuple[int, ...]:
    each = tuple(strides) if isinstance(strides, Sequence) else (strides,) * n
    if len(each) != n or not _all_at_least(1, each):
        raise ValueError(
            f"strides must be a positive integer, or one for each of the {n} axes of kernel_size. Got {strides!r:.80}."
        )
    return each


def _padding(padding: Any, n: int) -> str | tuple[tuple[int, int], ...]:
    if isinstance(padding, str):
        checks.one_of("padding", padding, _PADDINGS)
        return padding
    each = tuple(padding) if isinstance(padding, Sequence) else (padding,) * n
    pairs: Any = tuple(tuple(p) if isinstance(p, Sequence) else (p, p) for p in each)
    if len(pairs) != n or not all(len(pair) == 2 and _all_at_least(0, pair) for pair in pairs):
        raise ValueError(
            f"padding must be a non-negative integer, or one or a pair for each of the {n} axes of kernel_size. "
            f"Got {padding!r:.80}."
        )
    return pairs


def _all_at_least(least: int, numbers: Sequence[Any]) -> bool:
    return all(checks.is_count(n) and n >= least for n in numbers)
