"""Each family that sees images beside `transformers`' own class: outputs, hidden states, weights, gradients of all."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from jattn import models
from jattn.parity.widen import float64_throughout
from jattn.weights import files
from parity_tests.models.hugging_face.vision_families import IMAGES, made
from parity_tests.nn import randomised

pytest.importorskip("transformers", reason="no transformers: families were not compared with its models")

# Heights and widths of images; transformers takes others than the model's own where that is square.
SIZES = {"own": None, "larger": (20, 20), "of another form": (12, 17)}
CASES = [(name, size) for name in IMAGES for size in SIZES if size == "own" or IMAGES[name][1]["image_size"] == 12]


def images_of(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(3, height, width, 2))


def assert_close(ours: Any, theirs: Any, name: str, scale: float | None = None) -> None:
    theirs = theirs.detach().numpy() if isinstance(theirs, torch.Tensor) else theirs
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    assert ours.shape == theirs.shape, name
    assert np.abs(ours - theirs).max() <= 1e-10 * (scale or np.abs(theirs).max()), name


def assert_gradients(ours: dict[str, Any], hf: Any, folder: Path) -> None:
    """Of all parameters; theirs are saved as if they were a model, so that they have the names of its file."""
    for parameter in hf.parameters():
        assert parameter.grad is not None
        parameter.data = parameter.grad
    hf.save_pretrained(folder)
    theirs = files.load(folder)
    assert ours.keys() == theirs.keys()
    largest = max(float(np.abs(x).max()) for x in theirs.values())
    for name, x in theirs.items():
        # What all keys share cancels in the softmax.
        key_bias = name.endswith(("key.bias", "k_proj.bias")) and np.abs(x).max() < 1e-12 * largest
        assert_close(ours[name], x, f"gradient of {name}", largest if key_bias else None)


def outputs_of(hf: Any, outputs: Any) -> list[Any]:
    """What the model is for, and beside the states of a bare one what stands for the whole image."""
    if "logits" in outputs:
        return [outputs.logits]
    return [outputs.image_embeds] if "image_embeds" in outputs else [outputs.last_hidden_state, outputs.pooler_output]


def last_of(hf: Any, outputs: Any) -> Any:
    """The last hidden state, normed where the output is."""
    norm = getattr(getattr(hf, hf.base_model_prefix, hf), "layernorm", None)
    return outputs.hidden_states[-1] if norm is None else norm(outputs.hidden_states[-1])


@pytest.mark.parametrize(("name", "size"), CASES)
def test_equal(name: str, size: str, tmp_path: Path) -> None:
    kind, settings = IMAGES[name]
    with float64_throughout(), jax.enable_x64(True):
        hf = randomised(made(kind, settings))
        hf.save_pretrained(tmp_path / "model")
        ours = models.load(tmp_path / "model")
        assert isinstance(ours, models.VisionEncoder)
        images = images_of(*(SIZES[size] or ours.image_size))
        outputs = hf(
            pixel_values=torch.from_numpy(np.moveaxis(images, -1, 1)),
            interpolate_pos_encoding=size != "own",
            output_hidden_states=True,
            output_attentions=True,
        )
        theirs = outputs_of(hf, outputs)
        rng = np.random.default_rng(1)
        cotangents = [rng.normal(size=tuple(x.shape)) for x in theirs]
        sum((x * torch.from_numpy(c)).sum() for x, c in zip(theirs, cotangents, strict=True)).backward()
        graph, state = nnx.split(ours)

        def loss(state: Any) -> Any:
            model: Any = nnx.merge(graph, state)
            out = model(
                jnp.asarray(images), interpolate_positions=size != "own", return_weights=True, return_hidden=True
            )
            results = [out.output] if len(theirs) == 1 else [out.output, model.pooled(out.output)]
            return sum((x * c).sum() for x, c in zip(results, cotangents, strict=True)), (results, out)

        gradients, (results, out) = jax.jit(jax.grad(loss, has_aux=True))(state)
        for x, y in zip(results, theirs, strict=True):
            assert_close(x, y, "output")
        for i, (x, y) in enumerate(zip(out.hidden[:-1], outputs.hidden_states[:-1], strict=True)):
            assert_close(x, y, f"hidden state {i}")
        assert_close(out.hidden[-1], last_of(hf, outputs), "last hidden state")
        for i, (x, y) in enumerate(zip(out.weights, outputs.attentions, strict=True)):
            assert_close(x, y, f"weights {i}")
        if kind.endswith("Teacher"):
            for x, y in zip(
                ours.each_output(out.hidden[-1]), (outputs.cls_logits, outputs.distillation_logits), strict=True
            ):
                assert_close(x, y, "logits of one token")
        assert_gradients(nnx.merge(graph, gradients).to_hugging_face(), hf, tmp_path / "gradients")


@pytest.mark.parametrize("name", IMAGES)
def test_there_and_back(name: str, tmp_path: Path) -> None:
    """From a folder in bfloat16, of several files, and back the same bits; what is saved is opened by theirs."""
    hf = made(*IMAGES[name]).to(torch.bfloat16)
    assert_there_and_back(hf, tmp_path)


def assert_there_and_back(hf: Any, folder: Path) -> None:
    hf.save_pretrained(folder, max_shard_size="4KB")
    assert len(list(folder.glob("*.safetensors"))) > 1
    ours = models.load(folder)
    back, stored = ours.to_hugging_face(), files.load(folder)
    assert back.keys() == stored.keys()
    for name, x in stored.items():
        assert back[name].dtype == torch.bfloat16
        np.testing.assert_array_equal(files.to_numpy(back[name]).view(np.uint16), np.asarray(x).view(np.uint16))
    ours.save(folder / "again")
    again = type(hf).from_pretrained(folder / "again")
    assert again.state_dict().keys() == hf.state_dict().keys()
    for name, x in again.state_dict().items():
        assert torch.equal(x, hf.state_dict()[name]), name
    in_memory = type(ours).from_hugging_face(again.config.to_dict(), hf.state_dict())  # with names of their own
    assert all(torch.equal(x, back[name]) for name, x in in_memory.to_hugging_face().items())
