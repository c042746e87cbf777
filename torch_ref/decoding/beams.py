"""Beam search for one prompt, every hypothesis run from its first token.

t position · v vocabulary
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Hypothesis(NamedTuple):
    """What may follow the prompt."""

    tokens: list[int]
    log_probability: float
    score: float  # of one that has ended


def beam_search(
    model: Callable[[Tensor], Tensor],
    prompt: list[int],
    *,
    beams: int,
    max_new_tokens: int,
    eos: Sequence[int] = (),
    length_penalty: float = 1.0,
    early_stopping: bool | str = False,
    processors: Sequence[Callable[[Tensor, list[int]], Tensor]] = (),
) -> list[Hypothesis]:
    """The best that ended, by score = log_probability / length ** length_penalty.

    The model makes logits "1 t v" of tokens "1 t"; a processor makes log-probabilities "v" of some, and of the tokens
    before.
    """
    running, ended = [Hypothesis([], 0.0, 0.0)], list[Hypothesis]()
    for length in range(1, max_new_tokens + 1):
        longer = [new for old in running for new in continuations(model, prompt, old, processors)]
        longer.sort(key=lambda h: h.log_probability, reverse=True)
        running = []
        for place, new in enumerate(longer[: beams * max(2, 1 + len(eos))]):
            if length < max_new_tokens and new.tokens[-1] not in eos:
                running.append(new)
            elif place < beams:
                ended.append(new._replace(score=new.log_probability / length**length_penalty))
        running = running[:beams]
        ended = sorted(ended, key=lambda h: h.score, reverse=True)[:beams]
        if not running:
            break
        if len(ended) == beams:
            hoped_for = max_new_tokens if early_stopping == "never" and length_penalty > 0 else length
            best_to_come = running[0].log_probability / hoped_for**length_penalty
            if early_stopping is True or best_to_come <= ended[-1].score:
                break
    return ended


def continuations(
    model: Callable[[Tensor], Tensor],
    prompt: list[int],
    old: Hypothesis,
    processors: Sequence[Callable[[Tensor, list[int]], Tensor]],
) -> list[Hypothesis]:
    """Every way to go on by one token that is not ruled out."""
    before = prompt + old.tokens
    log_probabilities = model(torch.tensor([before]))[0, -1].log_softmax(-1)
    for process in processors:
        log_probabilities = process(log_probabilities, before)
    return [
        Hypothesis([*old.tokens, token], old.log_probability + x, 0.0)
        for token, x in enumerate(log_probabilities.tolist())
        if x > -torch.inf
    ]
