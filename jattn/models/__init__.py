"""Whole models, built from `jattn.nn`."""

from jattn.models.classifier import DigitsClassifier
from jattn.models.decoding import Beams, Decoded, beam_search, greedy
from jattn.models.encoder import TextEncoder
from jattn.models.generation import Continuation, greedy_continuation
from jattn.models.gpt2 import GPT2
from jattn.models.llama import Llama
from jattn.models.recall import RecallClassifier
from jattn.models.regression import AttentionRegressor, TransformerRegressor
from jattn.models.sentences import SentenceEncoder, pool
from jattn.models.translation import DecoderState, Seq2Seq

__all__ = [
    "GPT2",
    "AttentionRegressor",
    "Beams",
    "Continuation",
    "Decoded",
    "DecoderState",
    "DigitsClassifier",
    "Llama",
    "RecallClassifier",
    "SentenceEncoder",
    "Seq2Seq",
    "TextEncoder",
    "TransformerRegressor",
    "beam_search",
    "greedy",
    "greedy_continuation",
    "pool",
]
