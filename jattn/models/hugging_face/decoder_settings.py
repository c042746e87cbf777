"""What families of decoders have in common, in their settings and in their names."""

from collections.abc import Mapping, Sequence
from typing import Any

from jattn.models.hugging_face.activations import activation_of
from jattn.models.hugging_face.rotary import rotary_of
from jattn.models.hugging_face.settings import (
    count_setting,
    flag_setting,
    heads_of,
    optional_count_setting,
    padding_of,
    real_setting,
)
from jattn.nn import Norm
from jattn.weights import Table, dropped, rename, split, tied

__all__ = [
    "LLAMA_ATTENTION",
    "LLAMA_NETWORK",
    "LLAMA_NORMS",
    "QK_NORMS",
    "ROWS_BEFORE",
    "experts_of",
    "layers_of",
    "llama_options",
    "llama_table",
    "output_line",
    "packed_lines",
    "rms_norm_of",
    "windows_by_kind",
]


def rms_norm_of(config: Mapping[str, Any], epsilon: float, **options: Any) -> Norm:
    """The norm of families after Llama; ``epsilon`` where no setting says it."""
    return Norm("rms", epsilon=real_setting(config, "rms_norm_eps", "[0, inf)", epsilon), **options)


def llama_options(
    config: Mapping[str, Any],
    *,
    norm_kind: Norm,
    head_features: int | None = None,
    attention_options: Mapping[str, Any] | None = None,
    layers: Sequence[Mapping[str, Any]] | None = None,
    padding: int | None = None,
    tied: bool = False,
    **block: Any,
) -> dict[str, Any]:
    """The arguments of a `TextDecoder` as families after Llama have them: gated networks, rotary positions, no biases.

    Args:
        config: the settings.
        norm_kind: of all norms.
        head_features: d where no setting says it; m / h by default.
        attention_options: of each block, beside the width of a head.
        layers: what differs from block to block, such as `layers_of` finds; nothing by default.
        padding: as the default of `padding_of`.
        tied: whether the logits are tied where no setting says it.
        block: what else is not as in Llama, in each block.
    """
    heads = heads_of(config, head_features=head_features)
    heads["attention_options"] |= attention_options or {}
    if "rotary" not in block:
        block["rotary"] = rotary_of(config)
    if "activation" not in block:
        block["activation"] = activation_of(config, "hidden_act", "silu")
    common = dict(
        norm="pre",
        norm_kind=norm_kind,
        feedforward_features=count_setting(config, "intermediate_size"),
        gated=True,
        feedforward_bias=False,
        use_bias=False,
        attention_dropout_rate=real_setting(config, "attention_dropout", "[0, 1)", 0.0),
    )
    return dict(
        vocab_size=count_setting(config, "vocab_size"),
        features=count_setting(config, "hidden_size"),
        layers=[
            {**common, **heads, **block, **layer}
            for layer in ([{}] * count_setting(config, "num_hidden_layers") if layers is None else layers)
        ],
        norm=norm_kind,
        padding_idx=padding_of(config, padding),
        tied=flag_setting(config, "tie_word_embeddings", tied),
    )


def layers_of(
    config: Mapping[str, Any], default: Sequence[str], by_kind: Mapping[str, Mapping[str, Any]]
) -> list[Mapping[str, Any]]:
    """What differs in each layer, by its kind; ``layer_types`` says that of newer files, the default of older ones."""
    n = count_setting(config, "num_hidden_layers")
    kinds = list(config.get("layer_types") or default)
    if len(kinds) != n or set(kinds) - by_kind.keys():
        raise ValueError(f"config's layer_types must have {' or '.join(by_kind)} for each of {n} layers. Got {kinds}.")
    return [by_kind[kind] for kind in kinds]


def windows_by_kind(config: Mapping[str, Any], window: int) -> dict[str, dict[str, Any]]:
    """How many tokens a layer of each kind sees; ``window`` where no setting says it."""
    own = optional_count_setting(config, "sliding_window", window)
    return {"sliding_attention": {"window": own}, "full_attention": {"window": None}}


def experts_of(config: Mapping[str, Any], *, number: int, per_token: int) -> dict[str, Any]:
    """A block's mixture of experts; newer files have ``num_experts`` for ``num_local_experts``."""
    name = "num_local_experts" if config.get("num_local_experts") is not None else "num_experts"
    return dict(
        num_experts=optional_count_setting(config, name) or number,
        experts_per_token=optional_count_setting(config, "num_experts_per_tok") or per_token,
    )


# Of OPT's and BART's tables of positions, the rows before that of the first token.
ROWS_BEFORE = 2
# From a layer of Llama to a block here.
LLAMA_ATTENTION = {
    "self_attn.q_proj": "attention.query",
    "self_attn.k_proj": "attention.key",
    "self_attn.v_proj": "attention.value",
    "self_attn.o_proj": "attention.out",
}
LLAMA_NORMS = {"input_layernorm": "norm1", "post_attention_layernorm": "norm2"}
LLAMA_NETWORK = {
    "mlp.gate_proj": "feed_forward.gate",
    "mlp.up_proj": "feed_forward.linear1",
    "mlp.down_proj": "feed_forward.linear2",
}
# Of families that norm queries and keys.
QK_NORMS = {"self_attn.q_norm": "attention.query_ln", "self_attn.k_norm": "attention.key_ln"}


def output_line(model: Any, theirs: str, embedding: str) -> Any:
    """The last layer's, which is a copy of the embedding where they are tied."""
    return tied(f"{theirs}.weight", f"{embedding}.weight") if model.output is None else rename(theirs, "output")


def packed_lines(model: Any, layer: str, attention: str) -> list[Any]:
    """A layer of GPT-NeoX's and BLOOM's, of which one projection is to query, key and value, head by head."""
    parts = [f"blocks.#.attention.{part}" for part in ("query", "key", "value")]
    h = model.blocks[0].attention.query.kernel.shape[1]
    return [
        rename(f"{layer}.input_layernorm", "blocks.#.norm1"),
        split(f"{layer}.{attention}.query_key_value", parts, num_heads=h),
        rename(f"{layer}.{attention}.dense", "blocks.#.attention.out"),
        rename(f"{layer}.post_attention_layernorm", "blocks.#.norm2"),
        rename(f"{layer}.mlp.dense_h_to_4h", "blocks.#.feed_forward.linear1"),
        rename(f"{layer}.mlp.dense_4h_to_h", "blocks.#.feed_forward.linear2"),
    ]


def llama_table(model: Any, layer: Mapping[str, str] | None = None, further: Sequence[Any] = ()) -> Table:
    """From names as Llama has them; the oldest files hold the frequencies of the rotary positions too.

    Args:
        model: the model here.
        layer: from names in a layer to those in a block; those of Llama by default.
        further: lines that go before the layer's.
    """
    layer = {**LLAMA_ATTENTION, **LLAMA_NORMS, **LLAMA_NETWORK} if layer is None else layer
    return Table(
        [
            dropped(r"\.rotary_emb\.inv_freq$", optional=True),
            output_line(model, "lm_head", "model.embed_tokens"),
            rename("model.embed_tokens", "embedding"),
            *further,
            *(rename(f"model.layers.#.{theirs}", f"blocks.#.{ours}") for theirs, ours in layer.items()),
            rename("model.norm", "norm"),
        ]
    )
