"""Beam search: the hypotheses of torch_ref, and those of ``generate`` of Hugging Face's `transformers`."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

import torch_ref.decoding
import torch_ref.models
from jattn import decoding, models
from jattn.weights import load_state_dict
from parity_tests.models.hugging_face import decoders, encoder_decoders
from parity_tests.models.hugging_face.generation import LENS, TOKENS, V, make_sure_of_itself
from parity_tests.nn import blank, randomised

N, PAD, PENALTY = 7, 5, 1.7
RULES = [*itertools.product((-1.0, 0.0, 1.0, 2.0), (False, True, "never"))]


def asked(padded: bool, penalised: bool) -> tuple[dict[str, Any], dict[str, Any]]:
    """Prompts, whole or padded on the left, and with a repetition penalty or not: for ours, and for theirs."""
    lens = LENS if padded else np.full(3, 7)
    tokens = np.stack([np.roll(row, 7 - n) for row, n in zip(TOKENS, lens, strict=True)])
    mask = (np.arange(7) >= 7 - lens[:, None]).astype(int)
    ours = {"prompt": jnp.asarray(tokens), "prompt_attention_mask": jnp.asarray(mask)}
    theirs = {"inputs": torch.from_numpy(tokens), "attention_mask": torch.from_numpy(mask)}
    if penalised:
        return {**ours, "processors": [decoding.processors.repetition_penalty(PENALTY)]}, {
            **theirs,
            "repetition_penalty": PENALTY,
        }
    return ours, theirs


@pytest.mark.parametrize(("beams", "penalised"), [(2, False), (4, True)])
def test_torch_ref(beams: int, penalised: bool) -> None:
    sizes: dict[str, Any] = {"max_length": 20, "features": 12, "num_heads": 3, "num_layers": 2}
    twin = randomised(torch_ref.models.GPT2(V, **sizes))
    make_sure_of_itself(twin, 0)
    prompts = [row[:n].tolist() for row, n in zip(TOKENS, LENS, strict=True)]
    likely = [torch_ref.decoding.beam_search(twin, x, beams=1, max_new_tokens=N)[0].tokens for x in prompts]
    search: dict[str, Any] = {"beams": beams, "max_new_tokens": N, "eos": [likely[0][3], likely[1][1]]}
    of_ref = [torch_ref.decoding.processors.repetition_penalty(PENALTY)] if penalised else []
    lengths = set()
    with jax.enable_x64(True), torch.no_grad():
        ours = load_state_dict(blank(lambda: models.GPT2(V, **sizes, rngs=nnx.Rngs(0))), twin.state_dict())
        given, _ = asked(True, penalised)
        for length_penalty, early_stopping in RULES:
            rules: dict[str, Any] = {"length_penalty": length_penalty, "early_stopping": early_stopping}
            found = decoding.beam_search(ours, **given, **search, **rules, pad=PAD).beams
            assert found.scores.dtype == np.float64
            for i, prompt in enumerate(prompts):
                expected = torch_ref.decoding.beam_search(twin, prompt, **search, **rules, processors=of_ref)
                assert found.tokens[i].tolist() == [(x.tokens + [PAD] * N)[:N] for x in expected]
                assert found.lengths[i].tolist() == [len(x.tokens) for x in expected]
                np.testing.assert_allclose(found.scores[i], [x.score for x in expected], rtol=1e-10)
            lengths |= set(np.asarray(found.lengths).flat)
    assert len(lengths) > 3  # or the rules would make no difference


def assert_as_generate(hf: Any, ours: Any, beams: int, given: dict[str, Any], theirs: dict[str, Any]) -> None:
    """By whatever rules the same hypotheses in the same order, and their scores, which are float32 on both sides."""
    from transformers.generation import GenerationMixin

    def generate(**options: Any) -> Any:
        everything = {"do_sample": False, "max_new_tokens": N, "pad_token_id": PAD, **options}
        return GenerationMixin.generate(hf, **theirs, **everything, return_dict_in_generate=True, output_scores=True)

    hf.generation_config.eos_token_id = None
    t = given["prompt"].shape[1]
    likely = generate().sequences[:, t:]
    eos = [int(likely[0, 3]), int(likely[1, 1])]
    seen, lengths = set(), set()
    for length_penalty, early_stopping in RULES:
        rules: dict[str, Any] = {"length_penalty": length_penalty, "early_stopping": early_stopping}
        out = generate(num_beams=beams, num_return_sequences=beams, eos_token_id=eos, **rules)
        found = decoding.beam_search(ours, **given, beams=beams, max_new_tokens=N, eos=eos, pad=PAD, **rules).beams
        tokens = out.sequences[:, t:].reshape(3, beams, -1)
        tokens = np.pad(tokens, ((0, 0), (0, 0), (0, N - tokens.shape[2])), constant_values=PAD)
        np.testing.assert_array_equal(found.tokens, tokens, err_msg=str(rules))
        np.testing.assert_allclose(found.scores, out.sequences_scores.reshape(3, beams), rtol=5e-5)
        seen.add(tokens.tobytes())
        lengths |= set(np.asarray(found.lengths).flat)
    assert len(seen) > 2  # or the rules would make no difference
    assert len(lengths) > 3


@pytest.mark.whole
@pytest.mark.parametrize("name", ["GPT-2", "Llama"])
@pytest.mark.parametrize(("beams", "padded", "penalised"), [(2, True, False), (4, True, False), (4, False, True)])
def test_transformers(name: str, beams: int, padded: bool, penalised: bool, tmp_path: Any) -> None:
    pytest.importorskip("transformers", reason="no transformers: beam search was not compared with its own")
    with torch.no_grad():
        hf = decoders.made(name).eval()
        make_sure_of_itself(hf, 0)
        hf.save_pretrained(tmp_path)
        assert_as_generate(hf, models.load(tmp_path), beams, *asked(padded, penalised))


@pytest.mark.whole
def test_transformers_encoder_decoder(tmp_path: Any) -> None:
    pytest.importorskip("transformers", reason="no transformers: beam search was not compared with its own")
    source = np.random.default_rng(0).integers(0, V, (3, 9))
    real = (np.arange(9) < np.array([9, 4, 6])[:, None]).astype(int)
    with torch.no_grad():
        hf = encoder_decoders.made("T5").eval()
        make_sure_of_itself(hf, 0)
        hf.save_pretrained(tmp_path)
        theirs = {"input_ids": torch.from_numpy(source), "attention_mask": torch.from_numpy(real)}
        theirs["use_cache"] = False  # it makes one for as many blocks as the encoder has
        given = {"source": jnp.asarray(source), "source_attention_mask": jnp.asarray(real)}
        assert_as_generate(hf, models.load(tmp_path), 3, {"prompt": jnp.zeros((3, 1), int), **given}, theirs)
