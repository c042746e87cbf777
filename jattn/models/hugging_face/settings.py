"""Settings as Hugging Face's configurations have them: what may be in them, and how they are read."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from jattn._engine import checks

__all__ = [
    "PLAIN",
    "WITHOUT_EFFECT",
    "MissingSetting",
    "NotedSettings",
    "check_settings",
    "count_setting",
    "flag_setting",
    "head_features_of",
    "heads_of",
    "labels_of",
    "missing_message",
    "num_heads_of",
    "optional_count_setting",
    "padding_of",
    "real_setting",
]

# What older files have in the settings of any model, and what it must be unless a family says otherwise.
PLAIN: Mapping[str, tuple[Any, ...]] = {
    "add_cross_attention": (False,),
    "is_decoder": (False,),
    "pruned_heads": ({}, None),
    "quantization_config": (None,),
    "tie_encoder_decoder": (False,),
}
# What is in the settings of any model, for how it is made, trained, stored or asked for text.
WITHOUT_EFFECT = frozenset(
    {
        "_attn_implementation",
        "_attn_implementation_autoset",
        "_commit_hash",
        "_experts_implementation",
        "_name_or_path",
        "_num_labels",
        "architectures",
        "attn_implementation",
        "auto_map",
        "bad_words_ids",
        "begin_suppress_tokens",
        "bos_token_id",
        "cache_implementation",
        "chunk_size_feed_forward",
        "classifier_dropout",
        "cross_attention_hidden_size",
        "custom_pipelines",
        "decoder_start_token_id",
        "diversity_penalty",
        "do_sample",
        "dtype",
        "early_stopping",
        "encoder_no_repeat_ngram_size",
        "eos_token_id",
        "experts_implementation",
        "exponential_decay_length_penalty",
        "finetuning_task",
        "forced_bos_token_id",
        "forced_eos_token_id",
        "gradient_checkpointing",
        "id2label",
        "initializer_range",
        "is_encoder_decoder",
        "label2id",
        "length_penalty",
        "max_length",
        "min_length",
        "no_repeat_ngram_size",
        "num_beam_groups",
        "num_beams",
        "num_return_sequences",
        "output_attentions",
        "output_hidden_states",
        "output_past",
        "output_scores",
        "pad_token_id",
        "prefix",
        "problem_type",
        "remove_invalid_values",
        "repetition_penalty",
        "return_dict",
        "return_dict_in_generate",
        "sentence_transformers",
        "sep_token_id",
        "suppress_tokens",
        "task_specific_params",
        "temperature",
        "tf_legacy_loss",
        "tokenizer_class",
        "top_k",
        "top_p",
        "torch_dtype",
        "torchscript",
        "transformers.js_config",
        "transformers_version",
        "typical_p",
        "unk_token_id",
        "use_bfloat16",
        "use_cache",
    }
)


class MissingSetting(KeyError):
    """A setting that a family's options ask for by ``config[name]``, as those of a user's own may."""


class NotedSettings(Mapping[str, Any]):
    """Settings that note which of them were asked for."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        self._config = config
        self.read = set[str]()

    def __getitem__(self, name: str) -> Any:
        self.read.add(name)
        try:
            return self._config[name]
        except KeyError:
            raise MissingSetting(name) from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._config)

    def __len__(self) -> int:
        return len(self._config)


def check_settings(config: Mapping[str, Any], implemented: Mapping[str, tuple[Any, ...]]) -> None:
    """One error that names every setting with a value that is not implemented; the first one is the default."""
    problems = [
        f"{name} must be {' or '.join(map(repr, values))}. Got {config.get(name, values[0])!r}."
        for name, values in implemented.items()
        if config.get(name, values[0]) not in values
    ]
    if problems:
        raise ValueError("\n  ".join(["config must have settings that are implemented here.", *problems]))


def missing_message(config: Mapping[str, Any], name: str) -> str:
    return f"config must have {name}. Got the settings {', '.join(sorted(config))}."


def _setting(config: Mapping[str, Any], name: str) -> Any:
    """A setting without a default."""
    if config.get(name) is None:
        raise ValueError(missing_message(config, name))
    return config[name]


def flag_setting(config: Mapping[str, Any], name: str, default: bool) -> bool:
    """One that is True or False."""
    return checks.flag(f"config's {name}", config.get(name, default))


def count_setting(config: Mapping[str, Any], name: str) -> int:
    """A setting without a default that is a positive integer."""
    return checks.number(f"config's {name}", _setting(config, name), "[1, inf)", integer=True)


def optional_count_setting(config: Mapping[str, Any], name: str, default: int | None = None) -> int | None:
    """One that may be None, or left out for the default."""
    if name not in config:
        return default
    return None if config.get(name) is None else count_setting(config, name)


def real_setting(config: Mapping[str, Any], name: str, interval: str, default: float | None = None) -> float:
    """A setting that is a number in an interval."""
    value = _setting(config, name) if default is None else config.get(name, default)
    return float(checks.number(f"config's {name}", value, interval))


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


def labels_of(config: Mapping[str, Any]) -> int:
    """How many classes there are."""
    if names := config.get("id2label"):
        if not isinstance(names, Mapping | Sequence):
            raise ValueError(f"config's id2label must be a dict. Got {names!r:.80}.")
        return len(names)
    given = next((name for name in ("num_labels", "_num_labels") if config.get(name) is not None), None)
    return 2 if given is None else count_setting(config, given)
