"""An attention whose arguments are bound: `bind` has the only long signature, and checks once."""

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal, TypedDict, overload

import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from jattn._engine import checks
from jattn._engine.compiled import compiled
from jattn._engine.platform import platforms, platforms_of
from jattn._engine.pytree import Known
from jattn._mask import Mask, as_mask
from jattn.biases import Bias, as_bias
from jattn.implementations import choice
from jattn.implementations.call import Call, Result
from jattn.implementations.choice import Explanation, ImplementationName
from jattn.implementations.explicit import over_mesh
from jattn.implementations.parts import gathered
from jattn.implementations.sequence_axis import axes_asked_for
from jattn.logits import Logits, ScoreFn
from jattn.scores import DotProduct, Modified, Number
from jattn.statistics import AttentionStatistics, statistics_of, weights_of

__all__ = ["Bound", "LogitsOptions", "Options", "Output", "OutputAndWeights", "bind"]

Output = Float[Array, "*b t h e"]
OutputAndWeights = tuple[Output, Float[Array, "*b h t _"]]  # of all keys, also where the call has a part of them


class LogitsOptions(TypedDict, total=False):
    """What makes the logits out of query and key, as in `bind`."""

    score: ScoreFn | None
    mask: Mask | Bool[Array, "..."] | None
    bias: Bias | Float[Array, "..."] | None
    scale: Number | None
    logits_soft_cap: Number | None
    sinks: Float[Array, "..."] | None
    query_positions: Int[Array, "..."] | None
    key_positions: Int[Array, "..."] | None
    sequence_axis: str | tuple[str | None, str] | None


class Options(LogitsOptions, total=False):
    """Likewise, and what is done to weights and output."""

    dropout_rate: float
    dropout_rng: PRNGKeyArray | None
    broadcast_dropout: bool
    head_gates: Float[Array, "..."] | None


@dataclasses.dataclass(frozen=True)
class Bound:
    """An attention whose arguments are bound and checked: compute it, or ask about it. Made by `bind`."""

    call: Call

    @overload
    def run(
        self, *, return_weights: Literal[True], implementation: ImplementationName | None = None
    ) -> OutputAndWeights: ...
    @overload
    def run(
        self, *, return_weights: Literal[False] = False, implementation: ImplementationName | None = None
    ) -> Output: ...
    @overload
    def run(
        self, *, return_weights: bool, implementation: ImplementationName | None = None
    ) -> Output | OutputAndWeights: ...

    def run(
        self, *, return_weights: bool = False, implementation: ImplementationName | None = None
    ) -> Output | OutputAndWeights:
        """The output, or a pair of output and weights; as `attention` returns them."""
        result = self.result(implementation, return_weights=checks.flag("return_weights", return_weights))
        if not return_weights:
            return result.output
        assert result.weights is not None
        return result.output, result.weights

    def result(self, implementation: ImplementationName | None = None, **extra: Any) -> Result:
        """The output, and what ``extra`` asks for: ``return_weights``, ``return_log_sum_exp``."""
        if self.call.value is None:
            raise ValueError("value must be given for an output. Got None; weights() and statistics() need none.")
        return choice.run(dataclasses.replace(self.call, **extra), implementation)

    def explain(
        self,
        *,
        return_weights: bool = False,
        implementation: ImplementationName | None = None,
        platform: str | None = None,
    ) -> Explanation:
        """Which implementation would run, as `jattn.explain` says it."""
        known = platforms()
        checks.one_of("platform", platform, (None, *known))
        if self.call.value is None:
            raise ValueError("value must be given for an output. Got None.")
        call = dataclasses.replace(self.call, return_weights=checks.flag("return_weights", return_weights))
        where = platforms_of(call.logits.query)[0] if platform is None else known[platform]
        return choice.decide(call, implementation, where)

    def weights(
        self, heads: int | slice | Sequence[int] | None = None, queries: int | slice | Sequence[int] | None = None
    ) -> Float[Array, "*b heads queries s"]:
        """The weights of chosen heads and queries, as `attention_weights` returns them."""
        _, h, t, _, _ = self.call.logits.shape
        if queries is not None and not isinstance(t, int):
            raise ValueError(f"queries must be None where the number of queries is a symbol, {t}. Got {queries!r}.")
        chosen = [
            None if x is None else tuple(checks.selection(name, x, n).tolist())
            for name, x, n in (("heads", heads, h), ("queries", queries, t))
        ]
        return _weights(_without_output(self.call), *chosen)

    def statistics(self) -> AttentionStatistics:
        """Entropy and the like, as `attention_statistics` returns them."""
        return statistics_of(_without_output(self.call))


def _without_output(call: Call) -> Call:
    """What weights depend on."""
    return Call(call.logits.called(), None, sequence_axes=call.sequence_axes, divided=call.divided)


@compiled("heads", "queries")
def _weights(call: Call, heads: tuple[int, ...] | None, queries: tuple[int, ...] | None) -> Array:
    chosen = [None if x is None else np.asarray(x, int) for x in (heads, queries)]
    whole = "".join(letter for letter, x in zip("ht", chosen, strict=True) if x is not None)
    return over_mesh(lambda call: weights_of(*gathered(call).logits.chosen(*chosen)), call, "bhts", whole + "s")


def bind(
    query: Float[Array, "*b t h c"],
    key: Float[Array, "*b s k d"],
    value: Float[Array, "*b s k e"] | None = None,
    *,
    score: ScoreFn | None = None,
    mask: Mask | Bool[Array, "..."] | None = None,
    bias: Bias | Float[Array, "..."] | None = None,
    scale: Number | None = None,
    logits_soft_cap: Number | None = None,
    sinks: Float[Array, "..."] | None = None,
    query_positions: Int[Array, "..."] | None = None,
    key_positions: Int[Array, "..."] | None = None,
    sequence_axis: str | tuple[str | None, str] | None = None,
    dropout_rate: float = 0.0,
    dropout_rng: PRNGKeyArray | None = None,
    broadcast_dropout: bool = False,
    head_gates: Float[Array, "..."] | None = None,
) -> Bound:
    """An attention with these arguments: ``.run()``, ``.explain()``, ``.weights()`` and ``.statistics()`` of one value.

    Args:
        query: ``*b t h c``; c is d, unless the score compares different widths.
        key: ``*b s k d``, with as many heads as query or a divisor of them: of h / k = g query heads in a group, heads
            0 to g - 1 use key and value head 0.
        value: ``*b s k e``; its width may differ from the others'. Weights and statistics need none. Keys and values
            that the mask lets no query attend to may hold anything, also NaN; those that some query may attend to must
            be finite for all queries, as 0 times NaN is NaN.
        score: how well a key matches a query, a value of `jattn.scores` or any function from ``*b t h d`` and
            ``*b s h d`` to ``*b h t s``; by default ``DotProduct(scale)``. A function is called each time, with all
            keys: those that no query may attend to as they are, or another key in their place if they aren't finite.
        mask: who may attend to whom, a value of `jattn.masks` or a boolean array that broadcasts to ``*b h t s``,
            ``True`` where a query may attend to a key.
        bias: added to the scaled scores: a value of `jattn.biases`, or an array that broadcasts to ``*b h t s``; minus
            infinity means "not allowed".
        scale: of the default score, ``1 / sqrt(d)`` by default.
        logits_soft_cap: keeps the logits within (-cap, cap) by ``cap tanh(logits / cap)``.
        sinks: a further logit without a value for each head, ``h`` or ``*b h``, which takes its share of the weights.
        query_positions, key_positions: what masks, biases and modified scores take for the positions of the queries,
            integers that broadcast to ``*b t``, and of the keys, ``*b s``; 0 ... n - 1 by default, also where devices
            have a part each.
        sequence_axis: the mesh axis over which queries and keys are divided into equal consecutive parts; or a pair,
            the queries' and the keys', the first of which is None where each device has all queries, as in decoding.
            Inside of a `jax.shard_map` over it the arrays are the device's parts; with automatic axes of a mesh that
            is set it says how to divide them; with explicit axes it is known from the arrays, and may be left out.
            What masks and biases hold is divided as `partition_specs` of each says.
        dropout_rate: share of the weights to drop, the others being scaled up, in [0, 1).
        dropout_rng: the randomness for it, a ``jax.random.key``. The same rng drops the same weights.
        broadcast_dropout: whether the same weights are dropped in all heads of all examples.
        head_gates: a factor on each head's output, ``h`` or ``*b h``.

    Example:

        >>> import jax
        >>> from jattn.masks import causal
        >>> query = key = value = jax.random.normal(jax.random.key(0), (2, 5, 8, 16))
        >>> bound = bind(query, key, value, mask=causal())
        >>> bound.run().shape, bound.weights(heads=3, queries=-1).shape, bound.statistics().entropy.shape
        ((2, 5, 8, 16), (2, 1, 1, 5), (2, 8, 5))
    """
    if value is None:
        query, key = checks.query_and_key(query, key)
    else:
        query, key, value = checks.query_key_value(query, key, value)
    *batch, _, h, _ = query.shape
    modification = None
    if score is None:
        score = DotProduct(scale)
    elif scale is not None:
        raise ValueError(f"scale must be None when score is given, as a score has its own. Got {scale}.")
    checks.score(score, query, key)
    if isinstance(score, Modified):
        modification, score = score.modification, score.score
    if type(score) is DotProduct and isinstance(score.scale, float):
        score = DotProduct(Known(score.scale))
    if logits_soft_cap is not None:
        checks.positive("logits_soft_cap", logits_soft_cap, finite=True, remedy=" For none, pass None.")
        checks.scalar("logits_soft_cap", logits_soft_cap)
    logits = Logits(
        query,
        key,
        score,
        modification,
        None if bias is None else as_bias(bias),
        logits_soft_cap,
        None if mask is None else as_mask(mask),
        None if sinks is None else checks.floating("sinks", sinks, "*b h", 1),
        None if query_positions is None else checks.integer_axis("query_positions", query_positions),
        None if key_positions is None else checks.integer_axis("key_positions", key_positions),
    )
    sequence_axes = divided = None
    if sequence_axis is None:
        logits.check(logits.shape)
    else:
        sequence_axes, divided, logits = axes_asked_for(sequence_axis, logits)
    checks.dropout(dropout_rate, dropout_rng, rng_name="dropout_rng")
    if head_gates is not None:
        head_gates = checks.head_gates(head_gates, tuple(batch), h)
    broadcast_dropout = checks.flag("broadcast_dropout", broadcast_dropout)
    rng = dropout_rng if dropout_rate > 0 else None
    call = Call(logits, value, Known(dropout_rate), rng, broadcast_dropout, head_gates)
    return Bound(dataclasses.replace(call, sequence_axes=sequence_axes, divided=divided))
