"""What the heads do while a model runs: figures of their weights and outputs, in memory linear in the sequence."""

from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from jattn._engine.dtypes import at_least_float32
from jattn.bound import LogitsOptions
from jattn.heads.gates import layers, output_projection
from jattn.masks import Mask, all_of, lengths
from jattn.multi_head import attention_statistics
from jattn.nn.multi_head import attend_per_head
from jattn.nn.weights import as_pair

__all__ = ["Watch", "figures", "watched"]

Figures = dict[str, Float[Array, "h"]]


class Watch(nnx.Module):
    """In the place of a layer's ``_attend``: does the same, and keeps figures of each call."""

    def __init__(self) -> None:
        self.calls: nnx.Variable[Any] = nnx.Intermediate(())

    def __call__(
        self,
        query: Float[Array, "*b t h d"],
        key: Float[Array, "*b s k d"],
        value: Float[Array, "*b s k e"],
        *,
        real_queries: int | Int[Array, "*b"] | Bool[Array, "*b t"] | None,
        mask: Mask | Bool[Array, "..."] | None = None,
        **options: Any,
    ) -> Any:
        """As `jattn.nn.multi_head.attend_per_head`."""
        attended = attend_per_head(query, key, value, real_queries=real_queries, mask=mask, **options)
        output, _ = as_pair(attended, options.get("return_weights", False))
        # A padding query may attend to nothing, here, and such queries don't count.
        real = None if real_queries is None else _mask_of_padding(jnp.asarray(real_queries), query.shape, key.shape[-3])
        of_logits = {name: options[name] for name in LogitsOptions.__annotations__ if name in options}
        statistics = attention_statistics(query, key, mask=all_of(mask, real), **of_logits)
        counted = statistics.largest > 0
        n = _sum(counted)

        def mean(x: Array) -> Array:
            return _sum(x) / n

        received = _sum(statistics.received, keep_positions=True) / n[:, None]
        y = jnp.where(jnp.swapaxes(counted, -1, -2)[..., None], output, 0).astype(at_least_float32(output))
        y = y.reshape(-1, *y.shape[-2:])  # "n h e"
        centred = y - y.sum(axis=0) / n[:, None]
        centred = jnp.where(counted.swapaxes(-1, -2).reshape(-1, len(n), 1), centred, 0)
        figures = {
            "l1": received.sum(axis=-1),
            "l2": mean(statistics.norm),
            "entropy": mean(statistics.entropy),
            # E |w - E w|^2 = E |w|^2 - |E w|^2; rounding may leave it below 0.
            "variance": jnp.maximum(mean(statistics.norm**2) - (received**2).sum(axis=-1), 0),
            "confidence": mean(statistics.largest),
            "covariance": jnp.einsum("nhe,nhf->hef", centred, centred) / n[:, None, None],
        }
        self.calls.set_value((*self.calls.get_value(), (n, figures)))
        return attended


def watched(model: nnx.Module) -> tuple[Any, dict[str, Watch]]:
    """A copy of the model whose layers with heads are watched, and who watches them."""
    copy = nnx.clone(model)
    watches = {}
    for path, layer in layers(copy).items():
        layer._attend = watches[path] = Watch()
    return copy, watches


def figures(model: nnx.Module, watches: dict[str, Watch]) -> dict[str, Figures]:
    """What was seen: by layer and metric, one number for each head; over several calls, the mean over their queries."""
    found = layers(model)
    result: dict[str, Figures] = {}
    for path, watch in watches.items():
        calls = watch.calls.get_value()
        if not calls:
            raise ValueError(
                f"loss must run every layer of the model that it is given. Got one that never ran {path or 'it'}. "
                "Pass the part of the model that runs, and call it itself, not a copy of it."
            )
        total = sum(n for n, _ in calls)
        means = {
            name: sum(n.reshape(-1, *[1] * (of[name].ndim - 1)) * of[name] for n, of in calls) for name in calls[0][1]
        }
        means = {name: x / total.reshape(-1, *[1] * (x.ndim - 1)) for name, x in means.items()}
        covariance = means.pop("covariance")
        kernel = output_projection(found[path]).kernel[...].astype(covariance.dtype)
        kernel = kernel.reshape(*covariance.shape[:2], -1)  # "h e m"
        # The variance of y W, summed over m, is the trace of W^T C W.
        means["output_variance"] = jnp.einsum("hem,hef,hfm->h", kernel, covariance, kernel)
        result[path] = means
    return result


def _mask_of_padding(real: Array, shape: tuple[int, ...], s: int) -> Mask:
    """No key for the queries that are padding, all for the others; ``real`` counts them, or says which they are."""
    *batch, t, _, _ = shape
    if real.dtype != jnp.bool_:
        real = jnp.arange(t) < real[..., None]
    return lengths(jnp.where(jnp.broadcast_to(real, (*batch, t)), s, 0), per_query=True)


def _sum(x: Array, keep_positions: bool = False) -> Array:
    """Over all examples of ``*b h t``, and over the positions unless they are kept."""
    x = x.sum(axis=tuple(range(x.ndim - 2)))
    return x if keep_positions else x.sum(axis=-1)
