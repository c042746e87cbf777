"""PyTorch's transformer, ``torch.nn.Transformer``, and its stacks of layers, which are in layers.py."""

from collections.abc import Sequence
from typing import Any, Literal, overload

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, PRNGKeyArray

from jattn._engine import checks
from jattn.nn.dropout import split
from jattn.nn.feed_forward import Activation
from jattn.nn.layers import LayerNorm
from jattn.nn.torch.attention import TorchMask
from jattn.nn.torch.layers import TransformerDecoderLayer, TransformerEncoderLayer
from jattn.nn.weights import in_turn

__all__ = ["Transformer", "TransformerDecoder", "TransformerEncoder"]


class TransformerEncoder(nnx.Module):
    """``torch.nn.TransformerEncoder``: copies of a layer, and a norm at the end.

    Args:
        encoder_layer: is copied, with its numbers: as in PyTorch, all layers begin alike. `initialize` draws each anew.
        num_layers: how many copies.
        norm: for the last layer's output, `LayerNorm` for one; None for none.
        enable_nested_tensor: False; arrays have one shape, and padded tokens are what the layers make of them.
        mask_check: of no effect without nested tensors.

    Example:

        >>> layer = TransformerEncoderLayer(8, nhead=2, dropout=0.0, batch_first=True, rngs=nnx.Rngs(0))
        >>> encoder = TransformerEncoder(layer, 3)
        >>> x, weights = encoder(jnp.ones((2, 5, 8)), return_weights=True)
        >>> x.shape, [w.shape for w in weights]
        ((2, 5, 8), [(2, 2, 5, 5), (2, 2, 5, 5), (2, 2, 5, 5)])
    """

    def __init__(
        self,
        encoder_layer: nnx.Module,
        num_layers: int,
        norm: nnx.Module | None = None,
        enable_nested_tensor: bool = False,
        mask_check: bool = True,
    ) -> None:
        if checks.flag("enable_nested_tensor", enable_nested_tensor):
            raise ValueError(
                "enable_nested_tensor must be False, as arrays have one shape. Got True. Leave it out: PyTorch's "
                "outputs differ at padded tokens only, where they are zeros in its fast path."
            )
        checks.flag("mask_check", mask_check)
        self.layers = nnx.List(_copies("encoder_layer", encoder_layer, num_layers))
        self.norm = norm

    @overload
    def __call__(
        self,
        src: Array,
        mask: TorchMask | None = None,
        src_key_padding_mask: TorchMask | None = None,
        is_causal: bool | None = None,
        *,
        return_weights: Literal[True],
        rng: PRNGKeyArray | None = None,
    ) -> tuple[Float[Array, "*bt m"], tuple[Array, ...]]: ...
    @overload
    def __call__(
        self,
        src: Array,
        mask: TorchMask | None = None,
        src_key_padding_mask: TorchMask | None = None,
        is_causal: bool | None = None,
        *,
        return_weights: Literal[False] = False,
        rng: PRNGKeyArray | None = None,
    ) -> Float[Array, "*bt m"]: ...
    @overload
    def __call__(
        self,
        src: Array,
        mask: TorchMask | None = None,
        src_key_padding_mask: TorchMask | None = None,
        is_causal: bool | None = None,
        *,
        return_weights: bool,
        rng: PRNGKeyArray | None = None,
    ) -> Float[Array, "*bt m"] | tuple[Float[Array, "*bt m"], tuple[Array, ...]]: ...

    def __call__(
        self,
        src: Float[Array, "*bt m"],
        mask: TorchMask | None = None,
        src_key_padding_mask: TorchMask | None = None,
        is_causal: bool | None = None,
        *,
        return_weights: bool = False,
        rng: PRNGKeyArray | None = None,
    ) -> Float[Array, "*bt m"] | tuple[Float[Array, "*bt m"], tuple[Array, ...]]:
        """Run all layers; arguments as in `TransformerEncoderLayer`, with the weights as a tuple, one for each layer.

        ``is_causal=None``, PyTorch's request to find out by itself, is the same as False: the mask decides.
        """
        masks = dict(
            src_mask=mask,
            src_key_padding_mask=src_key_padding_mask,
            is_causal=False if is_causal is None else is_causal,
        )
        return _run_stack(self.layers, self.norm, (src,), masks, return_weights, rng)


class TransformerDecoder(nnx.Module):
    """``torch.nn.TransformerDecoder``: copies of a layer, each attending to the same memory, and a norm at the end.

    Args:
        decoder_layer, num_layers, norm: as in `TransformerEncoder`.

    Example:

        >>> layer = TransformerDecoderLayer(8, nhead=2, dropout=0.0, batch_first=True, rngs=nnx.Rngs(0))
        >>> decoder = TransformerDecoder(layer, 2, LayerNorm(8, rngs=nnx.Rngs(0)))
        >>> x, weights = decoder(jnp.ones((2, 5, 8)), jnp.ones((2, 7, 8)), return_weights=True)
        >>> [(w.shape, memory_w.shape) for w, memory_w in weights]
        [((2, 2, 5, 5), (2, 2, 5, 7)), ((2, 2, 5, 5), (2, 2, 5, 7))]
    """

    def __init__(self, decoder_layer: nnx.Module, num_layers: int, norm: nnx.Module | None = None) -> None:
        self.layers = nnx.List(_copies("decoder_layer", decoder_layer, num_layers))
        self.norm = norm

    @overload
    def __call__(
        self,
        tgt: Array,
        memory: Array,
        tgt_mask: TorchMask | None = None,
        memory_mask: TorchMask | None = None,
        tgt_key_padding_mask: TorchMask | None = None,
        memory_key_padding_mask: TorchMask | None = None,
        tgt_is_causal: bool | None = None,
        memory_is_causal: bool = False,
        *,
        return_weights: Literal[True],
        rng: PRNGKeyArray | None = None,
    ) -> tuple[Float[Array, "*bt m"], tuple[tuple[Array, Array], ...]]: ...
    @overload
    def __call__(
        self,
        tgt: Array,
        memory: Array,
        tgt_mask: TorchMask | None = None,
        memory_mask: TorchMask | None = None,
        tgt_key_padding_mask: TorchMask | None = None,
        memory_key_padding_mask: TorchMask | None = None,
        tgt_is_causal: bool | None = None,
        memory_is_causal: bool = False,
        *,
        return_weights: Literal[False] = False,
        rng: PRNGKeyArray | None = None,
    ) -> Float[Array, "*bt m"]: ...
    @overload
    def __call__(
        self,
        tgt: Array,
        memory: Array,
        tgt_mask: TorchMask | None = None,
        memory_mask: TorchMask | None = None,
        tgt_key_padding_mask: TorchMask | None = None,
        memory_key_padding_mask: TorchMask | None = None,
        tgt_is_causal: bool | None = None,
        memory_is_causal: bool = False,
        *,
        return_weights: bool,
        rng: PRNGKeyArray | None = None,
    ) -> Float[Array, "*bt m"] | tuple[Float[Array, "*bt m"], tuple[tuple[Array, Array], ...]]: ...

    def __call__(
        self,
        tgt: Float[Array, "*bt m"],
        memory: Float[Array, "*bs m"],
        tgt_mask: TorchMask | None = None,
        memory_mask: TorchMask | None = None,
        tgt_key_padding_mask: TorchMask | None = None,
        memory_key_padding_mask: TorchMask | None = None,
        tgt_is_causal: bool | None = None,
        memory_is_causal: bool = False,
        *,
        return_weights: bool = False,
        rng: PRNGKeyArray | None = None,
    ) -> Float[Array, "*bt m"] | tuple[Float[Array, "*bt m"], tuple[tuple[Array, Array], ...]]:
        """Run all layers; arguments as in `TransformerDecoderLayer`, with the weights as a tuple of pairs, one for each
        layer. ``tgt_is_causal=None`` is the same as False: the mask decides.
        """
        masks = dict(
            tgt_mask=tgt_mask,
            memory_mask=memory_mask,
            tgt_key_padding_mask=tgt_key_padding_mask,
            memory_key_padding_mask=memory_key_padding_mask,
            tgt_is_causal=False if tgt_is_causal is None else tgt_is_causal,
            memory_is_causal=memory_is_causal,
        )
        return _run_stack(self.layers, self.norm, (tgt, memory), masks, return_weights, rng)


class Transformer(nnx.Module):
    """``torch.nn.Transformer``: an encoder, and a decoder that attends to its output, each with a norm at the end.

    Args:
        d_model: m, the width.
        nhead: h, a divisor of d_model.
        num_encoder_layers, num_decoder_layers: how many.
        dim_feedforward, dropout, activation, layer_norm_eps, batch_first, norm_first, bias: as in
            `TransformerEncoderLayer`.
        custom_encoder, custom_decoder: modules to use instead, called as `TransformerEncoder` and
            `TransformerDecoder` are.
        dtype, param_dtype: as in ``flax.nnx.Linear``.
        rngs: for the initial parameters.

    Example:

        >>> options = dict(dim_feedforward=16, dropout=0.0, batch_first=True, rngs=nnx.Rngs(0))
        >>> model = Transformer(8, 2, num_encoder_layers=1, num_decoder_layers=1, **options)
        >>> future = Transformer.generate_square_subsequent_mask(5)
        >>> model(jnp.ones((2, 7, 8)), jnp.ones((2, 5, 8)), tgt_mask=future).shape
        (2, 5, 8)

    Source: torch.nn.Transformer; Vaswani et al., Attention Is All You Need, 2017.
    """

    def __init__(
        self,
        d_model: int = 512,
        nhead: int = 8,
        num_encoder_layers: int = 6,
        num_decoder_layers: int = 6,
        dim_feedforward: int = 2048,
        dropout: float = 0.1,
        activation: Activation = "relu",
        custom_encoder: nnx.Module | None = None,
        custom_decoder: nnx.Module | None = None,
        layer_norm_eps: float = 1e-5,
        batch_first: bool = False,
        norm_first: bool = False,
        bias: bool = True,
        *,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        types: dict[str, Any] = dict(dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        options: dict[str, Any] = dict(
            dim_feedforward=dim_feedforward,
            dropout=dropout,
            activation=activation,
            layer_norm_eps=layer_norm_eps,
            batch_first=batch_first,
            norm_first=norm_first,
            bias=bias,
            **types,
        )

        def norm() -> LayerNorm:
            return LayerNorm(d_model, epsilon=layer_norm_eps, use_bias=bias, **types)

        if custom_encoder is None:
            layer = TransformerEncoderLayer(d_model, nhead, **options)
            custom_encoder = TransformerEncoder(layer, num_encoder_layers, norm())
        if custom_decoder is None:
            decoder_layer = TransformerDecoderLayer(d_model, nhead, **options)
            custom_decoder = TransformerDecoder(decoder_layer, num_decoder_layers, norm())
        self.encoder: Any = custom_encoder
        self.decoder: Any = custom_decoder

    @overload
    def __call__(
        self,
        src: Array,
        tgt: Array,
        src_mask: TorchMask | None = None,
        tgt_mask: TorchMask | None = None,
        memory_mask: TorchMask | None = None,
        src_key_padding_mask: TorchMask | None = None,
        tgt_key_padding_mask: TorchMask | None = None,
        memory_key_padding_mask: TorchMask | None = None,
        src_is_causal: bool | None = None,
        tgt_is_causal: bool | None = None,
        memory_is_causal: bool = False,
        *,
        return_weights: Literal[True],
        rng: PRNGKeyArray | None = None,
    ) -> tuple[Float[Array, "*bt m"], tuple[Any, Any]]: ...
    @overload
    def __call__(
        self,
        src: Array,
        tgt: Array,
        src_mask: TorchMask | None = None,
        tgt_mask: TorchMask | None = None,
        memory_mask: TorchMask | None = None,
        src_key_padding_mask: TorchMask | None = None,
        tgt_key_padding_mask: TorchMask | None = None,
        memory_key_padding_mask: TorchMask | None = None,
        src_is_causal: bool | None = None,
        tgt_is_causal: bool | None = None,
        memory_is_causal: bool = False,
        *,
        return_weights: Literal[False] = False,
        rng: PRNGKeyArray | None = None,
    ) -> Float[Array, "*bt m"]: ...
    @overload
    def __call__(
        self,
        src: Array,
        tgt: Array,
        src_mask: TorchMask | None = None,
        tgt_mask: TorchMask | None = None,
        memory_mask: TorchMask | None = None,
        src_key_padding_mask: TorchMask | None = None,
        tgt_key_padding_mask: TorchMask | None = None,
        memory_key_padding_mask: TorchMask | None = None,
        src_is_causal: bool | None = None,
        tgt_is_causal: bool | None = None,
        memory_is_causal: bool = False,
        *,
        return_weights: bool,
        rng: PRNGKeyArray | None = None,
    ) -> Float[Array, "*bt m"] | tuple[Float[Array, "*bt m"], tuple[Any, Any]]: ...

    def __call__(
        self,
        src: Float[Array, "*bs m"],
        tgt: Float[Array, "*bt m"],
        src_mask: TorchMask | None = None,
        tgt_mask: TorchMask | None = None,
        memory_mask: TorchMask | None = None,
        src_key_padding_mask: TorchMask | None = None,
        tgt_key_padding_mask: TorchMask | None = None,
        memory_key_padding_mask: TorchMask | None = None,
        src_is_causal: bool | None = None,
        tgt_is_causal: bool | None = None,
        memory_is_causal: bool = False,
        *,
        return_weights: bool = False,
        rng: PRNGKeyArray | None = None,
    ) -> Float[Array, "*bt m"] | tuple[Float[Array, "*bt m"], tuple[Any, Any]]:
        """Run encoder and decoder.

        Args:
            src: ``s b m``, or ``b s m`` with batch_first, or ``s m`` without a batch.
            tgt: ``t b m``, ``b t m`` or ``t m``.
            src_mask, src_key_padding_mask, src_is_causal: for the encoder, as in `TransformerEncoder`.
            tgt_mask, memory_mask, tgt_key_padding_mask, memory_key_padding_mask, tgt_is_causal, memory_is_causal: for
                the decoder, as in `TransformerDecoder`. Padding of src is masked in the memory only if
                memory_key_padding_mask says so.
            return_weights: also return the pair of the encoder's weights and the decoder's.
            rng: a ``jax.random.key`` for dropout in training.
        """
        rngs = split(rng, 2)
        asked: dict[str, Any] = dict(return_weights=True) if return_weights else {}
        memory = self.encoder(
            src, mask=src_mask, src_key_padding_mask=src_key_padding_mask, is_causal=src_is_causal, rng=rngs[0], **asked
        )
        memory, weights = memory if return_weights else (memory, None)
        output = self.decoder(
            tgt,
            memory,
            tgt_mask=tgt_mask,
            memory_mask=memory_mask,
            tgt_key_padding_mask=tgt_key_padding_mask,
            memory_key_padding_mask=memory_key_padding_mask,
            tgt_is_causal=tgt_is_causal,
            memory_is_causal=memory_is_causal,
            rng=rngs[1],
            **asked,
        )
        return (output[0], (weights, output[1])) if return_weights else output

    @staticmethod
    def generate_square_subsequent_mask(sz: int, dtype: Any = jnp.float32) -> Float[Array, "t t"]:
        """The causal mask in PyTorch's additive form: minus infinity above the diagonal, zero elsewhere."""
        return jnp.where(jnp.tri(sz, dtype=bool), 0, -jnp.inf).astype(dtype)


def _copies(name: str, layer: Any, n: int) -> list[Any]:
    if not isinstance(layer, nnx.Module):
        raise ValueError(f"{name} must be a module, of which copies are made. Got {layer!r:.80}.")
    return [nnx.clone(layer) for _ in range(checks.number("num_layers", n, "[1, inf)", integer=True))]


def _run_stack(
    layers: Sequence[Any], norm: Any, inputs: tuple[Any, ...], masks: dict[str, Any], return_weights: bool, rng: Any
) -> Any:
    """The layers in turn, on their predecessor's output and the rest of the inputs, and the norm."""
    x, *memory = inputs
    rngs = split(rng, len(layers))
    x, weights = in_turn(layers, x, *memory, return_weights=return_weights, rngs=rngs, **masks)
    x = x if norm is None else norm(x)
    return (x, tuple(weights)) if return_weights else x
