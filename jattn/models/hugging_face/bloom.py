"""BLOOM: ALiBi's biases, and norms of the embeddings."""

from collections.abc import Mapping
from typing import Any

from jattn.models.hugging_face.activations import TanhGelu
from jattn.models.hugging_face.decoder import TextDecoder
from jattn.models.hugging_face.decoder_settings import packed_lines
from jattn.models.hugging_face.family import Family
from jattn.models.hugging_face.settings import count_setting, real_setting
from jattn.nn import Norm
from jattn.weights import Table, prefixed, rename, tied

__all__ = ["Bloom"]


def _bloom_options(config: Mapping[str, Any]) -> dict[str, Any]:
    norm = Norm("layer", epsilon=real_setting(config, "layer_norm_epsilon", "[0, inf)", 1e-5))
    features = count_setting(config, "n_embed" if config.get("n_embed") is not None else "hidden_size")
    block = dict(
        norm="pre",
        norm_kind=norm,
        num_heads=count_setting(config, "n_head" if "n_head" in config else "num_attention_heads"),
        feedforward_features=4 * features,
        activation=TanhGelu(0.79788456),
        residual_dropout_rate=real_setting(config, "hidden_dropout", "[0, 1)", 0.0),
        attention_dropout_rate=real_setting(config, "attention_dropout", "[0, 1)", 0.0),
    )
    return dict(
        vocab_size=count_setting(config, "vocab_size"),
        features=features,
        layers=[block] * count_setting(config, "n_layer" if "n_layer" in config else "num_hidden_layers"),
        norm=norm,
        embedding_norm=norm,
        alibi=True,
    )


def _bloom_table(model: Any) -> Table:
    """From a ``BloomForCausalLM``, or from the official files, which have no prefix."""
    return Table(
        [
            tied("lm_head.weight", "transformer.word_embeddings.weight", optional=True),
            prefixed("", "transformer.", but=r"^transformer\.", optional=True, back=False),
            rename("transformer.word_embeddings", "embedding"),
            rename("transformer.word_embeddings_layernorm", "embedding_norm"),
            *packed_lines(model, "transformer.h.#", "self_attention"),
            rename("transformer.ln_f", "norm"),
        ]
    )


class Bloom(TextDecoder):
    """BLOOM; the arguments are those of `TextDecoder`.

    Source: BigScience Workshop, BLOOM: A 176B-Parameter Open-Access Multilingual Language Model, 2022.
    """

    hugging_face = Family(
        table=_bloom_table,
        implemented={
            "model_type": ("bloom",),
            "apply_residual_connection_post_layernorm": (False,),
            "tie_word_embeddings": (True,),
            "n_inner": (None,),
            "skip_bias_add_qkv": (False,),
        },
        options=_bloom_options,
        without_effect=frozenset(
            {
                "attention_softmax_in_fp32",
                "bias_dropout_fusion",
                "masked_softmax_fusion",
                "offset_alibi",
                "pretraining_tp",
                "seq_length",
                "skip_bias_add",
                "slow_but_exact",
            }
        ),
    )
