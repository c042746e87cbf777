"""Models that see images: where patches lie, positions between the learned ones, and what is refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jattn import heads, models
from jattn.nn import Norm
from tests.models.hugging_face.texts import padded

BLOCK: dict[str, Any] = {"num_heads": 2, "feedforward_features": 12, "norm": "pre", "activation": "gelu"}
SIZES: dict[str, Any] = {"image_size": (6, 8), "patch_size": 2, "features": 8, "layers": [BLOCK, BLOCK], "channels": 2}
TEXT: dict[str, Any] = {"vocab_size": 20, "features": 8, "layers": [BLOCK, BLOCK], "norm": Norm(), "max_length": 7}
EOS = 13


def made(**options: Any) -> models.VisionEncoder:
    model = models.VisionEncoder(**{**SIZES, **options}, rngs=nnx.Rngs(0))
    model.eval()
    return model


def images_of(*shape: int) -> jax.Array:
    return jax.random.normal(jax.random.key(0), shape)


# ----------------------------------------------------------------------------------------------------------------------
# Images.


@pytest.mark.whole
@pytest.mark.parametrize("special_tokens", [1, 2])
def test_where_patches_lie(special_tokens: Any) -> None:
    """Another pixel in row 3 and column 7 is another patch in row 1 and column 3, and no other."""
    model, images = made(special_tokens=special_tokens), images_of(1, 6, 8, 2)
    before, after = (model(x, return_hidden=True).hidden[0] for x in (images, images.at[0, 3, 7, 1].add(1.0)))
    changed = np.abs(after - before).max(-1)[0] > 0
    expected = np.zeros((3, 4), bool)
    expected[1, 3] = True
    np.testing.assert_array_equal(model.on_grid(changed), expected)
    assert changed.sum() == 1
    assert model.grid() == (3, 4)
    assert model.grid(7, 5) == (3, 2)
    assert model.on_grid(jnp.zeros((2, special_tokens + 6)), 7, 5).shape == (2, 3, 2)


def test_a_patch_that_is_not_seen() -> None:
    model, images = made(output_features=5), images_of(2, 6, 8, 2)
    seen = jnp.ones((2, 13), int).at[:, 1 + 7].set(0)
    logits = [model(x, attention_mask=seen) for x in (images, images.at[:, 3, 7].add(1.0))]
    np.testing.assert_array_equal(*logits)
    assert np.abs(model(images) - logits[0]).max() > 1e-4


def test_outputs() -> None:
    images = images_of(2, 6, 8, 2)
    bare = made(pooler_features=5)
    states = bare(images)
    assert states.shape == (2, 13, 8)
    np.testing.assert_allclose(bare.pooled(states), jnp.tanh(bare.pooler(states[:, 0])), rtol=1e-6)
    two = made(special_tokens=2, output_features=5, num_outputs=2)
    out = two(images, return_hidden=True)
    each = two.each_output(out.hidden[-1])
    np.testing.assert_allclose(out.output, (each[0] + each[1]) / 2, rtol=1e-6)
    np.testing.assert_allclose(each[1], two.outputs[1](out.hidden[-1][:, 1]), rtol=1e-6)
    late = made(norm_over="special")
    np.testing.assert_allclose(late.pooled(late(images)), late.norm(late(images)[:, 0]), rtol=1e-6)


def keys_cubic(x: float) -> float:
    x = abs(x)
    if x <= 1:
        return 1.25 * x**3 - 2.25 * x**2 + 1
    return -0.75 * (x**3 - 5 * x**2 + 8 * x - 4) if x < 2 else 0.0


@pytest.mark.parametrize(("height", "width"), [(10, 6), (7, 9)])
def test_positions_between_learned_ones(height: int, width: int) -> None:
    model = made()
    rows, columns = model.grid(height, width)
    table = np.asarray(model.positions.embedding.embedding[...], np.float64)
    learned, expected = table[1:].reshape(3, 4, 8), np.zeros((rows, columns, 8))
    for i, j in np.ndindex(rows, columns):
        y, x = (i + 0.5) * 3 / rows - 0.5, (j + 0.5) * 4 / columns - 0.5
        for a, b in np.ndindex(11, 11):
            row, column = a - 4, b - 4
            factor = keys_cubic(y - row) * keys_cubic(x - column)
            expected[i, j] += factor * learned[min(max(row, 0), 2), min(max(column, 0), 3)]
    images = images_of(1, height, width, 2)
    hidden = model(images, interpolate_positions=True, return_hidden=True).hidden[0][0]
    patches = model.patches(images)[0]
    np.testing.assert_allclose(hidden[1:], (patches + expected).reshape(-1, 8), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(hidden[0], model.class_token[...] + table[0], rtol=1e-5, atol=1e-6)


def test_images_of_their_own_size_have_their_own_positions() -> None:
    model, images = made(), images_of(2, 6, 8, 2)
    np.testing.assert_array_equal(model(images), model(images, interpolate_positions=True))


def test_heads_can_be_looked_at_and_cut() -> None:
    model, images = made(output_features=5), images_of(2, 6, 8, 2)
    assert heads.counts(model) == {"blocks.0.attention": 2, "blocks.1.attention": 2}
    off = heads.gated(model, {"blocks.0.attention": jnp.array([1.0, 0.0])})
    pruned = heads.prune(model, {"blocks.0.attention": [1]})
    np.testing.assert_allclose(off(images), pruned(images), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("call", "phrases"),
    [
        (lambda: made()(images_of(2, 2, 6, 8)), ("images must have the axes", "2 channels", "jnp.moveaxis")),
        (lambda: made()(images_of(2, 6, 8, 3)), ("images must have the axes", "Got shape (2, 6, 8, 3).")),
        (lambda: made()(images_of(1, 2, 6, 8, 2)), ("images must have the axes", "(1, 2, 6, 8, 2)")),
        (lambda: made()(images_of(0, 6, 8, 2)), ("images must have the axes", "none of them empty", "(0, 6, 8, 2)")),
        (lambda: made()(images_of(2, 8, 8, 2)), ("images must be of 6 x 8 pixels", "interpolate_positions=True")),
        (lambda: made()(images_of(2, 8, 1, 2), interpolate_positions=True), ("as large as a patch, 2 x 2", "8 x 1")),
        (lambda: made().on_grid(jnp.zeros(12)), ("x must have 13 entries", "3 x 4", "Got shape (12,)")),
        (lambda: made(image_size=(6, 8, 2)), ("image_size must be a positive integer, or two", "(6, 8, 2)")),
        (lambda: made(num_outputs=2), ("num_outputs must be one of 1",)),
        (lambda: made(special_tokens=3), ("special_tokens must be one of 1, 2",)),
        (lambda: made(norm_over="class"), ("norm_over must be one of 'tokens', 'special'",)),
    ],
)
@pytest.mark.every_case
@pytest.mark.usefixtures("unchecked")
def test_errors(call: Callable[[], Any], phrases: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match=phrases[0].split()[0]) as raised:
        call()
    assert all(phrase in str(raised.value) for phrase in phrases), raised.value


# ----------------------------------------------------------------------------------------------------------------------
# Texts.


def clip_text(**options: Any) -> models.CLIPText:
    model = models.CLIPText(**{**TEXT, **options}, rngs=nnx.Rngs(0))
    model.eval()
    return model


@pytest.mark.parametrize(("eos", "place"), [(EOS, 2), (None, 3)])
def test_the_token_that_ends_a_text(eos: int | None, place: int) -> None:
    """The first of its number, or the one with the highest number."""
    model, tokens = clip_text(eos=eos), jnp.array([[1, 5, EOS, 17, EOS, 17]])
    states = model(tokens)
    np.testing.assert_array_equal(model.pooled(states, tokens), states[:, place])


@pytest.mark.whole
@pytest.mark.parametrize("eos", [EOS, None])
def test_padding_changes_nothing(eos: int | None) -> None:
    """Not even if it is what texts end with, as CLIP's tokenizer has it."""
    texts = [[1, 4, 5, EOS], [1, 6, EOS], [EOS]]
    with jax.enable_x64(True):
        model = clip_text(eos=eos, output_features=3, param_dtype=jnp.float64)
        alone = np.concatenate([model(jnp.array([text])) for text in texts])
        for side in ("left", "right"):
            tokens, real = padded(texts, side, EOS)
            found = model(tokens, attention_mask=real)
            np.testing.assert_allclose(found, alone, rtol=1e-12, atol=1e-12)
        found = model(tokens, valid_lens=jnp.array([4, 3, 1]))
        np.testing.assert_allclose(found, alone, rtol=1e-12, atol=1e-12)


def test_a_text_without_an_end() -> None:
    model = clip_text(eos=EOS, output_features=3)
    with pytest.raises(ValueError, match=r"tokens must have eos, 13, in each text"):
        model(jnp.array([[1, EOS, 2], [1, 2, 3]]))
    with pytest.raises(ValueError, match="tokens must have eos"):
        model(jnp.array([[1, 2, EOS]]), valid_lens=jnp.array([2]))


# ----------------------------------------------------------------------------------------------------------------------
# Both, and their settings.

TOWER: dict[str, Any] = {"hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2}
CONFIG: dict[str, Any] = {
    "model_type": "clip",
    "projection_dim": 6,
    "text_config": {**TOWER, "vocab_size": 20, "eos_token_id": 13, "max_position_embeddings": 7},
    "vision_config": {**TOWER, "image_size": 8, "patch_size": 4},
}
# What the first files have in a tower's settings beside its sizes.
FIRST_FILES: dict[str, Any] = {
    "add_cross_attention": False,
    "attention_dropout": 0.0,
    "dropout": 0.0,
    "initializer_factor": 1.0,
    "is_decoder": False,
    "num_beams": 1,
    "pruned_heads": {},
    "tie_encoder_decoder": False,
    "tie_word_embeddings": True,
    "torch_dtype": None,
}


def clip_of(config: dict[str, Any]) -> models.CLIP:
    model = models.CLIP(**models.CLIP.hugging_face.arguments(config), rngs=nnx.Rngs(0))
    model.eval()
    return model


def test_vectors_have_length_one() -> None:
    model, images = clip_of(CONFIG), images_of(3, 8, 8, 3)
    tokens = jnp.array([[1, 2, EOS], [1, EOS, 0]])
    out = model(tokens, images)
    np.testing.assert_allclose(jnp.linalg.norm(out.texts, axis=-1), np.ones(2), rtol=1e-6)
    np.testing.assert_allclose(out.images, model.embed_images(images), rtol=1e-6)
    np.testing.assert_allclose(out.per_image, np.exp(2.6592) * out.images @ out.texts.T, rtol=1e-5)
    np.testing.assert_array_equal(out.per_image, out.per_text.T)
    asked = model(tokens, images, return_weights=True)
    assert [x.shape for x in asked.texts.weights] == [(2, 2, 3, 3)]
    assert [x.shape for x in asked.images.weights] == [(3, 2, 5, 5)]


@pytest.mark.parametrize(
    ("changed", "phrases"),
    [
        ({"text_config": {**CONFIG["text_config"], "rope": 2}}, ("text_config of this config", "rope=2")),
        ({"vision_config": {**CONFIG["vision_config"], "window": 7}}, ("vision_config of this config", "window=7")),
        ({"vision_config": {**CONFIG["vision_config"], "pruned_heads": {"0": [1]}}}, ("pruned_heads must be {}",)),
        ({"text_config_dict": {"rope": 2}}, ("text_config_dict of this config", "rope=2")),
        ({"text_config": 3}, ("text_config of this config", "it must be a dict. Got 3.")),
        ({"rope": 2}, ("settings that are known here", "rope=2")),
        ({"architectures": ["CLIPForImageClassification"]}, ("architectures must be None or ['CLIPModel']",)),
        ({"text_config": {**CONFIG["text_config"], "hidden_act": "prelu"}}, ("text_config of", "hidden_act", "prelu")),
        ({"text_config": {**CONFIG["text_config"], "eos_token_id": [3]}}, ("config's eos_token_id", "[3]")),
    ],
)
@pytest.mark.every_case
def test_settings_that_are_refused(changed: dict[str, Any], phrases: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="config") as raised:
        models.CLIP.hugging_face.arguments({**CONFIG, **changed})
    assert all(phrase in str(raised.value) for phrase in phrases), raised.value


def test_settings_of_the_first_files() -> None:
    """Those that have no effect are taken, and those under the older name go before those under the newer."""
    arguments = models.CLIP.hugging_face.arguments
    first = {**CONFIG, "text_config": {**CONFIG["text_config"], **FIRST_FILES, "eos_token_id": 2}}
    assert arguments(first)["text"] == {**arguments(CONFIG)["text"], "eos": None}
    older = arguments({**CONFIG, "vision_config_dict": {"hidden_size": 1024, "patch_size": 14}})["vision"]
    assert (older["features"], older["patch_size"], older["image_size"], len(older["layers"])) == (1024, 14, 224, 12)


@pytest.mark.parametrize("kind", [models.ViT, models.DeiT])
def test_architectures_that_are_refused(kind: type[models.ViT] | type[models.DeiT]) -> None:
    config = {**TOWER, "model_type": kind.__name__.lower()}
    name = f"{kind.__name__}ForMaskedImageModeling"
    with pytest.raises(ValueError, match=rf"architectures must be None or .* Got \['{name}'\]"):
        kind.hugging_face.arguments({**config, "architectures": [name]})
    classes = {"architectures": [f"{kind.__name__}ForImageClassification"]}
    arguments = kind.hugging_face.arguments
    assert arguments({**config, **classes})["output_features"] == 2
    assert arguments({**config, **classes, "id2label": {"0": "a", "1": "b", "2": "c"}})["output_features"] == 3
    with pytest.raises(ValueError, match=r"id2label must be a dict\. Got 3\."):
        arguments({**config, **classes, "id2label": 3})
    with pytest.raises(ValueError, match=r"qkv_bias must be True or False\. Got 'yes'\."):
        arguments({**config, "qkv_bias": "yes"})
    assert arguments(config)["output_features"] is None
    assert arguments(config)["pooler_features"] == 8


@pytest.mark.whole
def test_saved_and_loaded(tmp_path: Path) -> None:
    pytest.importorskip("safetensors", reason="no safetensors: no folder was saved")
    model = clip_of(CONFIG)
    model.save(tmp_path / "clip", config=CONFIG)
    again = models.load(tmp_path / "clip")
    assert isinstance(again, models.CLIP)
    tokens, images = jnp.array([[1, 2, EOS]]), images_of(2, 8, 8, 3)
    np.testing.assert_array_equal(again(tokens, images).per_image, model(tokens, images).per_image)


def test_a_file_without_a_pooler(tmp_path: Path) -> None:
    """As some bare models are; it is neither made up, nor missed when the model is saved."""
    pytest.importorskip("safetensors", reason="no safetensors: no folder was saved")
    config = {**TOWER, "model_type": "vit", "image_size": 8, "patch_size": 4}
    model = models.ViT(**{**models.ViT.hugging_face.arguments(config), "pooler_features": None}, rngs=nnx.Rngs(0))
    model.save(tmp_path / "vit", config=config)
    again = models.load(tmp_path / "vit")
    assert isinstance(again, models.ViT)
    assert again.pooler is None
    images = images_of(2, 8, 8, 3)
    model.eval()
    np.testing.assert_array_equal(again.pooled(again(images)), model(images)[:, 0])
