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
from parity_tests.models.hugging_face.comparison import (
    SIDES,
    assert_all_close,
    assert_close,
    assert_gradients,
    assert_there_and_back,
    mask_of,
)
from parity_tests.models.hugging_face.encoder_decoders import ENCODER_DECODERS, V, made
from parity_tests.nn import randomised

pytest.importorskip("transformers", reason="no transformers: encoder-decoders were not compared with its models")

B, S, T = 3, 9, 7
RNG = np.random.default_rng(0)
SOURCE, TARGET = RNG.integers(0, V, (B, S)), RNG.integers(0, V, (B, T))
FEATURES = RNG.normal(size=(B, 5, 2 * S))
TARGET_LENS = np.array([4, 7, 6])


def asked(name: str, side: str) -> tuple[dict[str, Any], dict[str, Any], np.ndarray]:
    """What theirs and ours are called with, and which tokens of the target are real.

    Theirs counts positions over the padding too, but for Whisper's decoder, whose source is never padded.
    """
    of_source, of_target = mask_of(side), mask_of(side, TARGET_LENS)
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


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("name", ENCODER_DECODERS)
def test_equal(name: str, side: str, tmp_path: Path) -> None:
    of_source = mask_of("whole" if name.startswith("Whisper") else side).astype(bool)
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
        assert_close(found.output[real], out.logits[torch.from_numpy(real)], "logits")
        assert_all_close(found.hidden.encoder, out.encoder_hidden_states, of_source, "hidden state of the encoder")
        assert_all_close(found.hidden.decoder, out.decoder_hidden_states, real, "hidden state of the decoder")
        assert_all_close(found.weights.encoder, out.encoder_attentions, of_source, "weights of the encoder")
        assert_all_close(found.weights.decoder, out.decoder_attentions, real, "weights of the decoder")
        assert_all_close(found.weights.cross, out.cross_attentions, real, "weights of the cross attention")
        back = nnx.merge(graph, gradients).to_hugging_face()
        assert dict(hf.named_parameters()).keys() <= back.keys()
        # What sound's places are is fixed.
        unused = "model.encoder.embed_positions.weight" if name.startswith("Whisper") else None
        assert_gradients(back, hf, tmp_path / "gradients", unused=unused)


@pytest.mark.parametrize("name", ENCODER_DECODERS)
def test_there_and_back(name: str, tmp_path: Path) -> None:
    hf = made(name)
    ours = assert_there_and_back(hf, tmp_path)
    assert ours.to_hugging_face().keys() == hf.state_dict().keys()
    again = type(hf).config_class.from_pretrained(tmp_path / "again")
    assert getattr(again, "scale_decoder_outputs", None) == getattr(hf.config, "scale_decoder_outputs", None)


@pytest.mark.parametrize(("mel_bins", "seconds"), [(80, 30), (128, 2)])
def test_log_mel(mel_bins: int, seconds: int) -> None:
    """Noise, a tone that rises, and silence, shorter than asked for and longer, beside the feature extractor."""
    from transformers import WhisperFeatureExtractor

    t = np.arange(40_000) / 16_000
    noise = np.random.default_rng(0).normal(size=t.size)
    sounds = np.stack([0.1 * noise, np.sin(2 * np.pi * (200 + 900 * t) * t), 1e-3 * noise * (t < 1)]).astype(np.float32)
    extract = WhisperFeatureExtractor(feature_size=mel_bins, chunk_length=seconds)

    def theirs() -> Any:
        return extract(list(sounds), sampling_rate=16_000, return_tensors="np")["input_features"]

    with float64_throughout(), jax.enable_x64(True):
        truth = theirs()
        found = models.log_mel(jnp.asarray(sounds, jnp.float64), mel_bins=mel_bins, seconds=seconds)
        assert truth.dtype == found.dtype == np.float64
        assert found.shape == (3, mel_bins, 100 * seconds)
        assert_close(found, truth, "features")
    narrow = models.log_mel(jnp.asarray(sounds), mel_bins=mel_bins, seconds=seconds)
    assert narrow.dtype == np.float32
    assert np.abs(narrow - truth).max() <= 2 * np.abs(theirs() - truth).max() + 4 * np.finfo(np.float32).eps


@pytest.mark.whole
def test_bare_bart(tmp_path: Path) -> None:
    """A folder of a ``BartModel`` is the whole model to `transformers` if it is asked for that, and so it is here."""
    from transformers import BartForConditionalGeneration

    with float64_throughout(), jax.enable_x64(True):
        randomised(made("BART")).model.save_pretrained(tmp_path)
        hf = BartForConditionalGeneration.from_pretrained(tmp_path, dtype=torch.float64).eval()
        ours = models.load(tmp_path)
        theirs, given, real = asked("BART", "right")
        assert_close(ours(**given)[real], hf(**theirs).logits.detach().numpy()[real], "logits")
        ours.save(tmp_path / "again")
        again = BartForConditionalGeneration.from_pretrained(tmp_path / "again", dtype=torch.float64)
        for parameter, x in hf.state_dict().items():
            assert torch.equal(again.state_dict()[parameter], x), parameter
