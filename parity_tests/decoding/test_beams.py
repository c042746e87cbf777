"""Beam search: the hypotheses of torch_ref, and those of ``generate`` of Hugging Face's `transformers`."""

import itertools
from pathlib import Path
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
from parity_tests.decoding.hugging_face import PAD, PAIRS, N, pair
from parity_tests.models.hugging_face.generation import LENS, TOKENS, V, make_sure_of_itself
from parity_tests.nn import blank, randomised

PENALTY = 1.7
RULES = [*itertools.product((-1.0, 0.0, 1.0, 2.0), (False, True, "never"))]


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
        given = {"prompt": jnp.asarray(TOKENS), "prompt_valid_lens": jnp.asarray(LENS)}
        processors = [decoding.processors.repetition_penalty(PENALTY)] if penalised else []
        for length_penalty, early_stopping in RULES:
            rules: dict[str, Any] = {"length_penalty": length_penalty, "early_stopping": early_stopping}
            found = decoding.beam_search(ours, **given, **search, **rules, processors=processors, pad=PAD).beams
            assert found.scores.dtype == np.float64
            for i, prompt in enumerate(prompts):
                expected = torch_ref.decoding.beam_search(twin, prompt, **search, **rules, processors=of_ref)
                assert found.tokens[i].tolist() == [(x.tokens + [PAD] * N)[:N] for x in expected]
                assert found.lengths[i].tolist() == [len(x.tokens) for x in expected]
                np.testing.assert_allclose(found.scores[i], [x.score for x in expected], rtol=1e-10)
            lengths |= set(np.asarray(found.lengths).flat)
    assert len(lengths) > 3  # or the rules would make no difference


@pytest.mark.whole
@pytest.mark.parametrize(("beams", "processed"), [(2, False), (4, True)])
@pytest.mark.parametrize("name", PAIRS)
def test_transformers(name: str, beams: int, processed: bool, tmp_path: Path) -> None:
    """By whatever rules the same hypotheses in the same order, and their scores."""
    seen, lengths = set(), set()
    with pair(name, tmp_path) as both:
        eos = both.ends()
        ours, theirs = both.processors(eos, beams) if processed else ([], {})
        for length_penalty, early_stopping in RULES[::2] if processed else RULES:
            rules: dict[str, Any] = {"length_penalty": length_penalty, "early_stopping": early_stopping}
            out = both.generate(num_beams=beams, num_return_sequences=beams, eos_token_id=eos, **rules, **theirs)
            found = decoding.beam_search(
                both.ours, **both.given, beams=beams, max_new_tokens=N, eos=eos, pad=PAD, processors=ours, **rules
            ).beams
            np.testing.assert_array_equal(found.tokens, out.sequences.reshape(3, beams, N), err_msg=str(rules))
            np.testing.assert_allclose(found.scores, out.sequences_scores.reshape(3, beams), rtol=1e-10)
            seen.add(out.sequences.tobytes())
            lengths |= set(np.asarray(found.lengths).flat)
    if not processed:  # processors may let no hypothesis of Whisper's end
        assert len(seen) > 2  # or the rules would make no difference
        assert len(lengths) > 2
