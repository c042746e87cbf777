"""The room's names, and those that jattn.nn had for them in 0.1."""

import sys
from subprocess import run

import pytest

from jattn import nn

NAMES_OF_0_1 = {"MultiheadAttention": "TorchMultiheadAttention", "initialize": "torch_init"}


@pytest.mark.parametrize("name", nn.torch.__all__)
@pytest.mark.every_case
def test_a_name_of_0_1(name: str) -> None:
    assert getattr(nn, NAMES_OF_0_1.get(name, name)) is getattr(nn.torch, name)


def test_does_not_need_pytorch() -> None:
    run([sys.executable, "-c", 'import sys, jattn.nn.torch; assert "torch" not in sys.modules'], check=True)


def test_does_not_hide_pytorch() -> None:
    pytest.importorskip("torch")
    run([sys.executable, "-c", 'import torch; from jattn.nn import *; assert torch.__name__ == "torch"'], check=True)
