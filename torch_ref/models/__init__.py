"""Whole models built from torch_ref.nn."""

from torch_ref.models.decoding import Beams as Beams
from torch_ref.models.decoding import Decoded as Decoded
from torch_ref.models.decoding import beam_search as beam_search
from torch_ref.models.decoding import greedy as greedy
from torch_ref.models.hugging_face.bert import Bert as Bert
from torch_ref.models.hugging_face.gpt2 import GPT2 as GPT2
from torch_ref.models.hugging_face.llama import Llama as Llama
from torch_ref.models.tasks.classifier import DigitsClassifier as DigitsClassifier
from torch_ref.models.tasks.recall import RecallClassifier as RecallClassifier
from torch_ref.models.tasks.regression import AttentionRegressor as AttentionRegressor
from torch_ref.models.tasks.regression import TransformerRegressor as TransformerRegressor
from torch_ref.models.tasks.translation import Decoder as Decoder
from torch_ref.models.tasks.translation import DecoderState as DecoderState
from torch_ref.models.tasks.translation import Encoder as Encoder
from torch_ref.models.tasks.translation import Seq2Seq as Seq2Seq
