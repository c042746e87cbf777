"""OPT: learned positions that begin at row 2."""

from collections.abc import Mapping
from typing import Any

from jattn.models.hugging_face.activations import activation_of
from jattn.models.hugging_face.decoder import TextDecoder
from jattn.models.hugging_face.decoder_settings import ROWS_BEFORE, output_line
from jattn.models.hugging_face.family import Family
from jattn.models.hugging_face.settings import (
    count_setting,
    flag_setting,
    num_heads_of,
    optional_count_setting,
    padding_of,
    real_setting,
)
from jattn.nn import Norm
from jattn.weights import Table, rename

__all__ = ["OPT"]


def _opt_options(config: Mapping[str, Any]) -> dict[str, Any]:
    norm, before = Norm("layer", epsilon=1e-5), flag_setting(config, "do_layer_norm_before", True)
    features, narrow = count_setting(config, "hidden_size"), optional_count_setting(config, "word_embed_proj_dim")
    biased = flag_setting(config, "enable_bias", True)
    block = dict(
        norm="pre" if before else "post",
        norm_kind=norm,
        feedforward_features=count_setting(config, "ffn_dim"),
        activation=activation_of(config, "activation_function", "relu"),
        use_bias=biased,
        feedforward_bias=biased,
        residual_dropout_rate=real_setting(config, "dropout", "[0, 1)", 0.1),
        attention_dropout_rate=real_setting(config, "attention_dropout", "[0, 1)", 0.0),
        num_heads=num_heads_of(config),
    )
    return dict(
        vocab_size=count_setting(config, "vocab_size"),
        features=features,
        layers=[block] * count_setting(config, "num_hidden_layers"),
        norm=norm if before else None,
        max_length=count_setting(config, "max_position_embeddings"),
        first_position=ROWS_BEFORE,
        embedding_features=None if narrow in (None, features) else narrow,
        padding_idx=padding_of(config, 1),
        tied=flag_setting(config, "tie_word_embeddings", True),
    )


def _opt_table(model: Any) -> Table:
    whole, layer, block = "model.decoder", "model.decoder.layers.#", "blocks.#"
    parts = {"q_proj": "query", "k_proj": "key", "v_proj": "value", "out_proj": "out"}
    further = [] if model.norm is None else [rename(f"{whole}.final_layer_norm", "norm")]
    if model.project_in is not None:
        further += [rename(f"{whole}.{name}", name) for name in ("project_in", "project_out")]
    return Table(
        [
            output_line(model, "lm_head", f"{whole}.embed_tokens"),
            rename(f"{whole}.embed_tokens", "embedding"),
            rename(f"{whole}.embed_positions", "positions.embedding"),
            *(rename(f"{layer}.self_attn.{name}", f"{block}.attention.{ours}") for name, ours in parts.items()),
            rename(f"{layer}.self_attn_layer_norm", f"{block}.norm1"),
            rename(f"{layer}.fc1", f"{block}.feed_forward.linear1"),
            rename(f"{layer}.fc2", f"{block}.feed_forward.linear2"),
            rename(f"{layer}.final_layer_norm", f"{block}.norm2"),
            *further,
        ]
    )


class OPT(TextDecoder):
    """OPT; the arguments are those of `TextDecoder`.

    Source: Zhang et al., OPT: Open Pre-trained Transformer Language Models, 2022.
    """

    hugging_face = Family(
        table=_opt_table,
        implemented={
            "model_type": ("opt",),
            "_remove_final_layer_norm": (False,),
            "layer_norm_elementwise_affine": (True,),
            "layerdrop": (0.0,),
        },
        options=_opt_options,
        without_effect=frozenset({"activation_dropout", "init_std"}),
    )
