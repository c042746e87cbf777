"""Flax NNX modules: thin, they hold parameters, project, and call the pure functions of jattn.

Each works under ``jax.jit``, ``jax.grad`` and ``jax.vmap`` through ``nnx.split`` and ``nnx.merge``; none keeps weights
or random state in itself. Dropout is on after ``train()`` (and at first) and off after ``eval()``; while it is on,
the call takes a ``jax.random.key`` as ``rng``.

`jattn.nn.torch` has the modules of torch.nn, under its names and with its meanings.
"""

from jattn.nn import torch as torch  # not in __all__, as `import *` would hide PyTorch
from jattn.nn.cached import new_cache
from jattn.nn.convolution import Conv
from jattn.nn.embeddings import Embed
from jattn.nn.experts import MixtureOfExperts, Routing
from jattn.nn.feed_forward import FeedForward
from jattn.nn.kernel_regression import NadarayaWatson
from jattn.nn.layers import LayerNorm, Linear, LinearGeneral, RMSNorm
from jattn.nn.multi_head import KeysAndValues, MultiHeadAttention
from jattn.nn.norms import Norm
from jattn.nn.positions import LearnedPositions, SinusoidalPositions, sinusoidal_positions
from jattn.nn.recurrent import GRU
from jattn.nn.rotary_positions import Rotary, rotary
from jattn.nn.rotary_scaling import (
    DynamicNTKScaling,
    LinearScaling,
    Llama3Scaling,
    LongRoPEScaling,
    RotaryScaling,
    YaRNScaling,
)
from jattn.nn.settings import settings_of
from jattn.nn.single_head import AdditiveAttention, DotProductAttention
from jattn.nn.transformer import TransformerBlock
from jattn.nn.weights import Cached, Outputs
from jattn.nn.wide_multi_head import WideMultiHeadSelfAttention

__all__ = [
    "GRU",
    "AdditiveAttention",
    "Cached",
    "Conv",
    "DotProductAttention",
    "DynamicNTKScaling",
    "Embed",
    "FeedForward",
    "KeysAndValues",
    "LayerNorm",
    "LearnedPositions",
    "Linear",
    "LinearGeneral",
    "LinearScaling",
    "Llama3Scaling",
    "LongRoPEScaling",
    "MixtureOfExperts",
    "MultiHeadAttention",
    "NadarayaWatson",
    "Norm",
    "Outputs",
    "RMSNorm",
    "Rotary",
    "RotaryScaling",
    "Routing",
    "SinusoidalPositions",
    "TransformerBlock",
    "WideMultiHeadSelfAttention",
    "YaRNScaling",
    "new_cache",
    "rotary",
    "settings_of",
    "sinusoidal_positions",
]

# The names of 0.1: for Embed, and for what is in jattn.nn.torch.
embedding = Embed
TorchMultiheadAttention = torch.MultiheadAttention
Transformer = torch.Transformer
TransformerDecoder = torch.TransformerDecoder
TransformerDecoderLayer = torch.TransformerDecoderLayer
TransformerEncoder = torch.TransformerEncoder
TransformerEncoderLayer = torch.TransformerEncoderLayer
torch_init = torch.initialize
