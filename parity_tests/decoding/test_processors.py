"""Processors of logits against torch_ref, and against those of transformers, which take one example at a time here."""

import functools
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import GenerationConfig, GenerationMixin
from transformers.generation import logits_process as hf

from jattn.decoding import Transcript, processors
from torch_ref.decoding import processors as reference
from torch_ref.decoding.processors import Said

V, EOS = 11, [2, 7]
WORDS = [[4], [3, 1], [5, 0], [1, 2, 3], [9, 1, 0, 6], [1] * 9]
TEXTS = [
    Said([3], [], 6),
    Said([3, 1, 4, 1], [], 3),
    Said([3, 1, 2, 3, 1], [2], 2),
    Said([0], [1, 2, 1, 2, 0, 1, 2, 1], 9),
    Said([9, 1, 0], [5, 9, 1, 0], 5),
    Said([1, 1], [1, 1, 1, 1, 1, 1], 8),
    Said([8], [6], 2),
]

Theirs = Callable[[Said], Callable[[Tensor, Tensor], Tensor]]


class Case(NamedTuple):
    ours: processors.Processor
    reference: reference.Processor
    theirs: Theirs | None  # of transformers, for one example


def sampling(name: str, theirs: Any, *settings: Any) -> Iterator[tuple[str, Case]]:
    """One case for each setting."""
    for x in settings:
        ours = getattr(processors, name)(x)
        yield f"{name} {x}", Case(ours, getattr(reference, name)(x), lambda said, x=x: theirs(x))


SAMPLING = dict(
    [
        *sampling("temperature", hf.TemperatureLogitsWarper, 0.7, 1.7),
        *sampling("top_k", hf.TopKLogitsWarper, 1, 3, V - 1, V, V + 5),
        *sampling("top_p", hf.TopPLogitsWarper, 0.0, 1e-9, 0.3, 0.9, 1.0),
        *sampling("min_p", hf.MinPLogitsWarper, 0.0, 0.1, 1.0),
        *sampling("typical", hf.TypicalLogitsWarper, 1e-9, 0.3, 0.9),
    ]
)


def forced_first(said: Said) -> Callable[[Tensor, Tensor], Tensor]:
    """There, a prompt of an encoder-decoder is one token."""
    process = hf.ForcedBOSTokenLogitsProcessor(5)
    return lambda ids, row: process(ids[:, len(said.prompt) - 1 :], row)


def forced_last(said: Said) -> Callable[[Tensor, Tensor], Tensor]:
    return hf.ForcedEOSTokenLogitsProcessor(len(said.prompt) + said.limit, 7)


HISTORY: dict[str, Case] = {
    **dict(sampling("repetition_penalty", hf.RepetitionPenaltyLogitsProcessor, 1.3, 0.8)),
    **dict(sampling("no_repeat_ngrams", hf.NoRepeatNGramLogitsProcessor, 1, 2, 3, 4, 30)),
    **dict(sampling("bad_words", hf.NoBadWordsLogitsProcessor, WORDS, WORDS[:1])),
    **dict(sampling("suppressed", hf.SuppressTokensLogitsProcessor, [0, 9, 3])),
    "suppressed_at_begin": Case(
        processors.suppressed_at_begin([0, 9, 3]),
        reference.suppressed_at_begin([0, 9, 3]),
        lambda said: hf.SuppressTokensAtBeginLogitsProcessor([0, 9, 3], len(said.prompt)),
    ),
    "forced, first": Case(processors.forced({0: 5}), reference.forced({0: 5}), forced_first),
    "forced, last": Case(processors.forced({-1: 7}), reference.forced({-1: 7}), forced_last),
    "forced, several": Case(
        processors.forced({1: 3, 0: 4, -2: 5, -1: 6}), reference.forced({1: 3, 0: 4, -2: 5, -1: 6}), None
    ),
    "min_new_tokens": Case(
        processors.min_new_tokens(4, EOS),
        reference.min_new_tokens(4, EOS),
        lambda said: hf.MinNewTokensLengthLogitsProcessor(len(said.prompt), 4, EOS),
    ),
    "min_length": Case(
        processors.min_length(6, EOS),
        reference.min_length(6, EOS),
        lambda said: hf.MinLengthLogitsProcessor(6, EOS),
    ),
}

RNG = np.random.default_rng(0)
LOGITS = {
    "any": 2 * RNG.normal(size=(7, V)),
    "all above 0": 5 + RNG.random((7, V)),
    "all below 0": -5 - RNG.random((7, V)),
    "far apart": np.where(RNG.random((7, V)) < 0.3, -2000, 50 * RNG.normal(size=(7, V))),  # some probabilities are 0
    "some impossible": np.where(RNG.random((7, V)) < 0.5, -np.inf, RNG.normal(size=(7, V))),
    "ties": np.round(RNG.normal(size=(7, V))),
    "zeros of either sign": np.where(RNG.random((7, V)) < 0.5, -0.0, 0.0) * np.ones((7, V)),
}


def history_of(texts: list[Said]) -> Transcript:
    """With tokens that mean nothing, but would be looked at, after those that were said."""
    lengths = [len(said.all) for said in texts]
    tokens = np.random.default_rng(1).integers(0, V, (len(texts), max(lengths) + 2))
    for row, said in zip(tokens, texts, strict=True):
        row[: len(said.all)] = said.all
    prompt_lens, limits = [len(said.prompt) for said in texts], [said.limit for said in texts]
    return Transcript(*(jnp.asarray(x, jnp.int32) for x in (tokens, lengths, prompt_lens, limits)))


def in_transformers(theirs: Theirs, logits: np.ndarray) -> Tensor:
    rows = [
        theirs(said)(torch.tensor([said.all]), torch.tensor(row[None])) for said, row in zip(TEXTS, logits, strict=True)
    ]
    return torch.cat(rows)


def assert_same(ours: Any, theirs: Tensor) -> None:
    ours, expected = np.asarray(ours), theirs.numpy()
    assert ours.dtype == expected.dtype == np.float64
    np.testing.assert_array_equal(ours == -np.inf, expected == -np.inf)
    np.testing.assert_allclose(ours, expected, rtol=1e-12)


@pytest.mark.parametrize("name", [*SAMPLING, *HISTORY])
def test_processors(name: str) -> None:
    case = {**SAMPLING, **HISTORY}[name]
    with jax.enable_x64(True):
        process, transcript = jax.jit(case.ours), history_of(TEXTS)
        for kind, logits in LOGITS.items():
            ours = process(jnp.asarray(logits), transcript)
            assert_same(ours, case.reference(torch.tensor(logits), TEXTS))
            cut = kind in ("ties", "zeros of either sign") and name.startswith("top_p")
            if case.theirs and not cut:
                assert_same(ours, in_transformers(case.theirs, logits))


@pytest.mark.parametrize("p", [0.0, 0.3, 0.6, 0.9])
def test_top_p_keeps_all_that_are_as_probable_as_the_last(p: float) -> None:
    """Transformers keeps some of them, whichever its sorting puts last."""
    logits = LOGITS["ties"]
    theirs = in_transformers(lambda said: hf.TopPLogitsWarper(p), logits).numpy()
    least = np.where(theirs > -np.inf, theirs, np.inf).min(1, keepdims=True)
    with jax.enable_x64(True):
        ours = np.asarray(processors.top_p(p)(jnp.asarray(logits), history_of(TEXTS)))
    np.testing.assert_array_equal(ours, np.where(logits >= least, logits, -np.inf))
    assert np.any(ours != theirs)


@pytest.mark.parametrize("history_too", [False, True], ids=["sampling", "with transcript"])
def test_in_the_order_of_transformers(history_too: bool) -> None:
    """All settings of one generation config, which transformers itself makes its processors of."""
    settings: dict[str, Any] = {"temperature": 1.4, "top_k": 9, "top_p": 0.9, "min_p": 0.05, "typical_p": 0.8}
    ours = [
        processors.temperature(1.4),
        processors.top_k(9),
        processors.top_p(0.9),
        processors.min_p(0.05),
        processors.typical(0.8),
    ]
    if history_too:
        settings |= {"repetition_penalty": 1.3, "no_repeat_ngram_size": 2, "bad_words_ids": WORDS, "min_length": 7}
        settings |= {
            "min_new_tokens": 2,
            "forced_eos_token_id": 7,
            "suppress_tokens": [8],
            "begin_suppress_tokens": [6],
        }
        ours = [
            processors.repetition_penalty(1.3),
            processors.no_repeat_ngrams(2),
            processors.bad_words(WORDS),
            processors.min_length(7, EOS),
            processors.min_new_tokens(2, EOS),
            processors.forced({-1: 7}),
            processors.suppressed([8]),
            processors.suppressed_at_begin([6]),
            *ours,
        ]

    def theirs(said: Said) -> Any:
        config = GenerationConfig(do_sample=True, max_length=len(said.prompt) + said.limit, **settings)
        config._eos_token_tensor = torch.tensor(EOS)
        model: Any = SimpleNamespace(
            config=SimpleNamespace(is_encoder_decoder=False), _merge_criteria_processor_list=lambda own, given: own
        )
        made = GenerationMixin._get_logits_processor(model, config, input_ids_seq_length=len(said.prompt))
        assert len(made) == len(ours)
        return made

    with jax.enable_x64(True):
        transcript = history_of(TEXTS)
        composed = jax.jit(lambda logits: functools.reduce(lambda x, process: process(x, transcript), ours, logits))
        for kind in ("any", "all above 0", "all below 0"):
            assert_same(composed(jnp.asarray(LOGITS[kind])), in_transformers(theirs, LOGITS[kind]))
