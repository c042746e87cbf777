"""GPT-NeoX and Pythia: attention and network in parallel, rotary positions on some features."""

from collections.abc import Mapping
from typing import Any

from jattn.models.hugging_face.activations import activation_of
from jattn.models.hugging_face.decoder import TextDecoder
from jattn.models.hugging_face.decoder_settings import output_line, packed_lines
from jattn.models.hugging_face.family import Family
from jattn.models.hugging_face.rotary import rotary_of
from jattn.models.hugging_face.settings import count_setting, flag_setting, num_heads_of, real_setting
from jattn.nn import Norm
from jattn.weights import Table, dropped, rename

__all__ = ["GPTNeoX"]


def _gpt_neox_options(config: Mapping[str, Any]) -> dict[str, Any]:
    norm = Norm("layer", epsilon=real_setting(config, "layer_norm_eps", "[0, inf)", 1e-5))
    dropout = real_setting(config, "hidden_dropout", "[0, 1)", 0.0)
    base = config.get("rotary_emb_base", 10000.0)
    if config.get("rope_theta", base) != base:
        raise ValueError(
            f"config's rope_theta must be rotary_emb_base, {base}, as transformers reads the latter. Got "
            f"{config['rope_theta']!r:.80}."
        )
    older = {
        "rope_theta": base,
        "partial_rotary_factor": config.get("rotary_pct", 0.25),
    }
    named = ("rope_scaling", "rope_parameters", "hidden_size", "num_attention_heads", "max_position_embeddings")
    given = {name: config[name] for name in named if config.get(name) is not None}
    block = dict(
        norm="pre",
        norm_kind=norm,
        parallel=flag_setting(config, "use_parallel_residual", True),
        feedforward_features=count_setting(config, "intermediate_size"),
        activation=activation_of(config, "hidden_act", "gelu"),
        use_bias=flag_setting(config, "attention_bias", True),
        residual_dropout_rate=dropout,
        attention_dropout_rate=real_setting(config, "attention_dropout", "[0, 1)", 0.0),
        rotary=rotary_of({**older, **given}, partial=True),
        num_heads=num_heads_of(config),
    )
    return dict(
        vocab_size=count_setting(config, "vocab_size"),
        features=count_setting(config, "hidden_size"),
        layers=[block] * count_setting(config, "num_hidden_layers"),
        norm=norm,
        tied=flag_setting(config, "tie_word_embeddings", False),
        dropout_rate=dropout,
    )


def _gpt_neox_table(model: Any) -> Table:
    return Table(
        [
            dropped(r"\.attention\.((masked_)?bias|rotary_emb\.inv_freq)$", optional=True),
            rename("lm_head", "embed_out", optional=True, back=False),  # of a model in memory
            output_line(model, "embed_out", "gpt_neox.embed_in"),
            rename("gpt_neox.embed_in", "embedding"),
            *packed_lines(model, "gpt_neox.layers.#", "attention"),
            rename("gpt_neox.final_layer_norm", "norm"),
        ]
    )


class GPTNeoX(TextDecoder):
    """GPT-NeoX and Pythia; the arguments are those of `TextDecoder`.

    Source: Black et al., GPT-NeoX-20B: An Open-Source Autoregressive Language Model, 2022.
    """

    hugging_face = Family(
        table=_gpt_neox_table,
        implemented={"model_type": ("gpt_neox",), "is_decoder": (False, True)},
        options=_gpt_neox_options,
        # Of its first files; the names that are read are others.
        without_effect=frozenset({"attention_probs_dropout_prob", "hidden_dropout_prob"}),
    )
