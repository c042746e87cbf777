"""Greedy continuations are what the models say, and errors are clear."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jattn import models
from jattn.decoding import loop
from tests.errors import raises
from tests.models.hugging_face.test_gpt2_and_llama import KINDS, LENS, PROMPT, V, made


@pytest.mark.parametrize("kind", KINDS)
def test_greedy_takes_the_most_probable(kind: str) -> None:
    model = made(kind)
    found = models.greedy_continuation(model, PROMPT, LENS, max_new_tokens=6)
    for i, length in enumerate(LENS.tolist()):
        text = [*PROMPT[i, :length].tolist(), *found.tokens[i].tolist()]
        best = model(jnp.array([text + [0] * (11 - len(text))]))[0].argmax(-1)
        assert found.tokens[i].tolist() == best[length - 1 : length + 5].tolist()
    assert len(np.unique(found.tokens)) > 3, "these continuations are too much alike to show anything"
    assert found.lengths.tolist() == [6, 6, 6]


@pytest.mark.parametrize("kind", KINDS)
def test_what_has_ended_stays_ended(kind: str) -> None:
    model = made(kind)
    free = np.asarray(models.greedy_continuation(model, PROMPT, max_new_tokens=6).tokens)
    eos, never = int(free[0, 2]), min(set(range(V)) - set(free.flat))
    options: list[tuple[dict[str, Any], int]] = [({"eos": eos}, eos), ({"eos": (never, eos), "pad": -1}, -1)]
    for option, rest in options:
        found = models.greedy_continuation(model, PROMPT, max_new_tokens=6, **option)
        for row, tokens, length in zip(free.tolist(), found.tokens.tolist(), found.lengths.tolist(), strict=True):
            n = row.index(eos) + 1 if eos in row else 6
            assert length == n
            assert tokens == row[:n] + [rest] * (6 - n)
        assert int(found.lengths[0]) <= 3


def test_new_lengths_and_tokens_compile_nothing_and_jit_works() -> None:
    model = made("llama")
    first = models.greedy_continuation(model, PROMPT, LENS, max_new_tokens=3)
    compiled = [f._cache_size() for f in (loop.begin, loop.advance)]
    models.greedy_continuation(made("llama", 1), PROMPT[::-1], LENS - 0, max_new_tokens=3)
    assert [f._cache_size() for f in (loop.begin, loop.advance)] == compiled
    graph, state = nnx.split(model)
    inside = jax.jit(lambda s, p, n: models.greedy_continuation(nnx.merge(graph, s), p, n, max_new_tokens=3))
    np.testing.assert_array_equal(inside(state, PROMPT, LENS).tokens, first.tokens)
    known = jax.jit(lambda s, p: models.greedy_continuation(nnx.merge(graph, s), p, LENS, max_new_tokens=3))
    np.testing.assert_array_equal(known(state, PROMPT).tokens, first.tokens)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("wrong", "phrases"),
    [
        ({"model": nnx.Linear(2, 2, rngs=nnx.Rngs(0))}, ("model must have the methods start and step", "Got Linear")),
        ({"prompt": PROMPT + 10}, ("prompt must lie between 0 and 18", "Got 19")),
        ({"prompt": PROMPT[0]}, ("prompt must have the axes b t", "(5,)")),
        ({"prompt": PROMPT[None]}, ("prompt must have the axes b t", "(1, 3, 5)")),
        ({"prompt_valid_lens": LENS[:2]}, ("prompt_valid_lens must have one entry for each prompt", "Got shape (2,)")),
        ({"prompt_valid_lens": LENS + 1}, ("valid_lens", "6")),
        ({"prompt_valid_lens": LENS - 1}, ("prompt_valid_lens must be at least 1", "Got 0")),
        ({"max_new_tokens": 0}, ("max_new_tokens must be at least 1", "Got 0")),
        ({"max_new_tokens": 2.0}, ("max_new_tokens must be at least 1, an integer", "Got 2.0")),
        ({"max_new_tokens": 10}, ("must be at most max_length = 14 together", "Got 5 + 10")),
        ({"eos": V}, ("eos must be an integer in [0, 19)", "Got 19")),
        ({"eos": [1, -1]}, ("eos must be an integer in [0, 19)", "Got -1")),
        ({"pad": "<pad>"}, ("pad must be an integer", "'<pad>'")),
    ],
)
def test_one_clear_error(wrong: dict[str, Any], phrases: tuple[str, ...]) -> None:
    arguments = {"model": made("gpt2"), "prompt": PROMPT, "prompt_valid_lens": LENS, "max_new_tokens": 3, **wrong}
    with raises(*phrases):
        models.greedy_continuation(**arguments)


def test_training_mode() -> None:
    model = made("gpt2")
    models.greedy_continuation(model, PROMPT, max_new_tokens=3)
    model.train()
    with raises("model must be in eval mode", "model.eval()"):
        models.greedy_continuation(model, PROMPT, max_new_tokens=3)
