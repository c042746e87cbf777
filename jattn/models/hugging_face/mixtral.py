"""Mixtral: Mistral with a mixture of experts."""

from collections.abc import Mapping
from typing import Any

from jattn.models.hugging_face.decoder import TextDecoder
from jattn.models.hugging_face.decoder_settings import (
    LLAMA_LAYER,
    activation_of,
    experts_of,
    gated_block,
    heads_of,
    llama_like,
    llama_table,
)
from jattn.models.hugging_face.family import Family, count_setting, optional_count_setting, real_setting
from jattn.models.hugging_face.rotary import rotary_of
from jattn.nn import Norm
from jattn.weights import Table, rename, split, unstack

__all__ = ["Mixtral"]


def _mixtral_options(config: Mapping[str, Any]) -> dict[str, Any]:
    norm = Norm("rms", epsilon=real_setting(config, "rms_norm_eps", "[0, inf)", 1e-5))
    block = gated_block(
        config,
        norm_kind=norm,
        activation=activation_of(config, "hidden_act", "silu"),
        rotary=rotary_of(config, base=1e6),
        experts=experts_of(config, per_token=2, number=8),
        **heads_of(config),
    )
    block["window"] = optional_count_setting(config, "sliding_window")
    return llama_like(config, norm=norm, layers=[block] * count_setting(config, "num_hidden_layers"))


def _mixtral_table(model: Any) -> Table:
    """In a file each expert has its own entries; in memory they are stacked, gate and first layer in one."""
    layer, network = "model.layers.#.block_sparse_moe", "blocks.#.feed_forward"
    experts = range(model.blocks[0].feed_forward.linear1.kernel.shape[0])
    in_memory = {"gate_up_proj": "gate_up", "down_proj": "w2"}
    own = {name: ours for name, ours in LLAMA_LAYER.items() if not name.startswith("mlp.")}
    of_expert = {"w1": "gate", "w2": "linear2", "w3": "linear1"}
    further = [
        rename("model.layers.#.mlp", layer, optional=True, back=False),
        *(
            unstack(
                f"{layer}.experts.{theirs}",
                [f"{layer}.experts.{i}.{part}.weight" for i in experts],
                optional=True,
                back=False,
            )
            for theirs, part in in_memory.items()
        ),
        split(
            f"{layer}.experts.#.gate_up", [f"{layer}.experts.#.{w}" for w in ("w1", "w3")], optional=True, back=False
        ),
        rename(f"{layer}.gate", f"{network}.router"),
        *(rename(f"{layer}.experts.#.{w}", f"{network}.experts.#.{ours}") for w, ours in of_expert.items()),
    ]
    return llama_table(model, own, further)


class Mixtral(TextDecoder):
    """Mixtral; the arguments are those of `TextDecoder`.

    Source: Jiang et al., Mixtral of Experts, 2024.
    """

    hugging_face = Family(
        table=_mixtral_table,
        implemented={
            "model_type": ("mixtral",),
            "router_jitter_noise": (0.0,),
        },
        options=_mixtral_options,
        without_effect=frozenset({"output_router_logits", "router_aux_loss_coef"}),
        any_head_features=True,
    )
