"""The known causes. Each recomputes what Flax would have given if it were the one, and fits only if that is so.

A new cause is a function from a `Site` to a sentence, or None where it doesn't fit, and a line in `CAUSES`. It says
nothing unless the plain recomputation gives PyTorch's numbers too.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from jattn.parity import attention_causes, layer_causes
from jattn.parity.locate import Site

__all__ = ["CAUSES", "Cause", "Diagnosis", "diagnose"]


class Cause(NamedTuple):
    """A way in which ports go wrong."""

    name: str
    explanation: str
    remedy: str
    test: Callable[[Site], str | None]  # what was found, if this is it


class Diagnosis(NamedTuple):
    """The cause that makes the difference vanish."""

    cause: str
    found: str
    explanation: str
    remedy: str


def diagnose(site: Site) -> Diagnosis | None:
    """The first cause that fits."""
    with np.errstate(all="ignore"):
        for cause in CAUSES:
            try:
                found = cause.test(site)
            except (ValueError, IndexError):  # shapes that this cause can't be of; the report must come all the same
                continue
            if found is not None:
                return Diagnosis(cause.name, found, cause.explanation, cause.remedy)
    return None


CAUSES = [
    Cause(
        "low precision",
        "The port computes in fewer digits than its inputs have.",
        "Give the layer no dtype of its own, and look for casts such as astype(jnp.float32).",
        layer_causes.low_precision,
    ),
    Cause(
        "layer-norm epsilon",
        "The epsilon of a norm is another one. PyTorch's LayerNorm has 1e-5 by default, Flax's 1e-6, BERT 1e-12.",
        "Give the port's norm the epsilon of PyTorch's; jattn.nn.LayerNorm has PyTorch's default.",
        layer_causes.norm_epsilon,
    ),
    Cause(
        "RMS norm or layer norm",
        "One side subtracts the mean before it normalises, the other doesn't.",
        "Use the same kind of norm: nnx.RMSNorm or jattn.nn.LayerNorm.",
        layer_causes.norm_kind,
    ),
    Cause(
        "unbiased variance",
        "The variance is divided by m - 1 (as torch.var and torch.std do by default), not by m.",
        "Use the mean of the squared differences.",
        layer_causes.unbiased_variance,
    ),
    Cause(
        "missing bias",
        "The bias of a layer is not added.",
        "Add it.",
        layer_causes.missing_bias,
    ),
    Cause(
        "transposed kernel",
        "PyTorch's weight is (out, in), Flax's kernel (in, out); a square one fits either way, but is another map.",
        "Transpose it when it is loaded, as jattn.weights does for Flax's layers.",
        layer_causes.transposed_kernel,
    ),
    Cause(
        "swapped weights",
        "The layer computes with the weights of another one.",
        "Load each under its own name.",
        layer_causes.swapped_weights,
    ),
    Cause(
        "exact or tanh GELU",
        "jax.nn.gelu is the tanh approximation by default, torch.nn.functional.gelu the exact one.",
        "Use jax.nn.gelu(x, approximate=False), or True where PyTorch has approximate='tanh'.",
        layer_causes.gelu_form,
    ),
    Cause(
        "another activation",
        "The activation functions differ.",
        "Use the one of PyTorch's module.",
        layer_causes.activation,
    ),
    Cause(
        "embedding scale",
        "One side multiplies the embeddings by the root of their width, as Vaswani et al. do, the other doesn't.",
        "Multiply on both sides, or on neither.",
        layer_causes.embedding_scale,
    ),
    Cause(
        "pre-norm for post-norm",
        "PyTorch's module normalises after the residual, norm(x + f(x)), the port before the sublayer, x + f(norm(x)).",
        "Normalise after the residual, as PyTorch's own layers do without norm_first.",
        layer_causes.norm_before,
    ),
    Cause(
        "post-norm for pre-norm",
        "PyTorch's module normalises before the sublayer, x + f(norm(x)), the port after the residual, norm(x + f(x)).",
        "Normalise before the sublayer, as PyTorch's own layers do with norm_first.",
        layer_causes.norm_after,
    ),
    Cause(
        "missing residual",
        "What goes around a sublayer is not added to its output.",
        "Add it: x + f(x).",
        layer_causes.missing_residual,
    ),
    Cause(
        "module left out",
        "The port goes on with the input of a module instead of its output.",
        "Call it.",
        layer_causes.left_out,
    ),
    # Before the rest of attention, which leaves open what such rows get.
    Cause(
        "rows with nothing to attend to",
        "A query whose keys are all masked gets NaN from a softmax of minus infinities, the mean of all values "
        "from one of large negative numbers, zeros from jattn.",
        "Decide for one, and give such queries no weight in the loss.",
        attention_causes.empty_rows,
    ),
    Cause(
        "missing scale",
        "The scale of the products of queries and keys is another one.",
        "Scale by 1 / sqrt(d), with d the width of one head; jattn.attention does by default.",
        attention_causes.scale,
    ),
    Cause(
        "number of heads",
        "The same projections are split into another number of heads, which fits without an error.",
        "Give the port PyTorch's number of heads; the weights don't tell it.",
        attention_causes.head_count,
    ),
    Cause(
        "inverted mask",
        "True means may attend in JAX and in PyTorch's function, may not attend in PyTorch's modules.",
        "Invert it with ~ where it crosses over.",
        attention_causes.inverted_mask,
    ),
    Cause(
        "missing mask",
        "The mask is given to attention on PyTorch's side and has no effect in the port.",
        "Hand it through.",
        attention_causes.missing_mask,
    ),
    Cause(
        "missing causal mask",
        "Who may see which keys of the past and the future differs.",
        "Use jattn.masks.causal() on both sides or on neither.",
        attention_causes.causality,
    ),
    Cause(
        "softmax over the wrong axis",
        "The weights of a query must add up to one over the keys.",
        "Use axis=-1 for weights laid out as b h t s.",
        attention_causes.softmax_axis,
    ),
    Cause(
        "query and key swapped",
        "The products are the same, transposed: each key asks the queries.",
        "Hand over the query first.",
        attention_causes.query_for_key,
    ),
    Cause(
        "heads and time swapped",
        "A reshape between b t (h d) and b h t d must go with a transpose, or it mixes positions and heads.",
        "Reshape to b t h d and leave it at that, as jattn.attention takes it.",
        attention_causes.heads_for_time,
    ),
    Cause(
        "order of heads and features",
        "The features of a head are neighbours in PyTorch's projections: (h d), not (d h).",
        "Reshape the last axis to (h, d).",
        attention_causes.order_of_heads,
    ),
    Cause(
        "order of grouped heads",
        "The query heads that share a key and value head are neighbours: 0 to h / k - 1 share head 0.",
        "Repeat (jnp.repeat), don't tile.",
        attention_causes.order_of_groups,
    ),
    Cause(
        "missing projection biases",
        "The biases of the projections to query, key and value are not added.",
        "Split in_proj_bias into three and add them.",
        attention_causes.missing_biases,
    ),
    Cause(
        "weights averaged over heads",
        "torch.nn.MultiheadAttention returns the mean over heads by default, jattn the weights of each head.",
        "Ask PyTorch for average_attn_weights=False, or take the mean over the axis h.",
        attention_causes.heads_of_weights,
    ),
    Cause(
        "dropped out",
        "Some numbers are zero and the others larger by one factor: they come from after dropout, or it is still on.",
        "Return the weights from before dropout, and turn dropout off in eval mode.",
        layer_causes.dropped,
    ),
    Cause(
        "constant factor",
        "The numbers differ by one factor.",
        "Look for a scale that one side lacks.",
        layer_causes.constant_factor,
    ),
]
