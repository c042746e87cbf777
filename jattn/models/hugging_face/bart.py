"""BART: norms after the sublayers, learned positions that begin at row 2, a bias of the logits."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from jattn.models.hugging_face.activations import activation_of
from jattn.models.hugging_face.decoder_settings import ROWS_BEFORE, output_line
from jattn.models.hugging_face.encoder_decoder import EncoderDecoder
from jattn.models.hugging_face.family import Family
from jattn.models.hugging_face.settings import (
    count_setting,
    flag_setting,
    optional_count_setting,
    padding_of,
    real_setting,
)
from jattn.nn import Norm
from jattn.weights import Table, convert, dropped, rename, tied, to_numpy

__all__ = ["BART", "bart_layers", "bart_lines"]


def bart_layers(config: Mapping[str, Any], side: str, *, dropout: float = 0.1, **changed: Any) -> list[dict[str, Any]]:
    """The blocks of a side, ``"encoder"`` or ``"decoder"``; dropout where the settings don't say."""
    n = count_setting(config, f"{side}_layers")
    if side == "encoder" and optional_count_setting(config, "num_hidden_layers") not in (None, n):
        raise ValueError(
            f"config's num_hidden_layers must be encoder_layers, {n}, or left out. Got {config['num_hidden_layers']}."
        )
    block = dict(
        num_heads=count_setting(config, f"{side}_attention_heads"),
        feedforward_features=count_setting(config, f"{side}_ffn_dim"),
        norm_kind=Norm("layer", epsilon=1e-5),
        activation=activation_of(config, "activation_function", "gelu"),
        residual_dropout_rate=real_setting(config, "dropout", "[0, 1)", dropout),
        attention_dropout_rate=real_setting(config, "attention_dropout", "[0, 1)", 0.0),
        feedforward_dropout_rate=real_setting(config, "activation_dropout", "[0, 1)", 0.0),
        **changed,
    )
    return [block] * n


def _bart_options(config: Mapping[str, Any]) -> dict[str, Any]:
    features = count_setting(config, "d_model")
    side = dict(
        max_length=count_setting(config, "max_position_embeddings"),
        first_position=ROWS_BEFORE,
        embedding_norm=Norm("layer", epsilon=1e-5),
        dropout_rate=real_setting(config, "dropout", "[0, 1)", 0.1),
    )
    return dict(
        vocab_size=count_setting(config, "vocab_size"),
        features=features,
        encoder={**side, "layers": bart_layers(config, "encoder")},
        decoder={**side, "layers": bart_layers(config, "decoder")},
        embedding_scale=features**0.5 if flag_setting(config, "scale_embedding", False) else None,
        padding_idx=padding_of(config, 1),
        logits_bias=True,
    )


def bart_lines(side: str) -> list[Any]:
    """Of the layers of a side, and of its positions."""
    layer, block = f"model.{side}.layers.#", f"{side}.blocks.#"
    attentions = {"self_attn": "attention"}
    if side == "decoder":
        attentions["encoder_attn"] = "cross_attention"
    parts = {"q_proj": "query", "k_proj": "key", "v_proj": "value", "out_proj": "out"}
    norms = [*(f"{name}_layer_norm" for name in attentions), "final_layer_norm"]
    return [
        rename(f"model.{side}.embed_positions", f"{side}.positions.embedding"),
        *(
            rename(f"{layer}.{attention}.{theirs}", f"{block}.{own}.{ours}")
            for attention, own in attentions.items()
            for theirs, ours in parts.items()
        ),
        *(rename(f"{layer}.{name}", f"{block}.norm{i + 1}") for i, name in enumerate(norms)),
        rename(f"{layer}.fc1", f"{block}.feed_forward.linear1"),
        rename(f"{layer}.fc2", f"{block}.feed_forward.linear2"),
    ]


def _bart_table(model: Any) -> Table:
    shared, sides = "model.shared", ("encoder", "decoder")
    return Table(
        [
            *(dropped(f"model.{side}.version", optional=True) for side in sides),
            *(tied(f"model.{side}.embed_tokens.weight", f"{shared}.weight") for side in sides),
            output_line(model, "lm_head", shared),
            rename(shared, "embedding"),
            convert("final_logits_bias", "logits_bias", lambda x: x[0], lambda x: x[None]),
            *(rename(f"model.{side}.layernorm_embedding", f"{side}.embedding_norm") for side in sides),
            *(line for side in sides for line in bart_lines(side)),
        ]
    )


class BART(EncoderDecoder):
    """BART; the arguments are those of `EncoderDecoder`.

    A folder of a ``BartModel``, as those of its first checkpoints are, gets the logits of its tied embedding, as
    `transformers` has it where it is asked for a ``BartForConditionalGeneration``.

    Source: Lewis et al., BART: Denoising Sequence-to-Sequence Pre-training for Natural Language Generation,
    Translation, and Comprehension, 2020.
    """

    hugging_face = Family(
        table=_bart_table,
        implemented={
            "model_type": ("bart",),
            "architectures": (None, ["BartForConditionalGeneration"], ["BartModel"]),
            "tie_word_embeddings": (True,),
            "is_encoder_decoder": (True,),
            "encoder_layerdrop": (0.0,),
            "decoder_layerdrop": (0.0,),
            # Settings of its first files, for other models.
            "add_bias_logits": (False,),
            "add_final_layer_norm": (False,),
            "extra_pos_embeddings": (ROWS_BEFORE,),
            "normalize_before": (False,),
            "normalize_embedding": (True,),
            "static_position_embeddings": (False,),
        },
        options=_bart_options,
        without_effect=frozenset({"classif_dropout", "force_bos_token_to_be_generated", "init_std"}),
    )

    @classmethod
    def _reconciled(
        cls, config: Mapping[str, Any], state_dict: Mapping[str, Any]
    ) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
        """A bare model under the names of the whole one, and a bias of zeros where a file has none."""
        if "shared.weight" in state_dict:
            state_dict = {f"model.{name}": x for name, x in state_dict.items()}
            config = {**config, "architectures": ["BartForConditionalGeneration"]}
        if "final_logits_bias" not in state_dict and (shared := state_dict.get("model.shared.weight")) is not None:
            zeros = np.zeros((1, shared.shape[0]), to_numpy(shared).dtype)
            state_dict = {**state_dict, "final_logits_bias": zeros}
        return config, state_dict
