"""GPT-2: a decoder with learned positions. v is the vocabulary."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, PRNGKeyArray

from jattn._engine import checks
from jattn.models.hugging_face.family import (
    Family,
    PretrainedModel,
    count_setting,
    optional_count_setting,
    real_setting,
)
from jattn.nn import Embed, LayerNorm, LearnedPositions, Norm, TransformerBlock
from jattn.nn.dropout import Dropout
from jattn.nn.dropout import split as split_rng
from jattn.nn.weights import in_turn, outputs
from jattn.weights import Table, dropped, prefixed, rename, split, tied, transposed

__all__ = ["GPT2", "GPT2_FAMILY"]


def _gpt2_options(config: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of `GPT2` for the settings of a ``GPT2LMHeadModel``."""
    rates = {name: real_setting(config, name, "[0, 1)", 0.1) for name in ("embd_pdrop", "resid_pdrop", "attn_pdrop")}
    if rates["embd_pdrop"] != rates["resid_pdrop"]:
        raise ValueError(
            "config must have an embd_pdrop equal to resid_pdrop, as the model has one rate for both. "
            f"Got {rates['embd_pdrop']} and {rates['resid_pdrop']}. Set them alike: in eval mode neither matters."
        )
    return dict(
        vocab_size=count_setting(config, "vocab_size"),
        max_length=count_setting(config, "n_positions"),
        features=count_setting(config, "n_embd"),
        num_heads=count_setting(config, "n_head"),
        num_layers=count_setting(config, "n_layer"),
        feedforward_features=optional_count_setting(config, "n_inner"),
        dropout_rate=rates["resid_pdrop"],
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


GPT2_FAMILY = Family(
    table=_gpt2_table,
    implemented={
        "model_type": ("gpt2",),
        "activation_function": ("gelu_new", "gelu_pytorch_tanh"),
        "scale_attn_weights": (True,),
        "scale_attn_by_inverse_layer_idx": (False,),
        "add_cross_attention": (False,),
        "tie_word_embeddings": (True,),
        "quantization_config": (None,),
    },
    options=_gpt2_options,
)


class GPT2(PretrainedModel):
    """Token and position embeddings, pre-norm blocks, a norm, and logits by the token embedding, which is tied.

    Args:
        vocab_size: v, how many tokens there are.
        max_length: the longest sequence.
        features: m, the width.
        num_heads: heads in each block.
        num_layers: how many blocks.
        feedforward_features: the feed-forward network's inner width; 4 m by default.
        dropout_rate: in training, of the embeddings and of what each block adds.
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

    hugging_face = GPT2_FAMILY

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
        attention_dropout_rate: float | None = None,
        norm_epsilon: float = 1e-5,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        types: dict[str, Any] = dict(dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        block: dict[str, Any] = dict(
            norm="pre",
            norm_kind=Norm("layer", epsilon=norm_epsilon),
            activation="gelu_tanh",
            residual_dropout_rate=dropout_rate,
            attention_dropout_rate=dropout_rate if attention_dropout_rate is None else attention_dropout_rate,
            causal=True,
        )
        hidden = 4 * features if feedforward_features is None else feedforward_features
        self.embedding = Embed(vocab_size, features, **types)
        self.positions = LearnedPositions(max_length, features, **types)
        self.blocks = nnx.List(
            [TransformerBlock(num_heads, features, hidden, **block, **types) for _ in range(num_layers)]
        )
        self.norm = LayerNorm(features, epsilon=norm_epsilon, **types)
        self.dropout = Dropout(dropout_rate)
        self.max_length = max_length

    def __call__(
        self,
        tokens: Int[Array, "b t"],
        *,
        valid_lens: int | Int[Array, "b"] | None = None,
        return_weights: bool = False,
        rng: PRNGKeyArray | None = None,
    ) -> Float[Array, "b t v"] | Any:
        """The logits of the token after each.

        Args:
            tokens: ``b t``, token numbers.
            valid_lens: how many tokens of each sequence are real; what follows them is not attended to.
            return_weights: also return the list of each block's weights ``b h t t``.
            rng: a ``jax.random.key`` for dropout in training.
        """
        tokens = checks.tokens("tokens", tokens, self.embedding.num_embeddings, "b t", 2)
        valid_lens = checks.example_lengths("valid_lens", valid_lens, tokens.shape[:1])
        checks.at_most("tokens", tokens.shape[-1], "max_length", self.max_length)
        rngs = split_rng(rng, len(self.blocks) + 1)
        x = self.dropout(self.positions(self.embedding(tokens)), rngs[0])
        x, weights = in_turn(self.blocks, x, valid_lens=valid_lens, return_weights=return_weights, rngs=rngs[1:])
        logits = self.embedding.attend(self.norm(x))
        return outputs(logits, weights, return_weights)
