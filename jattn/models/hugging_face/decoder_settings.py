"""What families of decoders have in common, in their settings and in their names."""

from collections.abc import Mapping, Sequence
from typing import Any

from jattn._engine import checks
from jattn.models.hugging_face.activations import ACTIVATIONS, activation_of
from jattn.models.hugging_face.family import count_setting, flag_setting, optional_count_setting, real_setting
from jattn.weights import Table, dropped, rename, split, tied

__all__ = [
    "ACTIVATIONS",
    "LLAMA_LAYER",
    "activation_of",
    "experts_of",
    "gated_block",
    "head_features_of",
    "heads_of",
    "llama_like",
    "llama_table",
    "num_heads_of",
    "output_line",
    "packed_lines",
    "padding_of",
    "windows_of",
]


def num_heads_of(config: Mapping[str, Any]) -> int:
    """How many heads there are, in a family whose heads together are as wide as the model."""
    features, heads = count_setting(config, "hidden_size"), count_setting(config, "num_attention_heads")
    checks.divides("config's num_attention_heads", heads, "hidden_size", features)
    return heads


def heads_of(config: Mapping[str, Any], *, head_features: int | None = None, grouped: bool = True) -> dict[str, Any]:
    """A block's numbers of heads, and of their features where those are not m / h.

    Args:
        config: the settings.
        head_features: d where no setting says it; m / h by default.
        grouped: whether the family may have fewer key and value heads than query heads.
    """
    d = optional_count_setting(config, "head_dim") or head_features
    heads = num_heads_of(config) if d is None else count_setting(config, "num_attention_heads")
    groups = optional_count_setting(config, "num_key_value_heads") if grouped else None
    return dict(
        num_heads=heads, num_kv_heads=groups, attention_options={} if d is None else {"qkv_features": heads * d}
    )


def experts_of(config: Mapping[str, Any], *, number: int, per_token: int) -> dict[str, Any]:
    """A block's mixture of experts; newer files have ``num_experts`` for ``num_local_experts``."""
    name = "num_local_experts" if config.get("num_local_experts") is not None else "num_experts"
    return dict(
        num_experts=optional_count_setting(config, name) or number,
        experts_per_token=optional_count_setting(config, "num_experts_per_tok") or per_token,
    )


def head_features_of(config: Mapping[str, Any]) -> int:
    """d, the width of a head."""
    given = optional_count_setting(config, "head_dim")
    return given or count_setting(config, "hidden_size") // count_setting(config, "num_attention_heads")


def padding_of(config: Mapping[str, Any], default: int | None = None) -> int | None:
    """The token of padding, whose embedding is not trained by being looked up; the default where no setting says."""
    given = config.get("pad_token_id", default)
    if given is not None:
        checks.number("config's pad_token_id", given, "(-inf, inf)", integer=True)  # some files have -1 for none
    return given if given is not None and 0 <= given < count_setting(config, "vocab_size") else None


def windows_of(config: Mapping[str, Any], default: Sequence[str], *, window: int) -> list[int | None]:
    """How many tokens each layer sees; ``layer_types`` says it of the newer files, the default of older ones.

    The window is that of a model whose settings have none.
    """
    n = count_setting(config, "num_hidden_layers")
    kinds = list(config.get("layer_types") or default)
    if len(kinds) != n or set(kinds) - {"sliding_attention", "full_attention"}:
        raise ValueError(
            f"config's layer_types must have sliding_attention or full_attention for each of {n} layers. Got {kinds}."
        )
    own = optional_count_setting(config, "sliding_window", window) if "sliding_attention" in kinds else None
    return [own if kind == "sliding_attention" else None for kind in kinds]


# From a layer of Llama to a block here.
LLAMA_LAYER = {
    "input_layernorm": "norm1",
    "self_attn.q_proj": "attention.query",
    "self_attn.k_proj": "attention.key",
    "self_attn.v_proj": "attention.value",
    "self_attn.o_proj": "attention.out",
    "post_attention_layernorm": "norm2",
    "mlp.gate_proj": "feed_forward.gate",
    "mlp.up_proj": "feed_forward.linear1",
    "mlp.down_proj": "feed_forward.linear2",
}


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


def llama_table(model: Any, layer: Mapping[str, str] = LLAMA_LAYER, further: Sequence[Any] = ()) -> Table:
    """From names as Llama has them; the oldest files hold the frequencies of the rotary positions too."""
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


def llama_like(
    config: Mapping[str, Any], *, norm: Any, layers: Sequence[Mapping[str, Any]], padding: int | None = None
) -> dict[str, Any]:
    """The arguments of a `TextDecoder` that are named alike in most families; ``padding`` as in `padding_of`."""
    return dict(
        vocab_size=count_setting(config, "vocab_size"),
        features=count_setting(config, "hidden_size"),
        layers=layers,
        norm=norm,
        padding_idx=padding_of(config, padding),
        tied=flag_setting(config, "tie_word_embeddings", False),
    )


def gated_block(config: Mapping[str, Any], **changed: Any) -> dict[str, Any]:
    """A block with a gated network and no biases."""
    return (
        dict(
            norm="pre",
            feedforward_features=count_setting(config, "intermediate_size"),
            gated=True,
            feedforward_bias=False,
            use_bias=False,
            attention_dropout_rate=real_setting(config, "attention_dropout", "[0, 1)", 0.0),
        )
        | changed
    )
