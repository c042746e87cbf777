"""Whole models, built from `jattn.nn`."""

from jattn.models.decoding import Beams, Decoded, beam_search, greedy
from jattn.models.generation import Continuation, greedy_continuation
from jattn.models.hugging_face.bert import TextEncoder
from jattn.models.hugging_face.gpt2 import GPT2
from jattn.models.hugging_face.llama import Llama
from jattn.models.hugging_face.sentences import SentenceEncoder, pool
from jattn.models.tasks.classifier import DigitsClassifier
from jattn.models.tasks.recall import RecallClassifier
from jattn.models.tasks.regression import AttentionRegressor, TransformerRegressor
from jattn.models.tasks.translation import DecoderState, Seq2Seq

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
