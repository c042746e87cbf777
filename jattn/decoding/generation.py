"""Tokens after a prompt, one after the other: the most probable ones, or drawn."""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Int, Key, PRNGKeyArray

from jattn._engine import checks
from jattn.decoding.decodable import Decodable
from jattn.decoding.loop import Choice, Progress, advance, begin, with_room
from jattn.decoding.randomness import rngs_of
from jattn.decoding.request import Request
from jattn.decoding.room import first_room, stretch
from jattn.decoding.transcript import Transcript

__all__ = ["Generated", "Stream", "generate", "new_tokens", "stream"]


class Generated(NamedTuple):
    """The new tokens of each example, or of each sequence of each example."""

    tokens: Int[Array, "*b n"]  # without the prompt; eos among them, if it came; pad after it
    lengths: Int[Array, "*b"]  # how many tokens before pad, eos included
    log_probabilities: Float[Array, "*b n"]  # of each for the model, before processors; 0 at pad
    state: Any = None  # where asked for: the model's, which has read all but the last token


def generate(
    model: Decodable,
    prompt: Int[Array, "b t"],
    prompt_valid_lens: Int[Array, "b"] | None = None,
    *,
    max_new_tokens: int,
    prompt_attention_mask: Bool[Array, "b t"] | Int[Array, "b t"] | None = None,
    eos: int | Sequence[int] = (),
    pad: int | None = None,
    processors: Sequence[Callable[[Array, Transcript], Array]] = (),
    rng: Key[Array, "..."] | PRNGKeyArray | None = None,
    sequences: int | None = None,
    stop: str | Sequence[str] = (),
    decode: Callable[[list[int]], str] | None = None,
    state: Any = None,
    return_state: bool = False,
    **given: Any,
) -> Generated:
    """The tokens that follow the prompt, each the most probable one after those before it, or drawn.

    ``y_i = argmax over v of p(v | prompt, y_1 ... y_(i-1))``, or ``y_i ~ p``, until it is ``eos``

    The prompt is read once, and then each new token. Prompts of about the same length, other valid lengths, ends and
    limits, and other numbers in processors run the same compiled program; it ends when all examples have ended. Under
    ``jax.jit`` it is part of the caller's.

    Args:
        model: anything that is `Decodable`: each decoder and encoder-decoder of `jattn.models`, or one of your own; in
            eval mode.
        prompt: ``b t``, token numbers; of an encoder-decoder the tokens that start the target.
        prompt_valid_lens: ``b``, how many tokens of each prompt are real, at least 1; what follows them is padding.
        max_new_tokens: n, the number of new tokens after which an example is cut off.
        prompt_attention_mask: ``b t``, in place of that: 1 where a token is real, 0 where it is padding, anywhere.
        eos: the token that ends an example, or several; none by default.
        pad: what stands after eos; the (first) eos itself by default.
        processors: functions ``(logits, transcript) -> logits``, applied in this order before a token is chosen; such
            as those of `jattn.decoding.processors`.
        rng: a ``jax.random.key`` to draw tokens, or one for each prompt, ``b``. What an example gets depends on its
            key, or of a single key on its place in the batch, and on nothing else in the batch. Without one tokens are
            the most probable.
        sequences: k, how many continuations of each prompt; then the axes of the result are ``b k``, and processors
            with a number for each example have one for each continuation, ``b*k``.
        stop: strings; an example ends with the token that completes one of them in the new text.
        decode: what makes a text of a list of tokens, for ``stop``; such as a tokenizer's method.
        state: of the model, to go on from: what an earlier call returned with return_state.
        return_state: whether the state is wanted.
        given: what the model knows beside the prompt: ``source`` and ``source_attention_mask`` of an encoder-decoder.

    Returns:
        `Generated`: ``tokens`` ``b n``, ``lengths`` ``b`` and ``log_probabilities`` ``b n``.

    Example:

        >>> from flax import nnx
        >>> from jattn.models import GPT2
        >>> model = GPT2(50, max_length=32, features=12, num_heads=3, num_layers=2, rngs=nnx.Rngs(0))
        >>> model.eval()
        >>> found = generate(model, jnp.ones((2, 5), int), jnp.array([5, 3]), max_new_tokens=4)
        >>> found.tokens.shape, found.lengths
        ((2, 4), Array([4, 4], dtype=int32))
        >>> drawn = generate(model, jnp.ones((2, 5), int), max_new_tokens=4, rng=jax.random.key(0), sequences=3)
        >>> drawn.tokens.shape
        (2, 3, 4)
    """
    stream = Stream(
        Request.of(
            model,
            prompt,
            prompt_valid_lens,
            prompt_attention_mask=prompt_attention_mask,
            max_new_tokens=max_new_tokens,
            eos=eos,
            pad=pad,
            processors=processors,
            state=state,
            **given,
        ),
        rng,
        sequences,
        _Stop.of(stop, decode),
    )
    stream.run()
    return stream.generated(return_state=return_state)


def stream(
    model: Decodable,
    prompt: Int[Array, "b t"],
    prompt_valid_lens: Int[Array, "b"] | None = None,
    *,
    rng: Key[Array, "..."] | PRNGKeyArray | None = None,
    stop: str | Sequence[str] = (),
    decode: Callable[[list[int]], str] | None = None,
    **request: Any,
) -> "Stream":
    """An iterator of tokens as they come: what `generate` gives, ``b`` at a time.

    The arguments are those of `generate`, but for sequences and return_state. The iterator may be left at any time:
    ``generated()`` of it is what has been said so far, and ``state`` is where another call may go on.

    Example:

        >>> from flax import nnx
        >>> from jattn.models import GPT2
        >>> model = GPT2(50, max_length=32, features=12, num_heads=3, num_layers=2, rngs=nnx.Rngs(0))
        >>> model.eval()
        >>> said = stream(model, jnp.ones((2, 5), int), max_new_tokens=4)
        >>> len([token for token in said])
        4
        >>> bool(jnp.all(said.generated().tokens == generate(model, jnp.ones((2, 5), int), max_new_tokens=4).tokens))
        True
    """
    asked = Request.of(model, prompt, prompt_valid_lens, **request)
    if asked.is_traced:
        raise ValueError("stream must not be called under jit: tokens come while it runs. Got traced arrays.")
    return Stream(asked, rng, None, _Stop.of(stop, decode))


class Stream(Iterator[Int[np.ndarray, "b"]]):
    """Decoding under way, an iterator of the tokens of all examples; `stream` makes one."""

    def __init__(self, request: Request, rng: Any, sequences: int | None, stop: "_Stop | None") -> None:
        self._request, self._sequences, self._stop = request, sequences, stop
        b, t = request.prompt.shape
        n = request.max_new_tokens
        if sequences is not None:
            checks.positive_integers(sequences=sequences)
        if stop is not None and request.is_traced:
            raise ValueError("stop must be empty under jit: texts are looked at while it runs. Got strings.")
        self._choice = Choice(request.processors, jnp.asarray(request.ends), rngs_of(rng, b, sequences))
        self._done, self._room = 0, first_room(t, n, whole=request.is_traced)
        self._progress: Progress | None = None

    def run(self) -> None:
        """To the end."""
        while self._more():
            self._advance(1 if self._stop else self._request.max_new_tokens)

    def __next__(self) -> Int[np.ndarray, "b"]:
        if not self._more():
            raise StopIteration
        was_going = True if self._progress is None else np.asarray(self._progress.going)
        self._advance(1)
        assert self._progress is not None
        return np.where(was_going, np.asarray(self._progress.last), self._request.padding)

    @property
    def state(self) -> Any:
        """The state of the model, which has read all but the last token; None before the first."""
        return None if self._progress is None else self._progress.state

    def generated(self, *, return_state: bool = False) -> Generated:
        """What has been said so far."""
        if self._progress is None:
            raise ValueError("generated must be asked for after the first token. Got no token yet.")
        request = self._request
        transcript, said = self._progress.transcript, self._progress.log_probabilities
        found = new_tokens(transcript, said, np.int32(request.padding), request.max_new_tokens)
        if self._sequences is not None:
            found = jax.tree.map(lambda x: x.reshape(-1, self._sequences, *x.shape[1:]), found)
        return found._replace(state=self._progress.state if return_state else None)

    def _more(self) -> bool:
        if self._progress is None:
            return True
        if self._done >= self._request.max_new_tokens:
            return False
        return self._request.is_traced or bool(np.any(np.asarray(self._progress.going)))

    def _advance(self, steps: int) -> None:
        """By at most so many tokens, as far as there is room."""
        request, choice = self._request, self._choice
        if self._progress is None:
            self._progress = request.begun(begin, choice, room=self._room, k=self._sequences or 1)
            steps = 1
        else:
            done, left = request.longest + self._done, request.max_new_tokens - self._done
            room, most = stretch(self._room, done, left)
            if room > self._room:
                self._room, self._progress = room, with_room(self._progress, room, request.past)
            steps = min(steps, most)
            self._progress = advance(*request.parts, self._progress, choice, np.int32(steps), np.False_)
        self._done += steps
        if self._stop is not None:
            self._progress = self._stop(self._progress)


@functools.partial(jax.jit, static_argnums=3)
def new_tokens(transcript: Transcript, said: Float[Array, "b m"], pad: Int[ArrayLike, ""], n: int) -> Generated:
    """What stands after the prompts."""
    tokens, said = (transcript.of_new(x, n, fill) for x, fill in ((transcript.tokens, pad), (said, 0)))
    return Generated(tokens, transcript.new, said)


class _Stop:
    """Strings that end an example."""

    def __init__(self, strings: tuple[str, ...], decode: Callable[[list[int]], str]) -> None:
        self.strings, self.decode = strings, decode

    @classmethod
    def of(cls, strings: Any, decode: Any) -> "_Stop | None":
        """None where there are no strings."""
        given = (strings,) if isinstance(strings, str) else tuple(strings)
        if not given:
            return None
        for string in given:
            if not isinstance(string, str) or not string:
                raise ValueError(f"stop must be strings that are not empty. Got {string!r}.")
        if not callable(decode):
            raise ValueError(f"decode must make a text of a list of tokens where there is stop. Got {decode!r}.")
        return cls(given, decode)

    def __call__(self, progress: Progress) -> Progress:
        """Where those have ended that have said one of the strings."""
        tokens, lens, begun = (np.asarray(x) for x in progress.transcript[:3])
        going = np.array(progress.going)
        for i in np.flatnonzero(going):
            text = self.decode(tokens[i, begun[i] : lens[i]].tolist())
            going[i] = not any(string in text for string in self.strings)
        return progress._replace(going=jnp.asarray(going))
