"""The definition as it stands: the whole matrix of weights."""

from typing import Any

import jax.numpy as jnp

from jattn._engine.grouped_heads import by_key_head, by_query_head
from jattn._engine.platform import Platform
from jattn._unattended import harmless_value
from jattn.implementations.call import Call, Implementation, Result
from jattn.softmax import Average

__all__ = ["SMALL", "Dense"]

SMALL = 256 * 256  # logits of a head; measured with `python -m benchmarks attention`


class Dense(Implementation):
    """One product of matrices, a softmax, and another product."""

    name = "dense"

    def refusal(self, call: Call, platform: Platform) -> str | None:
        return None

    def rank(self, call: Call, platform: Platform) -> tuple[int, str]:
        t, s = call.logits.query.shape[-3], call.logits.key.shape[-3]
        if isinstance(t, int) and t == 1:
            # There is nothing to cut, and blocks would have keys and values in another order, copied.
            return 2, "the weights of one query are no matrix"
        if isinstance(t, int) and isinstance(s, int) and t * s <= SMALL:
            # Blocks of it, one head at a time, would keep no core busy.
            return 2, "the matrix of weights is small"
        return 0, "no other honours the arguments"

    def program(self, platform: Platform) -> Any:
        return None

    def run(self, call: Call, platform: Platform) -> Result:
        logits = call.logits
        assert call.value is not None
        attended = logits.attended()
        value = harmless_value(call.value, attended)
        t, h = logits.query.shape[-3:-1]
        s = logits.key.shape[-3]
        keep = call.keep(call.matrix_numbers()[..., None, None], jnp.arange(t)[:, None], jnp.arange(s)[None, :])
        sinks = logits.sinks_of_rows()
        x = logits.matrix(attended)
        k = value.shape[-2]
        average = Average(
            by_key_head(x, k),
            jnp.swapaxes(value, -2, -3),
            sinks=None if sinks is None else by_key_head(jnp.broadcast_to(sinks, x.shape[:-1])[..., None], k)[..., 0],
            keep=None if keep is None else by_key_head(keep, k),
            dropout_rate=call.dropout_rate,
            never_empty=logits.reaches_all,
        )
        return Result(
            jnp.swapaxes(by_query_head(average.output, h), -2, -3),
            by_query_head(average.weights, h) if call.return_weights else None,
            jnp.swapaxes(by_query_head(average.log_sum_exp[..., None], h)[..., 0], -1, -2)
            if call.return_log_sum_exp
            else None,
        )
