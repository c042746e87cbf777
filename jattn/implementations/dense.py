"""The definition as it stands: the whole matrix of weights."""

from typing import Any

import jax.numpy as jnp

from jattn._engine.platform import Platform
from jattn.implementations.call import Call, Implementation, Result
from jattn.logits import harmless_value, repeat_heads
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
        average = Average(
            logits.matrix(attended),
            jnp.swapaxes(repeat_heads(value, h), -2, -3),
            sinks=logits.sinks_of_rows(),
            keep=keep,
            dropout_rate=call.dropout_rate,
            never_empty=logits.reaches_all,
        )
        return Result(
            jnp.swapaxes(average.output, -2, -3),
            average.weights if call.return_weights else None,
            jnp.swapaxes(average.log_sum_exp, -1, -2) if call.return_log_sum_exp else None,
        )
