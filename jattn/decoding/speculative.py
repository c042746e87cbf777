"""Tokens that a smaller model drafts and the model reads together, for the same ones in less time."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key, PRNGKeyArray

from jattn._engine import checks
from jattn.cache import Cache
from jattn.decoding.decodable import Decodable, check_rewindable
from jattn.decoding.generation import new_tokens
from jattn.decoding.loop import Choice, begin
from jattn.decoding.randomness import rngs_of
from jattn.decoding.request import Request
from jattn.decoding.room import first_room, larger
from jattn.decoding.rounds import Speculation, gone_on, with_more_room
from jattn.decoding.transcript import Transcript

__all__ = ["Speculated", "speculate"]


class Speculated(NamedTuple):
    """The new tokens of each example, and how many of them came from the draft."""

    tokens: Int[Array, "b n"]  # without the prompt; eos among them, if it came; pad after it
    lengths: Int[Array, "b"]  # how many tokens before pad, eos included
    log_probabilities: Float[Array, "b n"]  # of each for the model, before processors; 0 at pad
    accepted: Int[Array, "b"]  # how many of the tokens the draft had proposed
    drafted: Int[Array, "b"]  # how many it proposed in all


def speculate(
    model: Decodable,
    draft: Decodable,
    prompt: Int[Array, "b t"],
    prompt_valid_lens: Int[Array, "b"] | None = None,
    *,
    max_new_tokens: int,
    ahead: int = 4,
    prompt_attention_mask: Bool[Array, "b t"] | Int[Array, "b t"] | None = None,
    eos: int | Sequence[int] = (),
    pad: int | None = None,
    processors: Sequence[Callable[[Array, Transcript], Array]] = (),
    rng: Key[Array, "..."] | PRNGKeyArray | None = None,
    state: Any = None,
    draft_given: Mapping[str, Any] | None = None,
    **given: Any,
) -> Speculated:
    """What `generate` gives, in fewer steps of the model: a smaller one drafts tokens, which it reads together.

    The draft proposes some tokens one by one, and the model reads all of them in one step. Without rng those are kept
    that are its own most probable ones, then its next one: token for token what `generate` gives, but where rounding
    decides between two that are as probable. With rng token y is kept with probability

    ``min(1, p(y) / q(y))``, and else drawn from ``max(p - q, 0)``, normalised,

    p being the model's probabilities and q the draft's, both after the processors; after a draft that was kept as a
    whole, one more is drawn from p. So the tokens have the distribution that `generate` gives them, whatever the draft
    is: a worse one costs time alone. Both models take back what was not kept, each example as much as it has to.

    Source: Leviathan et al., Fast Inference from Transformers via Speculative Decoding, 2023; and Chen et al.,
    Accelerating Large Language Model Decoding with Speculative Sampling, 2023.

    Args:
        model: as of `generate`; one from whose state tokens can be taken back, which is made of `jattn.Cache` or has a
            method `rewound`. Each decoder and encoder-decoder of `jattn.models` is one.
        draft: another one, of the same vocabulary.
        prompt, prompt_valid_lens, max_new_tokens, prompt_attention_mask, eos, pad, processors: as of `generate`.
        ahead: a, how many tokens are drafted at a time.
        rng: as of `generate`. What an example gets depends on its key, and on nothing else in the batch. It is not what
            `generate` draws with the same key, but where the draft is the model.
        state: of the model, to go on from.
        draft_given: what the draft knows beside the prompt, its ``state`` perhaps; by default what the model is given.
        given: what the model knows beside the prompt, as of `generate`.

    Returns:
        `Speculated`: ``tokens`` ``b n``, ``lengths`` ``b``, ``log_probabilities`` ``b n``, ``accepted`` and
        ``drafted`` ``b``.

    Example (the model itself as the draft: all that it proposes is right, and of 11 tokens 8 come from it):

        >>> from flax import nnx
        >>> from jattn.decoding import generate
        >>> from jattn.models import GPT2
        >>> model = GPT2(50, max_length=32, features=12, num_heads=3, num_layers=2, rngs=nnx.Rngs(0))
        >>> model.eval()
        >>> prompt = jnp.ones((2, 5), int)
        >>> found = speculate(model, model, prompt, max_new_tokens=11, ahead=4)
        >>> bool(jnp.all(found.tokens == generate(model, prompt, max_new_tokens=11).tokens))
        True
        >>> found.accepted, found.drafted
        (Array([8, 8], dtype=int32), Array([8, 8], dtype=int32))
    """
    checks.number("ahead", ahead, "[1, inf)", integer=True)
    shared: dict[str, Any] = dict(max_new_tokens=max_new_tokens, prompt_attention_mask=prompt_attention_mask)
    chosen: dict[str, Any] = dict(eos=eos, pad=pad, processors=processors, state=state)
    asked = Request.of(model, prompt, prompt_valid_lens, **shared, **chosen, **given)
    try:
        of_draft = Request.of(
            draft, prompt, prompt_valid_lens, **shared, **(given if draft_given is None else draft_given)
        )
    except ValueError as error:
        raise ValueError(f"draft must take what the model takes. Of it: {error}") from error
    if of_draft.vocab_size != asked.vocab_size:
        raise ValueError(
            f"draft must have the vocabulary of the model, {asked.vocab_size} tokens. Got {of_draft.vocab_size}."
        )
    n, b = asked.max_new_tokens, len(asked.prompt)
    choice = Choice(asked.processors, jnp.asarray(asked.ends), rngs_of(rng, b))
    traced = asked.is_traced or of_draft.is_traced or not all(map(checks.is_concrete, jax.tree.leaves(choice)))
    room = first_room(asked.prompt.shape[1], n, whole=traced)
    now = _both_begun(asked, of_draft, choice, room, ahead)
    go_on = functools.partial(gone_on, *asked.parts, *of_draft.parts, choice=choice, ahead=ahead)
    now = go_on(now)
    while not traced and np.any(np.asarray(now.progress.going)):  # there was no room for more
        room = larger(room, asked.longest + n - room)
        now = go_on(with_more_room(now, room, (asked.past, of_draft.past)))
    found = new_tokens(now.progress.transcript, now.progress.log_probabilities, np.int32(asked.padding), n)
    return Speculated(found.tokens, found.lengths, found.log_probabilities, now.accepted, now.drafted)


def _both_begun(asked: Request, of_draft: Request, choice: Choice, room: int, ahead: int) -> Speculation:
    """Where both have read the prompts, and the first token is chosen."""
    read = [asked.begun(begin, choice, room=room), of_draft.begun(begin, Choice((), choice.ends, None), room=room)]
    for name, progress in zip(("model", "draft"), read, strict=True):
        check_rewindable(name, progress.state)
        for cache in jax.tree.leaves(progress.state, is_leaf=lambda x: isinstance(x, Cache)):
            if isinstance(cache, Cache) and cache.ring and cache.room <= ahead:
                raise ValueError(
                    f"ahead must be less than the {cache.room} tokens of a window of {name}, so that none is lost that "
                    f"is kept. Got {ahead}."
                )
    counts = (np.full(len(asked.prompt), i, np.int32) for i in (1, 0, 0))
    return Speculation(read[0], read[1].state, *map(jnp.asarray, counts))
