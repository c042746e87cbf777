"""The kernels for NVIDIA's GPUs, by Triton: programs side by side, each with a loop over the tiles of its block."""

from jattn.implementations.flash.gpu.backward import run_backward
from jattn.implementations.flash.gpu.forward import run_forward

__all__ = ["run_backward", "run_forward"]
