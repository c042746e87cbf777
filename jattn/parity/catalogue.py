"""The known causes. Each recomputes what Flax would have given if it were the one, and fits only if that is so.

A new cause is a function from a `Site` to a sentence, or None where it doesn't fit, and a line in `CAUSES`. It says
nothing unless the plain recomputation gives PyTorch's numbers too.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from jattn.parity import attention_causes, layer_causes
from jattn.parity.locate import Site


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
        "Transpose it when it is loaded, as jattn.torch_weights does for Flax's layers.",
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
    *[Cause(*texts, test) for texts, test in attention_causes.CAUSES],
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
