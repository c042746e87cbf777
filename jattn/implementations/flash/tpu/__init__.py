"""The kernels for TPUs, by Mosaic: steps of a grid one after the other, with scratch memory between them."""

from jattn.implementations.flash.tpu.backward import gradients_of_keys, gradients_of_queries
from jattn.implementations.flash.tpu.blocks import LANES
from jattn.implementations.flash.tpu.forward import run_forward
from jattn.implementations.flash.tpu.of_pairs import gradient_of_pairs

__all__ = ["LANES", "gradient_of_pairs", "gradients_of_keys", "gradients_of_queries", "run_forward"]
