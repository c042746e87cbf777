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
from parity_tests.models.hugging_face.comparison import (
    SIDES,
    assert_all_close,
    assert_close,
    assert_gradients,
    assert_there_and_back,
    mask_of,
)
from parity_tests.models.hugging_face.vision import CLIPS, IMAGES, TEXTS, made
from parity_tests.nn import randomised

pytest.importorskip("transformers", reason="no transformers: families were not compared with its models")

# Heights and widths of images; transformers takes others than the model's own where that is square.
SIZES = {"own": None, "larger": (20, 20), "of another form": (12, 17)}
CASES = [(name, size) for name in IMAGES for size in SIZES if size == "own" or IMAGES[name][1]["image_size"] == 12]


def images_of(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(3, height, width, 2))


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
def test_equal_on_images(name: str, size: str, tmp_path: Path) -> None:
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
        assert_tower(out, outputs, last_of(hf, outputs))
        if kind.endswith("Teacher"):
            for x, y in zip(
                ours.each_output(out.hidden[-1]), (outputs.cls_logits, outputs.distillation_logits), strict=True
            ):
                assert_close(x, y, "logits of one token")
        assert_gradients(nnx.merge(graph, gradients).to_hugging_face(), hf, tmp_path / "gradients")


# Each with token 13, which ends it, but for the older ones, which end with the highest number.
TOKENS = np.array([[1, 4, 5, 13, 6, 13], [1, 13, 6, 6, 6, 6], [1, 4, 7, 8, 13, 16]])
TEXT_LENS = np.array([6, 2, 5])


def text_of(side: str) -> tuple[np.ndarray, np.ndarray]:
    """Tokens, with those of the padding on that side, and their mask."""
    left = np.stack([np.roll(row, -n) for row, n in zip(TOKENS, TEXT_LENS, strict=True)])
    return left if side == "left" else TOKENS, mask_of(side, TEXT_LENS)


def given_to(tokens: np.ndarray, mask: np.ndarray) -> dict[str, Any]:
    """Positions are those of real tokens."""
    positions = np.maximum(np.cumsum(mask, -1) - 1, 0)
    arrays = {"input_ids": tokens, "attention_mask": mask, "position_ids": positions}
    return {name: torch.from_numpy(x) for name, x in arrays.items()}


def assert_tower(ours: Any, theirs: Any, last: Any, real: np.ndarray | None = None) -> None:
    """Hidden states and weights; of texts those of real tokens."""
    real = np.ones(last.shape[:2], bool) if real is None else real
    assert_all_close(ours.hidden, [*theirs.hidden_states[:-1], last], real, "hidden state")
    assert_all_close(ours.weights, theirs.attentions, real, "weights")


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("name", TEXTS)
def test_equal_on_texts(name: str, side: str, tmp_path: Path) -> None:
    tokens, mask = text_of(side)
    if name == "older end of text":  # which looks at padding too: there it is low
        tokens = np.where(mask == 1, tokens, 0)
    with float64_throughout(), jax.enable_x64(True):
        hf = randomised(made(*TEXTS[name]))
        hf.save_pretrained(tmp_path / "model")
        ours = models.load(tmp_path / "model")
        assert isinstance(ours, models.CLIPText)
        outputs = hf(**given_to(tokens, mask), output_hidden_states=True, output_attentions=True)
        projected = "text_embeds" in outputs
        theirs = outputs.text_embeds if projected else outputs.pooler_output
        cotangent = np.random.default_rng(1).normal(size=tuple(theirs.shape))
        (theirs * torch.from_numpy(cotangent)).sum().backward()
        graph, state = nnx.split(ours)

        def loss(state: Any) -> Any:
            model: Any = nnx.merge(graph, state)
            given = {"attention_mask": jnp.asarray(mask)}
            out = model(jnp.asarray(tokens), **given, return_weights=True, return_hidden=True)
            vectors = out.output if projected else model.pooled(out.output, jnp.asarray(tokens), **given)
            return (vectors * cotangent).sum(), (vectors, out)

        gradients, (vectors, out) = jax.jit(jax.grad(loss, has_aux=True))(state)
        assert_close(vectors, theirs, "output")
        assert_tower(out, outputs, outputs.last_hidden_state, mask == 1)
        assert_gradients(nnx.merge(graph, gradients).to_hugging_face(), hf, tmp_path / "gradients")


@pytest.mark.parametrize("name", CLIPS)
def test_equal_on_both(name: str, tmp_path: Path) -> None:
    tokens, mask = text_of("right")
    with float64_throughout(), jax.enable_x64(True):
        hf = randomised(made(*CLIPS[name]))
        hf.save_pretrained(tmp_path / "model")
        ours = models.load(tmp_path / "model")
        assert isinstance(ours, models.CLIP)
        images = images_of(12, 12)[:2]
        outputs = hf(
            **given_to(np.where(mask == 1, tokens, 0), mask),
            pixel_values=torch.from_numpy(np.moveaxis(images, -1, 1)),
            output_hidden_states=True,
            output_attentions=True,
        )
        cotangent = np.random.default_rng(1).normal(size=(2, 3))
        (outputs.logits_per_image * torch.from_numpy(cotangent)).sum().backward()
        graph, state = nnx.split(ours)

        def loss(state: Any) -> Any:
            model: Any = nnx.merge(graph, state)
            given = {"attention_mask": jnp.asarray(mask), "return_weights": True, "return_hidden": True}
            out = model(jnp.asarray(tokens), jnp.asarray(images), **given)
            return (out.per_image * cotangent).sum(), out

        gradients, out = jax.jit(jax.grad(loss, has_aux=True))(state)
        assert_close(out.per_image, outputs.logits_per_image, "logits per image")
        assert_close(out.per_text, outputs.logits_per_text, "logits per text")
        assert_close(out.texts.output, outputs.text_embeds, "texts")
        assert_close(out.images.output, outputs.image_embeds, "images")
        text, vision = outputs.text_model_output, outputs.vision_model_output
        assert_tower(out.texts, text, text.last_hidden_state, mask == 1)
        assert_tower(out.images, vision, vision.last_hidden_state)
        assert_gradients(nnx.merge(graph, gradients).to_hugging_face(), hf, tmp_path / "gradients")


@pytest.mark.parametrize("case", [*IMAGES.values(), *TEXTS.values(), *CLIPS.values()], ids=lambda case: case[0])
def test_there_and_back(case: tuple[str, dict[str, Any]], tmp_path: Path) -> None:
    ours = assert_there_and_back(made(*case), tmp_path)
    assert ours.to_hugging_face().keys() == files.load(tmp_path).keys()


@pytest.mark.parametrize(("case", "prefix"), [(TEXTS["states"], "text_model."), (IMAGES["CLIP's"], "vision_model.")])
def test_older_files_of_towers(case: tuple[str, dict[str, Any]], prefix: str) -> None:
    """Their names have a prefix, and they hold the numbers of the positions."""
    hf = made(*case)
    older = {f"{prefix}{name}": x for name, x in hf.state_dict().items()}
    older[f"{prefix}embeddings.position_ids"] = torch.arange(9)[None]
    family = models.CLIPText if prefix == "text_model." else models.CLIPVision
    back = family.from_hugging_face(hf.config.to_dict(), older).to_hugging_face()
    assert back.keys() == hf.state_dict().keys()
    assert all(torch.equal(back[name], x) for name, x in hf.state_dict().items())


def test_a_bare_model_without_its_pooler(tmp_path: Path) -> None:
    """As DINO's files are."""
    hf = made(*IMAGES["ViT"])
    hf.pooler = None
    hf.save_pretrained(tmp_path / "bare")
    ours = models.load(tmp_path / "bare")
    assert isinstance(ours, models.ViT)
    assert ours.pooler is None
    ours.save(tmp_path / "again")
    stored, again = files.load(tmp_path / "bare"), files.load(tmp_path / "again")
    assert stored.keys() == again.keys()
    assert all(np.array_equal(again[name], x) for name, x in stored.items())
