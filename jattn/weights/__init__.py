"""Weights in and out: PyTorch's state dicts, and the files that hold them."""

from jattn.weights import files as files
from jattn.weights.files import to_numpy as to_numpy
from jattn.weights.files import to_tensor as to_tensor
from jattn.weights.state_dicts import load_state_dict as load_state_dict
from jattn.weights.state_dicts import save as save
from jattn.weights.state_dicts import state_dict as state_dict
