"""Greedy and beam search for a Seq2Seq, one example and one hypothesis at a time.

k beams
"""

import functools
from typing import NamedTuple

import torch
from torch import Tensor

from torch_ref import decoding
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
    """The best targets by log_probability / length ** length_penalty, waiting as long as a better one is possible."""
    pad = eos if pad is None else pad
    shape = (len(source), beam_size)
    tokens = torch.full((*shape, max_length), pad)
    lengths = torch.zeros(shape, dtype=torch.long)
    log_probability = model.decoder.output.weight.new_full(shape, -torch.inf)
    weights = log_probability.new_zeros(*shape, max_length, source.shape[1])
    for i in range(len(source)):
        valid_lens = None if source_valid_lens is None else source_valid_lens[i : i + 1]
        found = decoding.beam_search(
            functools.partial(model, source[i : i + 1], source_valid_lens=valid_lens),
            [bos],
            beams=beam_size,
            max_new_tokens=max_length,
            eos=[eos],
            length_penalty=length_penalty,
            early_stopping="never",
        )
        for j, hypothesis in enumerate(found):
            n = len(hypothesis.tokens)
            tokens[i, j, :n], lengths[i, j] = torch.tensor(hypothesis.tokens), n
            log_probability[i, j] = hypothesis.log_probability
            fed = torch.tensor([[bos, *hypothesis.tokens[:-1]]])
            weights[i, j, :n] = model(source[i : i + 1], fed, valid_lens, return_weights=True)[1][0]
    everything = Decoded(tokens, lengths, log_probability, weights)
    best_of_each = Decoded(*[x[:, 0] for x in everything])
    return Beams(*best_of_each, everything)
