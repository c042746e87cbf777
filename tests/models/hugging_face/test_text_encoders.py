"""The text encoder that all families share, and heads on it: padding on any side, packed texts, what is refused."""

import json
import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jattn import models
from jattn.models.hugging_face.family import FAMILIES
from jattn.nn import Norm, Rotary, TransformerBlock
from jattn.weights import files
from tests.models.hugging_face.texts import assert_padding_and_packing_change_nothing, drawn, padded

V, M = 23, 8
POST: dict[str, Any] = {"num_heads": 2, "feedforward_features": 12}
PRE: dict[str, Any] = {**POST, "norm": "pre", "gated": True, "use_bias": False, "feedforward_bias": False}
KINDS: dict[str, dict[str, Any]] = {
    "learned": {"layers": [POST, POST], "first_position": 2, "num_token_types": 2, "embedding_features": 6},
    "rotary": {
        "layers": [{**PRE, "first_norm": False, "rotary": Rotary(50.0)}, {**PRE, "rotary": Rotary(9.0), "window": 2}],
        "learned_positions": False,
        "final_norm": Norm("layer", use_bias=False),
    },
    "relative": {"layers": [POST, POST], "relative_buckets": 8},
}
LENS = (6, 4, 3)


@pytest.fixture(scope="module")
def texts() -> list[np.ndarray]:
    return drawn(V, LENS)


def made(kind: str, **types: Any) -> models.TextEncoder:
    """With random numbers throughout: a table of biases is zero at first."""
    model = models.TextEncoder(V, features=M, max_length=12, norm=Norm(), **KINDS[kind], **types, rngs=nnx.Rngs(0))
    model.eval()
    graph, state = nnx.split(model)
    rng = np.random.default_rng(0)
    return nnx.merge(graph, jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), x.dtype), state))


@pytest.mark.whole
@pytest.mark.parametrize("kind", KINDS)
def test_padding_and_packing_change_nothing(kind: str, texts: list[np.ndarray]) -> None:
    with jax.enable_x64(True):
        assert_padding_and_packing_change_nothing(made(kind, param_dtype=jnp.float64), texts)


@pytest.mark.whole
@pytest.mark.parametrize("pooling", [None, "first", "mean"])
def test_heads_see_real_tokens_alone(pooling: Any, texts: list[np.ndarray]) -> None:
    with jax.enable_x64(True):
        head = models.EncoderHead(M, 3, pooling=pooling, dense_features=5, norm=Norm(), rngs=nnx.Rngs(0))
        model = models.EncoderWithHead(made("learned"), head)
        alone = [np.asarray(model(jnp.asarray(text)[None]))[0] for text in texts]
        assert alone[0].shape == ((6, 3) if pooling is None else (3,))
        for side in ("left", "right"):
            tokens, real = padded(texts, side)
            every = [model(tokens, attention_mask=real)]
            every += [] if side == "left" else [model(tokens, jnp.array(LENS))]
            for logits in every:
                for i, expected in enumerate(alone):
                    found = np.asarray(logits)[i] if pooling else np.asarray(logits)[i][real[i] == 1]
                    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_what_a_model_with_a_head_returns() -> None:
    model = models.EncoderWithHead(made("relative"), models.EncoderHead(M, V, tied=True, rngs=nnx.Rngs(0)))
    tokens = jnp.ones((2, 5), int)
    out = model(tokens, return_hidden=True, return_weights=True)
    assert [x.shape for x in out.hidden] == [(2, 5, M)] * 3
    assert [x.shape for x in out.weights] == [(2, 2, 5, 5)] * 2
    np.testing.assert_allclose(model.encoder.words.attend(out.hidden[-1]), out.output, rtol=1e-6)
    np.testing.assert_array_equal(model(tokens, return_weights=True).output, model(tokens))
    with pytest.raises(ValueError, match="embedding must be given to a head with tied=True"):
        model.head(out.hidden[-1])
    with pytest.raises(ValueError, match="model must have the architecture of a model of transformers"):
        model.save("nowhere")


@pytest.mark.usefixtures("unchecked")
def test_a_head_takes_what_an_encoder_takes() -> None:
    head = models.EncoderHead(M, 3, pooling="first", rngs=nnx.Rngs(0))
    model = models.EncoderWithHead(made("relative"), head)
    given: Any = [[1, 2, 3]]
    np.testing.assert_array_equal(
        model(given, attention_mask=[[0, 1, 1]]), model(jnp.array(given), attention_mask=jnp.array([[0, 1, 1]]))
    )
    with pytest.raises(ValueError, match="tokens must be an array"):
        model("text")


def test_what_an_encoder_lacks() -> None:
    tokens = jnp.ones((1, 13), int)
    with pytest.raises(ValueError, match=r"tokens must have at most max_length = 12 positions. Got 13"):
        made("learned")(tokens)
    assert made("rotary")(tokens).shape == (1, 13, M)
    with pytest.raises(ValueError, match="token_types must be None for a model without types of tokens"):
        made("rotary")(tokens, token_types=jnp.zeros((1, 13), int))
    with pytest.raises(ValueError, match=r"model must be of a family that transformers knows. Got a TextEncoder"):
        made("rotary").to_hugging_face()


def test_a_block_without_a_first_norm() -> None:
    sizes: dict[str, Any] = {"num_heads": 2, "features": M, "feedforward_features": 12, "rngs": nnx.Rngs(0)}
    block, x = TransformerBlock(norm="pre", first_norm=False, **sizes), jnp.ones((1, 3, M)) * jnp.arange(M)
    attended = x + block.attention(x)
    np.testing.assert_allclose(block(x), attended + block.feed_forward(block.norm2(attended)), rtol=1e-5)
    with pytest.raises(ValueError, match=r'first_norm must be True unless norm="pre". Got False, with norm=\'post\''):
        TransformerBlock(first_norm=False, **sizes)


def test_dropout_of_the_network_alone() -> None:
    """A block whose network gives nothing drops nothing then."""
    sizes: dict[str, Any] = {"num_heads": 2, "features": M, "feedforward_features": 12, "rngs": nnx.Rngs(0)}
    x, rng = jnp.ones((1, 3, M)) * jnp.arange(M), jax.random.key(0)
    for rates, dropped in {(0.0, 0.9): False, (0.9, 0.0): True, 0.9: True}.items():
        block = TransformerBlock(norm="pre", residual_dropout_rate=rates, **sizes)
        block.feed_forward.linear2.kernel[...] = jnp.zeros((12, M))
        trained = block(x, rng=rng)
        block.eval()
        assert np.allclose(trained, block(x)) == (not dropped)


# ----------------------------------------------------------------------------------------------------------------------
# BERT.


def bert(**options: Any) -> models.Bert:
    sizes: dict[str, Any] = dict(
        vocab_size=8, features=12, num_heads=3, num_layers=2, feedforward_features=10, max_length=20
    )
    encoder = models.Bert(**{**sizes, **options}, rngs=nnx.Rngs(0))
    encoder.eval()
    return encoder


@pytest.mark.whole
def test_padding_of_bert_has_no_influence() -> None:
    tokens = jnp.array([[1, 4, 5, 2, 0, 0], [1, 4, 5, 2, 6, 7]])
    hidden, weights = bert()(tokens, jnp.array([4, 4]), return_weights=True)
    np.testing.assert_array_equal(hidden[0, :4], hidden[1, :4])
    for layer in weights:
        np.testing.assert_allclose(layer[..., :4].sum(-1), 1, atol=1e-6)
        assert not np.any(layer[..., 4:])


@pytest.mark.whole
def test_dropout_of_bert_needs_rng_and_changes_the_output() -> None:
    tokens = jnp.array([[1, 4, 2]])
    training = bert(num_layers=1, dropout_rate=0.5)
    training.train()
    with pytest.raises(ValueError, match=r"rng must be given when dropout_rate is above 0"):
        training(tokens)
    compiled = nnx.jit(lambda model, rng: model(tokens, rng=rng))
    one, same, other = (compiled(training, jax.random.key(seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, same)
    assert not np.allclose(one, other)
    training.eval()
    np.testing.assert_array_equal(training(tokens), bert(num_layers=1)(tokens))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(tokens=[[8]]), "tokens must lie between 0 and 7, the vocabulary. Got 8."),
        (dict(tokens=[1, 2]), "tokens must have the axes b t, none of them empty. Got shape (2,)."),
        (dict(tokens=[[1] * 21]), "tokens must have at most max_length = 20 positions. Got 21."),
        (dict(tokens=[[1]], token_types=[[2]]), "token_types must lie between 0 and 1"),
        (
            dict(tokens=[[1, 2]], token_types=[[0]]),
            "token_types must have one entry for each of tokens, shape (1, 2). Got shape (1, 1).",
        ),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_errors_of_bert(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        bert()(**{name: jnp.array(x) for name, x in arguments.items()})


# ----------------------------------------------------------------------------------------------------------------------
# Folders.

SETTINGS: dict[str, Any] = {
    **{"vocab_size": V, "hidden_size": M, "intermediate_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2},
    **{"max_position_embeddings": 12, "type_vocab_size": 1, "pad_token_id": 1},
    **{"dim": M, "hidden_dim": 12, "n_layers": 1, "n_heads": 2},
}
# Of one family; the others' are refused.
OWN = {"distilbert": ("dim", "hidden_dim", "n_layers", "n_heads", "vocab_size", "max_position_embeddings")}
ENCODERS = {name: cls for name, cls in FAMILIES.items() if issubclass(cls, models.TextEncoder)}


def settings(kind: str, architecture: str | None = None) -> dict[str, Any]:
    left_out = {"dim", "hidden_dim", "n_layers", "n_heads"}
    if kind in ("mpnet", "modernbert"):
        left_out |= {"type_vocab_size"}
    own = OWN.get(kind, SETTINGS.keys() - left_out)
    return {**{name: SETTINGS[name] for name in own}, "model_type": kind, "architectures": [architecture]}


@pytest.mark.parametrize("kind", ENCODERS)
def test_each_architecture_there_and_back(kind: str, tmp_path: Path) -> None:
    pytest.importorskip("safetensors", reason="no safetensors: no folder was saved")
    family = ENCODERS[kind].hugging_face
    for architecture in family.heads:
        config = {**settings(kind, architecture), "id2label": {"0": "a", "1": "b", "2": "c"}}
        model = models.EncoderWithHead._blank(config)
        graph, state = nnx.split(model)
        rng = np.random.default_rng(0)
        state = jax.tree.map(lambda x, rng=rng: jnp.asarray(rng.normal(size=x.shape), x.dtype), state)
        model = nnx.merge(graph, state)
        model.eval()
        model.save(tmp_path / architecture, config=config)
        again = models.load(tmp_path / architecture)
        assert again.architecture == architecture
        assert json.loads(again.config)["id2label"]["2"] == "c"
        tokens = jnp.array([[4, 5, 6, 7]])
        logits = again(tokens)
        np.testing.assert_array_equal(logits, model(tokens))
        encoder = models.TextEncoder.from_folder(tmp_path / architecture)
        assert type(encoder) is ENCODERS[kind]
        np.testing.assert_array_equal(encoder(tokens), model.encoder(tokens))


def test_no_head_is_left_out_without_a_word(tmp_path: Path) -> None:
    pytest.importorskip("safetensors", reason="no safetensors: no folder was saved")
    config = settings("roberta", "RobertaForTokenClassification")
    models.EncoderWithHead._blank(config).save(tmp_path, config=config)
    for architectures, message in {
        (
            "RobertaModel",
        ): r"config must have architectures that say what .* Got \['RobertaModel'\], and classifier.bias",
        None: "Got None, and classifier.bias, classifier.weight. jattn.models.TextEncoder.from_folder gives",
        ("RobertaForMultipleChoice",): "config's architectures must be one of RobertaModel, RobertaForMaskedLM",
        ("RobertaForMaskedLM",): "finds no name",
    }.items():
        names = None if architectures is None else list(architectures)
        (tmp_path / "config.json").write_text(json.dumps({**config, "architectures": names}))
        with pytest.raises(ValueError, match=message):
            models.load(tmp_path)
        assert isinstance(models.TextEncoder.from_folder(tmp_path), models.Roberta)


def test_a_file_like_the_official_ones(tmp_path: Path) -> None:
    """BERT's say that they have one head, have two and a pooler, and name norms in an old way."""
    pytest.importorskip("safetensors", reason="no safetensors: no folder was saved")
    config = settings("bert", "BertForMaskedLM")
    models.EncoderWithHead._blank(config).save(tmp_path, config=config)
    entries = files.load(tmp_path)
    old = {
        name.replace("Norm.weight", "Norm.gamma").replace("Norm.bias", "Norm.beta"): np.full_like(x, 2)
        for name, x in entries.items()
        if name not in ("cls.predictions.decoder.weight", "cls.predictions.decoder.bias")
    }
    beside = {
        "bert.pooler.dense.bias": np.ones(M, np.float32),
        "cls.seq_relationship.bias": np.ones(2, np.float32),
        "bert.embeddings.position_ids": np.arange(12)[None],
    }
    files.save(tmp_path / "model.safetensors", {**old, **beside})
    model = models.load(tmp_path)
    assert all((x == 2).all() for x in jax.tree.leaves(nnx.state(model, nnx.Param)))
    assert model.architecture == "BertForMaskedLM"


def test_a_folder_of_another_kind(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    with pytest.raises(
        ValueError, match=r"config must be of a model with a model_type among bert, camembert, .*'gpt2'"
    ):
        models.TextEncoder.from_hugging_face({"model_type": "gpt2"}, {})
    with pytest.raises(ValueError, match=r"a model_type among bloom, .*'bert'"):
        models.TextDecoder.from_hugging_face({"model_type": "bert"}, {})
    with pytest.raises(ValueError, match=r"config's architectures must be one with a head. Got None"):
        models.EncoderWithHead.from_hugging_face({"model_type": "bert"}, {})


@pytest.mark.parametrize("kind", ["roberta", "mpnet"])
def test_tied_weights_alone(kind: str) -> None:
    architecture = {"roberta": "RobertaForMaskedLM", "mpnet": "MPNetForMaskedLM"}[kind]
    with pytest.raises(ValueError, match=r"tie_word_embeddings must be True, .* two biases"):
        models.EncoderWithHead._blank({**settings(kind, architecture), "tie_word_embeddings": False})
