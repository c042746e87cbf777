"""How Hugging Face stores a BERT: the names of its parts, its settings, and what its files hold beside the encoder."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from jattn.models.hugging_face import Family, count_setting, parameters, real_setting

__all__ = ["BERT_FAMILY"]

# The layers of the tasks that it was trained on, and the numbers 0, 1, 2, ...
_BESIDE_THE_ENCODER = r"^(pooler|cls)\.|^embeddings\.position_ids$"


def _bert_options(config: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of `TextEncoder` for the settings of a ``BertModel``."""
    return dict(
        vocab_size=count_setting(config, "vocab_size"),
        features=count_setting(config, "hidden_size"),
        num_heads=count_setting(config, "num_attention_heads"),
        num_layers=count_setting(config, "num_hidden_layers"),
        feedforward_features=count_setting(config, "intermediate_size"),
        max_length=count_setting(config, "max_position_embeddings"),
        num_token_types=count_setting(config, "type_vocab_size"),
        activation=config.get("hidden_act", "gelu"),
        norm_epsilon=real_setting(config, "layer_norm_eps", "[0, inf)"),
        dropout_rate=real_setting(config, "hidden_dropout_prob", "[0, 1)"),
        attention_dropout_rate=real_setting(config, "attention_probs_dropout_prob", "[0, 1)"),
    )


def _under_present_names(state_dict: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The encoder's parameters under the names of a ``BertModel``.

    Whole models with heads write ``bert.`` in front, and the oldest files call a norm's parameters gamma and beta.
    """

    def present(name: str) -> str:
        name = name.removeprefix("bert.")
        return name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")

    return parameters({present(name): x for name, x in state_dict.items()}, without=_BESIDE_THE_ENCODER)


def _without_pooler(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The entries of a ``BertModel`` without its pooler, which is not kept."""
    return arrays


BERT_FAMILY = Family(
    names={
        "embeddings.word_embeddings": "words",
        "embeddings.position_embeddings": "positions.embedding",
        "embeddings.token_type_embeddings": "token_types",
        "embeddings.LayerNorm": "norm",
        "encoder.layer.#.attention.self.query": "blocks.#.attention.query",
        "encoder.layer.#.attention.self.key": "blocks.#.attention.key",
        "encoder.layer.#.attention.self.value": "blocks.#.attention.value",
        "encoder.layer.#.attention.output.dense": "blocks.#.attention.out",
        "encoder.layer.#.attention.output.LayerNorm": "blocks.#.norm1",
        "encoder.layer.#.intermediate.dense": "blocks.#.feed_forward.linear1",
        "encoder.layer.#.output.dense": "blocks.#.feed_forward.linear2",
        "encoder.layer.#.output.LayerNorm": "blocks.#.norm2",
    },
    implemented={
        "model_type": ("bert",),
        "architectures": (None, ["BertModel"], ["BertForMaskedLM"], ["BertForPreTraining"]),
        "hidden_act": ("gelu", "relu"),
        "position_embedding_type": ("absolute",),
        "is_decoder": (False,),
        "add_cross_attention": (False,),
        "quantization_config": (None,),
    },
    options=_bert_options,
    import_entries=_under_present_names,
    export_entries=_without_pooler,
)
