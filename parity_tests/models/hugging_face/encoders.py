"""A tiny configuration of each family of text encoders, for `transformers`."""

from functools import partial
from typing import Any

from parity_tests.models.hugging_face.case import TEXT, Case

__all__ = ["CASES", "CONFIGS", "ROWS", "V", "made"]

V = 29
SIZES: dict[str, Any] = {
    "vocab_size": V,
    "hidden_size": 12,
    "intermediate_size": 20,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "max_position_embeddings": 24,
    "pad_token_id": 1,
    "bos_token_id": 2,
    "eos_token_id": 3,
}
BERT: dict[str, Any] = {**SIZES, "type_vocab_size": 2}
MODERN: dict[str, Any] = {
    **SIZES,
    "local_attention": 4,
    "cls_token_id": 2,
    "sep_token_id": 3,
    "rope_parameters": {
        "full_attention": {"rope_type": "linear", "factor": 2.0, "rope_theta": 500.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 50.0},
    },
}

# By a name: how the family's classes begin, and its settings.
CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "BERT": ("Bert", BERT),
    "BERT, another activation": ("Bert", {**BERT, "hidden_act": "gelu_new", "layer_norm_eps": 0.1}),
    "RoBERTa": ("Roberta", {**BERT, "pad_token_id": 2, "bos_token_id": 1}),
    "XLM-RoBERTa": ("XLMRoberta", {**BERT, "type_vocab_size": 1}),
    "CamemBERT": ("Camembert", BERT),
    "ELECTRA": ("Electra", {**BERT, "embedding_size": 8}),
    "ELECTRA, of one width": ("Electra", {**BERT, "embedding_size": 12}),
    "DistilBERT": (
        "DistilBert",
        {
            **{name: SIZES[name] for name in ("vocab_size", "max_position_embeddings", "pad_token_id")},
            **{"dim": 12, "hidden_dim": 20, "n_layers": 2, "n_heads": 3},
        },
    ),
    "MPNet": ("MPNet", SIZES),
    "ModernBERT": ("ModernBert", {**MODERN, "num_hidden_layers": 4}),
    "ModernBERT, with biases": (
        "ModernBert",
        {
            **MODERN,
            "num_hidden_layers": 3,
            **dict.fromkeys(("norm_bias", "attention_bias", "mlp_bias", "classifier_bias"), True),
            "decoder_bias": False,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
            "classifier_pooling": "mean",
            "classifier_activation": "silu",
        },
    ),
}
TASKS = ("Model", "ForMaskedLM", "ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering")
CASES = [*((name, task) for name in CONFIGS for task in TASKS), ("ELECTRA", "ForPreTraining")]


def made(name: str, task: str, **more: Any) -> Any:
    """The model of `transformers`, in the dtype that is PyTorch's default now."""
    import transformers

    kind, settings = CONFIGS[name]
    if task in ("ForSequenceClassification", "ForTokenClassification"):
        settings = {**settings, "num_labels": 3}
    model_class = getattr(transformers, kind + task)
    settings = {**settings, **more}
    return model_class(model_class.config_class(**settings, attn_implementation="eager"))


ROWS = {
    name if task == "Model" else f"{name}, {task.removeprefix('For')}": Case(partial(made, name, task), TEXT)
    for name, task in CASES
}
