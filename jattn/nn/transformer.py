"""The transformer block: attention and a network on each position, with residuals and norms."""

from collections.abc import Collection, Mapping
from typing import Any, Literal, TypedDict, Unpack, overload

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, Real

from jattn._engine import checks
from jattn.biases import Bias
from jattn.cache import Cache
from jattn.implementations.choice import ImplementationName
from jattn.masks import Mask, all_of
from jattn.masks import causal as causal_mask
from jattn.nn.dropout import Dropout, split
from jattn.nn.experts import MixtureOfExperts
from jattn.nn.feed_forward import Activation, FeedForward, GateFn
from jattn.nn.layers import Initializer, default_bias_init, default_kernel_init
from jattn.nn.multi_head import KeysAndValues, MultiHeadAttention
from jattn.nn.norms import Norm, as_norm
from jattn.nn.rotary_positions import Rotary
from jattn.nn.weights import Cached, Outputs, as_pair, outputs

__all__ = ["TransformerBlock"]

NormPlace = Literal["post", "pre", "sandwich", "branch"]


class _BlockOptions(TypedDict, total=False):
    valid_lens: int | Int[Array, "..."] | None
    mask: Mask | Bool[Array, "..."] | None
    bias: Bias | Float[Array, "..."] | None
    positions: Real[Array, "..."] | None
    head_gates: Float[Array, "..."] | None
    memory_valid_lens: int | Int[Array, "..."] | None
    memory_mask: Mask | Bool[Array, "..."] | None
    real: Bool[Array, "..."] | None
    implementation: ImplementationName | None
    rng: PRNGKeyArray | None


class TransformerBlock(nnx.Module):
    """Self-attention, optionally attention to a memory, and a feed-forward network, each f with a residual.

    ``norm="post"``: ``x = dropout(norm(x + drop(f(x))))``, dropout here and none inside the feed-forward network.
    The others have dropout inside the feed-forward network:
    ``norm="pre"``: ``x = x + drop(f(norm(x)))``.
    ``norm="sandwich"``: ``x = x + norm'(drop(f(norm(x))))``, as in Gemma 2; norm' are its ``norms_after``.
    ``norm="branch"``: ``x = x + norm(drop(f(x)))``, as in OLMo 2.

    Args:
        num_heads: how many query heads.
        features: m, the width.
        feedforward_features: the feed-forward network's inner width.
        norm: ``"post"`` (Vaswani et al., 2017), ``"pre"`` (Xiong et al., 2020), ``"sandwich"`` or ``"branch"``.
        norm_kind: a `Norm`, ``"layer"`` or ``"rms"``.
        first_norm: whether there is a norm1; under ``norm="pre"`` there may be none, as in ModernBERT's first block,
            whose input is normed already.
        parallel: whether attention and network see the same x, ``x + f(norm1(x)) + g(norm2(x))``, as in GPT-NeoX; under
            ``norm="pre"`` and without cross attention.
        shared_norm: whether such a block has one norm for both, ``x + f(norm1(x)) + g(norm1(x))``, as in Phi, Falcon
            and Cohere; there is no norm2 then.
        activation, gated: of the `FeedForward`.
        feedforward_bias: whether it has biases.
        experts: further arguments by name of a `MixtureOfExperts`, which then is the feed-forward network.
        dropout_rate: in training, in [0, 1), where ``norm`` says.
        residual_dropout_rate: of what f gives, before it is added: drop above, as in BERT and GPT-2. Or a pair, for
            attention and for the network, as DistilBERT drops what the network gives alone.
        residual_scale: what f gives is multiplied by, as in Granite.
        attention_dropout_rate: of the attention weights.
        feedforward_dropout_rate: of what is between the feed-forward network's layers; where ``norm`` says by default.
        use_bias: whether the attention's projections have biases, or which of them do.
        causal: whether self-attention sees the past only.
        cross_attention: whether there is a second attention, to a memory of the same width. Its norm is ``norm2``,
            the feed-forward network's then ``norm3``.
        num_kv_heads, normalize_qk: as in `MultiHeadAttention`, for both attentions.
        rotary, rotary_base: as there, for self-attention.
        attention_options: further arguments of the self-attention, a `MultiHeadAttention`, by name.
        cross_attention_options: likewise, of the attention to the memory.
        kernel_init, bias_init, dtype, param_dtype: as in ``flax.nnx.Linear``.
        rngs: for the initial parameters.

    Example:

        >>> block = TransformerBlock(num_heads=2, features=8, feedforward_features=32, causal=True, rngs=nnx.Rngs(0))
        >>> x, weights = block(jnp.ones((2, 5, 8)), return_weights=True)
        >>> x.shape, weights.shape
        ((2, 5, 8), (2, 2, 5, 5))
    """

    def __init__(
        self,
        num_heads: int,
        features: int,
        feedforward_features: int,
        *,
        norm: NormPlace = "post",
        norm_kind: Norm | Literal["layer", "rms"] = "layer",
        first_norm: bool = True,
        parallel: bool = False,
        shared_norm: bool = False,
        activation: Activation = "relu",
        gated: bool | GateFn = False,
        feedforward_bias: bool = True,
        experts: Mapping[str, Any] | None = None,
        dropout_rate: float = 0.0,
        residual_dropout_rate: float | tuple[float, float] = 0.0,
        residual_scale: float | None = None,
        attention_dropout_rate: float = 0.0,
        feedforward_dropout_rate: float | None = None,
        use_bias: bool | Collection[str] = True,
        causal: bool = False,
        cross_attention: bool = False,
        num_kv_heads: int | None = None,
        normalize_qk: bool | str | Norm = False,
        rotary: Rotary | None = None,
        rotary_base: float | None = None,
        attention_options: Mapping[str, Any] | None = None,
        cross_attention_options: Mapping[str, Any] | None = None,
        kernel_init: Initializer = default_kernel_init,
        bias_init: Initializer = default_bias_init,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        checks.one_of("norm", norm, ("post", "pre", "sandwich", "branch"))
        if checks.flag("parallel", parallel) and (norm != "pre" or cross_attention):
            raise ValueError('parallel must be False unless norm="pre", without cross attention. Got True.')
        if checks.flag("shared_norm", shared_norm) and not (parallel and first_norm):
            raise ValueError("shared_norm must be False unless parallel=True, with a first norm. Got True.")
        if not checks.flag("first_norm", first_norm) and norm != "pre":
            raise ValueError(f'first_norm must be True unless norm="pre". Got False, with norm={norm!r}.')
        for name, flag in (("causal", causal), ("cross_attention", cross_attention)):
            checks.flag(name, flag)
        checks.positive_integers(num_heads=num_heads, features=features, feedforward_features=feedforward_features)
        given = residual_dropout_rate
        of_attention, of_network = given if isinstance(given, tuple) else (given, given)
        for rate in (of_attention, of_network):
            checks.number("residual_dropout_rate", rate, "[0, 1)")
        checks.number("attention_dropout_rate", attention_dropout_rate, "[0, 1)")
        if residual_scale is not None:
            residual_scale = float(checks.number("residual_scale", residual_scale, "(-inf, inf)"))
        make_norm = as_norm("norm_kind", norm_kind)
        types: dict[str, Any] = dict(dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        inits: dict[str, Any] = dict(kernel_init=kernel_init, bias_init=bias_init)
        heads: dict[str, Any] = dict(
            num_kv_heads=num_kv_heads,
            use_bias=use_bias,
            normalize_qk=normalize_qk,
            dropout_rate=attention_dropout_rate,
        )
        own = {"rotary", "rotary_base", *heads, *inits, *types, "num_heads", "in_features"}
        further, across = dict(attention_options or {}), dict(cross_attention_options or {})
        for name, options in (("attention_options", further), ("cross_attention_options", across)):
            _check_options(name, options, own, " (of an attention's dropout_rate, attention_dropout_rate)")
        if across and not cross_attention:
            raise ValueError("cross_attention_options must be None for a block with cross_attention=False. Got some.")
        self.norm_place, self.parallel, self.causal = norm, parallel, causal
        if "qkv_features" not in further:
            checks.divides("num_heads", num_heads, "features", features)
        within: dict[str, Any] = {"rotary": rotary, "rotary_base": rotary_base, **heads, **further}
        self.attention = MultiHeadAttention(num_heads, features, **within, **inits, **types)
        # The positions of a memory are not those of x, so cross attention is never rotary.
        self.cross_attention = (
            MultiHeadAttention(num_heads, features, **heads, **across, **inits, **types) if cross_attention else None
        )
        if experts is not None and feedforward_dropout_rate is not None:
            raise ValueError(
                f"feedforward_dropout_rate must be None for a block of experts. Got {feedforward_dropout_rate}."
            )
        network: dict[str, Any] = dict(
            activation=activation,
            gated=gated,
            use_bias=feedforward_bias,
            dropout_rate=0.0 if norm == "post" else dropout_rate,
            **inits,
            **types,
        )
        _check_options("experts", experts, network.keys())
        self.feed_forward = (
            FeedForward(features, feedforward_features, hidden_dropout_rate=feedforward_dropout_rate, **network)
            if experts is None
            else MixtureOfExperts(features, feedforward_features, **network, **experts)
        )
        self.norm1 = make_norm(features, **types) if first_norm else None
        self.norm2 = None if shared_norm else make_norm(features, **types)
        self.norm3 = make_norm(features, **types) if cross_attention else None
        sublayers = 3 if cross_attention else 2
        after = [make_norm(features, **types) for _ in range(sublayers)] if norm == "sandwich" else None
        self.norms_after = None if after is None else nnx.List(after)
        self.attended_dropout, self.residual_dropout = Dropout(of_attention), Dropout(of_network)
        self.residual_scale = residual_scale
        self.dropout = Dropout(dropout_rate if norm == "post" else 0.0)

    @overload
    def __call__(
        self,
        x: Array,
        memory: Array | KeysAndValues | None = None,
        *,
        cache: Cache,
        return_weights: bool = False,
        **options: Unpack[_BlockOptions],
    ) -> Cached: ...
    @overload
    def __call__(
        self,
        x: Array,
        memory: Array | KeysAndValues | None = None,
        *,
        return_weights: Literal[True],
        **options: Unpack[_BlockOptions],
    ) -> Outputs: ...
    @overload
    def __call__(
        self,
        x: Array,
        memory: Array | KeysAndValues | None = None,
        *,
        return_weights: Literal[False] = False,
        **options: Unpack[_BlockOptions],
    ) -> Float[Array, "*b t m"]: ...
    @overload
    def __call__(
        self,
        x: Array,
        memory: Array | KeysAndValues | None = None,
        *,
        cache: Cache | None = None,
        return_weights: bool = False,
        **options: Unpack[_BlockOptions],
    ) -> Float[Array, "*b t m"] | Outputs | Cached: ...

    def __call__(
        self,
        x: Float[Array, "*b t m"],
        memory: Float[Array, "*b s m"] | KeysAndValues | None = None,
        *,
        valid_lens: int | Int[Array, "..."] | None = None,
        mask: Mask | Bool[Array, "..."] | None = None,
        bias: Bias | Float[Array, "..."] | None = None,
        positions: Real[Array, "..."] | None = None,
        head_gates: Float[Array, "..."] | None = None,
        memory_valid_lens: int | Int[Array, "..."] | None = None,
        memory_mask: Mask | Bool[Array, "..."] | None = None,
        cache: Cache | None = None,
        real: Bool[Array, "..."] | None = None,
        implementation: ImplementationName | None = None,
        return_weights: bool = False,
        rng: PRNGKeyArray | None = None,
    ) -> Float[Array, "*b t m"] | Outputs | Cached:
        """Run the block.

        Args:
            x: ``*b t m``.
            memory: ``*b s m``, what cross attention attends to, or what ``cross_attention.project`` made of it.
            valid_lens, mask, bias, positions, head_gates: of the attention within x, as in `MultiHeadAttention`.
            memory_valid_lens, memory_mask: likewise for the memory.
            cache, real: of the attention within x, for tokens that come after others, as in `MultiHeadAttention`.
            implementation: as in `jattn.attention`.
            return_weights: also return the weights ``*b h t t``; with cross attention the pair of self-attention's and
                cross attention's (``*b h t s``).
            rng: a ``jax.random.key`` for dropout in training.

        Returns:
            ``*b t m``; with return_weights an `Outputs` of it and the weights; with a cache a `Cached`.
        """
        x = checks.floating("x", x, "*b t m", 2)
        checks.width("x", x, self.attention.query.in_features[0])
        self._check_memory(memory, memory_valid_lens, memory_mask)
        if self.causal:
            mask = all_of(causal_mask(), mask)
        rngs = split(rng, 6)
        # The residual stream has one axis of tokens: with several, XLA on a CPU fuses the whole chain of its gradients
        # anew into the operands of each product.
        shape, x = x.shape, x.reshape(-1, x.shape[-1])

        before = self._before(self.norm1, x)
        attended = self.attention(
            before.reshape(shape),
            valid_lens=valid_lens,
            mask=mask,
            bias=bias,
            positions=positions,
            head_gates=head_gates,
            cache=cache,
            real=real,
            implementation=implementation,
            return_weights=return_weights,
            rng=rngs[0],
        )
        if isinstance(attended, Cached):
            y, cache, weights, _ = attended
        else:
            y, weights = as_pair(attended, return_weights)
        own = x  # what the network's norm sees, where both are parallel
        x = self._after(0, self.norm1, x, y.reshape(x.shape), rngs[1])

        if self.cross_attention is not None:
            attended = self.cross_attention(
                self._before(self.norm2, x).reshape(shape),
                memory,
                valid_lens=memory_valid_lens,
                mask=memory_mask,
                implementation=implementation,
                return_weights=return_weights,
                rng=rngs[2],
            )
            y, cross_weights = as_pair(attended, return_weights)
            x = self._after(1, self.norm2, x, y.reshape(x.shape), rngs[3])
            weights = (weights, cross_weights)

        norm = self.norm2 if self.norm3 is None else self.norm3
        if norm is not None:
            before = self._before(norm, own if self.parallel else x)
        y = self.feed_forward(before, rng=rngs[4])
        x = self._after(-1, norm, x, y, rngs[5]).reshape(shape)
        if cache is not None:
            return Cached(x, cache, weights if return_weights else None)
        return outputs(x, weights, return_weights)

    def _before(self, norm: Any, x: Array) -> Array:
        """What a sublayer sees of x."""
        return norm(x) if norm is not None and self.norm_place in ("pre", "sandwich") else x

    def _after(self, i: int, norm: Any, x: Array, y: Array, rng: PRNGKeyArray | None) -> Array:
        """x with the output y of the i-th sublayer added."""
        if self.residual_scale is not None:
            y = y * jnp.asarray(self.residual_scale, y.dtype)
        drop = self.residual_dropout if i == -1 else self.attended_dropout
        if drop.rate > 0:  # of its own rng, as there may be the other dropout too
            y = drop(y, None if rng is None else jax.random.fold_in(rng, 1))
        if self.norm_place == "post":
            return self.dropout(norm(x + y), rng)
        if self.norm_place == "branch":
            return x + norm(y)
        return x + (y if self.norms_after is None else self.norms_after[i](y))

    def _check_memory(self, memory: Any, valid_lens: Any, mask: Any) -> None:
        if memory is None and self.cross_attention is not None:
            raise ValueError("memory must be given to a block with cross_attention=True. Got None.")
        if memory is not None and self.cross_attention is None:
            raise ValueError(
                "memory must be None for a block with cross_attention=False. Got one. "
                "Make the block with cross_attention=True."
            )
        if memory is None and (valid_lens is not None or mask is not None):
            raise ValueError("memory_valid_lens and memory_mask must be None without a memory. Got at least one.")


def _check_options(name: str, options: Mapping[str, Any] | None, own: Collection[str], note: str = "") -> None:
    if twice := sorted(set(options or ()) & set(own)):
        raise ValueError(
            f"{name} must hold what the block has no argument for. Its own are {', '.join(twice)}{note}. "
            f"Got {options!r:.200}."
        )
