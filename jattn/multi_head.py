"""The public functions: bind the arguments, then ask what is bound."""

import dataclasses
from collections.abc import Sequence
from typing import Any, TypedDict, Unpack, cast

import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from jattn._engine import checks
from jattn._engine.compiled import compiled
from jattn._engine.platform import platform_of, platforms
from jattn._engine.pytree import Known
from jattn._engine.signature import spell_out
from jattn._flax import FlaxOptions, as_flax_means
from jattn._masks import Mask, as_mask
from jattn.biases import Bias, as_bias
from jattn.implementations import choice
from jattn.implementations.call import Call, Result
from jattn.implementations.choice import Explanation, ImplementationName
from jattn.logits import Logits, ScoreFn
from jattn.scores import DotProduct, Modified, Number
from jattn.statistics import AttentionStatistics, statistics_of, weights_of

__all__ = [
    "Bound",
    "LogitsOptions",
    "Output",
    "attention",
    "attention_statistics",
    "attention_weights",
    "bind",
    "explain",
]

# Functions that return a pair on request are annotated "| Any", so that a type checker leaves both uses in peace.
Output = Float[Array, "*b t h e"]


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


class Options(LogitsOptions, total=False):
    """Likewise, and what is done to weights and output."""

    dropout_rate: float
    dropout_rng: PRNGKeyArray | None
    broadcast_dropout: bool
    head_gates: Float[Array, "..."] | None


class AttentionOptions(Options, FlaxOptions, total=False):
    """Likewise, and what Flax's modules pass to their ``attention_fn``."""


_OPTIONS = tuple(Options.__annotations__)
_OF_FLAX = tuple(FlaxOptions.__annotations__)


@dataclasses.dataclass(frozen=True)
class Bound:
    """An attention whose arguments are bound and checked: compute it, or ask about it. Made by `bind`."""

    call: Call

    def run(self, *, return_weights: bool = False, implementation: ImplementationName | None = None) -> Output | Any:
        """The output, or a pair of output and weights; as `attention` returns them."""
        result = self.result(implementation, return_weights=checks.flag("return_weights", return_weights))
        return (result.output, result.weights) if return_weights else result.output

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
        where = platform_of(call.logits.query) if platform is None else known[platform]
        return choice.decide(call, implementation, where)

    def weights(
        self, heads: int | slice | Sequence[int] | None = None, queries: int | slice | Sequence[int] | None = None
    ) -> Float[Array, "*b heads queries s"]:
        """The weights of chosen heads and queries, as `attention_weights` returns them."""
        logits = self.call.logits
        _, h, t, _ = logits.shape
        if queries is not None and not isinstance(t, int):
            raise ValueError(f"queries must be None where the number of queries is a symbol, {t}. Got {queries!r}.")
        chosen = [
            None if x is None else tuple(checks.selection(name, x, n).tolist())
            for name, x, n in (("heads", heads, h), ("queries", queries, t))
        ]
        return _weights(logits.called(), *chosen)

    def statistics(self) -> AttentionStatistics:
        """Entropy and the like, as `attention_statistics` returns them."""
        return statistics_of(self.call.logits)


@compiled("heads", "queries")
def _weights(logits: Logits, heads: tuple[int, ...] | None, queries: tuple[int, ...] | None) -> Array:
    return weights_of(*logits.chosen(*(None if x is None else np.asarray(x, int) for x in (heads, queries))))


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
            integers that broadcast to ``*b t``, and of the keys, ``*b s``; 0 ... n - 1 by default.
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
    logits.check(logits.shape)
    checks.dropout(dropout_rate, dropout_rng, rng_name="dropout_rng")
    if head_gates is not None:
        head_gates = checks.head_gates(head_gates, tuple(batch), h)
    broadcast_dropout = checks.flag("broadcast_dropout", broadcast_dropout)
    rng = dropout_rng if dropout_rate > 0 else None
    return Bound(Call(logits, value, Known(dropout_rate), rng, broadcast_dropout, head_gates))


def attention(
    query: Float[Array, "*b t h c"],
    key: Float[Array, "*b s k d"],
    value: Float[Array, "*b s k e"],
    *,
    return_weights: bool = False,
    implementation: ImplementationName | None = None,
    **options: Unpack[AttentionOptions],
) -> Output | Any:
    """Attention with any score: each query's average of the values, weighted by how well its keys match.

    ``weights = softmax over keys of (score(query, key) + bias, where mask allows), beside the sinks``
    ``output  = weights @ value``

    In this order: score with its scale, modification, bias, soft cap, mask, softmax with sinks, dropout, gates. All is
    computed in the widest dtype of query and key, the softmax in float32 or wider. A query that may attend to nothing
    gives zeros, with zero gradients.

    Args:
        query, key, value: ``*b t h d``, ``*b s k d`` and ``*b s k e``, as in `bind`.
        return_weights: also return the weights ``*b h t s``, from before dropout.
        implementation: ``"dense"`` builds the matrix of weights; ``"streaming"`` computes a block of queries at a time
            in memory linear in the sequence; ``"cudnn"`` calls the kernel for NVIDIA GPUs, which has a gradient, but
            no forward mode and no second order. By default the fastest that honours the arguments on the platform that
            the program is lowered for; `explain` says which. cuDNN is considered only where the process that traces the
            program sees an NVIDIA GPU.
        options: ``score``, ``mask``, ``bias``, ``scale``, ``logits_soft_cap``, ``sinks``, ``query_positions``,
            ``key_positions``, ``dropout_rate``, ``dropout_rng``, ``broadcast_dropout``, ``head_gates``, as in `bind`.
            It is also the ``attention_fn`` of ``flax.nnx.MultiHeadAttention`` and Linen's: where they are given, it
            takes ``is_causal``, ``deterministic``, ``dtype``, ``precision``, ``module`` and masks of any dtype, as Flax
            means them.

    Returns:
        The output ``*b t h e`` in value's dtype; with return_weights also the weights, in float32 or wider.

    Example:

        >>> import jax
        >>> from jattn.masks import causal
        >>> query = key = value = jax.random.normal(jax.random.key(0), (2, 5, 8, 16))
        >>> output, weights = attention(query, key, value, mask=causal(), return_weights=True)
        >>> output.shape, weights.shape
        ((2, 5, 8, 16), (2, 8, 5, 5))

    Source: Vaswani et al., Attention Is All You Need, 2017; grouped queries: Ainslie et al., GQA, 2023; the soft cap:
    Gemma 2, 2024; sinks: Xiao et al., Efficient Streaming Language Models with Attention Sinks, 2024, as in gpt-oss.
    """
    checks.keywords("attention", options, (*_OPTIONS, *_OF_FLAX))
    if not options.keys().isdisjoint(_OF_FLAX):
        return as_flax_means(
            attention, query, key, value, return_weights=return_weights, implementation=implementation, **options
        )
    bound = bind(query, key, checks.array("value", value), **cast(Options, options))
    return bound.run(return_weights=return_weights, implementation=implementation)


def explain(
    query: Float[Array, "*b t h c"],
    key: Float[Array, "*b s k d"],
    value: Float[Array, "*b s k e"],
    *,
    return_weights: bool = False,
    implementation: ImplementationName | None = None,
    platform: str | None = None,
    **options: Unpack[Options],
) -> Explanation:
    """Which implementation `attention` would run for these arguments, why, and why others could not.

    Args:
        query, key, value and all others: as in `attention`. Nothing is computed.
        platform: where, in the words of JAX's lowering: ``"cpu"``, ``"cuda"``, ``"rocm"`` or ``"tpu"``; by default that
            of query's device, or of the default backend where query is traced. cuDNN is refused where the process
            sees no NVIDIA GPU.

    Returns:
        ``implementation``, ``reason``, and ``refused``, a dictionary of reasons; it prints as a few lines.

    Example:

        >>> import jax.numpy as jnp
        >>> from jattn.masks import causal
        >>> x = jnp.ones((2, 1000, 8, 64))
        >>> print(explain(x, x, x, mask=causal()))
        streaming: memory linear in the sequence, and faster than the matrix at this size.
        not cudnn: it needs an NVIDIA GPU, Ampere or newer.
    """
    checks.keywords("explain", options, _OPTIONS)
    bound = bind(query, key, checks.array("value", value), **options)
    return bound.explain(return_weights=return_weights, implementation=implementation, platform=platform)


def attention_weights(
    query: Float[Array, "*b t h c"],
    key: Float[Array, "*b s k d"],
    *,
    heads: int | slice | Sequence[int] | None = None,
    queries: int | slice | Sequence[int] | None = None,
    **options: Unpack[LogitsOptions],
) -> Float[Array, "*b heads queries s"]:
    """The weights of `attention` for chosen heads and queries, without computing the others.

    Args:
        query, key: ``*b t h d`` and ``*b s k d``, as in `bind`.
        heads: which query heads: an integer, a slice or a list; all by default.
        queries: which queries, likewise.
        options: ``score``, ``mask``, ``bias``, ``scale``, ``logits_soft_cap``, ``sinks``, ``query_positions``,
            ``key_positions``, as in `bind`, for all heads and queries. A score that is not one of `jattn.scores` may
            depend on positions and heads, so it is computed whole.

    Returns:
        ``*b h t s`` in float32 or wider, with h and t the chosen heads and queries; both axes are always kept.

    Example (where does the last token of an example look, in head 3?):

        >>> import jax
        >>> from jattn.masks import causal
        >>> x = jax.random.normal(jax.random.key(0), (2, 5, 8, 16))
        >>> attention_weights(x, x, mask=causal(), heads=3, queries=-1).shape
        (2, 1, 1, 5)
    """
    return _of_logits("attention_weights", query, key, options).weights(heads, queries)


def attention_statistics(
    query: Float[Array, "*b t h c"], key: Float[Array, "*b s k d"], **options: Unpack[LogitsOptions]
) -> AttentionStatistics:
    """Entropy, largest weight and norm of each query's weights, and what each key receives, for every head.

    The numbers are those of the weights that `attention_weights` returns, but their matrix is never there whole,
    except for a score that is a function of the caller's, which may depend on positions. Sinks take their share, so
    that the weights of a query sum to less than 1.

    Args:
        query, key: ``*b t h d`` and ``*b s k d``, as in `bind`.
        options: ``score``, ``mask``, ``bias``, ``scale``, ``logits_soft_cap``, ``sinks``, ``query_positions``,
            ``key_positions``, as in `bind`.

    Example (no mask and equal keys, so that all weights are 1 / 4):

        >>> import jax.numpy as jnp
        >>> statistics = attention_statistics(jnp.ones((3, 1, 2)), jnp.ones((4, 1, 2)))
        >>> print(statistics.entropy.round(3), statistics.received)
        [[1.386 1.386 1.386]] [[0.75 0.75 0.75 0.75]]
    """
    return _of_logits("attention_statistics", query, key, options).statistics()


def _of_logits(function: str, query: Array, key: Array, options: Any) -> Bound:
    """What is bound where there is no output: nothing that would only change that."""
    checks.keywords(function, options, _OPTIONS)
    for name in options:
        if name not in LogitsOptions.__annotations__:
            raise ValueError(
                f"{name} must be left to attention, as it changes no weight that is returned. Got it here."
            )
    return bind(query, key, **options)


spell_out(attention, _OPTIONS, bind)
spell_out(attention, _OF_FLAX, as_flax_means)
spell_out(explain, _OPTIONS, bind)
spell_out(attention_weights, LogitsOptions.__annotations__, bind)
spell_out(attention_statistics, LogitsOptions.__annotations__, bind)
