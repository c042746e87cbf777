"""Beam search: the continuations of a prompt with the best scores that are found by keeping a few at a time."""

import functools
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Int

from jattn._engine import checks
from jattn.decoding.beam_loop import Search, Standard, begin_search, resumed, search_on, search_with_room
from jattn.decoding.decodable import Decodable
from jattn.decoding.loop import Choice
from jattn.decoding.request import Request
from jattn.decoding.room import first_room, stretch

__all__ = ["BeamsFound", "Hypotheses", "beam_search"]


class Hypotheses(NamedTuple):
    """Continuations of each example, best first."""

    tokens: Int[Array, "b k n"]  # without the prompt; eos among them, if it came; pad after it
    lengths: Int[Array, "b k"]  # how many tokens before pad, eos included
    scores: Float[Array, "b k"]


class BeamsFound(NamedTuple):
    """The best continuation of each example, and all that were found."""

    tokens: Int[Array, "b n"]
    lengths: Int[Array, "b"]
    scores: Float[Array, "b"]
    beams: Hypotheses  # the same with an axis of beams after b


def beam_search(
    model: Decodable,
    prompt: Int[Array, "b t"],
    prompt_valid_lens: Int[Array, "b"] | None = None,
    *,
    beams: int,
    length_penalty: float | Float[Array, ""] = 1.0,
    early_stopping: bool | Literal["never"] = False,
    **request: Any,
) -> BeamsFound:
    """The best continuation that is found by keeping the best ``beams`` hypotheses after each token.

    ``score = log p(y_1 ... y_i | prompt) / i ** length_penalty``

    After each token the most probable continuations of all hypotheses go on, ``beams`` of them; those among the best
    ``beams`` that end with ``eos`` leave, and compete with all that have left before by their scores. It is what
    `transformers` finds with ``num_beams``. Prompts of about the same length, other valid lengths, ends and limits, and
    other numbers in processors run the same compiled program; so do other values of the arguments here but ``beams``.

    Args:
        model, prompt, prompt_valid_lens: as of `jattn.decoding.generate`.
        beams: k, how many hypotheses are kept, and how many that have ended.
        length_penalty: 0 to compare log-probabilities, which favours short continuations; 1 to compare their means per
            token; more to favour long ones.
        early_stopping: when an example is done. True: once ``beams`` of its hypotheses have ended. False: once
            moreover the score of the best that goes on, as it is now, is no better than theirs. ``"never"``: once none
            can become better; with a positive penalty that counts with the length of ``max_new_tokens``.
        request: ``max_new_tokens``, ``prompt_attention_mask``, ``eos``, ``pad``, ``processors``, ``state``, and what
            the model knows beside the prompt, as of `jattn.decoding.generate`. Processors are given log-probabilities
            here, and what they return is what is summed, so that it need not be normalised. Of one that has a number
            for each prompt, give it one for each hypothesis, ``jnp.repeat(x, beams)``.

    Returns:
        `BeamsFound`: ``tokens`` ``b n``, ``lengths`` ``b`` and ``scores`` ``b`` of the best, and ``beams``, the same of
        all, ``b k ...``, best first. Where there are fewer continuations than ``beams``, the rest have score minus
        infinity and no tokens.

    Source: Graves, Sequence Transduction with Recurrent Neural Networks, 2012, for the search; Wu et al., Google's
    Neural Machine Translation System, 2016, for a penalty of the length.

    Example:

        >>> from flax import nnx
        >>> from jattn.models import GPT2
        >>> model = GPT2(50, max_length=32, features=12, num_heads=3, num_layers=2, rngs=nnx.Rngs(0))
        >>> model.eval()
        >>> found = beam_search(model, jnp.ones((2, 5), int), jnp.array([5, 3]), beams=3, max_new_tokens=4, eos=7)
        >>> found.tokens.shape, found.beams.tokens.shape
        ((2, 4), (2, 3, 4))
        >>> bool(jnp.all(found.scores == found.beams.scores[:, 0]))
        True
    """
    checks.positive_integers(beams=beams)
    penalty = checks.number("length_penalty", length_penalty, "(-inf, inf)")
    checks.one_of("early_stopping", early_stopping, (False, True, "never"))
    asked = Request.of(model, prompt, prompt_valid_lens, **request)
    patient = early_stopping == "never"
    rules = (jnp.asarray(x, bool) for x in (early_stopping and not patient, patient))
    standard = Standard(jnp.asarray(penalty, float), *rules)
    searched = _searched(asked, beams, standard)
    return _found(searched, np.int32(asked.padding), asked.max_new_tokens)


def _searched(request: Request, k: int, standard: Standard) -> Search:
    """To the end; a stretch at a time, as far as there is room, where one may ask in between whether it has come."""
    is_traced = request.is_traced or not checks.is_concrete(standard.length_penalty)
    n, t = request.max_new_tokens, request.prompt.shape[1]
    room = first_room(t, n, whole=is_traced)
    choice = Choice(request.processors, jnp.asarray(request.ends), None)
    search = request.begun(begin_search, choice, standard, room=room, k=k)
    done = 1
    while done < n and (is_traced or np.any(np.asarray(search.going))):
        wanted, steps = stretch(room, request.longest + done, n - done)
        if wanted > room:
            room, search = wanted, search_with_room(search, wanted, request.past)
        search = search_on(*request.parts, search, choice, standard, np.int32(steps))
        done += steps
    return search


@functools.partial(jax.jit, static_argnums=2)
def _found(search: Search, pad: Int[ArrayLike, ""], n: int) -> BeamsFound:
    """What has ended."""
    search = resumed(search)
    ended, (b, k) = search.ended, search.scores.shape
    tokens = ended.of_new(ended.tokens, n, pad).reshape(b, k, n)
    beams = Hypotheses(tokens, ended.new.reshape(b, k), search.scores)
    return BeamsFound(beams.tokens[:, 0], beams.lengths[:, 0], beams.scores[:, 0], beams)
