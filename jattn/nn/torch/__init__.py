"""Here ``True`` in a mask means that a query may **not** attend, as in torch.nn; everywhere else in jattn it may.

The modules that have torch.nn's names, arguments, meanings and state dicts, for code that is being ported, and its
initial distributions; PyTorch itself is not needed. Two things are added: dropout takes its ``rng`` at the call, and
layers and stacks return their weights with ``return_weights=True``.
"""

from jattn.nn.torch.attention import MultiheadAttention
from jattn.nn.torch.initialization import initialize
from jattn.nn.torch.layers import TransformerDecoderLayer, TransformerEncoderLayer
from jattn.nn.torch.transformer import Transformer, TransformerDecoder, TransformerEncoder

__all__ = [
    "MultiheadAttention",
    "Transformer",
    "TransformerDecoder",
    "TransformerDecoderLayer",
    "TransformerEncoder",
    "TransformerEncoderLayer",
    "initialize",
]
