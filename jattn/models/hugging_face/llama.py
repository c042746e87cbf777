"""Llama: a decoder with rotary positions and grouped heads. v is the vocabulary."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from flax import nnx

from jattn.models.hugging_face.activations import activation_of
from jattn.models.hugging_face.decoder import TextDecoder
from jattn.models.hugging_face.decoder_settings import llama_table
from jattn.models.hugging_face.family import Family
from jattn.models.hugging_face.rotary import rotary_of
from jattn.models.hugging_face.settings import (
    count_setting,
    flag_setting,
    head_features_of,
    heads_of,
    optional_count_setting,
    padding_of,
    real_setting,
)
from jattn.nn import Norm, Rotary
from jattn.nn.feed_forward import Activation

__all__ = ["Llama"]


def _llama_options(config: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of `Llama` for the settings of a ``LlamaForCausalLM``."""
    if config.get("sliding_window") is not None:  # a Llama's masks in transformers are causal whatever it says
        raise ValueError(
            "config must have no sliding_window: of a Llama, transformers cuts only the cache of generate to it, so "
            f"that generate differs from the model. Got {config['sliding_window']!r}."
        )
    heads = heads_of(config)
    if (d := head_features_of(config)) % 2:
        raise ValueError(
            "config's head_dim, hidden_size / num_attention_heads by default, must be even, as rotary positions turn "
            f"pairs of features. Got {d}."
        )
    return dict(
        vocab_size=count_setting(config, "vocab_size"),
        features=count_setting(config, "hidden_size"),
        num_heads=heads["num_heads"],
        num_kv_heads=heads["num_kv_heads"],
        head_features=optional_count_setting(config, "head_dim"),
        num_layers=count_setting(config, "num_hidden_layers"),
        feedforward_features=count_setting(config, "intermediate_size"),
        rotary=rotary_of(config),
        tied=flag_setting(config, "tie_word_embeddings", False),
        attention_dropout_rate=real_setting(config, "attention_dropout", "[0, 1)", 0.0),
        norm_epsilon=real_setting(config, "rms_norm_eps", "[0, inf)", 1e-6),
        use_bias=flag_setting(config, "attention_bias", False),
        feedforward_bias=flag_setting(config, "mlp_bias", False),
        padding_idx=padding_of(config),
        activation=activation_of(config, "hidden_act", "silu"),
    )


class Llama(TextDecoder):
    """Token embeddings, pre-norm blocks, a norm, and logits.

    Args:
        vocab_size: v, how many tokens there are.
        features: m, the width.
        num_heads: query heads in each block.
        num_kv_heads: key and value heads, a divisor of num_heads, which it is by default.
        num_layers: how many blocks.
        feedforward_features: the gated network's inner width.
        head_features: d, the width of a head; ``m / num_heads`` by default.
        rotary: the rotary positions, also scaled ones as Llama 3.1 has them.
        rotary_base: short for ``rotary=Rotary(rotary_base)``; 10,000 where neither is given.
        tied: whether the logits are products with the token embedding, rather than with weights of their own.
        attention_dropout_rate: of the attention weights, in training.
        activation: of the gates.
        norm_epsilon: of the norms.
        use_bias, feedforward_bias: whether attention and the network have biases.
        padding_idx: the token whose embedding has no gradient from being looked up.
        dtype, param_dtype: as in ``flax.nnx.Linear``.
        rngs: for the initial parameters.

    Source: Touvron et al., Llama 2: Open Foundation and Fine-Tuned Chat Models, 2023.

    Example:

        >>> options = dict(features=16, num_heads=4, num_kv_heads=2, num_layers=2, feedforward_features=24)
        >>> model = Llama(50, **options, rngs=nnx.Rngs(0))
        >>> logits, weights = model(jnp.ones((2, 5), int), valid_lens=jnp.array([5, 3]), return_weights=True)
        >>> logits.shape, len(weights), weights[0].shape
        ((2, 5, 50), 2, (2, 4, 5, 5))
    """

    hugging_face = Family(
        table=llama_table,
        implemented={
            "model_type": ("llama",),
            "rope_interleaved": (False,),
        },
        options=_llama_options,
        without_effect=frozenset({"is_llama_config", "max_sequence_length", "pretraining_tp"}),
        any_head_features=True,
    )

    def __init__(
        self,
        vocab_size: int,
        *,
        features: int,
        num_heads: int,
        num_layers: int,
        feedforward_features: int,
        num_kv_heads: int | None = None,
        head_features: int | None = None,
        rotary: Rotary | None = None,
        rotary_base: float | None = None,
        tied: bool = False,
        attention_dropout_rate: float = 0.0,
        activation: Activation = "silu",
        norm_epsilon: float = 1e-6,
        use_bias: bool = False,
        feedforward_bias: bool = False,
        padding_idx: int | None = None,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        norm = Norm("rms", epsilon=norm_epsilon)
        qkv_features = None if head_features is None else num_heads * head_features
        block: dict[str, Any] = dict(
            num_heads=num_heads,
            feedforward_features=feedforward_features,
            norm="pre",
            norm_kind=norm,
            activation=activation,
            gated=True,
            feedforward_bias=feedforward_bias,
            use_bias=use_bias,
            attention_dropout_rate=attention_dropout_rate,
            num_kv_heads=num_kv_heads,
            rotary=Rotary() if rotary is None and rotary_base is None else rotary,
            rotary_base=rotary_base,
            attention_options=dict(qkv_features=qkv_features),
        )
        super().__init__(
            vocab_size,
            features=features,
            layers=[block] * num_layers,
            norm=norm,
            padding_idx=padding_idx,
            tied=tied,
            dtype=dtype,
            param_dtype=param_dtype,
            rngs=rngs,
        )
