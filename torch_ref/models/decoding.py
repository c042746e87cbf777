"""Greedy and beam search for a Seq2Seq, one example and one hypothesis at a time.

k beams · v vocabulary · n hidden width · l layer of the recurrent network
"""

from typing import NamedTuple

import torch
from torch import Tensor

from torch_ref.models.tasks.translation import DecoderState, Seq2Seq


class Decoded(NamedTuple):
    """What a search found, for each example."""

    tokens: Tensor  # "b t" without bos, eos among them, pad after it
    lengths: Tensor  # "b", eos included
    log_probability: Tensor  # "b", of the tokens before pad
    weights: Tensor  # "b t s", zeros at pad


class Beams(NamedTuple):
    """The best hypothesis of each example, and all of them, best first."""

    tokens: Tensor
    lengths: Tensor
    log_probability: Tensor
    weights: Tensor
    beams: Decoded  # the same, "b k ..."


class Hypothesis(NamedTuple):
    """A target so far."""

    tokens: list[int]
    log_probability: float
    state: DecoderState
    weights: list[Tensor]  # of each step, "s"
    ended: bool


def greedy(
    model: Seq2Seq,
    source: Tensor,
    source_valid_lens: Tensor | None = None,
    *,
    bos: int,
    eos: int,
    max_length: int,
    pad: int | None = None,
) -> Decoded:
    """The most probable token after those before it, until eos."""
    outputs, hidden = model.encoder(source, source_valid_lens)
    pad = eos if pad is None else pad
    tokens = torch.full((len(source), max_length), pad)
    lengths = torch.zeros(len(source), dtype=torch.long)
    log_probability = outputs.new_zeros(len(source))
    weights = outputs.new_zeros(len(source), max_length, source.shape[1])
    for i in range(len(source)):
        valid_lens = None if source_valid_lens is None else source_valid_lens[i : i + 1]
        state, token = DecoderState(outputs[i : i + 1], hidden[:, i : i + 1], valid_lens), bos
        for step in range(max_length):
            logits, state, step_weights = model.decoder.step(torch.tensor([token]), state)
            token = int(logits[0].argmax())
            tokens[i, step], weights[i, step] = token, step_weights[0]
            log_probability[i] += logits[0].log_softmax(-1)[token]
            lengths[i] += 1
            if token == eos:
                break
    return Decoded(tokens, lengths, log_probability, weights)


def beam_search(
    model: Seq2Seq,
    source: Tensor,
    source_valid_lens: Tensor | None = None,
    *,
    bos: int,
    eos: int,
    max_length: int,
    beam_size: int,
    length_penalty: float = 0.0,
    pad: int | None = None,
) -> Beams:
    """Keep the hypotheses with the best log_probability / length ** length_penalty; what has ended stays as it is."""
    outputs, hidden = model.encoder(source, source_valid_lens)
    pad = eos if pad is None else pad
    shape = (len(source), beam_size)
    tokens = torch.full((*shape, max_length), pad)
    lengths = torch.zeros(shape, dtype=torch.long)
    log_probability = outputs.new_full(shape, -torch.inf)
    weights = outputs.new_zeros(*shape, max_length, source.shape[1])
    for i in range(len(source)):
        valid_lens = None if source_valid_lens is None else source_valid_lens[i : i + 1]
        state = DecoderState(outputs[i : i + 1], hidden[:, i : i + 1], valid_lens)
        best = [Hypothesis([], 0.0, state, [], False)]
        for _ in range(max_length):
            longer = [new for old in best for new in continuations(model, old, bos, eos)]
            longer.sort(key=lambda h: h.log_probability / len(h.tokens) ** length_penalty, reverse=True)
            best = longer[:beam_size]
        for j, found in enumerate(best):
            n = len(found.tokens)
            tokens[i, j, :n], lengths[i, j] = torch.tensor(found.tokens), n
            log_probability[i, j] = found.log_probability
            weights[i, j, :n] = torch.stack(found.weights)
    everything = Decoded(tokens, lengths, log_probability, weights)
    best_of_each = Decoded(*[x[:, 0] for x in everything])
    return Beams(*best_of_each, everything)


def continuations(model: Seq2Seq, old: Hypothesis, bos: int, eos: int) -> list[Hypothesis]:
    """Every way to go on by one token."""
    if old.ended:
        return [old]
    last = old.tokens[-1] if old.tokens else bos
    logits, state, weights = model.decoder.step(torch.tensor([last]), old.state)
    return [
        Hypothesis(
            [*old.tokens, token],
            old.log_probability + float(log_probability),
            state,
            [*old.weights, weights[0]],
            token == eos,
        )
        for token, log_probability in enumerate(logits[0].log_softmax(-1))
    ]
