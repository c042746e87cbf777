"""ModernBERT: rotary positions, windows in most layers, gated networks, norms before the sublayers."""

from collections.abc import Mapping
from typing import Any

from jattn._engine import checks
from jattn.models.hugging_face.decoder_settings import activation_of, padding_of
from jattn.models.hugging_face.encoder import TextEncoder
from jattn.models.hugging_face.encoder_heads import EncoderFamily, EncoderHead, TaskHead, tied_lines
from jattn.models.hugging_face.encoder_settings import ENCODERS, IGNORED, labels_of, lines_of
from jattn.models.hugging_face.family import count_setting, flag_setting, optional_count_setting, real_setting
from jattn.models.hugging_face.rotary import rotary_of
from jattn.nn import Norm, Rotary
from jattn.weights import rename, split

__all__ = ["ModernBert"]

_BASES = {"full_attention": ("global_rope_theta", 160_000.0), "sliding_attention": ("local_rope_theta", 10_000.0)}


def _modernbert_norm(config: Mapping[str, Any]) -> Norm:
    epsilon = real_setting(config, "norm_eps", "[0, inf)", 1e-5)
    return Norm("layer", epsilon=epsilon, use_bias=flag_setting(config, "norm_bias", False))


def _kinds(config: Mapping[str, Any]) -> list[str]:
    """Which layers see all tokens; ``layer_types`` says it of the newer files."""
    n = count_setting(config, "num_hidden_layers")
    every = optional_count_setting(config, "global_attn_every_n_layers") or 3
    period = ["sliding_attention" if i % every else "full_attention" for i in range(n)]
    kinds = list(config.get("layer_types") or period)
    if len(kinds) != n or set(kinds) - _BASES.keys():
        raise ValueError(
            f"config's layer_types must have sliding_attention or full_attention for each of {n} layers. Got {kinds}."
        )
    return kinds


def _modernbert_rotary(config: Mapping[str, Any], kind: str) -> Rotary:
    name, default = _BASES[kind]
    base = {"rope_theta": real_setting(config, name, "(0, inf)", default)}
    given = {**((config.get("rope_parameters") or {}).get(kind) or {}), **(config.get("rope_scaling") or {})}
    sizes = {name: config.get(name) for name in ("max_position_embeddings", "hidden_size", "num_attention_heads")}
    return rotary_of({**sizes, "rope_parameters": {**base, **given}})


def _modernbert_options(config: Mapping[str, Any]) -> dict[str, Any]:
    norm = _modernbert_norm(config)
    to_either_side = (optional_count_setting(config, "local_attention") or 128) // 2
    attention_dropout_rate = real_setting(config, "attention_dropout", "[0, 1)", 0.0)
    block = dict(
        num_heads=count_setting(config, "num_attention_heads"),
        norm="pre",
        norm_kind=norm,
        feedforward_features=count_setting(config, "intermediate_size"),
        gated=True,
        activation=activation_of(config, "hidden_activation", "gelu"),
        use_bias=flag_setting(config, "attention_bias", False),
        feedforward_bias=flag_setting(config, "mlp_bias", False),
        attention_dropout_rate=attention_dropout_rate,
        residual_dropout_rate=(attention_dropout_rate, 0.0),
    )
    rotary = {kind: _modernbert_rotary(config, kind) for kind in _BASES}
    windows = {"full_attention": None, "sliding_attention": to_either_side + 1}
    return dict(
        vocab_size=count_setting(config, "vocab_size"),
        features=count_setting(config, "hidden_size"),
        layers=[
            {**block, "first_norm": i > 0, "rotary": rotary[kind], "window": windows[kind]}
            for i, kind in enumerate(_kinds(config))
        ],
        max_length=optional_count_setting(config, "max_position_embeddings") or 8192,
        learned_positions=False,
        norm=norm,
        final_norm=norm,
        padding_idx=padding_of(config, 50283),
        dropout_rate=real_setting(config, "embedding_dropout", "[0, 1)", 0.0),
    )


def _modernbert_lines(encoder: Any) -> list[Any]:
    layer, block = "layers.#.", "blocks.#."
    parts = [f"{block}attention.{part}" for part in ("query", "key", "value")]
    # The first block has no norm before its attention.
    normed = [rename(f"{layer}attn_norm", f"{block}norm1")] if len(encoder.blocks) > 1 else []
    return [
        *lines_of({"embeddings.tok_embeddings": "words", "embeddings.norm": "norm", "final_norm": "final_norm"}),
        *normed,
        split(f"{layer}attn.Wqkv", parts),
        split(f"{layer}mlp.Wi", [f"{block}feed_forward.gate", f"{block}feed_forward.linear1"]),
        *lines_of({"attn.Wo": "attention.out", "mlp_norm": "norm2", "mlp.Wo": "feed_forward.linear2"}, layer, block),
    ]


def _dense(config: Mapping[str, Any], encoder: Mapping[str, Any]) -> dict[str, Any]:
    """What all of its heads begin with."""
    return dict(
        dense_features=encoder["features"],
        dense_bias=flag_setting(config, "classifier_bias", False),
        activation=activation_of(config, "classifier_activation", "gelu"),
        norm=encoder["norm"],
    )


def _masked(config: Mapping[str, Any], encoder: Mapping[str, Any]) -> dict[str, Any]:
    last = dict(
        tied=flag_setting(config, "tie_word_embeddings", True), use_bias=flag_setting(config, "decoder_bias", True)
    )
    return _dense(config, encoder) | {"outputs": encoder["vocab_size"], **last}


def _masked_lines(head: EncoderHead) -> list[Any]:
    if head.output is not None:
        return [rename("decoder", "head.output")]
    biased = [] if head.bias is None else [rename("decoder.bias", "head.bias")]
    return [*tied_lines(head, "decoder", "model.embeddings.tok_embeddings"), *biased]


def _classes(config: Mapping[str, Any], encoder: Mapping[str, Any]) -> dict[str, Any]:
    rate = real_setting(config, "classifier_dropout", "[0, 1)", 0.0)
    return _dense(config, encoder) | {"outputs": labels_of(config), "dropout_rate": rate}


def _one_class(config: Mapping[str, Any], encoder: Mapping[str, Any]) -> dict[str, Any]:
    kinds = {"cls": "first", "mean": "mean"}
    given = config.get("classifier_pooling", "cls")
    checks.one_of("config's classifier_pooling", given, tuple(kinds))
    return _classes(config, encoder) | {"pooling": kinds[given]}


def _class_lines(head: EncoderHead) -> list[Any]:
    return [rename("classifier", "head.output")]


class ModernBert(TextEncoder):
    """ModernBERT; the arguments are those of `TextEncoder`.

    Source: Warner et al., Smarter, Better, Faster, Longer: A Modern Bidirectional Encoder, 2024.
    """

    hugging_face = EncoderFamily(
        implemented={
            "model_type": ("modernbert",),
            **ENCODERS,
            "mlp_dropout": (0.0,),
        },
        options=_modernbert_options,
        without_effect=IGNORED
        | {
            "classifier_activation",
            "classifier_bias",
            "classifier_pooling",
            "cls_token_id",
            "decoder_bias",
            "deterministic_flash_attn",
            "initializer_cutoff_factor",
            "layer_norm_eps",
            "reference_compile",
            "repad_logits_with_grad",
            "sparse_pred_ignore_index",
            "sparse_prediction",
        },
        bare="ModernBertModel",
        heads={
            "ModernBertForMaskedLM": TaskHead(_masked, _masked_lines),
            "ModernBertForSequenceClassification": TaskHead(_one_class, _class_lines),
            "ModernBertForTokenClassification": TaskHead(_classes, _class_lines),
            "ModernBertForQuestionAnswering": TaskHead(_classes, _class_lines),
        },
        others=("ModernBertForMultipleChoice",),
        prefix="model.",
        lines=_modernbert_lines,
        beside=r"^(head|decoder|classifier)\.",
    )
