"""The public functions: check the arguments, then call an implementation."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from jattn import checks, masks
from jattn.implementations import Call, Explanation, Implementation
from jattn.mask_types import Mask, as_mask
from jattn.pooling import ScoreFn, logits, masked_softmax, repeat_heads
from jattn.scores import Additive, DotProduct, Number, is_by_pair

# Functions that return a pair on request are annotated "| Any", so that a type checker leaves both uses in peace.
Output = Float[Array, "*b t h e"]


def attention(
    query: Float[Array, "*b t h c"],
    key: Float[Array, "*b s k d"],
    value: Float[Array, "*b s k e"],
    *,
    score: ScoreFn | None = None,
    mask: Mask | Bool[Array, "..."] | None = None,
    bias: Float[Array, "..."] | None = None,
    scale: Number | None = None,
    logits_soft_cap: Number | None = None,
    dropout_rate: float = 0.0,
    dropout_rng: PRNGKeyArray | None = None,
    head_gates: Float[Array, "..."] | None = None,
    return_weights: bool = False,
    implementation: Implementation | None = None,
) -> Output | Any:
    """Attention with any score: each query's average of the values, weighted by how well its keys match.

    ``weights = softmax over keys of (score(query, key) + bias, where mask allows);  output = weights @ value``

    In this order: score with its scale, bias, soft cap, mask, softmax, dropout, gates. The softmax is in float32 or
    wider. A query that may attend to nothing gives zeros, with zero gradients.

    Args:
        query: ``*b t h c``; c is d, unless the score compares different widths.
        key: ``*b s k d``, with as many heads as query or a divisor of them: of h / k = g query heads in a group, heads
            0 to g - 1 use key and value head 0.
        value: ``*b s k e``; its width may differ from the others'. Keys and values must be finite also where they
            are masked, as 0 times NaN is NaN.
        score: how well a key matches a query, a value of `jattn.scores` or any function from ``*b t h d`` and
            ``*b s h d`` to ``*b h t s``; by default ``DotProduct(scale)``.
        mask: who may attend to whom, a value of `jattn.masks` or a boolean array that broadcasts to ``*b h t s``,
            ``True`` where a query may attend to a key.
        bias: added to the scaled scores; broadcasts to ``*b h t s``.
        scale: of the default score, ``1 / sqrt(d)`` by default.
        logits_soft_cap: keeps the logits within (-cap, cap) by ``cap tanh(logits / cap)``.
        dropout_rate: share of the weights to drop, the others being scaled up, in [0, 1).
        dropout_rng: the randomness for it, a ``jax.random.key``. The same rng drops the same weights.
        head_gates: a factor on each head's output, ``h`` or ``*b h``.
        return_weights: also return the weights ``*b h t s``, from before dropout.
        implementation: ``"dense"`` builds the matrix of weights; ``"streaming"`` computes a block of queries at a time
            in memory linear in the sequence; ``"cudnn"`` calls the kernel for NVIDIA GPUs, which has a gradient, but
            no forward mode and no second order. By default the fastest that honours the arguments; `explain` says
            which.

    Returns:
        The output ``*b t h e`` in value's dtype; with return_weights also the weights, in float32 or wider.

    Raises:
        ValueError: naming the argument that doesn't fit.

    Example:

        >>> import jax
        >>> from jattn.masks import causal
        >>> query = key = value = jax.random.normal(jax.random.key(0), (2, 5, 8, 16))
        >>> output, weights = attention(query, key, value, mask=causal(), return_weights=True)
        >>> output.shape, weights.shape
        ((2, 5, 8, 16), (2, 8, 5, 5))

    Source: Vaswani et al., Attention Is All You Need, 2017; grouped queries: Ainslie et al., GQA, 2023; the soft cap:
    Gemma 2, 2024.
    """
    call = _call(
        query,
        key,
        value,
        score,
        mask,
        bias,
        scale,
        logits_soft_cap,
        dropout_rate=dropout_rate,
        dropout_rng=dropout_rng,
        head_gates=head_gates,
        return_weights=return_weights,
    )
    result = call.run(implementation)
    return (result.output, result.weights) if return_weights else result.output


def explain(
    query: Float[Array, "*b t h c"],
    key: Float[Array, "*b s k d"],
    value: Float[Array, "*b s k e"],
    *,
    score: ScoreFn | None = None,
    mask: Mask | Bool[Array, "..."] | None = None,
    bias: Float[Array, "..."] | None = None,
    scale: Number | None = None,
    logits_soft_cap: Number | None = None,
    dropout_rate: float = 0.0,
    dropout_rng: PRNGKeyArray | None = None,
    head_gates: Float[Array, "..."] | None = None,
    return_weights: bool = False,
    implementation: Implementation | None = None,
) -> Explanation:
    """Which implementation `attention` would run for these arguments, why, and why others could not.

    Args:
        query, key, value and all others: as in `attention`. Nothing is computed.

    Returns:
        ``implementation``, ``reason``, and ``refused``, a dictionary of reasons; it prints as a few lines.

    Raises:
        ValueError: naming the argument that doesn't fit.

    Example:

        >>> x = jnp.ones((2, 1000, 8, 64))
        >>> print(explain(x, x, x, mask=masks.causal()))
        streaming: memory linear in the sequence, and faster than the matrix at this size.
        not cudnn: it needs an NVIDIA GPU, Ampere or newer.
    """
    call = _call(
        query,
        key,
        value,
        score,
        mask,
        bias,
        scale,
        logits_soft_cap,
        dropout_rate=dropout_rate,
        dropout_rng=dropout_rng,
        head_gates=head_gates,
        return_weights=return_weights,
    )
    return call.explain(implementation)


def _call(
    query: Array,
    key: Array,
    value: Array,
    score: ScoreFn | None,
    mask: Mask | Array | None,
    bias: Array | None,
    scale: Number | None,
    logits_soft_cap: Number | None,
    *,
    dropout_rate: float,
    dropout_rng: PRNGKeyArray | None,
    head_gates: Array | None,
    return_weights: bool,
) -> Call:
    """The arguments of `attention`, checked."""
    query, key, value = checks.query_key_value(query, key, value)
    score, mask, bias = checked_logits(query, key, score, mask, bias, scale, logits_soft_cap)
    checks.dropout(dropout_rate, dropout_rng, rng_name="dropout_rng")
    if head_gates is not None:
        head_gates = checks.head_gates(head_gates, query.shape[:-3], query.shape[-2])
    return Call(
        query, key, value, score, mask, bias, logits_soft_cap, dropout_rate, dropout_rng, head_gates, return_weights
    )


def attention_weights(
    query: Float[Array, "*b t h c"],
    key: Float[Array, "*b s k d"],
    *,
    score: ScoreFn | None = None,
    mask: Mask | Bool[Array, "..."] | None = None,
    bias: Float[Array, "..."] | None = None,
    scale: Number | None = None,
    logits_soft_cap: Number | None = None,
    heads: int | slice | Sequence[int] | None = None,
    queries: int | slice | Sequence[int] | None = None,
) -> Float[Array, "*b heads queries s"]:
    """The weights of `attention` for chosen heads and queries, without computing the others.

    Args:
        query, key, score, mask, bias, scale, logits_soft_cap: as in `attention`; mask and bias for all of them.
            A score that is not one of `jattn.scores` may depend on positions and heads, so it is computed whole.
        heads: which query heads: an integer, a slice or a list; all by default.
        queries: which query positions, likewise.

    Returns:
        ``*b h t s`` in float32 or wider, with h and t the chosen heads and queries; both axes are always kept.

    Raises:
        ValueError: naming the argument that doesn't fit.

    Example (where does the last token of an example look, in head 3?):

        >>> import jax
        >>> from jattn.masks import causal
        >>> x = jax.random.normal(jax.random.key(0), (2, 5, 8, 16))
        >>> attention_weights(x, x, mask=causal(), heads=3, queries=-1).shape
        (2, 1, 1, 5)
    """
    query, key = checks.query_and_key(query, key)
    score, mask, bias = checked_logits(query, key, score, mask, bias, scale, logits_soft_cap)
    *_, t, h, _ = query.shape
    chosen_heads = checks.selection("heads", heads, h)
    rows = checks.selection("queries", queries, t)

    def select(x: Array) -> Array:
        return _take(_take(x, chosen_heads, axis=-3), rows, axis=-2)

    options: dict[str, Any] = dict(score=score, logits_soft_cap=logits_soft_cap)
    if is_by_pair(score):
        key = key[..., chosen_heads // (h // key.shape[-2]), :]
        query = query[..., rows, :, :][..., chosen_heads, :]
        x = logits(query, key, bias=None if bias is None else select(bias), **options)
    else:  # a function of the caller's may depend on positions and heads, so it sees all of them
        x = select(logits(query, repeat_heads(key, h), bias=bias, **options))
    allowed = None
    if mask is not None:
        allowed = _take(mask(jnp.asarray(rows), jnp.arange(key.shape[-3])), chosen_heads, axis=-3)
    return masked_softmax(x, allowed)


def additive_attention(
    query: Float[Array, "*b t c"],
    key: Float[Array, "*b s d"],
    value: Float[Array, "*b s e"],
    w_query: Float[Array, "c n"],
    w_key: Float[Array, "d n"],
    w_value: Float[Array, "n"],
    *,
    mask: Mask | Bool[Array, "..."] | None = None,
    return_weights: bool = False,
) -> Float[Array, "*b t e"] | Any:
    """Additive attention: queries and keys of different widths, compared by a small network.

    ``score(query, key) = w_value . tanh(query @ w_query + key @ w_key)``

    There is no head axis here; for heads, call `attention` with ``score=Additive(...)``.

    Args:
        query: ``*b t c``.
        key: ``*b s d``.
        value: ``*b s e``.
        w_query, w_key, w_value: ``c n``, ``d n`` and ``n``, with n the hidden width.
        mask: a value of `jattn.masks` (an array inside it as ``*b 1 t s``) or a boolean array that broadcasts to
            ``*b t s``.
        return_weights: also return the weights ``*b t s``.

    Returns:
        The output ``*b t e``; with return_weights also the weights.

    Raises:
        ValueError: naming the argument that doesn't fit.

    Example:

        >>> query, key, value = jnp.ones((2, 3, 20)), jnp.ones((2, 10, 2)), jnp.ones((2, 10, 4))
        >>> additive_attention(query, key, value, jnp.ones((20, 8)), jnp.ones((2, 8)), jnp.ones(8)).shape
        (2, 3, 4)

    Source: Bahdanau, Cho and Bengio, Neural Machine Translation by Jointly Learning to Align and Translate, 2015.
    """
    weights = {"w_query": w_query, "w_key": w_key, "w_value": w_value}
    score = Additive(**{name: checks.array(name, w) for name, w in weights.items()})
    return single_head_attention(query, key, value, score=score, mask=mask, return_weights=return_weights)


def single_head_attention(
    query: Float[Array, "*b t c"],
    key: Float[Array, "*b s d"],
    value: Float[Array, "*b s e"],
    *,
    mask: Mask | Bool[Array, "..."] | None = None,
    valid_lens: int | Int[Array, "..."] | None = None,
    return_weights: bool = False,
    **rest: Any,
) -> Float[Array, "*b t e"] | Any:
    """`attention` for arrays without a head axis; a mask that is an array broadcasts to ``*b t s``."""
    query, key, value = checks.query_key_value(query, key, value, heads=False)
    if mask is not None and not isinstance(mask, Mask):
        shape = (*query.shape[:-1], key.shape[-2])
        if not checks.broadcasts_to(jnp.shape(mask), shape):
            raise ValueError(f"mask must broadcast to {shape}, the axes *b t s. Got shape {jnp.shape(mask)}.")
        mask = as_mask(mask if jnp.ndim(mask) <= 2 else jnp.expand_dims(mask, -3))
    result = attention(
        query[..., None, :],
        key[..., None, :],
        value[..., None, :],
        mask=masks.all_of(mask, None if valid_lens is None else masks.lengths(valid_lens)),
        return_weights=return_weights,
        **rest,
    )
    return (result[0][..., 0, :], result[1][..., 0, :, :]) if return_weights else result[..., 0, :]


def checked_logits(
    query: Array,
    key: Array,
    score: ScoreFn | None,
    mask: Mask | Array | None,
    bias: Array | None,
    scale: Number | None,
    logits_soft_cap: Number | None,
) -> tuple[ScoreFn, Mask | None, Array | None]:
    *batch, t, h, _ = query.shape
    s = key.shape[-3]
    if score is None:
        score = DotProduct(scale)
    elif scale is not None:
        raise ValueError(f"scale must be None when score is given, as a score has its own. Got {scale}.")
    checks.score(score, query, key)
    if mask is not None:
        mask = as_mask(mask)
        mask.check(t, s, tuple(batch), h)
    if bias is not None:
        bias = checks.bias(bias, (*batch, h, t, s))
    if logits_soft_cap is not None:
        checks.positive("logits_soft_cap", logits_soft_cap, finite=True)
        checks.scalar("logits_soft_cap", logits_soft_cap)
    return score, mask, bias


def _take(x: Array, indices: np.ndarray, axis: int) -> Array:
    """Entries of an axis that may be missing or of length 1, where there is nothing to choose from."""
    return x if x.ndim < -axis or x.shape[axis] == 1 else jnp.take(x, indices, axis=axis)
