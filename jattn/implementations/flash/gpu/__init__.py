"""The kernels for NVIDIA's GPUs, by Triton: programs side by side, each with a loop over the tiles of its block."""

from jattn.implementations.flash.gpu.backward import gradient_of_pairs, gradients_of_keys, gradients_of_queries
from jattn.implementations.flash.gpu.forward import run_forward

__all__ = ["gradient_of_pairs", "gradients_of_keys", "gradients_of_queries", "run_forward"]
