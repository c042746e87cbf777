"""The kernels for TPUs, by Mosaic: steps of a grid one after the other, with scratch memory between them."""

from jattn.implementations.flash.tpu.backward import run_backward
from jattn.implementations.flash.tpu.blocks import LANES
from jattn.implementations.flash.tpu.forward import run_forward

__all__ = ["LANES", "run_backward", "run_forward"]
