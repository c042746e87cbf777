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
from parity_tests.models.hugging_face.encoders import CASES, CONFIGS, V, made
from parity_tests.nn import randomised

pytest.importorskip("transformers", reason="no transformers: families were not compared with its models")

N = 9
LENS = np.array([9, 5, 7])
RIGHT = np.arange(N) < LENS[:, None]
SIDES = {"right": RIGHT, "left": RIGHT[:, ::-1]}
REAL = [np.random.default_rng(i).integers(4, V, n) for i, n in enumerate(LENS)]
TYPES = [np.random.default_rng(i + 3).integers(0, 2, n) for i, n in enumerate(LENS)]


def laid(texts: list[np.ndarray], side: str, padding: int) -> np.ndarray:
    """The texts in one array, padded on that side."""
    padded = np.full((len(texts), N), padding)
    padded[SIDES[side]] = np.concatenate(texts)
    return padded


def assert_close(ours: Any, theirs: Any, name: str, scale: float | None = None) -> None:
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    assert ours.shape == theirs.shape, name
    assert np.abs(ours - theirs).max() <= 1e-10 * (scale or np.abs(theirs).max()), name


def of_tokens(x: Any, side: str) -> np.ndarray:
    """What is there of real tokens, one after the other, whichever side they are on."""
    return np.asarray(x)[SIDES[side]]


def of_pairs(x: Any, side: str) -> np.ndarray:
    """Likewise of real queries and keys, of weights ``b h t t``; there are none on padding."""
    real = SIDES[side]
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


def parameters_of(hf: Any) -> dict[str, torch.Tensor]:
    """By their names, those of a pooler left out that nothing here asks for."""
    used = {name: x for name, x in hf.named_parameters() if x.grad is not None}
    unused = [name for name, x in hf.named_parameters() if x.grad is None]
    assert all("pooler" in name for name in unused)
    return used


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize(("name", "task"), CASES)
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
                attention_mask=jnp.asarray(SIDES[side]),
                **types,
                return_weights=True,
                return_hidden=True,
            )
            output = out.output if pooled else out.output[np.nonzero(SIDES[side])]
            output = output.reshape(cotangent.shape)
            return (output * cotangent).sum(), (output, out)

        gradients, (output, out) = jax.jit(jax.grad(loss, has_aux=True))(state)
        assert_close(output, real.detach().numpy(), "output")
        for i, (x, y) in enumerate(zip(out.hidden, outputs.hidden_states, strict=True)):
            assert_close(of_tokens(x, side), of_tokens(y.detach(), "right"), f"hidden state {i}")
        for i, (x, y) in enumerate(zip(out.weights, outputs.attentions, strict=True)):
            assert_close(of_pairs(x, side), of_pairs(y.detach(), "right"), f"weights {i}")
        back, named = nnx.merge(graph, gradients).to_hugging_face(), parameters_of(hf)
        assert named.keys() <= back.keys()
        largest = max(float(x.grad.abs().max()) for x in named.values())
        for parameter, x in named.items():
            # What all keys share cancels in the softmax, unless they are turned by their positions.
            scale = largest if x.grad.abs().max() < 1e-12 * largest else None
            assert_close(back[parameter], x.grad, f"gradient of {parameter}", scale)


@pytest.mark.parametrize(("name", "task"), CASES)
def test_there_and_back(name: str, task: str, tmp_path: Path) -> None:
    """From a folder in bfloat16, of several files, and back the same bits; what is saved is opened by theirs."""
    hf = randomised(made(name, task)).to(torch.bfloat16)
    hf.save_pretrained(tmp_path, max_shard_size="4KB")
    ours = models.load(tmp_path)
    assert type(ours).__name__ == ("EncoderWithHead" if task.startswith("For") else CONFIGS[name][0])
    back = ours.to_hugging_face()
    expected = {
        key: x for key, x in hf.state_dict().items() if "pooler" not in key or task == "ForSequenceClassification"
    }
    assert back.keys() == expected.keys()
    for key, x in expected.items():
        assert torch.equal(back[key], x), key
    ours.save(tmp_path / "again")
    again = type(hf).from_pretrained(tmp_path / "again", dtype=torch.bfloat16)
    for key, x in expected.items():
        assert torch.equal(again.state_dict()[key], x), key


@pytest.mark.parametrize("name", CONFIGS)
def test_encoder_of_a_model_with_a_head(name: str, tmp_path: Path) -> None:
    hf = made(name, "ForMaskedLM")
    hf.save_pretrained(tmp_path)
    alone, whole = models.TextEncoder.from_folder(tmp_path), models.load(tmp_path)
    assert type(alone).__name__ == CONFIGS[name][0]
    tokens = jnp.asarray(laid(REAL, "right", 0))
    np.testing.assert_array_equal(alone(tokens, jnp.asarray(LENS)), whole.encoder(tokens, jnp.asarray(LENS)))
