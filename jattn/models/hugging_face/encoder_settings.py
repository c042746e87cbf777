"""What families of encoders have in common, in their settings, their names and their heads."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp

from jattn.models.hugging_face.activations import activation_of
from jattn.models.hugging_face.encoder_heads import EncoderHead, TaskHead
from jattn.models.hugging_face.settings import count_setting, flag_setting, labels_of, real_setting
from jattn.nn import Norm
from jattn.weights import dropped, rename, tied

__all__ = [
    "ENCODERS",
    "IGNORED",
    "OLDER",
    "bert_embedding",
    "bert_embedding_sizes",
    "bert_lines",
    "bert_sizes",
    "first_token_head",
    "head_dropout",
    "lines_of",
    "masked_head",
    "post_norm_block",
    "token_head",
]

# The values of settings that are implemented, of most families.
ENCODERS: dict[str, tuple[Any, ...]] = {"position_embedding_type": ("absolute",)}
# What is in many of their settings and changes nothing; the heads read some of them.
IGNORED = frozenset({"num_labels", "tie_word_embeddings", "tie_weights_"})
# Of the oldest files.
OLDER = (
    rename(r"LayerNorm\.gamma$", "LayerNorm.weight", optional=True, back=False),
    rename(r"LayerNorm\.beta$", "LayerNorm.bias", optional=True, back=False),
)


def bert_sizes(config: Mapping[str, Any]) -> dict[str, Any]:
    """A block's sizes and rates, as most families have them."""
    return dict(
        num_heads=count_setting(config, "num_attention_heads"),
        feedforward_features=count_setting(config, "intermediate_size"),
        activation=activation_of(config, "hidden_act", "gelu"),
        attention_dropout_rate=real_setting(config, "attention_probs_dropout_prob", "[0, 1)", 0.1),
    )


def post_norm_block(norm: Norm, dropout_rate: float | tuple[float, float], **sizes: Any) -> dict[str, Any]:
    """A block of BERT's."""
    return dict(norm="post", norm_kind=norm, residual_dropout_rate=dropout_rate, **sizes)


def bert_embedding_sizes(config: Mapping[str, Any]) -> dict[str, Any]:
    """An encoder's sizes, and the rate of its dropout."""
    return dict(
        vocab_size=count_setting(config, "vocab_size"),
        features=count_setting(config, "hidden_size"),
        max_length=count_setting(config, "max_position_embeddings"),
        dropout_rate=real_setting(config, "hidden_dropout_prob", "[0, 1)", 0.1),
    )


def bert_embedding(config: Mapping[str, Any], **changed: Any) -> dict[str, Any]:
    """The arguments of a `TextEncoder` with BERT's embeddings and blocks."""
    norm = Norm("layer", epsilon=real_setting(config, "layer_norm_eps", "[0, inf)", 1e-12))
    sizes = bert_embedding_sizes(config)
    block = post_norm_block(norm, sizes["dropout_rate"], **bert_sizes(config))
    return {**sizes, "layers": [block] * count_setting(config, "num_hidden_layers"), "norm": norm, **changed}


# ----------------------------------------------------------------------------------------------------------------------
# Names.


def lines_of(names: Mapping[str, str], theirs: str = "", ours: str = "") -> list[Any]:
    """A line for each."""
    return [rename(theirs + one, ours + other) for one, other in names.items()]


_BERT_LAYER = {
    "attention.self": "attention",
    "attention.output.dense": "attention.out",
    "attention.output.LayerNorm": "norm1",
    "intermediate.dense": "feed_forward.linear1",
    "output.dense": "feed_forward.linear2",
    "output.LayerNorm": "norm2",
}


def bert_lines(encoder: Any, layer: Mapping[str, str] = _BERT_LAYER) -> list[Any]:
    """From names as BERT has them."""
    return [
        dropped("embeddings.position_ids", optional=True),  # 0, 1, 2, ...
        rename("embeddings.word_embeddings", "words"),
        rename("embeddings.position_embeddings", "positions.embedding"),
        *([] if encoder.token_types is None else [rename("embeddings.token_type_embeddings", "token_types")]),
        rename("embeddings.LayerNorm", "norm"),
        *lines_of(layer, "encoder.layer.#.", "blocks.#."),
    ]


# ----------------------------------------------------------------------------------------------------------------------
# Heads.


def head_dropout(config: Mapping[str, Any]) -> float:
    """Of a head, where it has one of its own."""
    name = "hidden_dropout_prob" if config.get("classifier_dropout") is None else "classifier_dropout"
    return real_setting(config, name, "[0, 1)", 0.1)


Rate = Callable[[Mapping[str, Any]], float]


def token_head(name: str, dropout: Rate = lambda config: 0.0) -> TaskHead:
    """A layer on each token."""
    return TaskHead(
        lambda config, encoder: dict(outputs=labels_of(config), dropout_rate=dropout(config)),
        lambda head: [rename(name, "head.output")],
    )


def first_token_head(
    dense: str, output: str, *, activation: Any = jnp.tanh, dropout: Rate = head_dropout, first: bool = True
) -> TaskHead:
    """Two layers on the first token, with dropout before the last one, or before the first one too."""
    return TaskHead(
        lambda config, encoder: dict(
            outputs=labels_of(config),
            pooling="first",
            dense_features=encoder["features"],
            activation=activation,
            dropout_rate=dropout(config),
            input_dropout_rate=dropout(config) if first else 0.0,
        ),
        lambda head: [rename(dense, "head.dense"), rename(output, "head.output")],
    )


def masked_head(
    embedding: str,
    *,
    dense: str,
    norm: str,
    output: str,
    bias: str | None = None,
    activation: Callable[[Mapping[str, Any]], Any] = lambda config: "gelu",
    further: Sequence[Any] = (),
) -> TaskHead:
    """A layer, a norm and logits over the vocabulary.

    Args:
        embedding, dense, norm, output: the names of the layers there.
        bias: of the last layer's bias, where that has a name of its own beside ``output``'s.
        activation: from the settings to that of the first layer.
        further: lines for what else is in files.
    """

    def options(config: Mapping[str, Any], encoder: Mapping[str, Any]) -> dict[str, Any]:
        is_tied = flag_setting(config, "tie_word_embeddings", True)
        if not is_tied and bias is not None:
            raise ValueError(
                "config's tie_word_embeddings must be True, as otherwise the last layer has two biases of which one is "
                "not used. Got False."
            )
        return dict(
            outputs=encoder["vocab_size"],
            dense_features=encoder.get("embedding_features") or encoder["features"],
            norm=encoder["norm"] if "norm" in encoder else Norm("layer", epsilon=encoder["norm_epsilon"]),
            activation=activation(config),
            tied=is_tied,
        )

    def lines(head: EncoderHead) -> list[Any]:
        named = [rename(dense, "head.dense"), rename(norm, "head.norm"), *further]
        if head.output is not None:
            return [rename(output, "head.output"), *named]
        own = f"{output}.bias" if bias is None else bias
        copies = [] if bias is None else [tied(f"{output}.bias", bias)]
        return [tied(f"{output}.weight", f"{embedding}.weight"), *copies, rename(own, "head.bias"), *named]

    return TaskHead(options, lines)
