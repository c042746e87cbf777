"""Whole models, built from `jattn.nn`."""

from jattn.models.classifier import DigitsClassifier as DigitsClassifier
from jattn.models.decoding import Beams as Beams
from jattn.models.decoding import Decoded as Decoded
from jattn.models.decoding import beam_search as beam_search
from jattn.models.decoding import greedy as greedy
from jattn.models.encoder import TextEncoder as TextEncoder
from jattn.models.generation import Continuation as Continuation
from jattn.models.generation import greedy_continuation as greedy_continuation
from jattn.models.gpt2 import GPT2 as GPT2
from jattn.models.llama import Llama as Llama
from jattn.models.recall import RecallClassifier as RecallClassifier
from jattn.models.regression import AttentionRegressor as AttentionRegressor
from jattn.models.regression import TransformerRegressor as TransformerRegressor
from jattn.models.sentences import SentenceEncoder as SentenceEncoder
from jattn.models.sentences import pool as pool
from jattn.models.translation import DecoderState as DecoderState
from jattn.models.translation import Seq2Seq as Seq2Seq
