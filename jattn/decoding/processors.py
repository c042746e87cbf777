"""What becomes of logits before a token is chosen: some tokens are forbidden, others made more or less probable.

A processor is a function from the logits of the next token and a `Transcript` to other logits; what it forbids
gets minus infinity. `generate` applies those that it is given in order::

    generate(model, prompt, processors=[temperature(0.7), top_k(50), top_p(0.9)], ...)

That order is transformers': `repetition_penalty`, `no_repeat_ngrams`, `bad_words`, `min_length`, `min_new_tokens`,
`forced`, `suppressed`, `suppressed_at_begin`; then, where tokens are drawn, `temperature`, `top_k`, `top_p`, `min_p`,
`typical`. Each does what its counterpart there does. One of your own is any such function::

    def only_even(logits, transcript):
        return jnp.where(jnp.arange(logits.shape[-1]) % 2 == 0, logits, -jnp.inf)

The settings are numbers, or arrays with one for each example. They are data: others compile nothing anew. All but the
size of n-grams, and how many tokens or words are listed.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jattn._engine import checks
from jattn.decoding import _processors
from jattn.decoding._processors import Processor
from jattn.decoding.transcript import Transcript

__all__ = [
    "Processor",
    "Transcript",
    "bad_words",
    "forced",
    "min_length",
    "min_new_tokens",
    "min_p",
    "no_repeat_ngrams",
    "repetition_penalty",
    "suppressed",
    "suppressed_at_begin",
    "temperature",
    "top_k",
    "top_p",
    "typical",
]


def temperature(t: float | Float[Array, "*b"]) -> Processor:
    """Logits divided by t: below 1 the probable tokens become more so, above 1 all become more alike.

    Example:

        >>> transcript = Transcript(jnp.array([[3, 1]]), jnp.array([2]), jnp.array([1]), jnp.array([5]))
        >>> temperature(0.5)(jnp.array([[1.0, -3.0]]), transcript)
        Array([[ 2., -6.]], dtype=float32)
    """
    remedy = " For the most probable token, decode greedily."
    return _processors.Temperature(_one_or_each("t", t, "(0, inf)", remedy))


def top_k(k: int | Int[Array, "*b"]) -> Processor:
    """Only the k most probable tokens, and those that are as probable as the last of them.

    Source: Fan et al., Hierarchical Neural Story Generation, 2018.

    Example:

        >>> transcript = Transcript(jnp.array([[3, 1]]), jnp.array([2]), jnp.array([1]), jnp.array([5]))
        >>> top_k(2)(jnp.array([[1.0, 4.0, 2.0, 3.0]]), transcript)
        Array([[-inf,   4., -inf,   3.]], dtype=float32)
    """
    return _processors.TopK(_counts("k", k, 1))


def top_p(p: float | Float[Array, "*b"]) -> Processor:
    """Only the fewest most probable tokens whose probabilities add up to p, and those as probable as the last of them.

    A token is forbidden if it and all less probable ones together have at most ``1 - p``; the most probable one stays.

    Source: Holtzman et al., The Curious Case of Neural Text Degeneration, 2020.

    Example (probabilities of 0.5, 0.2 and 0.3):

        >>> transcript = Transcript(jnp.array([[3, 1]]), jnp.array([2]), jnp.array([1]), jnp.array([5]))
        >>> top_p(0.7)(jnp.log(jnp.array([[0.5, 0.2, 0.3]])), transcript) > -jnp.inf
        Array([[ True, False,  True]], dtype=bool)
    """
    return _processors.TopP(_one_or_each("p", p, "[0, 1]"))


def min_p(p: float | Float[Array, "*b"]) -> Processor:
    """Only tokens at least p times as probable as the most probable one.

    Source: Nguyen et al., Turning Up the Heat: Min-p Sampling for Creative and Coherent LLM Outputs, 2024.

    Example (probabilities of 0.5, 0.2 and 0.3):

        >>> transcript = Transcript(jnp.array([[3, 1]]), jnp.array([2]), jnp.array([1]), jnp.array([5]))
        >>> min_p(0.5)(jnp.log(jnp.array([[0.5, 0.2, 0.3]])), transcript) > -jnp.inf
        Array([[ True, False,  True]], dtype=bool)
    """
    return _processors.MinP(_one_or_each("p", p, "[0, 1]"))


def typical(p: float | Float[Array, "*b"]) -> Processor:
    """Only the tokens that say about as much as one expects, as many as have probability p together.

    They are those with the smallest ``|-log p(v) - H|``, H the entropy of the next token, and any as small as the last
    one's. The most probable token may not be among them.

    Source: Meister et al., Locally Typical Sampling, 2022.

    Example (probabilities of 0.5, 0.2 and 0.3):

        >>> transcript = Transcript(jnp.array([[3, 1]]), jnp.array([2]), jnp.array([1]), jnp.array([5]))
        >>> typical(0.2)(jnp.log(jnp.array([[0.5, 0.2, 0.3]])), transcript) > -jnp.inf
        Array([[False, False,  True]], dtype=bool)
    """
    return _processors.Typical(_one_or_each("p", p, "(0, 1)"))


def repetition_penalty(penalty: float | Float[Array, "*b"]) -> Processor:
    """The logits of the tokens of the prompt and after it, divided by ``penalty`` if positive, times it if negative.

    Each is so once, however often it came. Above 1 they become less probable.

    Source: Keskar et al., CTRL: A Conditional Transformer Language Model for Controllable Generation, 2019.

    Example:

        >>> transcript = Transcript(jnp.array([[3, 1]]), jnp.array([2]), jnp.array([1]), jnp.array([5]))
        >>> repetition_penalty(2.0)(jnp.array([[1.0, 4.0, 2.0, -3.0]]), transcript)
        Array([[ 1.,  2.,  2., -6.]], dtype=float32)
    """
    return _processors.RepetitionPenalty(_one_or_each("penalty", penalty, "(0, inf)"))


def no_repeat_ngrams(n: int) -> Processor:
    """No n tokens in a row that already came in a row, in the prompt or after it.

    Source: Paulus et al., A Deep Reinforced Model for Abstractive Summarization, 2018.

    Example (after 1 came 2, so that it does not come after this 1):

        >>> transcript = Transcript(jnp.array([[1, 2, 0, 1]]), jnp.array([4]), jnp.array([1]), jnp.array([5]))
        >>> no_repeat_ngrams(2)(jnp.zeros((1, 4)), transcript)
        Array([[  0.,   0., -inf,   0.]], dtype=float32)
    """
    if not checks.is_count(n) or n < 1:
        raise ValueError(f"n must be at least 1, an integer known while tracing. Got {n!r}.")
    return _processors.NoRepeatNgrams(int(n))


def bad_words(sequences: Sequence[Sequence[int]]) -> Processor:
    """None of these words: the last token of one is forbidden where those before it are the last of the transcript.

    Args:
        sequences: the tokens of each word. A word of one token is always forbidden; eos alone would mean that no text
            ends, and transformers leaves it out.

    Example (neither 0, nor 2 after 1):

        >>> transcript = Transcript(jnp.array([[3, 1]]), jnp.array([2]), jnp.array([1]), jnp.array([5]))
        >>> bad_words([[0], [1, 2], [2, 3]])(jnp.zeros((1, 4)), transcript)
        Array([[-inf,   0., -inf,   0.]], dtype=float32)
    """
    listed = isinstance(sequences, Sequence) and not isinstance(sequences, str)
    if not listed or not all(
        isinstance(word, Sequence) and word and all(map(checks.is_count, word)) for word in sequences
    ):
        raise ValueError(
            "sequences must be lists of tokens, one or more non-negative integers for each word. "
            f"Got {sequences!r:.80}."
        )
    longest = max(map(len, sequences), default=1)
    rows = [[_processors.ANY] * (longest - len(word)) + list(word) for word in sequences]
    return _processors.BadWords(jnp.asarray(np.array(rows, np.int32).reshape(-1, longest)))


def suppressed(tokens: int | Sequence[int] | Int[Array, "m"]) -> Processor:
    """None of these tokens.

    Example:

        >>> transcript = Transcript(jnp.array([[3, 1]]), jnp.array([2]), jnp.array([1]), jnp.array([5]))
        >>> suppressed([0, 2])(jnp.zeros((1, 4)), transcript)
        Array([[-inf,   0., -inf,   0.]], dtype=float32)
    """
    return _processors.Suppressed(_token_numbers("tokens", tokens), at_begin=False)


def suppressed_at_begin(tokens: int | Sequence[int] | Int[Array, "m"]) -> Processor:
    """None of these tokens as the first after the prompt.

    Example (a token after the prompt, and one after that):

        >>> tokens = jnp.array([[3, 1], [3, 1]])
        >>> transcript = Transcript(tokens, jnp.array([2, 2]), jnp.array([2, 1]), jnp.array([5, 5]))
        >>> suppressed_at_begin(0)(jnp.zeros((2, 3)), transcript)
        Array([[-inf,   0.,   0.],
               [  0.,   0.,   0.]], dtype=float32)
    """
    return _processors.Suppressed(_token_numbers("tokens", tokens), at_begin=True)


def forced(tokens: Mapping[int, int]) -> Processor:
    """Some tokens after the prompt as they are given: their logits are 0, all others minus infinity.

    Args:
        tokens: which token comes after the prompt at which place: 0 is the first, -1 the last one that there may be. If
            two are due at once, the one listed last comes.

    Example (2 comes first, and 0 last if the text does not end before):

        >>> tokens = jnp.array([[3, 1], [3, 1]])
        >>> transcript = Transcript(tokens, jnp.array([2, 2]), jnp.array([2, 1]), jnp.array([5, 2]))
        >>> forced({0: 2, -1: 0})(jnp.ones((2, 3)), transcript)
        Array([[-inf, -inf,   0.],
               [  0., -inf, -inf]], dtype=float32)
    """
    if not isinstance(tokens, Mapping) or not tokens:
        raise ValueError(f"tokens must be a mapping of places to tokens, such as {{0: 2}}. Got {tokens!r:.80}.")
    places = [checks.number("a place in tokens", i, "(-inf, inf)", integer=True) for i in tokens]
    return _processors.Forced(jnp.asarray(places, jnp.int32), _token_numbers("tokens", list(tokens.values())))


def min_new_tokens(n: int | Int[Array, "*b"], eos: int | Sequence[int] | Int[Array, "m"]) -> Processor:
    """No eos among the first n tokens after the prompt.

    Args:
        n: how many tokens come before eos at least.
        eos: the token that ends a text, or several.

    Example (two tokens after the prompt, and one):

        >>> transcript = Transcript(jnp.ones((2, 3), int), jnp.array([3, 3]), jnp.array([1, 2]), jnp.array([5, 5]))
        >>> min_new_tokens(2, eos=0)(jnp.ones((2, 3)), transcript)
        Array([[  1.,   1.,   1.],
               [-inf,   1.,   1.]], dtype=float32)
    """
    return _processors.MinNewTokens(_counts("n", n, 0), _token_numbers("eos", eos))


def min_length(n: int | Int[Array, "*b"], eos: int | Sequence[int] | Int[Array, "m"]) -> Processor:
    """No eos among the first n tokens, the prompt's included.

    Args:
        n: how many tokens come before eos at least.
        eos: the token that ends a text, or several.

    Example (three tokens, and two):

        >>> transcript = Transcript(jnp.ones((2, 3), int), jnp.array([3, 2]), jnp.array([1, 1]), jnp.array([5, 5]))
        >>> min_length(3, eos=0)(jnp.ones((2, 3)), transcript)
        Array([[  1.,   1.,   1.],
               [-inf,   1.,   1.]], dtype=float32)
    """
    return _processors.MinLength(_counts("n", n, 0), _token_numbers("eos", eos))


def _one_or_each(name: str, x: Any, interval: str, remedy: str = "") -> float | Array:
    """One number, or an array with one for each example, as data."""
    try:
        _check_each(name, x, interval)
    except ValueError as error:
        raise ValueError(f"{error}{remedy}") from None
    return float(x) if checks.is_concrete(x) and np.ndim(x) == 0 else jnp.asarray(x)


def _counts(name: str, x: Any, least: int) -> Array:
    """Likewise, of integers; no limit of theirs is as large as what int32 can't hold."""
    _check_each(name, x, f"[{least}, inf)", integer=True)
    if checks.is_concrete(x):
        known = np.asarray(x).astype(object)  # integers of any size
        return jnp.asarray(np.array(np.minimum(known, np.iinfo(np.int32).max), np.int32))
    return jnp.asarray(checks.integers(name, x), jnp.int32)


def _check_each(name: str, x: Any, interval: str, *, integer: bool = False) -> None:
    ndim = getattr(x, "ndim", 0)
    if ndim > 1:
        raise ValueError(f"{name} must be one number, or one for each example. Got shape {x.shape}.")
    for one in np.asarray(x).tolist() if ndim and checks.is_concrete(x) else [x]:
        checks.number(name, one, interval, integer=integer)


def _token_numbers(name: str, x: Any) -> Int[Array, "m"]:
    """One token or several, as data."""
    if checks.is_concrete(x):
        known = np.asarray(x).tolist() if hasattr(x, "dtype") else x
        listed = list(known) if isinstance(known, Sequence) else [known]
        if not all(map(checks.is_count, listed)):
            raise ValueError(f"{name} must be tokens, one or several non-negative integers. Got {x!r:.80}.")
        x = np.asarray(listed, np.int32)
    return jnp.asarray(checks.integers(name, x), jnp.int32).reshape(-1)
