"""Which norm a layer has, as a value that a configuration can name."""

import dataclasses
from typing import Any, Literal

from flax import nnx

from jattn._engine import checks
from jattn.nn.layers import LayerNorm, RMSNorm

__all__ = ["Norm", "as_norm", "scale_and_bias"]


@dataclasses.dataclass(frozen=True)
class Norm:
    """A kind of norm and its settings; called with a width, it makes the layer.

    Args:
        kind: ``"layer"`` for `LayerNorm`, ``"rms"`` for `RMSNorm`.
        epsilon: of the layer; that layer's own default where it is None.
        use_scale: whether there is a learned factor for each feature.
        use_bias: whether there is a learned summand, of a layer norm; by default there is.
        scale_offset: what an RMS norm adds to its factors; 1 in Gemma.

    Example:

        >>> from flax import nnx
        >>> norm = Norm("rms", epsilon=1e-6)
        >>> type(norm(8, rngs=nnx.Rngs(0))).__name__, norm == Norm("rms", epsilon=1e-6)
        ('RMSNorm', True)
    """

    kind: Literal["layer", "rms"] = "layer"
    epsilon: float | None = None
    use_scale: bool = True
    use_bias: bool | None = None
    scale_offset: float = 0.0

    def __post_init__(self) -> None:
        checks.one_of("kind", self.kind, ("layer", "rms"))
        if self.epsilon is not None:
            checks.number("epsilon", self.epsilon, "[0, inf)")
        checks.flag("use_scale", self.use_scale)
        if self.use_bias is not None:
            checks.flag("use_bias", self.use_bias)
        checks.number("scale_offset", self.scale_offset, "(-inf, inf)")
        if self.kind == "rms" and self.use_bias:
            raise ValueError("use_bias must be False for an RMS norm, which has none. Got True.")
        if self.kind == "layer" and self.scale_offset != 0:
            raise ValueError(f"scale_offset must be 0 for a layer norm. Got {self.scale_offset}.")

    def __call__(self, features: int, **types: Any) -> LayerNorm | RMSNorm:
        """The layer for this width; ``types`` are its dtype, param_dtype and rngs."""
        options: dict[str, Any] = dict(use_scale=self.use_scale, **types)
        if self.epsilon is not None:
            options["epsilon"] = self.epsilon
        if self.kind == "rms":
            return RMSNorm(features, scale_offset=self.scale_offset, **options)
        return LayerNorm(features, use_bias=self.use_bias is not False, **options)


def as_norm(name: str, norm: Any) -> Norm:
    """A norm as it is; ``"layer"`` or ``"rms"`` as that kind with its defaults."""
    if isinstance(norm, Norm):
        return norm
    if not isinstance(norm, str) or norm not in ("layer", "rms"):
        raise ValueError(f'{name} must be a jattn.nn.Norm, "layer" or "rms". Got {norm!r:.80}.')
    return Norm("layer" if norm == "layer" else "rms")


def scale_and_bias(layer: Any) -> list[nnx.Param]:
    """Its scale and its bias, if it has them."""
    found = (getattr(layer, "scale", None), getattr(layer, "bias", None))
    return [parameter for parameter in found if parameter is not None]
