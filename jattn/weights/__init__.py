"""Weights in and out: PyTorch's state dicts, strict and lossless, and the files that hold them.

In a state dict a module's entries are named by the path of its attributes (``blocks.0.attention.query.weight``), and
each kind of leaf has a map between its parameters and PyTorch's:

    flax.nnx.Linear         kernel (in, out)                 weight (out, in)          bias (out)
    flax.nnx.LinearGeneral  kernel (m, h, d) or (h, e, m)    weight (h d, m), (m, h e) bias (h d), (m)
    flax.nnx.Conv           kernel (k, in, out)              weight (out, in, k)       bias (out)
                            kernel (height, width, in, out)  weight (out, in, height, width)
    flax.nnx.LayerNorm      scale, bias                      weight, bias
    flax.nnx.RMSNorm        scale                            weight
    flax.nnx.Embed          embedding                        weight
    GRU                     layers.i.input, layers.i.hidden  weight_ih_li, weight_hh_li, bias_ih_li, bias_hh_li
    MultiheadAttention      query, key, value kernels        in_proj_weight (3 m, m), or q_proj_weight, ...
    Wide...SelfAttention    query kernel (m, h, m)           query.i.weight (m, m), one Linear for each head i
    an nnx.Param of yours   itself                           the same name

Nothing is dropped, cast or guessed: an entry that has no place, a place that has no entry and a shape that doesn't fit
are one error that lists them all, and a parameter takes the dtype of its entry. Fixed observations of `NadarayaWatson`
are data, not parameters, and stay where they are.
"""

from jattn.weights import files
from jattn.weights.files import to_numpy, to_tensor
from jattn.weights.state_dicts import load_state_dict, save, state_dict

__all__ = ["files", "load_state_dict", "save", "state_dict", "to_numpy", "to_tensor"]
