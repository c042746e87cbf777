"""GPT-2: a decoder with learned positions. v is the vocabulary."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from flax import nnx

from jattn.models.hugging_face.decoder import TextDecoder
from jattn.models.hugging_face.family import Family
from jattn.models.hugging_face.settings import count_setting, optional_count_setting, real_setting
from jattn.nn import Norm
from jattn.weights import Table, dropped, prefixed, rename, split, tied, transposed

__all__ = ["GPT2"]


def _gpt2_options(config: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of `GPT2` for the settings of a ``GPT2LMHeadModel``."""
    rates = {name: real_setting(config, name, "[0, 1)", 0.1) for name in ("embd_pdrop", "resid_pdrop", "attn_pdrop")}
    return dict(
        vocab_size=count_setting(config, "vocab_size"),
        max_length=count_setting(config, "n_positions"),
        features=count_setting(config, "n_embd"),
        num_heads=count_setting(config, "n_head"),
        num_layers=count_setting(config, "n_layer"),
        feedforward_features=optional_count_setting(config, "n_inner"),
        dropout_rate=rates["embd_pdrop"],
        residual_dropout_rate=rates["resid_pdrop"],
        attention_dropout_rate=rates["attn_pdrop"],
        norm_epsilon=real_setting(config, "layer_norm_epsilon", "[0, inf)", 1e-5),
    )


def _gpt2_table(model: Any) -> Table:
    """From a ``GPT2LMHeadModel``, or from the official files, which have no prefix, and the causal masks."""
    layer, block = "transformer.h.#", "blocks.#"
    return Table(
        [
            tied("lm_head.weight", "transformer.wte.weight", optional=True),
            prefixed("", "transformer.", but=r"^transformer\.", optional=True, back=False),
            dropped(r"\.attn\.(masked_)?bias$", optional=True),
            transposed(r"\.c_(attn|proj|fc)\."),
            rename("transformer.wte", "embedding"),
            rename("transformer.wpe", "positions.embedding"),
            rename(f"{layer}.ln_1", f"{block}.norm1"),
            split(f"{layer}.attn.c_attn", [f"{block}.attention.{part}" for part in ("query", "key", "value")]),
            rename(f"{layer}.attn.c_proj", f"{block}.attention.out"),
            rename(f"{layer}.ln_2", f"{block}.norm2"),
            rename(f"{layer}.mlp.c_fc", f"{block}.feed_forward.linear1"),
            rename(f"{layer}.mlp.c_proj", f"{block}.feed_forward.linear2"),
            rename("transformer.ln_f", "norm"),
        ]
    )


class GPT2(TextDecoder):
    """Token and position embeddings, pre-norm blocks, a norm, and logits by the token embedding, which is tied.

    Args:
        vocab_size: v, how many tokens there are.
        max_length: the longest sequence.
        features: m, the width.
        num_heads: heads in each block.
        num_layers: how many blocks.
        feedforward_features: the feed-forward network's inner width; 4 m by default.
        dropout_rate: in training, of the embeddings.
        residual_dropout_rate: of what each block adds; dropout_rate by default.
        attention_dropout_rate: of the attention weights; dropout_rate by default.
        norm_epsilon: of the layer norms.
        dtype, param_dtype: as in ``flax.nnx.Linear``.
        rngs: for the initial parameters.

    Source: Radford et al., Language Models are Unsupervised Multitask Learners, 2019.

    Example:

        >>> model = GPT2(50, max_length=16, features=12, num_heads=3, num_layers=2, rngs=nnx.Rngs(0))
        >>> model.eval()
        >>> logits, weights = model(jnp.ones((2, 5), int), valid_lens=jnp.array([5, 3]), return_weights=True)
        >>> logits.shape, len(weights), weights[0].shape
        ((2, 5, 50), 2, (2, 3, 5, 5))
    """

    hugging_face = Family(
        table=_gpt2_table,
        implemented={
            "model_type": ("gpt2",),
            "activation_function": ("gelu_new", "gelu_pytorch_tanh"),
            "scale_attn_weights": (True,),
            "scale_attn_by_inverse_layer_idx": (False,),
            "tie_word_embeddings": (True,),
        },
        options=_gpt2_options,
        without_effect=frozenset(
            {
                "n_ctx",
                "n_special",
                "predict_special_tokens",
                "reorder_and_upcast_attn",
                *(f"summary_{of}" for of in ("activation", "first_dropout", "proj_to_labels", "type", "use_proj")),
            }
        ),
    )

    def __init__(
        self,
        vocab_size: int,
        *,
        max_length: int = 1024,
        features: int = 768,
        num_heads: int = 12,
        num_layers: int = 12,
        feedforward_features: int | None = None,
        dropout_rate: float = 0.1,
        residual_dropout_rate: float | None = None,
        attention_dropout_rate: float | None = None,
        norm_epsilon: float = 1e-5,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        norm = Norm("layer", epsilon=norm_epsilon)
        block: dict[str, Any] = dict(
            num_heads=num_heads,
            feedforward_features=4 * features if feedforward_features is None else feedforward_features,
            norm="pre",
            norm_kind=norm,
            activation="gelu_tanh",
            residual_dropout_rate=dropout_rate if residual_dropout_rate is None else residual_dropout_rate,
            attention_dropout_rate=dropout_rate if attention_dropout_rate is None else attention_dropout_rate,
        )
        super().__init__(
            vocab_size,
            features=features,
            layers=[block] * num_layers,
            norm=norm,
            max_length=max_length,
            dropout_rate=dropout_rate,
            dtype=dtype,
            param_dtype=param_dtype,
            rngs=rngs,
        )
