"""Each family of decoders beside `transformers`' own class: logits, hidden states, weights and gradients of all."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from jattn import models
from jattn.models.hugging_face.family import FAMILIES
from jattn.parity.widen import float64_throughout
from parity_tests.models.hugging_face.comparison import (
    SIDES,
    assert_all_close,
    assert_close,
    assert_gradients,
    assert_there_and_back,
    mask_of,
)
from parity_tests.models.hugging_face.decoders import CONFIGS, V, made
from parity_tests.models.hugging_face.generation import assert_continues_alike
from parity_tests.nn import randomised

pytest.importorskip("transformers", reason="no transformers: families were not compared with its models")

TOKENS = np.random.default_rng(0).integers(0, V, (3, 9))


def theirs_on(hf: Any, mask: np.ndarray) -> Any:
    """Positions are those of real tokens, as ``generate`` counts them."""
    positions = torch.from_numpy(np.maximum(np.cumsum(mask, -1) - 1, 0))
    given = {"input_ids": torch.from_numpy(TOKENS), "attention_mask": torch.from_numpy(mask)}
    if "Bloom" not in type(hf).__name__:
        given["position_ids"] = positions
    return hf(**given, output_hidden_states=True, output_attentions=True)


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("name", CONFIGS)
def test_equal(name: str, side: str, tmp_path: Path) -> None:
    mask = mask_of(side)
    real = mask.astype(bool)
    with float64_throughout(), jax.enable_x64(True):
        hf = randomised(made(name))
        hf.save_pretrained(tmp_path)
        outputs = theirs_on(hf, mask)
        cotangent = np.random.default_rng(1).normal(size=outputs.logits.shape) * real[..., None]
        (outputs.logits * torch.from_numpy(cotangent)).sum().backward()
        ours = models.load(tmp_path)
        graph, state = nnx.split(ours)

        def loss(state: Any) -> Any:
            out = nnx.merge(graph, state)(
                jnp.asarray(TOKENS), attention_mask=jnp.asarray(mask), return_weights=True, return_hidden=True
            )
            return (out.output * cotangent).sum(), out

        gradients, out = jax.jit(jax.grad(loss, has_aux=True))(state)
        assert_close(out.output[real], outputs.logits.detach().numpy()[real], "logits")
        assert_all_close(out.hidden, outputs.hidden_states, real, "hidden state")
        assert_all_close(out.weights, outputs.attentions, real, "weights")
        assert_gradients(nnx.merge(graph, gradients).to_hugging_face(), hf, tmp_path / "gradients")


@pytest.mark.parametrize("name", CONFIGS)
def test_there_and_back(name: str, tmp_path: Path) -> None:
    assert_there_and_back(made(name), tmp_path)


@pytest.mark.whole
@pytest.mark.parametrize("name", CONFIGS)
def test_continues_alike(name: str) -> None:
    """Token for token as ``generate`` does."""
    with float64_throughout():
        hf = made(name).double().eval()
        assert_continues_alike(FAMILIES[hf.config.model_type], hf)
