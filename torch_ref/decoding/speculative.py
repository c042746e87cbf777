"""Speculative decoding of one example: a draft proposes, the model keeps what it would have said; all read anew."""

from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

Model = Callable[[list[int]], Tensor]  # from tokens to the logits "t v" of what follows each


class Draws(Protocol):
    """The randomness of an example, by the number of the new token."""

    def token(self, weights: Tensor, number: int) -> int:
        """One drawn with these weights "v", by the draft, or by the model where nothing was drafted."""
        ...

    def uniform(self, number: int) -> Tensor:
        """From [0, 1), whether a drafted token is kept."""
        ...

    def replacement(self, weights: Tensor, number: int) -> int:
        """One drawn in place of that."""
        ...


class Said(NamedTuple):
    """What follows a prompt."""

    tokens: list[int]
    accepted: int  # how many of them were drafted
    drafted: int


def judged(p: Tensor, q: Tensor, tokens: list[int], uniforms: list[Tensor]) -> tuple[int, Tensor]:
    """How many drafted tokens are kept, and the weights of the next one.

    Args:
        p: "a+1 v", the model's probabilities at each place.
        q: "a v", the draft's.
        tokens: a, drawn with q.
        uniforms: a.
    """
    for i, (token, uniform) in enumerate(zip(tokens, uniforms, strict=True)):
        if uniform * q[i, token] < p[i, token]:
            continue
        left = torch.zeros_like(p[i])
        for v in range(p.shape[1]):
            if p[i, v] > q[i, v]:
                left[v] = p[i, v] - q[i, v]
        return i, left if left.sum() > 0 else p[i]
    return len(tokens), p[len(tokens)]


def speculate(
    model: Model,
    draft: Model,
    prompt: list[int],
    *,
    max_new_tokens: int,
    ahead: int,
    eos: tuple[int, ...] = (),
    draws: Draws | None = None,
) -> Said:
    """The most probable tokens, or, with draws, drawn ones."""

    def first(weights: Tensor, number: int) -> int:
        return int(weights.argmax()) if draws is None else draws.token(weights, number)

    new = [first(model(prompt)[-1].softmax(-1), 0)]
    kept = drafted = 0
    while len(new) < max_new_tokens and new[-1] not in eos:
        n = len(new)
        proposed: list[int] = []
        q: list[Tensor] = []
        for i in range(min(ahead, max_new_tokens - n - 1)):
            q.append(draft(prompt + new + proposed)[-1].softmax(-1))
            proposed.append(first(q[-1], n + i))
        drafted += len(proposed)
        p = model(prompt + new + proposed)[len(prompt) + n - 1 :].softmax(-1)
        if draws is None:
            accepted = 0
            while accepted < len(proposed) and proposed[accepted] == int(p[accepted].argmax()):
                accepted += 1
            last = int(p[accepted].argmax())
        else:
            uniforms = [draws.uniform(n + i) for i in range(len(proposed))]
            accepted, weights = judged(p, torch.stack(q) if q else p[:0], proposed, uniforms)
            draw = draws.replacement if accepted < len(proposed) else draws.token
            last = draw(weights, n + accepted)
        for i, token in enumerate([*proposed[:accepted], last]):
            new.append(token)
            kept += i < accepted
            if token in eos:
                break
    return Said(new, kept, drafted)
