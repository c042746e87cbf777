"""Whole models built from torch_ref.nn."""

from torch_ref.models.classifier import DigitsClassifier as DigitsClassifier
from torch_ref.models.decoding import Beams as Beams
from torch_ref.models.decoding import Decoded as Decoded
from torch_ref.models.decoding import beam_search as beam_search
from torch_ref.models.decoding import greedy as greedy
from torch_ref.models.encoder import TextEncoder as TextEncoder
from torch_ref.models.gpt2 import GPT2 as GPT2
from torch_ref.models.llama import Llama as Llama
from torch_ref.models.recall import RecallClassifier as RecallClassifier
from torch_ref.models.regression import AttentionRegressor as AttentionRegressor
from torch_ref.models.regression import TransformerRegressor as TransformerRegressor
from torch_ref.models.translation import Decoder as Decoder
from torch_ref.models.translation import DecoderState as DecoderState
from torch_ref.models.translation import Encoder as Encoder
from torch_ref.models.translation import Seq2Seq as Seq2Seq
