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
from jattn.models.hugging_face.loading import FAMILIES
from jattn.parity.widen import float64_throughout
from jattn.weights import files
from parity_tests.models.hugging_face.decoders import assert_continues_alike
from parity_tests.models.hugging_face.families import CONFIGS, V, made
from parity_tests.nn import randomised

pytest.importorskip("transformers", reason="no transformers: families were not compared with its models")

TOKENS = np.random.default_rng(0).integers(0, V, (3, 9))
LENS = np.array([9, 5, 7])
SIDES = {
    "whole": np.ones((3, 9), int),
    "right": (np.arange(9) < LENS[:, None]).astype(int),
    "left": (np.arange(9) >= 9 - LENS[:, None]).astype(int),
}


def theirs_on(hf: Any, mask: np.ndarray) -> Any:
    """Positions are those of real tokens, as ``generate`` counts them."""
    positions = torch.from_numpy(np.maximum(np.cumsum(mask, -1) - 1, 0))
    given = {"input_ids": torch.from_numpy(TOKENS), "attention_mask": torch.from_numpy(mask)}
    if "Bloom" not in type(hf).__name__:
        given["position_ids"] = positions
    return hf(**given, output_hidden_states=True, output_attentions=True)


def assert_close(ours: Any, theirs: Any, name: str, scale: float | None = None) -> None:
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    assert ours.shape == theirs.shape, name
    assert np.abs(ours - theirs).max() <= 1e-10 * (scale or np.abs(theirs).max()), name


def in_files(hf: Any, folder: Path) -> dict[str, np.ndarray]:
    """Its parameters under the names that they have in a folder, which for some families are others in memory."""
    hf.save_pretrained(folder)
    return files.load(folder)


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("name", CONFIGS)
def test_equal(name: str, side: str, tmp_path: Path) -> None:
    mask = SIDES[side]
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
        for i, (x, y) in enumerate(zip(out.hidden, outputs.hidden_states, strict=True)):
            assert_close(x[real], y.detach().numpy()[real], f"hidden state {i}")
        for i, (x, y) in enumerate(zip(out.weights, outputs.attentions, strict=True)):
            both = (jnp.moveaxis(x, 1, -1), np.moveaxis(y.detach().numpy(), 1, -1))
            assert_close(*(z[real] for z in both), f"weights {i}")
        back = nnx.merge(graph, gradients).to_hugging_face()
        with torch.no_grad():
            for parameter in hf.parameters():
                parameter.copy_(parameter.grad)
        theirs = in_files(hf, tmp_path / "gradients")
        largest = max(float(np.abs(x).max()) for x in theirs.values())
        for parameter, x in theirs.items():
            # What all keys share cancels in the softmax, unless they are turned by their positions.
            scale = largest if parameter.endswith("k_proj.bias") and np.abs(x).max() < 1e-12 * largest else None
            assert_close(back[parameter], x, f"gradient of {parameter}", scale)


@pytest.mark.parametrize("name", CONFIGS)
def test_there_and_back(name: str, tmp_path: Path) -> None:
    """From a folder in bfloat16, of several files, and back the same bits; what is saved is opened by theirs."""
    hf = made(name).to(torch.bfloat16)
    hf.save_pretrained(tmp_path, max_shard_size="4KB")
    ours = models.load(tmp_path)
    back = ours.to_hugging_face()
    for parameter, x in files.load(tmp_path).items():
        np.testing.assert_array_equal(files.to_numpy(back[parameter]), x, err_msg=parameter)
    assert type(ours).from_hugging_face(hf.config.to_dict(), hf.state_dict()).to_hugging_face().keys() == back.keys()
    ours.save(tmp_path / "again")
    again = type(hf).from_pretrained(tmp_path / "again")
    for parameter, x in again.state_dict().items():
        assert torch.equal(x, hf.state_dict()[parameter]), parameter


@pytest.mark.whole
@pytest.mark.parametrize("name", CONFIGS)
def test_continues_alike(name: str) -> None:
    """Token for token as ``generate`` does."""
    with float64_throughout():
        hf = made(name).double().eval()
        seed = 1 if name in ("BLOOM", "OPT, norms after") else 0  # else they say one token again and again
        assert_continues_alike(FAMILIES[hf.config.model_type], hf, seed)
