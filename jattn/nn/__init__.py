"""Flax NNX modules: thin, they hold parameters, project, and call the pure functions of jattn.

Each works under ``jax.jit``, ``jax.grad`` and ``jax.vmap`` through ``nnx.split`` and ``nnx.merge``; none keeps weights
or random state in itself. Dropout is on after ``train()`` (and at first) and off after ``eval()``; while it is on,
the call takes a ``jax.random.key`` as ``rng``.
"""

from jattn.nn.attention import AdditiveAttention as AdditiveAttention
from jattn.nn.attention import DotProductAttention as DotProductAttention
from jattn.nn.attention import MultiHeadAttention as MultiHeadAttention
from jattn.nn.attention import WideMultiHeadSelfAttention as WideMultiHeadSelfAttention
from jattn.nn.kernel_regression import NadarayaWatson as NadarayaWatson
from jattn.nn.layers import LayerNorm as LayerNorm
from jattn.nn.layers import Linear as Linear
from jattn.nn.layers import LinearGeneral as LinearGeneral
from jattn.nn.layers import RMSNorm as RMSNorm
from jattn.nn.layers import embedding as embedding
from jattn.nn.positions import LearnedPositions as LearnedPositions
from jattn.nn.positions import SinusoidalPositions as SinusoidalPositions
from jattn.nn.positions import rotary as rotary
from jattn.nn.positions import sinusoidal_positions as sinusoidal_positions
from jattn.nn.recurrent import GRU as GRU
from jattn.nn.torch_init import torch_init as torch_init
from jattn.nn.torch_layers import TransformerDecoderLayer as TransformerDecoderLayer
from jattn.nn.torch_layers import TransformerEncoderLayer as TransformerEncoderLayer
from jattn.nn.torch_modules import TorchMultiheadAttention as TorchMultiheadAttention
from jattn.nn.torch_transformer import Transformer as Transformer
from jattn.nn.torch_transformer import TransformerDecoder as TransformerDecoder
from jattn.nn.torch_transformer import TransformerEncoder as TransformerEncoder
from jattn.nn.transformer import FeedForward as FeedForward
from jattn.nn.transformer import TransformerBlock as TransformerBlock
