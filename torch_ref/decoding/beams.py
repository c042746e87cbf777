"""Beam search for one prompt, every hypothesis run from its first token.

t position · v vocabulary
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from torch_ref.decoding.processors import Processor, Said


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
    processors: Sequence[Processor] = (),
) -> list[Hypothesis]:
    """The best that ended, by score = log_probability / length ** length_penalty.

    The model makes logits "1 t v" of tokens "1 t"; processors are given log-probabilities.
    """
    running, ended = [Hypothesis([], 0.0, 0.0)], list[Hypothesis]()
    for length in range(1, max_new_tokens + 1):
        longer = []
        for old in running:
            said = Said(prompt, old.tokens, max_new_tokens)
            longer += continuations(model, said, old.log_probability, processors)
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
    model: Callable[[Tensor], Tensor], said: Said, log_probability: float, processors: Sequence[Processor]
) -> list[Hypothesis]:
    """Every way to go on by one token that is not ruled out."""
    log_probabilities = model(torch.tensor([said.all]))[:, -1].log_softmax(-1)
    for process in processors:
        log_probabilities = process(log_probabilities, [said])
    return [
        Hypothesis([*said.new, token], log_probability + x, 0.0)
        for token, x in enumerate(log_probabilities[0].tolist())
        if x > -torch.inf
    ]
