"""Which implementation computes an attention call: what each one cannot honour, and which is chosen."""

import dataclasses
from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from jattn import checks, cudnn
from jattn.dropout import dropout_keep
from jattn.mask_types import Mask
from jattn.pooling import ScoreFn, pool
from jattn.scores import Number, Score, is_by_pair
from jattn.streaming import output, output_and_log_sum_exp, stream

Implementation = Literal["dense", "streaming", "cudnn"]


class Result(NamedTuple):
    """An output, and what else was asked for."""

    output: Float[Array, "*b t h e"]
    weights: Float[Array, "*b h t s"] | None = None
    log_sum_exp: Float[Array, "*b t h"] | None = None


class Explanation(NamedTuple):
    """What `jattn.explain` says."""

    implementation: Implementation
    reason: str
    refused: dict[str, str]  # the others that could not be asked for, and why

    def __str__(self) -> str:
        lines = [f"{self.implementation}: {self.reason}."]
        return "\n".join(lines + [f"not {name}: {reason}." for name, reason in self.refused.items()])


@dataclasses.dataclass(frozen=True)
class Call:
    """The checked arguments of `jattn.attention`."""

    query: Array
    key: Array
    value: Array
    score: ScoreFn
    mask: Mask | None = None
    bias: Array | None = None
    logits_soft_cap: Number | None = None
    dropout_rate: float = 0.0
    dropout_rng: PRNGKeyArray | None = None
    head_gates: Array | None = None
    return_weights: bool = False
    return_log_sum_exp: bool = False
    xla_only: bool = False

    def run(self, implementation: Implementation | None) -> Result:
        """The result of the implementation of that name, or of the one that fits best."""
        result = _TABLE[self.explain(implementation).implementation].run(self)
        output = result.output
        if self.head_gates is not None:
            output = output * self.head_gates[..., None, :, None]
        return result._replace(output=output.astype(self.value.dtype))

    def explain(self, implementation: Implementation | None = None) -> Explanation:
        """Which implementation runs, and why; raises ValueError for one that cannot honour the arguments."""
        checks.one_of("implementation", implementation, (None, *_TABLE))
        refused = {name: reason for name, entry in _TABLE.items() if (reason := entry.refusal(self))}
        if implementation is not None:
            if implementation in refused:
                raise ValueError(
                    f"implementation must be None or one that honours every argument. Got {implementation!r}: "
                    f"{refused[implementation]}."
                )
            return Explanation(implementation, "it was asked for", refused)
        for name, reason in _preferences(self):
            if name not in refused:
                return Explanation(name, reason, refused)
        raise AssertionError("dense honours everything")


def _preferences(call: Call) -> list[tuple[Implementation, str]]:
    """The implementations in the order in which they are tried."""
    dense: tuple[Implementation, str] = ("dense", "no other honours the arguments")
    if jax.default_backend() == "gpu":
        return [("cudnn", "the fastest on an NVIDIA GPU"), ("streaming", "memory linear in the sequence"), dense]
    if _is_small(call):
        return [("dense", "the matrix of weights is small")]
    return [("streaming", "memory linear in the sequence, and faster than the matrix at this size"), dense]


def _is_small(call: Call) -> bool:
    """Whether the matrix of one head is so small that blocks of it, one head at a time, would keep no core busy."""
    t, s = call.query.shape[-3], call.key.shape[-3]
    return t * s <= SMALL


SMALL = 256 * 256  # logits of a head; measured with `python -m benchmarks attention`


# ----------------------------------------------------------------------------------------------------------------------
# What each runs, and what it refuses.


def _run_dense(call: Call) -> Result:
    *batch, t, h, _ = call.query.shape
    s = call.key.shape[-3]
    keep = None
    if call.dropout_rate > 0:
        assert call.dropout_rng is not None
        keep = dropout_keep(call.dropout_rng, call.dropout_rate, (*batch, h, t, s))
    pooled = pool(
        call.query,
        call.key,
        call.value,
        score=call.score,
        allowed=None if call.mask is None else call.mask.as_array(t, s),
        bias=call.bias,
        logits_soft_cap=call.logits_soft_cap,
        keep=keep,
        dropout_rate=call.dropout_rate,
    )
    return Result(
        pooled.output,
        pooled.weights if call.return_weights else None,
        jnp.swapaxes(pooled.log_sum_exp, -1, -2) if call.return_log_sum_exp else None,
    )


def _run_streaming(call: Call) -> Result:
    assert isinstance(call.score, Score)
    result = stream(
        call.query,
        call.key,
        call.value,
        score=call.score,
        mask=call.mask,
        bias=call.bias,
        logits_soft_cap=call.logits_soft_cap,
        dropout_rate=call.dropout_rate,
        dropout_rng=call.dropout_rng,
        of=output_and_log_sum_exp if call.return_log_sum_exp else output,
    )
    return Result(result[0], log_sum_exp=result[1]) if call.return_log_sum_exp else Result(result)


def _refused_by_streaming(call: Call) -> str | None:
    if call.return_weights:
        return "return_weights=True asks for the whole matrix; attention_weights computes chosen rows of it"
    if 0 in (*call.query.shape, *call.key.shape, *call.value.shape):
        return "there is nothing to compute: an axis has length 0"
    if not is_by_pair(call.score):
        return "a score that is not one of jattn.scores may depend on positions, unless it says by_pair = True"
    return None


def _run_cudnn(call: Call) -> Result:
    return Result(cudnn.run(call))


class _Entry(NamedTuple):
    run: Callable[[Call], Result]
    refusal: Callable[[Call], str | None]


_TABLE: dict[str, _Entry] = {
    "dense": _Entry(_run_dense, lambda call: None),
    "streaming": _Entry(_run_streaming, _refused_by_streaming),
    "cudnn": _Entry(_run_cudnn, cudnn.refusal),
}
