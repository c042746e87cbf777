"""A family of Hugging Face's that jattn does not have, StarCoder 2, in one class: settings, names, and the proof.

    python -m examples.own_family [--folder FOLDER]

Half a minute on 2 cores. Expected: the debugger's table, in which outputs and gradients are equal to rounding.
"""

import argparse
import tempfile
from collections.abc import Mapping
from typing import Any

import numpy as np

from jattn import models, nn, parity, weights


def options(config: Mapping[str, Any]) -> dict[str, Any]:
    """What `TextDecoder` is made with; each setting that is read here is one that is honoured, others are refused."""
    norm = nn.Norm("layer", epsilon=config["norm_epsilon"])
    block = dict(
        num_heads=config["num_attention_heads"],
        num_kv_heads=config["num_key_value_heads"],
        feedforward_features=config["intermediate_size"],
        norm="pre",
        norm_kind=norm,
        activation="gelu_tanh",
        use_bias=config["use_bias"],
        feedforward_bias=config["use_bias"],
        rotary=models.rotary_of(config),
        window=config["sliding_window"],
        attention_dropout_rate=config["attention_dropout"],
        residual_dropout_rate=config["residual_dropout"],
    )
    return dict(
        vocab_size=config["vocab_size"],
        features=config["hidden_size"],
        layers=[block] * config["num_hidden_layers"],
        norm=norm,
        dropout_rate=config["embedding_dropout"],
        tied=config["tie_word_embeddings"],
    )


def table(model: models.TextDecoder) -> weights.Table:
    """From their names to those here; # is the number of a layer."""
    layer, block = "model.layers.#", "blocks.#"
    names = {
        "model.embed_tokens": "embedding",
        **{f"{layer}.self_attn.{n[0]}_proj": f"{block}.attention.{n}" for n in ("query", "key", "value", "out")},
        f"{layer}.mlp.c_fc": f"{block}.feed_forward.linear1",
        f"{layer}.mlp.c_proj": f"{block}.feed_forward.linear2",
        f"{layer}.input_layernorm": f"{block}.norm1",
        f"{layer}.post_attention_layernorm": f"{block}.norm2",
        "model.norm": "norm",
    }
    tied = weights.tied("lm_head.weight", "model.embed_tokens.weight")
    output = tied if model.output is None else weights.rename("lm_head", "output")
    return weights.Table([output, *(weights.rename(theirs, ours) for theirs, ours in names.items())])


class StarCoder2(models.TextDecoder):
    """StarCoder 2, from its folder and back."""

    hugging_face = models.Family(
        table=table,
        implemented={"model_type": ("starcoder2",), "hidden_act": ("gelu_pytorch_tanh",)},
        options=options,
    )


def main() -> None:
    """Load a folder, by default a tiny one that is made here, and compare with `transformers`."""
    from transformers import Starcoder2Config, Starcoder2ForCausalLM

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", help="of a StarCoder 2; by default a tiny one with random weights")
    given = parser.parse_args().folder
    with tempfile.TemporaryDirectory() as made:
        if given is None:
            config = Starcoder2Config(
                vocab_size=99,
                hidden_size=48,
                intermediate_size=96,
                num_hidden_layers=2,
                num_attention_heads=4,
                num_key_value_heads=2,
                sliding_window=5,
                eos_token_id=0,
                bos_token_id=0,
            )
            Starcoder2ForCausalLM(config).save_pretrained(made)
        folder = given or made
        ours, theirs = StarCoder2.from_folder(folder), Starcoder2ForCausalLM.from_pretrained(folder)
    tokens = np.random.default_rng(0).integers(0, theirs.config.vocab_size, (2, 12))
    print(parity.compare(theirs, ours, (tokens,), load=False))


if __name__ == "__main__":
    main()
