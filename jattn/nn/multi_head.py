"""Multi-head attention as Flax modules: they hold the parameters, project, and call `jattn.attention`."""

import dataclasses
from collections.abc import Collection
from typing import Any, Literal, NamedTuple, TypedDict, Unpack, overload

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, Real

from jattn._engine import checks
from jattn.biases import Bias
from jattn.cache import Cache
from jattn.implementations.choice import ImplementationName
from jattn.logits import ScoreFn
from jattn.masks import Mask, all_of, lengths
from jattn.multi_head import attention
from jattn.nn.cached import attend_with_cache, parts_of
from jattn.nn.dropout import Dropout
from jattn.nn.layers import Initializer, LinearGeneral, default_bias_init, default_kernel_init
from jattn.nn.norms import Norm, as_norm, scale_and_bias
from jattn.nn.rotary_positions import Rotary
from jattn.nn.weights import Cached, Outputs, as_pair, outputs
from jattn.scores import Modified

__all__ = ["KeysAndValues", "MultiHeadAttention", "SelfOptions", "attend_per_head"]


def attend_per_head(
    query: Float[Array, "*b t h d"],
    key: Float[Array, "*b s k d"],
    value: Float[Array, "*b s k e"],
    *,
    real_queries: int | Int[Array, "*b"] | Bool[Array, "*b t"] | None,
    **options: Any,
) -> Any:
    """What a module with heads does with them: `jattn.attention`.

    Each such module calls it as its attribute ``_attend``, so that on a copy `jattn.heads` can put in its place one
    that also looks at the heads. That is who needs to know which queries are no padding: how many, or which ones.
    """
    return attention(query, key, value, **options)


class KeysAndValues(NamedTuple):
    """Projected keys and values, normalised and turned: what a layer's `project` makes for many calls of that layer."""

    keys: Float[Array, "*b s k d"]
    values: Float[Array, "*b s k e"]
    positions: Real[Array, "..."] | None = None  # of the keys, if they were given


class SelfOptions(TypedDict, total=False):
    """What `MultiHeadAttention` takes beside its inputs, where there are no other keys than its queries'."""

    mask: Mask | Bool[Array, "..."] | None
    bias: Bias | Float[Array, "..."] | None
    positions: Real[Array, "..."] | None
    score: ScoreFn | None
    head_gates: Float[Array, "..."] | None
    implementation: ImplementationName | None
    rng: PRNGKeyArray | None


class _Options(SelfOptions, total=False):
    key_positions: Real[Array, "..."] | None
    real: Bool[Array, "..."] | None


class MultiHeadAttention(nnx.Module):
    """Multi-head attention: several attentions side by side, each on its own projection of the inputs.

    ``output = sum over heads of attention(x W_q, x W_k, x W_v) W_o``

    The parameters are those of ``flax.nnx.MultiHeadAttention``, name for name: ``query``, ``key``, ``value`` with
    kernels ``m h d``, ``out`` with kernel ``h e m``, ``query_ln`` and ``key_ln`` where they are normalised; beside them
    ``sinks``, ``h``. After `jattn.heads.prune` the groups of query heads may be of unequal sizes; ``kv_heads`` then
    holds the key and value head of each query head, and is None otherwise; and ``head_numbers`` the numbers that the
    query heads had before.

    Args:
        num_heads: how many query heads, h.
        in_features: the query's width, m.
        num_kv_heads: how many key and value heads, k; a divisor of num_heads, which it is by default. Query heads
            0 to h / k - 1 share key and value head 0.
        qkv_features: ``h * d``, the width of all query heads together; in_features by default.
        key_features, value_features: the widths of the key and value inputs; in_features by default.
        value_head_features: e, the width of one value head; d by default.
        out_features: the output's width; in_features by default.
        use_bias: whether the projections have biases, or which of ``("query", "key", "value", "out")`` do; by default
            none does, unlike Flax's and PyTorch's.
        normalize_qk: whether to norm queries and keys (Dehghani et al., 2023): a `Norm`, ``"layer"``, ``"rms"``, or
            ``True`` for Flax's, a layer norm without bias.
        qk_norm_epsilon: of that norm, in place of its own: of ``True`` 1e-6, as in Flax, otherwise the `Norm`'s.
        qk_norm_over: ``"head"``, each head by itself, or ``"width"``, all heads of a token together.
        qk_norm_shared: whether all heads share that norm's parameters, ``d``; in Cohere and StableLM each has its own,
            ``h d``.
        rotary: turns queries and keys by their positions.
        rotary_base: short for ``rotary=Rotary(rotary_base)``.
        scale, logits_soft_cap: as in `jattn.attention`.
        use_sinks: whether each head has a further logit without a value, which is learned and is 0 at first.
        sequence_axis: the name of the axis of the mesh that divides the sequence; may be set later, too
            (`jattn.sharding.divide_sequence`). Where keys are projected before or lie in a cache, queries are
            whole, and keys, too, that the devices can't divide equally.
        dropout_rate: share of the weights to drop in training, in [0, 1).
        kernel_init, bias_init, dtype, param_dtype: as in ``flax.nnx.LinearGeneral``.
        rngs: for the initial parameters.

    Raises:
        ValueError: if the heads don't divide the widths.

    Source: Vaswani et al., Attention Is All You Need, 2017, section 3.2.2.

    Example:

        >>> attend = MultiHeadAttention(num_heads=5, in_features=100, rngs=nnx.Rngs(0))
        >>> queries, keys = jnp.ones((2, 4, 100)), jnp.ones((2, 6, 100))
        >>> output, weights = attend(queries, keys, valid_lens=jnp.array([3, 2]), return_weights=True)
        >>> output.shape, weights.shape
        ((2, 4, 100), (2, 5, 4, 6))
    """

    def __init__(
        self,
        num_heads: int,
        in_features: int,
        *,
        num_kv_heads: int | None = None,
        qkv_features: int | None = None,
        key_features: int | None = None,
        value_features: int | None = None,
        value_head_features: int | None = None,
        out_features: int | None = None,
        use_bias: bool | Collection[str] = False,
        normalize_qk: bool | str | Norm = False,
        qk_norm_epsilon: float | None = None,
        qk_norm_over: Literal["head", "width"] = "head",
        qk_norm_shared: bool = True,
        rotary: Rotary | None = None,
        rotary_base: float | None = None,
        scale: float | None = None,
        logits_soft_cap: float | None = None,
        use_sinks: bool = False,
        sequence_axis: str | None = None,
        dropout_rate: float = 0.0,
        kernel_init: Initializer = default_kernel_init,
        bias_init: Initializer = default_bias_init,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        checks.rngs(rngs)
        checks.positive_integers(num_heads=num_heads, num_kv_heads=num_kv_heads, in_features=in_features)
        if num_heads > in_features and qkv_features is None:
            raise ValueError(
                f"num_heads, which comes first, must be at most in_features, {in_features}. Got {num_heads}."
            )
        checks.positive_integers(qkv_features=qkv_features, key_features=key_features, value_features=value_features)
        checks.positive_integers(value_head_features=value_head_features, out_features=out_features)
        num_kv_heads = num_heads if num_kv_heads is None else num_kv_heads
        qkv_features = in_features if qkv_features is None else qkv_features
        out_features = in_features if out_features is None else out_features
        checks.divides("num_heads", num_heads, "qkv_features", qkv_features)
        checks.divides("num_kv_heads", num_kv_heads, "num_heads", num_heads)
        head = qkv_features // num_heads
        value_head = head if value_head_features is None else value_head_features

        if scale is not None:
            checks.scalar("scale", scale)
        if logits_soft_cap is not None:
            checks.scalar("logits_soft_cap", logits_soft_cap)
            checks.positive("logits_soft_cap", logits_soft_cap)
        biased = _names_of_biased(use_bias)
        checks.one_of("qk_norm_over", qk_norm_over, ("head", "width"))
        if not checks.flag("qk_norm_shared", qk_norm_shared) and qk_norm_over == "width":
            raise ValueError('qk_norm_shared must be True where qk_norm_over="width". Got False.')
        qk_norm = _norm_of_heads(normalize_qk, qk_norm_epsilon)
        types: dict[str, Any] = dict(dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        inits: dict[str, Any] = dict(kernel_init=kernel_init, bias_init=bias_init)

        def project(name: str, width: int | None, heads: int, features: int) -> LinearGeneral:
            width = in_features if width is None else width
            return LinearGeneral(width, (heads, features), use_bias=name in biased, **inits, **types)

        def norm(heads: int) -> nnx.Module | None:
            if qk_norm is None:
                return None
            layer = qk_norm(head if qk_norm_over == "head" else heads * head, **types)
            for parameter in () if qk_norm_shared else scale_and_bias(layer):
                parameter.set_value(jnp.broadcast_to(parameter[...], (heads, head)))
            return layer

        self.query = project("query", in_features, num_heads, head)
        self.key = project("key", key_features, num_kv_heads, head)
        self.value = project("value", value_features, num_kv_heads, value_head)
        self.query_ln = norm(num_heads)
        self.key_ln = norm(num_kv_heads)
        out_options: dict[str, Any] = dict(axis=(-2, -1), use_bias="out" in biased, **inits, **types)
        self.out = LinearGeneral((num_heads, value_head), out_features, **out_options)
        self.sinks = nnx.Param(jnp.zeros(num_heads, param_dtype)) if checks.flag("use_sinks", use_sinks) else None
        self.kv_heads: tuple[int, ...] | None = None
        self.head_numbers: tuple[int, ...] | None = None
        self.qk_norm_over = qk_norm_over
        self.rotary = _rotary(rotary, rotary_base)
        self.scale, self.logits_soft_cap = scale, logits_soft_cap
        if not isinstance(sequence_axis, str | None):
            raise ValueError(
                f"sequence_axis must be the name of an axis of the mesh, or None. Got {sequence_axis!r:.80}."
            )
        self.sequence_axis = sequence_axis
        self.dropout = Dropout(dropout_rate)

    _attend = staticmethod(attend_per_head)

    @overload
    def __call__(
        self, query: Array, *, cache: Cache, return_weights: bool = False, **options: Unpack[_Options]
    ) -> Cached: ...
    @overload
    def __call__(
        self,
        query: Array,
        key: Array | KeysAndValues | None = None,
        value: Array | None = None,
        valid_lens: int | Array | None = None,
        *,
        return_weights: Literal[True],
        **options: Unpack[_Options],
    ) -> Outputs: ...
    @overload
    def __call__(
        self,
        query: Array,
        key: Array | KeysAndValues | None = None,
        value: Array | None = None,
        valid_lens: int | Array | None = None,
        *,
        return_weights: Literal[False] = False,
        **options: Unpack[_Options],
    ) -> Float[Array, "*b t o"]: ...
    @overload
    def __call__(
        self,
        query: Array,
        key: Array | KeysAndValues | None = None,
        value: Array | None = None,
        valid_lens: int | Array | None = None,
        *,
        cache: Cache | None = None,
        return_weights: bool = False,
        **options: Unpack[_Options],
    ) -> Float[Array, "*b t o"] | Outputs | Cached: ...

    def __call__(
        self,
        query: Float[Array, "*b t m"],
        key: Float[Array, "*b s mk"] | KeysAndValues | None = None,
        value: Float[Array, "*b s mv"] | None = None,
        valid_lens: int | Int[Array, "..."] | None = None,
        *,
        mask: Mask | Bool[Array, "..."] | None = None,
        bias: Bias | Float[Array, "..."] | None = None,
        positions: Real[Array, "..."] | None = None,
        key_positions: Real[Array, "..."] | None = None,
        score: ScoreFn | None = None,
        head_gates: Float[Array, "..."] | None = None,
        cache: Cache | None = None,
        real: Bool[Array, "..."] | None = None,
        implementation: ImplementationName | None = None,
        return_weights: bool = False,
        rng: PRNGKeyArray | None = None,
    ) -> Float[Array, "*b t o"] | Outputs | Cached:
        """Attend.

        Args:
            query: ``*b t m``, with m = in_features.
            key: ``*b s mk``, with mk = key_features; query by default (self-attention). Or what `project` made of key
                and value.
            value: ``*b s mv``, with mv = value_features; key by default.
            valid_lens: how many keys are real, one per example or one per query (two axes).
            mask: a value of `jattn.masks` or a boolean array that broadcasts to ``*b h t s``.
            bias: a value of `jattn.biases` or an array that broadcasts to ``*b h t s``.
            positions: of the queries, numbers that broadcast to ``*b t``; 0 ... t - 1 by default. Rotary positions,
                masks and biases go by them; fractional ones are for rotary positions alone.
            key_positions: of the keys, ``*b s``; by default those of the queries where there is no key, those that key
                was projected with where it was, and 0 ... s - 1 otherwise.
            score: in place of the dot product, as in `jattn.attention`.
            head_gates: a factor on each head's output, ``h`` or ``*b h``.
            cache: a `jattn.Cache` of the tokens before those of query, which are added to it and attended to, too. The
                mask goes by positions. Keys stay turned as they were where the angles of rotary positions depend on the
                length.
            real: which tokens are kept in the cache, ``*b t``; all by default.
            implementation: as in `jattn.attention`.
            return_weights: also return the weights ``*b h t s``, from before dropout.
            rng: a ``jax.random.key`` for dropout in training.

        Returns:
            ``*b t o``, with o = out_features; with return_weights an `Outputs` of output and weights; with a cache a
            `Cached` of output, cache and weights.
        """
        if cache is not None:
            beside = dict(key=key, value=value, valid_lens=valid_lens, key_positions=key_positions)
            if given := [name for name, x in beside.items() if x is not None]:
                raise ValueError(
                    f"{given[0]} must be None where there is a cache, whose tokens are the keys. Got one. Pass real to "
                    "say which new tokens are padding."
                )
            options: dict[str, Any] = dict(bias=bias, score=score, head_gates=head_gates, rng=rng)
            options |= dict(implementation=implementation, return_weights=return_weights)
            return attend_with_cache(self, query, cache, positions=positions, real=real, mask=mask, **options)
        if real is not None:
            raise ValueError("real must be None without a cache. Got one. Pass valid_lens or mask.")
        query = checks.floating("query", query, "*b t m", 2)
        checks.width("query", query, self.query.in_features[0])
        own_lens = valid_lens if (key is None or key is query) and np.ndim(valid_lens) < 2 else None  # type: ignore[arg-type]
        if positions is not None:
            positions = checks.positions("positions", positions, query.shape[:-2], query.shape[-2])
        if key is None and key_positions is None:
            key_positions = positions
        if isinstance(key, KeysAndValues):
            self._check_projected(key, value, query.shape[:-2])
            key_positions = key.positions if key_positions is None else key_positions
            s = key.keys.shape[-3]
        else:
            key = query if key is None else key
            query, key, value = checks.query_key_value(query, key, key if value is None else value, heads=False)
            s = key.shape[-2]
        self._check_positions(positions, key_positions, query.shape[-2], s)
        if key_positions is not None:
            key_positions = checks.positions("key_positions", key_positions, query.shape[:-2], s)
        key_was_projected = isinstance(key, KeysAndValues)
        if not isinstance(key, KeysAndValues):
            key = self.project(key, value, key_positions)
        longest = key_positions
        if longest is None and self.rotary is not None:
            longest = jnp.arange(s)
        queries = self._positioned(self.query(query), self.query_ln, positions, longest)
        keys, values, _ = key
        if self.kv_heads is not None:
            keys, values = (x[..., np.array(self.kv_heads), :] for x in (keys, values))
        divided: Any = self.sequence_axis
        if divided is not None and key_was_projected:  # also where a device could have no part, as of a first token
            divided = None if s % parts_of(divided) else (None, divided)
        by_position = mask is not None or bias is not None or isinstance(score, Modified)
        mask = all_of(mask, None if valid_lens is None else lengths(valid_lens))
        attended = self._attend(
            queries,
            keys,
            values,
            real_queries=own_lens,
            mask=mask,
            bias=bias,
            score=score,
            scale=self.scale,
            logits_soft_cap=self.logits_soft_cap,
            sinks=None if self.sinks is None else self.sinks[...],
            query_positions=_of_rules("positions", positions) if by_position else None,
            key_positions=_of_rules("key_positions", key_positions) if by_position else None,
            head_gates=head_gates,
            sequence_axis=divided,
            implementation=implementation,
            return_weights=return_weights,
            **self.dropout.of_weights(rng),
        )
        heads, weights = as_pair(attended, return_weights)
        return outputs(self.out(heads), weights, return_weights)

    def project(
        self,
        key: Float[Array, "*b s mk"],
        value: Float[Array, "*b s mv"] | None = None,
        positions: Real[Array, "..."] | None = None,
    ) -> KeysAndValues:
        """Keys and values for many calls with other queries, such as those of a decoder's steps over one memory.

        Args:
            key, value: as at the call.
            positions: of the keys, as ``key_positions`` there; masks and biases go by them, too.

        Example:

            >>> attend = MultiHeadAttention(num_heads=2, in_features=4, rngs=nnx.Rngs(0))
            >>> memory = attend.project(jnp.ones((7, 4)))
            >>> attend(jnp.ones((1, 4)), memory).shape
            (1, 4)
        """
        value = key if value is None else value
        key, value = (checks.floating(name, x, "*b s m", 2) for name, x in (("key", key), ("value", value)))
        checks.width("key", key, self.key.in_features[0])
        checks.width("value", value, self.value.in_features[0])
        if positions is not None:
            positions = checks.positions("positions", positions, key.shape[:-2], key.shape[-2])
        return KeysAndValues(self._positioned(self.key(key), self.key_ln, positions), self.value(value), positions)

    def _positioned(self, x: Array, norm: Any, positions: Any, longest: Any = None) -> Array:
        """Heads of queries or keys, normalised and turned."""
        if norm is not None:
            x = norm(x) if self.qk_norm_over == "head" else norm(x.reshape(*x.shape[:-2], -1)).reshape(x.shape)
        return x if self.rotary is None else self.rotary(x, positions, longest=longest)

    def _check_positions(self, positions: Any, key_positions: Any, t: int, s: int) -> None:
        """Raise ValueError where it can't be known which positions the queries or the keys have."""
        if self.rotary is not None and positions is None and (t != s or key_positions is not None):
            raise ValueError(
                f"positions must be given where rotary positions turn {t} queries and {s} keys apart. Got None. The "
                "last queries of a sequence have positions=jnp.arange(s - t, s), under mask=jattn.masks.causal()."
            )
        if positions is not None and key_positions is None and t == s:
            raise ValueError(
                "key_positions must be given where there are positions and as many keys, which may have the same or "
                "other ones. Got None. For self-attention leave key out."
            )

    def _check_projected(self, key: KeysAndValues, value: Any, batch: tuple[int, ...]) -> None:
        """Raise ValueError unless this layer can have projected it."""
        if value is not None:
            raise ValueError("value must be None where key holds projected values. Got both.")
        own = [(*batch, -1, *projection.kernel.shape[1:]) for projection in (self.key, self.value)]
        given = [(*x.shape[:-3], -1, *x.shape[-2:]) for x in key[:2]]
        if own != given or key.keys.shape[-3] != key.values.shape[-3]:
            raise ValueError(
                f"key must be what this layer's project returned for query's batch, keys and values with the axes "
                f"{own[0][:-3]}, s, {own[0][-2:]} and {own[1][-2:]}. Got shapes {key.keys.shape} and "
                f"{key.values.shape}."
            )


def _of_rules(name: str, positions: Any) -> Any:
    """Positions for masks, biases and modified scores, which compare integers."""
    if positions is not None and jnp.issubdtype(jnp.result_type(positions), jnp.floating):
        raise ValueError(
            f"{name} must be integers where a mask, a bias or a modified score goes by them. "
            f"Got {jnp.result_type(positions)}."
        )
    return positions


_PROJECTIONS = ("query", "key", "value", "out")


def _names_of_biased(use_bias: Any) -> tuple[str, ...]:
    """The projections that have biases."""
    if isinstance(use_bias, bool | np.bool_):
        return _PROJECTIONS if use_bias else ()
    several = isinstance(use_bias, tuple | list | set | frozenset)
    if not several or not all(isinstance(name, str) and name in _PROJECTIONS for name in use_bias):
        raise ValueError(f"use_bias must be True, False or some of {_PROJECTIONS}. Got {use_bias!r:.80}.")
    return tuple(use_bias)


def _norm_of_heads(normalize_qk: Any, epsilon: float | None) -> Norm | None:
    if normalize_qk is False:
        if epsilon is not None:
            raise ValueError(f"qk_norm_epsilon must be None where normalize_qk is False. Got {epsilon}.")
        return None
    if normalize_qk is True:
        return Norm("layer", epsilon=1e-6 if epsilon is None else epsilon, use_bias=False)
    norm = as_norm("normalize_qk", normalize_qk)
    return norm if epsilon is None else dataclasses.replace(norm, epsilon=epsilon)


def _rotary(rotary: Any, base: float | None) -> Rotary | None:
    if rotary is not None and base is not None:
        raise ValueError("rotary_base must be None where rotary is given, which has a base. Got both.")
    if rotary is not None and not isinstance(rotary, Rotary):
        raise ValueError(f"rotary must be a jattn.nn.Rotary. Got {rotary!r:.80}.")
    return rotary if base is None else Rotary(base)
