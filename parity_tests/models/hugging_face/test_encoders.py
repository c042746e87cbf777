"""Each family of text encoders beside `transformers`' own classes: outputs, hidden states, weights, all gradients."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from jattn import models
from jattn.parity.widen import float64_throughout
from parity_tests.models.hugging_face.comparison import (
    LENS,
    assert_close,
    assert_gradients,
    assert_there_and_back,
    mask_of,
)
from parity_tests.models.hugging_face.encoders import CASES, CONFIGS, V, made
from parity_tests.nn import randomised

pytest.importorskip("transformers", reason="no transformers: families were not compared with its models")

PADDED = {side: mask_of(side).astype(bool) for side in ("right", "left")}
RIGHT = PADDED["right"]
REAL = [np.random.default_rng(i).integers(4, V, n) for i, n in enumerate(LENS)]
TYPES = [np.random.default_rng(i + 3).integers(0, 2, n) for i, n in enumerate(LENS)]


def laid(texts: list[np.ndarray], side: str, padding: int) -> np.ndarray:
    """The texts in one array, padded on that side."""
    padded = np.full(RIGHT.shape, padding)
    padded[PADDED[side]] = np.concatenate(texts)
    return padded


def of_tokens(x: Any, side: str) -> np.ndarray:
    """What is there of real tokens, one after the other, whichever side they are on."""
    return np.asarray(x)[PADDED[side]]


def of_pairs(x: Any, side: str) -> np.ndarray:
    """Likewise of real queries and keys, of weights ``b h t t``; there are none on padding."""
    real = PADDED[side]
    x = np.moveaxis(np.asarray(x), 1, -1)
    assert np.abs(x[real[:, :, None] & ~real[:, None, :]]).max() < 1e-30
    return x[real[:, :, None] & real[:, None, :]]


def output_of(outputs: Any) -> torch.Tensor:
    """Logits, or hidden states."""
    if "start_logits" in outputs:
        return torch.stack([outputs.start_logits, outputs.end_logits], -1)
    return outputs.last_hidden_state if "last_hidden_state" in outputs else outputs.logits


def has_types(hf: Any) -> bool:
    return getattr(hf.config, "type_vocab_size", 0) > 1


# What is under the heads is padded on either side without one.
SIDED = [(name, task, side) for name, task in CASES for side in PADDED if task == "Model" or side == "left"]


@pytest.mark.parametrize(("name", "task", "side"), SIDED)
def test_equal(name: str, task: str, side: str, tmp_path: Path) -> None:
    """Theirs is padded on the right, as its heads take the first token that stands there."""
    with float64_throughout(), jax.enable_x64(True):
        hf = randomised(made(name, task))
        hf.save_pretrained(tmp_path)
        padding = hf.config.pad_token_id
        given = {"input_ids": laid(REAL, "right", padding), "attention_mask": RIGHT.astype(int)}
        if has_types(hf):
            given["token_type_ids"] = laid(TYPES, "right", 0)
        outputs = hf(
            **{key: torch.from_numpy(x) for key, x in given.items()}, output_hidden_states=True, output_attentions=True
        )
        theirs = output_of(outputs)
        pooled = task == "ForSequenceClassification"
        shape = theirs.shape if pooled else (LENS.sum(), *theirs.shape[2:])
        cotangent = np.random.default_rng(1).normal(size=shape)
        real = theirs if pooled else theirs[torch.from_numpy(RIGHT)]
        (real * torch.from_numpy(cotangent)).sum().backward()

        ours = models.load(tmp_path)
        graph, state = nnx.split(ours)
        types = {"token_types": jnp.asarray(laid(TYPES, side, 0))} if has_types(hf) else {}

        def loss(state: Any) -> Any:
            out = nnx.merge(graph, state)(
                jnp.asarray(laid(REAL, side, padding)),
                attention_mask=jnp.asarray(PADDED[side]),
                **types,
                return_weights=True,
                return_hidden=True,
            )
            output = out.output if pooled else out.output[np.nonzero(PADDED[side])]
            output = output.reshape(cotangent.shape)
            return (output * cotangent).sum(), (output, out)

        gradients, (output, out) = jax.jit(jax.grad(loss, has_aux=True))(state)
        assert_close(output, real.detach().numpy(), "output")
        for i, (x, y) in enumerate(zip(out.hidden, outputs.hidden_states, strict=True)):
            assert_close(of_tokens(x, side), of_tokens(y.detach(), "right"), f"hidden state {i}")
        for i, (x, y) in enumerate(zip(out.weights, outputs.attentions, strict=True)):
            assert_close(of_pairs(x, side), of_pairs(y.detach(), "right"), f"weights {i}")
        back = nnx.merge(graph, gradients).to_hugging_face()
        assert_gradients(back, hf, tmp_path / "gradients", unused="pooler")


@pytest.mark.parametrize(("name", "task"), CASES)
def test_there_and_back(name: str, task: str, tmp_path: Path) -> None:
    hf = made(name, task)
    pooler = None if task == "ForSequenceClassification" else "pooler"  # which nothing else here asks for
    ours = assert_there_and_back(hf, tmp_path, unused=pooler)
    assert type(ours).__name__ == ("EncoderWithHead" if task.startswith("For") else CONFIGS[name][0])
    assert ours.to_hugging_face().keys() == {x for x in hf.state_dict() if pooler is None or pooler not in x}


@pytest.mark.parametrize("name", CONFIGS)
def test_encoder_of_a_model_with_a_head(name: str, tmp_path: Path) -> None:
    hf = made(name, "ForMaskedLM")
    hf.save_pretrained(tmp_path)
    alone, whole = models.TextEncoder.from_folder(tmp_path), models.load(tmp_path)
    assert type(alone).__name__ == CONFIGS[name][0]
    tokens = jnp.asarray(laid(REAL, "right", 0))
    np.testing.assert_array_equal(alone(tokens, jnp.asarray(LENS)), whole.encoder(tokens, jnp.asarray(LENS)))
