"""The public functions: bind the arguments, then ask what is bound."""

from collections.abc import Sequence
from typing import Any, Literal, Unpack, cast, overload

from jaxtyping import Array, Float

from jattn._engine import checks
from jattn._engine.signature import spell_out
from jattn._flax import FlaxOptions, as_flax_means
from jattn.bound import Bound, LogitsOptions, Options, Output, OutputAndWeights, bind
from jattn.implementations.choice import Explanation, ImplementationName
from jattn.statistics import AttentionStatistics

__all__ = ["attention", "attention_statistics", "attention_weights", "explain"]


class AttentionOptions(Options, FlaxOptions, total=False):
    """`Options`, and what Flax's modules pass to their ``attention_fn``."""


class _Keywords(AttentionOptions, total=False):
    implementation: ImplementationName | None


_OPTIONS = tuple(Options.__annotations__)
_OF_FLAX = tuple(FlaxOptions.__annotations__)


@overload
def attention(
    query: Array, key: Array, value: Array, *, return_weights: Literal[True], **options: Unpack[_Keywords]
) -> OutputAndWeights: ...
@overload
def attention(
    query: Array, key: Array, value: Array, *, return_weights: Literal[False] = False, **options: Unpack[_Keywords]
) -> Output: ...
@overload
def attention(
    query: Array, key: Array, value: Array, *, return_weights: bool, **options: Unpack[_Keywords]
) -> Output | OutputAndWeights: ...


def attention(
    query: Float[Array, "*b t h c"],
    key: Float[Array, "*b s k d"],
    value: Float[Array, "*b s k e"],
    *,
    return_weights: bool = False,
    implementation: ImplementationName | None = None,
    **options: Unpack[AttentionOptions],
) -> Output | OutputAndWeights:
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
            in memory linear in the sequence; ``"pallas"`` is a kernel for TPUs and NVIDIA GPUs, with every mask and
            bias but formulas that look up an array, whose second order is computed by blocks, and which has no forward
            mode; on a GPU it must be asked for, as it has been measured on none; ``"cudnn"`` calls the kernel for
            NVIDIA GPUs, which has a gradient, but no forward mode and no second order. By default the fastest that
            honours the arguments on the platform that the program is lowered for; `explain` says which. cuDNN and
            pallas are considered only where the process that traces the program sees such a GPU or TPU, or within
            ``jax.set_mesh`` of its devices. Where devices have a part of the sequence each, one of these computes what
            has met by another: ``"ring"``, keys go around, memory and the gradient's are those of a part, no forward
            mode; ``"ulysses"``, heads are exchanged for tokens; ``"all_gather"``, each device gathers all keys, also
            for weights; ``"merge"``, where each has all queries, as in decoding. By default the one that sends the
            least.
        options: ``score``, ``mask``, ``bias``, ``scale``, ``logits_soft_cap``, ``sinks``, ``query_positions``,
            ``key_positions``, ``sequence_axis``, ``dropout_rate``, ``dropout_rng``, ``broadcast_dropout``,
            ``head_gates``, as in `bind`.
            It is also the ``attention_fn`` of ``flax.nnx.MultiHeadAttention`` and Linen's: where they are given, it
            takes ``is_causal``, ``deterministic``, ``dtype``, ``precision``, ``module`` and masks of any dtype, as Flax
            means them. Linen passes what is in a function's signature: around it use ``functools.partial``, no lambda.
            Beside a cache of Flax's, masks are arrays.

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
            ``key_positions``, ``sequence_axis``, as in `bind`, for all heads and queries, those of the device where it
            has a part; keys are gathered. A score that is not one of `jattn.scores` may
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
            ``key_positions``, ``sequence_axis``, as in `bind`. Keys that are divided are gathered.

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
