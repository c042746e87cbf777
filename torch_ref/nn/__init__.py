"""Attention as modules: they hold parameters, project, and call the functions of torch_ref."""

from torch_ref.nn.convolution import Conv as Conv
from torch_ref.nn.embeddings import Embed as Embed
from torch_ref.nn.experts import MixtureOfExperts as MixtureOfExperts
from torch_ref.nn.feed_forward import FeedForward as FeedForward
from torch_ref.nn.kernel_regression import NadarayaWatson as NadarayaWatson
from torch_ref.nn.layers import RMSNorm as RMSNorm
from torch_ref.nn.multi_head import MultiHeadAttention as MultiHeadAttention
from torch_ref.nn.positions import LearnedPositions as LearnedPositions
from torch_ref.nn.positions import SinusoidalPositions as SinusoidalPositions
from torch_ref.nn.positions import sinusoidal_positions as sinusoidal_positions
from torch_ref.nn.recurrent import GRU as GRU
from torch_ref.nn.rotary_positions import Rotary as Rotary
from torch_ref.nn.rotary_positions import rotary as rotary
from torch_ref.nn.single_head import AdditiveAttention as AdditiveAttention
from torch_ref.nn.single_head import DotProductAttention as DotProductAttention
from torch_ref.nn.transformer import TransformerBlock as TransformerBlock
from torch_ref.nn.wide_multi_head import WideMultiHeadSelfAttention as WideMultiHeadSelfAttention
