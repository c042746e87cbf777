"""Flax NNX modules: thin, they hold parameters, project, and call the pure functions of jattn.

Each works under ``jax.jit``, ``jax.grad`` and ``jax.vmap`` through ``nnx.split`` and ``nnx.merge``; none keeps weights
or random state in itself. Dropout is on after ``train()`` (and at first) and off after ``eval()``; while it is on,
the call takes a ``jax.random.key`` as ``rng``.

`jattn.nn.torch` has the modules of torch.nn, under its names and with its meanings.
"""

from jattn.nn import torch as torch  # not in __all__, as `import *` would hide PyTorch
from jattn.nn.kernel_regression import NadarayaWatson
from jattn.nn.layers import LayerNorm, Linear, LinearGeneral, RMSNorm, embedding
from jattn.nn.multi_head import MultiHeadAttention, WideMultiHeadSelfAttention
from jattn.nn.positions import LearnedPositions, SinusoidalPositions, rotary, sinusoidal_positions
from jattn.nn.recurrent import GRU
from jattn.nn.single_head import AdditiveAttention, DotProductAttention
from jattn.nn.transformer import FeedForward, TransformerBlock

__all__ = [
    "GRU",
    "AdditiveAttention",
    "DotProductAttention",
    "FeedForward",
    "LayerNorm",
    "LearnedPositions",
    "Linear",
    "LinearGeneral",
    "MultiHeadAttention",
    "NadarayaWatson",
    "RMSNorm",
    "SinusoidalPositions",
    "TransformerBlock",
    "WideMultiHeadSelfAttention",
    "embedding",
    "rotary",
    "sinusoidal_positions",
]

# The names of 0.1 for what is in jattn.nn.torch.
TorchMultiheadAttention = torch.MultiheadAttention
Transformer = torch.Transformer
TransformerDecoder = torch.TransformerDecoder
TransformerDecoderLayer = torch.TransformerDecoderLayer
TransformerEncoder = torch.TransformerEncoder
TransformerEncoderLayer = torch.TransformerEncoderLayer
torch_init = torch.initialize
