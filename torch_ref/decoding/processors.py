"""What becomes of logits before a token is chosen, one example and one token of the vocabulary at a time.

b example · v vocabulary
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Said(NamedTuple):
    """The tokens of one example."""

    prompt: list[int]
    new: list[int]  # after the prompt
    limit: int  # how many new ones there may be

    @property
    def all(self) -> list[int]:
        return self.prompt + self.new


Transcript = Sequence[Said]  # of each example
Processor = Callable[[Tensor, Transcript], Tensor]  # from logits "b v" to logits "b v"
Rule = Callable[[list[float], Said], Iterable[int]]  # of one example, from logits to tokens


def _forbidding(rule: Rule) -> Processor:
    """Minus infinity for the tokens that the rule names."""

    def process(logits: Tensor, history: Transcript) -> Tensor:
        result = logits.clone()
        for i, said in enumerate(history):
            for token in rule(logits[i].tolist(), said):
                if token < logits.shape[1]:
                    result[i, token] = -torch.inf
        return result

    return process


def temperature(t: float) -> Processor:
    """Divided by t."""
    return lambda logits, history: logits / t


def top_k(k: int) -> Processor:
    """Keeps a token if fewer than k are more probable."""

    def rule(logits: list[float], said: Said) -> Iterable[int]:
        return [i for i, x in enumerate(logits) if sum(y > x for y in logits) >= k]

    return _forbidding(rule)


def top_p(p: float) -> Processor:
    """Forbids what has, with all that is no more probable, at most 1 - p; never the most probable."""

    def rule(logits: list[float], said: Said) -> Iterable[int]:
        probabilities = _softmax(logits)
        for i, x in enumerate(logits):
            below = math.fsum(q for q, y in zip(probabilities, logits, strict=True) if y <= x)
            if below <= 1 - p and x < max(logits):
                yield i

    return _forbidding(rule)


def min_p(p: float) -> Processor:
    """Forbids what is less than p times as probable as the most probable."""

    def rule(logits: list[float], said: Said) -> Iterable[int]:
        probabilities = _softmax(logits)
        return [i for i, q in enumerate(probabilities) if q < p * max(probabilities)]

    return _forbidding(rule)


def typical(p: float) -> Processor:
    """Keeps a token if those that are nearer to the expected information have less than p."""

    def rule(logits: list[float], said: Said) -> Iterable[int]:
        probabilities = _softmax(logits)
        information = [-math.log(q) if q > 0 else math.inf for q in probabilities]
        entropy = math.fsum(q * x for q, x in zip(probabilities, information, strict=True) if q > 0)
        away = [abs(x - entropy) for x in information]
        for i, x in enumerate(away):
            if math.fsum(q for q, y in zip(probabilities, away, strict=True) if y < x) >= p:
                yield i

    return _forbidding(rule)


def repetition_penalty(penalty: float) -> Processor:
    """Of each token that was said, the logit times or divided by the penalty, whichever is less for one above 1."""

    def process(logits: Tensor, history: Transcript) -> Tensor:
        result = logits.clone()
        for i, said in enumerate(history):
            for token in set(said.all):
                x = logits[i, token]
                result[i, token] = x * penalty if x < 0 else x / penalty
        return result

    return process


def no_repeat_ngrams(n: int) -> Processor:
    """Forbids a token that would make the last n tokens ones that were said in a row before."""

    def rule(logits: list[float], said: Said) -> Iterable[int]:
        tokens = said.all
        before = [tokens[i : i + n] for i in range(len(tokens) - n + 1)]
        ending = tokens[len(tokens) - (n - 1) :]
        return [token for token in range(len(logits)) if len(tokens) >= n and [*ending, token] in before]

    return _forbidding(rule)


def bad_words(sequences: Sequence[Sequence[int]]) -> Processor:
    """Forbids the last token of a word whose others end what was said."""

    def rule(logits: list[float], said: Said) -> Iterable[int]:
        for *before, last in sequences:
            if len(before) <= len(said.all) and said.all[len(said.all) - len(before) :] == before:
                yield last

    return _forbidding(rule)


def suppressed(tokens: Sequence[int]) -> Processor:
    """Forbids them."""
    return _forbidding(lambda logits, said: tokens)


def suppressed_at_begin(tokens: Sequence[int]) -> Processor:
    """Forbids them right after the prompt."""
    return _forbidding(lambda logits, said: [] if said.new else tokens)


def forced(tokens: Mapping[int, int]) -> Processor:
    """0 for the token that must come now, minus infinity for all others; a place below 0 is counted from the limit."""

    def process(logits: Tensor, history: Transcript) -> Tensor:
        result = logits.clone()
        for i, said in enumerate(history):
            for place, token in tokens.items():
                if len(said.new) == (place if place >= 0 else said.limit + place):
                    result[i] = -torch.inf
                    result[i, token] = 0
        return result

    return process


def min_new_tokens(n: int, eos: Sequence[int]) -> Processor:
    """Forbids eos before there are n tokens after the prompt."""
    return _forbidding(lambda logits, said: eos if len(said.new) < n else [])


def min_length(n: int, eos: Sequence[int]) -> Processor:
    """Forbids eos before there are n tokens."""
    return _forbidding(lambda logits, said: eos if len(said.all) < n else [])


def _softmax(logits: list[float]) -> list[float]:
    powers = [math.exp(x - max(logits)) for x in logits]
    return [x / math.fsum(powers) for x in powers]
