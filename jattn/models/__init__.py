"""Whole models, built from `jattn.nn`."""

from jattn.models.decoding import Beams, Decoded, beam_search, greedy
from jattn.models.generation import Continuation, greedy_continuation
from jattn.models.hugging_face.activations import activation_of
from jattn.models.hugging_face.audio import log_mel
from jattn.models.hugging_face.bart import BART
from jattn.models.hugging_face.bert import Bert
from jattn.models.hugging_face.bloom import Bloom
from jattn.models.hugging_face.clip import CLIP, CLIPOutput
from jattn.models.hugging_face.clip_towers import CLIPText, CLIPVision
from jattn.models.hugging_face.decoder import TextDecoder
from jattn.models.hugging_face.distilbert import DistilBert
from jattn.models.hugging_face.electra import Electra
from jattn.models.hugging_face.encoder import TextEncoder
from jattn.models.hugging_face.encoder_decoder import EncoderDecoder, EncoderDecoderHidden, EncoderDecoderWeights
from jattn.models.hugging_face.encoder_heads import EncoderHead, EncoderWithHead
from jattn.models.hugging_face.family import Family
from jattn.models.hugging_face.gemma import Gemma, Gemma2, Gemma3
from jattn.models.hugging_face.gpt2 import GPT2
from jattn.models.hugging_face.gpt_neox import GPTNeoX
from jattn.models.hugging_face.gpt_oss import GptOss
from jattn.models.hugging_face.granite import Granite
from jattn.models.hugging_face.llama import Llama
from jattn.models.hugging_face.loading import load
from jattn.models.hugging_face.mistral import Mistral
from jattn.models.hugging_face.mixtral import Mixtral
from jattn.models.hugging_face.modernbert import ModernBert
from jattn.models.hugging_face.mpnet import MPNet
from jattn.models.hugging_face.olmo2 import OLMo2
from jattn.models.hugging_face.opt import OPT
from jattn.models.hugging_face.phi3 import Phi3
from jattn.models.hugging_face.qwen import Qwen2, Qwen3
from jattn.models.hugging_face.roberta import Camembert, Roberta, XLMRoberta
from jattn.models.hugging_face.rotary import rotary_of
from jattn.models.hugging_face.sentences import Projection, SentenceEncoder, pool
from jattn.models.hugging_face.stack import WithHidden
from jattn.models.hugging_face.t5 import T5
from jattn.models.hugging_face.vision import VisionEncoder
from jattn.models.hugging_face.vit import DeiT, ViT
from jattn.models.hugging_face.whisper import Whisper
from jattn.models.tasks.classifier import DigitsClassifier
from jattn.models.tasks.recall import RecallClassifier
from jattn.models.tasks.regression import AttentionRegressor, TransformerRegressor
from jattn.models.tasks.translation import DecoderState, Seq2Seq

__all__ = [
    "BART",
    "CLIP",
    "GPT2",
    "OPT",
    "T5",
    "AttentionRegressor",
    "Beams",
    "Bert",
    "Bloom",
    "CLIPOutput",
    "CLIPText",
    "CLIPVision",
    "Camembert",
    "Continuation",
    "Decoded",
    "DecoderState",
    "DeiT",
    "DigitsClassifier",
    "DistilBert",
    "Electra",
    "EncoderDecoder",
    "EncoderDecoderHidden",
    "EncoderDecoderWeights",
    "EncoderHead",
    "EncoderWithHead",
    "Family",
    "GPTNeoX",
    "Gemma",
    "Gemma2",
    "Gemma3",
    "GptOss",
    "Granite",
    "Llama",
    "MPNet",
    "Mistral",
    "Mixtral",
    "ModernBert",
    "OLMo2",
    "Phi3",
    "Projection",
    "Qwen2",
    "Qwen3",
    "RecallClassifier",
    "Roberta",
    "SentenceEncoder",
    "Seq2Seq",
    "TextDecoder",
    "TextEncoder",
    "TransformerRegressor",
    "ViT",
    "VisionEncoder",
    "Whisper",
    "WithHidden",
    "XLMRoberta",
    "activation_of",
    "beam_search",
    "greedy",
    "greedy_continuation",
    "load",
    "log_mel",
    "pool",
    "rotary_of",
]
