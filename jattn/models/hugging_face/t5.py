"""T5: biases by distance in place of positions, logits that are not scaled by the width of a head."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from flax import nnx

from jattn._engine import checks
from jattn.models.hugging_face.activations import ACTIVATIONS, activation_of
from jattn.models.hugging_face.decoder_settings import output_line
from jattn.models.hugging_face.encoder_decoder import EncoderDecoder
from jattn.models.hugging_face.family import Family
from jattn.models.hugging_face.settings import count_setting, optional_count_setting, real_setting
from jattn.nn import Norm
from jattn.weights import Table, dropped, rename, tied, to_numpy

__all__ = ["T5"]


def _t5_options(config: Mapping[str, Any]) -> dict[str, Any]:
    features, h = count_setting(config, "d_model"), count_setting(config, "num_heads")
    norm = Norm("rms", epsilon=real_setting(config, "layer_norm_epsilon", "[0, inf)", 1e-6))
    rate = real_setting(config, "dropout_rate", "[0, 1)", 0.1)
    gated, activation = _network(config)
    attention = {"qkv_features": h * count_setting(config, "d_kv"), "scale": 1.0}
    block = dict(
        num_heads=h,
        feedforward_features=count_setting(config, "d_ff"),
        norm="pre",
        norm_kind=norm,
        activation=activation,
        gated=gated,
        feedforward_bias=False,
        use_bias=False,
        residual_dropout_rate=rate,
        attention_dropout_rate=rate,
        feedforward_dropout_rate=rate,
        attention_options=attention,
    )
    side = dict(
        norm=norm,
        relative_buckets=optional_count_setting(config, "relative_attention_num_buckets") or 32,
        relative_distance=optional_count_setting(config, "relative_attention_max_distance") or 128,
        dropout_rate=rate,
        output_dropout_rate=rate,
    )
    n = count_setting(config, "num_layers")
    layers = [{**block, "cross_attention_options": attention}]
    is_tied = config.get("tie_word_embeddings", True) is not False
    return dict(
        vocab_size=count_setting(config, "vocab_size"),
        features=features,
        encoder={**side, "layers": [block] * n},
        decoder={**side, "layers": layers * (optional_count_setting(config, "num_decoder_layers") or n)},
        tied=is_tied,
        logits_scale=features**-0.5 if config.get("scale_decoder_outputs", is_tied) else None,
    )


def _network(config: Mapping[str, Any]) -> tuple[bool, Any]:
    """Whether the network has a gate, and its activation."""
    kind = config.get("feed_forward_proj", "relu")
    checks.one_of("config's feed_forward_proj", kind, (*ACTIVATIONS, *(f"gated-{name}" for name in ACTIVATIONS)))
    # Its files say gelu, and mean the approximation, where there is a gate.
    name = "gelu_new" if kind == "gated-gelu" else kind.removeprefix("gated-")
    return config.get("is_gated_act", kind != name), activation_of(config, "dense_act_fn", name)


def _t5_table(model: Any) -> Table:
    lines = [
        dropped("decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight", optional=True),  # of no use
        tied("encoder.embed_tokens.weight", "shared.weight"),
        tied("decoder.embed_tokens.weight", "shared.weight"),
        output_line(model, "lm_head", "shared"),
        rename("shared", "embedding"),
    ]
    projections = {"q": "query", "k": "key", "v": "value", "o": "out"}
    networks = {"wi_0": "gate", "wi_1": "linear1"} if _is_gated(model) else {"wi": "linear1"}
    for side in ("encoder", "decoder"):
        block = f"{side}.block.#.layer"
        attentions = {"SelfAttention": "attention"}
        if side == "decoder":
            attentions["EncDecAttention"] = "cross_attention"
        last = len(attentions)
        lines += [
            rename(f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias.weight", f"{side}.relative_bias"),
            *(
                rename(f"{block}.{i}.{name}.{theirs}", f"{side}.blocks.#.{attention}.{ours}")
                for i, (name, attention) in enumerate(attentions.items())
                for theirs, ours in projections.items()
            ),
            *(
                rename(f"{block}.{last}.DenseReluDense.{theirs}", f"{side}.blocks.#.feed_forward.{ours}")
                for theirs, ours in {**networks, "wo": "linear2"}.items()
            ),
            *(rename(f"{block}.{i}.layer_norm", f"{side}.blocks.#.norm{i + 1}") for i in range(last + 1)),
            rename(f"{side}.final_layer_norm", f"{side}.norm"),
        ]
    return Table(lines)


def _is_gated(model: Any) -> bool:
    return model.encoder.blocks[0].feed_forward.gate is not None


class T5(EncoderDecoder):
    """T5, its version 1.1, and Flan-T5; the arguments are those of `EncoderDecoder`.

    Sources: Raffel et al., Exploring the Limits of Transfer Learning with a Unified Text-to-Text Transformer, 2020;
    Shazeer, GLU Variants Improve Transformer, 2020, for version 1.1.
    """

    hugging_face = Family(
        table=_t5_table,
        implemented={
            "model_type": ("t5",),
            "architectures": (None, ["T5ForConditionalGeneration"], ["T5WithLMHeadModel"]),
            "is_encoder_decoder": (True,),
        },
        options=_t5_options,
        without_effect=frozenset({"initializer_factor", "n_positions"}),
        any_head_features=True,
    )

    @classmethod
    def _reconciled(
        cls, config: Mapping[str, Any], state_dict: Mapping[str, Any]
    ) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
        """Newer settings say that the logits are tied, older ones that they are not, and the weights know."""
        says_tied, head = config.get("tie_word_embeddings", True) is not False, state_dict.get("lm_head.weight")
        names = ("shared.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
        embedding = next((state_dict[name] for name in names if name in state_dict), head)
        is_tied = head is None or (says_tied and np.array_equal(to_numpy(head), to_numpy(embedding)))
        scaled = config.get("scale_decoder_outputs", says_tied)
        return {**config, "tie_word_embeddings": is_tied, "scale_decoder_outputs": scaled}, state_dict

    def _stacks_of_equal_heads(self) -> list[nnx.Module]:
        return [self]
