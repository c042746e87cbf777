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
    MixtureOfExperts        linear1, gate, linear2 (e, m, f) experts.i.linear1.weight (f, m), a network for each
    Wide...SelfAttention    query kernel (m, h, m)           query.i.weight (m, m), one Linear for each head i
    an nnx.Param of yours   itself                           the same name

    a module of yours                                        what `register_map` was told

A model that names things otherwise, or keeps them in other layouts, is led here by a `Table`, and back by the same:

    rename        another name                          "h.#.ln_1" is "blocks.#.norm1"; # is a number
    prefixed      a prefix in front of all names        "model.", "module."
    transposed    axes in another order                 GPT-2's Conv1D, (in, out)
    split, merge  one entry that is several, and back   a fused query, key and value: (3 h d), (h 3 d), h d + 2 k d
    unstack       a stack of several entries            experts in one array, (e, out, in)
    part          a stretch of an entry                 RoBERTa's positions[2:]
    tied          two entries that are one parameter    lm_head.weight, wte.weight
    zeros         one that the original lacks           a key's bias
    dropped       one that the module lacks             inv_freq
    convert       what functions of yours make of it    Gemma's 1 + weight

Nothing is dropped, cast or guessed: an entry that has no place, a place that has no entry and a shape that doesn't fit
are one error that lists them all, and a parameter takes the dtype of its entry. Fixed observations of `NadarayaWatson`
are data, not parameters, and stay where they are.
"""

from jattn.weights import files
from jattn.weights.files import to_numpy, to_tensor
from jattn.weights.fused import merge, split, unstack
from jattn.weights.maps import register_map
from jattn.weights.state_dicts import load_state_dict, save, state_dict
from jattn.weights.table import Table
from jattn.weights.transforms import (
    convert,
    dropped,
    part,
    prefixed,
    rename,
    tied,
    transposed,
    zeros,
)

__all__ = [
    "Table",
    "convert",
    "dropped",
    "files",
    "load_state_dict",
    "merge",
    "part",
    "prefixed",
    "register_map",
    "rename",
    "save",
    "split",
    "state_dict",
    "tied",
    "to_numpy",
    "to_tensor",
    "transposed",
    "unstack",
    "zeros",
]
