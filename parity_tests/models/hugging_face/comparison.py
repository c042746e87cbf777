"""How models of Hugging Face's `transformers` and ours are compared: outputs, gradients, and weights there and back."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx

from jattn import models
from jattn.weights import files
from parity_tests.nn import randomised

__all__ = [
    "LENS",
    "SIDES",
    "assert_all_close",
    "assert_close",
    "assert_gradients",
    "assert_loads_and_dumps",
    "assert_there_and_back",
    "logits_and_weights",
    "mask_of",
]

SIDES = ("right", "left")  # one text of each batch is as long as the longest, so without padding
LENS = np.array([9, 5, 7])


def mask_of(side: str, lens: np.ndarray = LENS) -> np.ndarray:
    """1 for real tokens and 0 for padding on that side, up to the longest; none where the side is whole."""
    n = int(lens.max())
    if side == "whole":
        return np.ones((len(lens), n), int)
    return ((np.arange(n) >= n - lens[:, None]) if side == "left" else (np.arange(n) < lens[:, None])).astype(int)


def assert_close(ours: Any, theirs: Any, name: str, scale: float | None = None) -> None:
    """In float64, up to 1e-10 of the largest entry of theirs, or of ``scale``."""
    ours, theirs = (x.detach().numpy() if isinstance(x, torch.Tensor) else np.asarray(x) for x in (ours, theirs))
    assert ours.shape == theirs.shape, name
    assert np.abs(ours - theirs).max() <= 1e-10 * (scale or np.abs(theirs).max()), name


def assert_all_close(ours: Iterable[Any], theirs: Iterable[Any], real: np.ndarray, name: str) -> None:
    """Hidden states ``b t m``, or weights ``b h t s``, of each layer, where tokens and queries are real."""
    for i, (x, y) in enumerate(zip(ours, theirs, strict=True)):
        both = (np.asarray(x), y.detach().numpy())
        assert_close(*((np.moveaxis(z, 1, -1) if z.ndim == 4 else z)[real] for z in both), f"{name} {i}")


# What a bias adds to the logits of all keys alike cancels in the softmax, unless positions turn the keys after it: of
# the gradient only rounding errors are left.
KEY_BIASES = ("key.bias", "k_proj.bias", "k_lin.bias", "attn.k.bias")


def assert_gradients(ours: dict[str, Any], hf: Any, folder: Path, *, unused: str | None = None) -> None:
    """Of all parameters, by the names of the file: so theirs are saved in the folder as if they were a model.

    Those that theirs gives no gradient have ``unused`` in their names, and ours gives them zero, or leaves them out.
    """
    without = set()
    for name, parameter in hf.named_parameters():
        if parameter.grad is None:
            assert unused is not None, name
            assert unused in name
            without.add(name)
        parameter.data = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
    hf.save_pretrained(folder)
    buffers = dict(hf.named_buffers())
    theirs = {name: x for name, x in files.load(folder).items() if name not in buffers}
    largest = max(float(np.abs(x).max()) for x in theirs.values())
    for name, x in theirs.items():
        if name in without:
            assert name not in ours or not ours[name].any(), name
            continue
        cancels = name.endswith(KEY_BIASES) and np.abs(x).max() < 1e-12 * largest
        assert_close(ours[name], x, f"gradient of {name}", largest if cancels else None)
    for name in ours.keys() - theirs.keys() - buffers.keys():  # tied to another, which alone is in the file
        assert any(torch.equal(ours[name], ours[x]) for x in theirs.keys() & ours.keys()), name


def assert_there_and_back(hf: Any, folder: Path, *, unused: str | None = None) -> Any:
    """From a folder in bfloat16, of several files, and back the same bits; what is saved is opened by theirs.

    Args:
        hf: a model of `transformers`, whose parameters become random.
        folder: an empty one.
        unused: what the names of parameters have in them that ours leaves out.

    Returns:
        What is loaded here.
    """
    hf = randomised(hf).to(torch.bfloat16)
    hf.save_pretrained(folder, max_shard_size="4KB")
    assert len(list(folder.glob("*.safetensors"))) > 1
    ours, state = models.load(folder), hf.state_dict()
    back = ours.to_hugging_face()
    stored = {name: x for name, x in files.load(folder).items() if unused is None or unused not in name}
    assert stored.keys() <= back.keys()
    for name, x in stored.items():
        assert back[name].dtype == torch.bfloat16, name
        bits = (files.to_numpy(back[name]).view(np.uint16), np.asarray(x).view(np.uint16))
        np.testing.assert_array_equal(*bits, err_msg=name)
    for name in back.keys() - stored.keys():  # tied to another, which alone is in the file
        assert torch.equal(back[name], state[name]), name
    in_memory = type(ours).from_hugging_face(hf.config.to_dict(), state).to_hugging_face()  # with names of their own
    assert in_memory.keys() == back.keys()
    assert all(torch.equal(x, back[name]) for name, x in in_memory.items())
    ours.save(folder / "again")
    again = type(hf).from_pretrained(folder / "again")
    assert again.state_dict().keys() == state.keys()
    for name, x in again.state_dict().items():
        assert (unused is not None and unused in name) or torch.equal(x, state[name]), name
    return ours


def assert_loads_and_dumps(kind: Any, hf: Any, folder: Path) -> None:
    """From their state dict and from their folder the same model, and back the same bits, in each dtype."""
    tokens = np.random.default_rng(0).integers(0, hf.config.vocab_size, (3, 7))
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        with jax.enable_x64(dtype == torch.float64), torch.no_grad():
            theirs = hf.to(dtype).state_dict()
            hf.save_pretrained(folder)
            for ours in (kind.from_hugging_face(hf.config.to_dict(), theirs), kind.from_folder(folder)):
                back = ours.to_hugging_face()
                assert back.keys() == theirs.keys()
                for name, tensor in theirs.items():
                    assert back[name].dtype == dtype
                    assert torch.equal(back[name], tensor), name
                hf.load_state_dict(back)
            if dtype == torch.float32:  # and before the frequencies of Llama's positions were rounded to bfloat16
                logits = nnx.jit(ours)(jnp.asarray(tokens))
                np.testing.assert_allclose(logits, hf(torch.from_numpy(tokens)).logits, rtol=1e-5, atol=1e-5)


def logits_and_weights(hf: torch.nn.Module, parameters: dict[str, torch.Tensor], tokens: Any, valid_lens: Any) -> Any:
    """What a model of theirs says with these parameters, through which gradients flow.

    Theirs gives the weights in the model's dtype, ours in float32 or wider.
    """
    real = torch.ones_like(tokens) if valid_lens is None else torch.arange(tokens.shape[1]) < valid_lens[:, None]
    arguments = {"input_ids": tokens, "attention_mask": real.long(), "output_attentions": True}
    outputs = torch.func.functional_call(hf, parameters, (), arguments)
    wide = [weights.to(torch.promote_types(weights.dtype, torch.float32)) for weights in outputs.attentions]
    return outputs.logits, wide
