"""PyTorch's initial parameters: each layer's own distribution, which is not Flax's."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np
from flax import nnx
from jaxtyping import Array

from jattn.nn.recurrent import GRU
from jattn.nn.torch.attention import MultiheadAttention
from jattn.nn.torch.transformer import Transformer

__all__ = ["initialize"]

Initialized = TypeVar("Initialized")

_Distribution = Callable[[Array, tuple[int, ...], Any], Array]  # of a key, a shape and a dtype


class _Draw(NamedTuple):
    """A parameter, what it is drawn from, and, where it is more than a vector in PyTorch, fan-in and fan-out there."""

    parameter: nnx.Param
    distribution: _Distribution
    fans: tuple[int, int] | None = None


def initialize(module: Initialized, *, rngs: nnx.Rngs) -> Initialized:
    """Draw all parameters of ``module`` anew, in place, from the distributions that PyTorch gives such layers.

    =========================  ==================================================================================
    linear, convolution        weight and bias uniform within 1 / sqrt(fan-in)
    `MultiheadAttention`       input projections uniform within sqrt(6 / (fan-in + fan-out)), of the packed matrix
                               where PyTorch packs them; bias_k and bias_v normal, std sqrt(1 / m); other biases 0;
                               the output projection's weight like a linear layer's
    `Transformer`              every matrix uniform within sqrt(6 / (fan-in + fan-out)); the rest as above
    `GRU`                      everything uniform within 1 / sqrt(hidden_features)
    embeddings                 standard normal; zero at padding_idx
    norms                      1 and 0; the scale 0 where 1 is added to it
    =========================  ==================================================================================

    The layers of a `TransformerEncoder` are drawn independently; PyTorch's begin as copies of one.

    Args:
        module: any module made of such layers.
        rngs: for the numbers.

    Returns:
        The module.

    Raises:
        ValueError: if it has parameters for which PyTorch has no rule. The module is then as it was.

    Example:

        >>> linear = initialize(nnx.Linear(100, 3, rngs=nnx.Rngs(0)), rngs=nnx.Rngs(1))
        >>> bool(abs(linear.kernel[...]).max() < 0.1), bool(abs(linear.bias[...]).max() < 0.1)
        (True, True)

    Source: ``reset_parameters`` of torch.nn's modules; Glorot and Bengio, 2010; He et al., 2015.
    """
    draws = list(_draws(module))
    drawn = {id(draw.parameter) for draw in draws}
    left_out = [
        ".".join(map(str, path))
        for path, node in nnx.iter_graph(module)
        if isinstance(node, nnx.Param) and id(node) not in drawn
    ]
    if left_out:
        raise ValueError(
            "module must be made of layers that PyTorch has a rule for. "
            f"Got {', '.join(left_out)} without one. Call initialize on its parts, and set these yourself."
        )
    for parameter, distribution, _ in draws:
        parameter.set_value(distribution(rngs.params(), parameter.shape, parameter.dtype))
    return module


def _draws(module: Any) -> Iterator[_Draw]:
    """What to draw for a module and all below it."""
    for kind, rule in _RULES.items():
        if isinstance(module, kind):
            yield from rule(module)
            return
    yield from _draws_of_children(module)


def _draws_of_children(module: Any) -> Iterator[_Draw]:
    for child in vars(module).values():
        items = child.values() if isinstance(child, dict) else child if isinstance(child, list | tuple) else (child,)
        for item in items:
            if isinstance(item, nnx.Module):
                yield from _draws(item)


def _linear_draws(module: Any) -> Iterator[_Draw]:
    fan_in, fan_out = int(np.prod(module.in_features)), int(np.prod(module.out_features))
    yield _Draw(module.kernel, _uniform(fan_in**-0.5), (fan_in, fan_out))
    if module.bias is not None:
        yield _Draw(module.bias, _uniform(fan_in**-0.5))


def _convolution_draws(module: nnx.Conv) -> Iterator[_Draw]:
    *size, fan_in, fan_out = module.kernel.shape
    fan_in, fan_out = int(np.prod(size)) * fan_in, int(np.prod(size)) * fan_out
    yield _Draw(module.kernel, _uniform(fan_in**-0.5), (fan_in, fan_out))
    if module.bias is not None:
        yield _Draw(module.bias, _uniform(fan_in**-0.5))


def _attention_draws(module: MultiheadAttention) -> Iterator[_Draw]:
    m, projections = module.embed_dim, (module.query, module.key, module.value)
    packed = all(p.in_features == (m,) for p in projections)
    for projection in projections:
        fans = (projection.in_features[0], 3 * m if packed else m)
        yield _Draw(projection.kernel, _xavier(fans), fans)
        if projection.bias is not None:
            yield _Draw(projection.bias, nnx.initializers.zeros)
    for extra in (module.bias_k, module.bias_v):
        if extra is not None:
            yield _Draw(extra, nnx.initializers.normal(m**-0.5), (m, m))
    yield _Draw(module.out_proj.kernel, _uniform(m**-0.5), (m, m))
    if module.out_proj.bias is not None:
        yield _Draw(module.out_proj.bias, nnx.initializers.zeros)


def _transformer_draws(module: Transformer) -> Iterator[_Draw]:
    for draw in _draws_of_children(module):
        yield draw if draw.fans is None else draw._replace(distribution=_xavier(draw.fans))


def _gru_draws(module: GRU) -> Iterator[_Draw]:
    n = module.hidden_features
    for layer in module.layers:
        for linear in (layer.input, layer.hidden):
            yield _Draw(linear.kernel, _uniform(n**-0.5), (linear.in_features, 3 * n))
            if linear.bias is not None:
                yield _Draw(linear.bias, _uniform(n**-0.5))


def _embedding_draws(module: nnx.Embed) -> Iterator[_Draw]:
    padding = getattr(module, "padding_idx", None)

    def draw(key: Array, shape: tuple[int, ...], dtype: Any) -> Array:
        rows = jax.random.normal(key, shape, dtype)
        return rows if padding is None else rows.at[padding].set(0)

    yield _Draw(module.embedding, draw, (module.features, module.num_embeddings))


def _norm_draws(module: Any) -> Iterator[_Draw]:
    whole = 1 - getattr(module, "scale_offset", 0)
    starts = (("scale", nnx.initializers.constant(whole)), ("bias", nnx.initializers.zeros))
    for parameter, start in ((getattr(module, name, None), start) for name, start in starts):
        if parameter is not None:
            yield _Draw(parameter, start)


def _uniform(bound: float) -> _Distribution:
    return lambda key, shape, dtype: jax.random.uniform(key, shape, dtype, -bound, bound)


def _xavier(fans: tuple[int, int]) -> _Distribution:
    return _uniform((6 / sum(fans)) ** 0.5)


_RULES: dict[type, Callable[[Any], Iterator[_Draw]]] = {
    nnx.Linear: _linear_draws,
    nnx.LinearGeneral: _linear_draws,
    nnx.Conv: _convolution_draws,
    nnx.LayerNorm: _norm_draws,
    nnx.RMSNorm: _norm_draws,
    nnx.Embed: _embedding_draws,
    GRU: _gru_draws,
    MultiheadAttention: _attention_draws,
    Transformer: _transformer_draws,
}
