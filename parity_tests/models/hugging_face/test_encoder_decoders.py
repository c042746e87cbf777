"""Each encoder-decoder beside `transformers`' own class: logits, hidden states, weights and gradients of all."""

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
from parity_tests.models.hugging_face.encoder_decoders import ENCODER_DECODERS, V, made
from parity_tests.nn import randomised

pytest.importorskip("transformers", reason="no transformers: encoder-decoders were not compared with its models")

B, S, T = 3, 9, 7
RNG = np.random.default_rng(0)
SOURCE, TARGET = RNG.integers(0, V, (B, S)), RNG.integers(0, V, (B, T))
FEATURES = RNG.normal(size=(B, 5, 2 * S))
SOURCE_LENS, TARGET_LENS = np.array([9, 5, 7]), np.array([4, 7, 6])


def mask_of(side: str, lens: np.ndarray, n: int) -> np.ndarray:
    if side == "whole":
        return np.ones((B, n), int)
    return ((np.arange(n) >= n - lens[:, None]) if side == "left" else (np.arange(n) < lens[:, None])).astype(int)


def asked(name: str, side: str) -> tuple[dict[str, Any], dict[str, Any], np.ndarray]:
    """What theirs and ours are called with, and which tokens of the target are real.

    Theirs counts positions over the padding too, but for Whisper's decoder, whose source is never padded.
    """
    of_source, of_target = mask_of(side, SOURCE_LENS, S), mask_of(side, TARGET_LENS, T)
    whisper = name.startswith("Whisper")
    theirs: dict[str, Any] = {
        "decoder_input_ids": torch.from_numpy(TARGET),
        "decoder_attention_mask": torch.from_numpy(of_target),
        **({"input_features": torch.from_numpy(FEATURES)} if whisper else {"input_ids": torch.from_numpy(SOURCE)}),
    }
    ours: dict[str, Any] = {
        "source": jnp.asarray(FEATURES if whisper else SOURCE),
        "target": jnp.asarray(TARGET),
        "target_attention_mask": jnp.asarray(of_target),
    }
    if whisper:
        theirs["decoder_position_ids"] = torch.from_numpy(np.maximum(np.cumsum(of_target, -1) - 1, 0))
    else:
        theirs["attention_mask"], ours["attention_mask"] = torch.from_numpy(of_source), jnp.asarray(of_source)
    if name.startswith("BART"):
        for argument, n in (("positions", S), ("target_positions", T)):
            ours[argument] = jnp.broadcast_to(jnp.arange(n), (B, n))
    return theirs, ours, of_target.astype(bool)


def assert_close(ours: Any, theirs: Any, name: str, scale: float | None = None) -> None:
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    assert ours.shape == theirs.shape, name
    assert np.abs(ours - theirs).max() <= 1e-10 * (scale or np.abs(theirs).max()), name


def assert_all_close(ours: Any, theirs: Any, real: np.ndarray, name: str) -> None:
    for i, (x, y) in enumerate(zip(ours, theirs, strict=True)):
        # Of weights the queries are on the axis before the last.
        both = [np.moveaxis(np.asarray(z), 1, -1) if z.ndim == 4 else np.asarray(z) for z in (x, y.detach().numpy())]
        assert_close(*(z[real] for z in both), f"{name} {i}")


@pytest.mark.parametrize("side", ["right", "left", "whole"])
@pytest.mark.parametrize("name", ENCODER_DECODERS)
def test_equal(name: str, side: str, tmp_path: Path) -> None:
    of_source = np.ones((B, S), bool) if name.startswith("Whisper") else mask_of(side, SOURCE_LENS, S).astype(bool)
    with float64_throughout(), jax.enable_x64(True):
        theirs, given, real = asked(name, side)
        hf = randomised(made(name))
        hf.save_pretrained(tmp_path)
        out = hf(**theirs, output_hidden_states=True, output_attentions=True)
        cotangent = np.random.default_rng(1).normal(size=out.logits.shape) * real[..., None]
        (out.logits * torch.from_numpy(cotangent)).sum().backward()
        ours = models.load(tmp_path)
        graph, state = nnx.split(ours)

        def loss(state: Any) -> Any:
            found = nnx.merge(graph, state)(**given, return_weights=True, return_hidden=True)
            return (found.output * cotangent).sum(), found

        gradients, found = jax.jit(jax.grad(loss, has_aux=True))(state)
        assert_close(found.output[real], out.logits.detach().numpy()[real], "logits")
        assert_all_close(found.hidden.encoder, out.encoder_hidden_states, of_source, "hidden state of the encoder")
        assert_all_close(found.hidden.decoder, out.decoder_hidden_states, real, "hidden state of the decoder")
        assert_all_close(found.weights.encoder, out.encoder_attentions, of_source, "weights of the encoder")
        assert_all_close(found.weights.decoder, out.decoder_attentions, real, "weights of the decoder")
        assert_all_close(found.weights.cross, out.cross_attentions, real, "weights of the cross attention")
        back = nnx.merge(graph, gradients).to_hugging_face()
        named = dict(hf.named_parameters())
        assert named.keys() <= back.keys()
        largest = max(float(x.grad.abs().max()) for x in named.values() if x.grad is not None)
        for parameter, x in named.items():
            if x.grad is None:
                assert parameter == "model.encoder.embed_positions.weight", parameter
                assert not back[parameter].any(), parameter
                continue
            # What all keys share cancels in the softmax.
            scale = largest if parameter.endswith("k_proj.bias") and x.grad.abs().max() < 1e-12 * largest else None
            assert_close(back[parameter], x.grad, f"gradient of {parameter}", scale)


@pytest.mark.parametrize("name", ENCODER_DECODERS)
def test_there_and_back(name: str, tmp_path: Path) -> None:
    """From a folder in bfloat16, of several files, and back the same bits; what is saved is opened by theirs."""
    hf = randomised(made(name)).to(torch.bfloat16)
    hf.save_pretrained(tmp_path, max_shard_size="4KB")
    ours = models.load(tmp_path)
    back = ours.to_hugging_face()
    assert back.keys() == hf.state_dict().keys()
    for parameter, x in hf.state_dict().items():
        assert torch.equal(back[parameter], x), parameter
    ours.save(tmp_path / "again")
    again = type(hf).from_pretrained(tmp_path / "again")
    for parameter, x in again.state_dict().items():
        assert torch.equal(x, hf.state_dict()[parameter]), parameter
    assert getattr(again.config, "scale_decoder_outputs", None) == getattr(hf.config, "scale_decoder_outputs", None)
