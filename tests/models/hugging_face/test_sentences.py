"""Sentences to vectors, without PyTorch: batches, pooling, folders, errors."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jattn._engine.buckets import bucket
from jattn.models import Bert, SentenceEncoder, TextEncoder, pool
from jattn.models.hugging_face.sentences import TOKENS_PER_BATCH, plan_batches
from jattn.weights import files

tokenizers = pytest.importorskip("tokenizers")
pytest.importorskip("safetensors")

WORDS = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "a", "b", "c", "d"]
CONFIG = {
    "model_type": "bert",
    "architectures": ["BertModel"],
    "vocab_size": len(WORDS),
    "hidden_size": 12,
    "num_attention_heads": 3,
    "num_hidden_layers": 2,
    "intermediate_size": 10,
    "max_position_embeddings": 20,
    "type_vocab_size": 2,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
    "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.1,
}
MODULES = [
    {"path": "", "type": "sentence_transformers.models.Transformer"},
    {"path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
    {"path": "2_Normalize", "type": "sentence_transformers.models.Normalize"},
]


def words() -> Any:
    """A tokenizer of single words, that puts [CLS] in front and [SEP] behind."""
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel({w: i for i, w in enumerate(WORDS)}, "[UNK]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    tokenizer.enable_padding(length=15)  # as all-MiniLM's own file has it
    return tokenizer


@pytest.fixture(scope="module")
def encoder() -> Bert:
    return model()


def model(**options: Any) -> Bert:
    encoder = Bert(**{**Bert.hugging_face.arguments(CONFIG), **options}, rngs=nnx.Rngs(0))
    encoder.eval()
    return encoder


def hugging_face_names(encoder: Bert) -> dict[str, np.ndarray]:
    """The file that Hugging Face would have written, spelt out by hand."""
    p = {
        "embeddings.word_embeddings.weight": encoder.words.embedding,
        "embeddings.position_embeddings.weight": encoder.positions.embedding.embedding,
        "embeddings.token_type_embeddings.weight": encoder.token_types.embedding,
        "embeddings.LayerNorm.weight": encoder.norm.scale,
        "embeddings.LayerNorm.bias": encoder.norm.bias,
    }
    entries = {name: np.asarray(parameter[...]) for name, parameter in p.items()}
    for i, block in enumerate(encoder.blocks):
        layer = f"encoder.layer.{i}"
        linears = {
            "attention.self.query": block.attention.query,
            "attention.self.key": block.attention.key,
            "attention.self.value": block.attention.value,
            "attention.output.dense": block.attention.out,
            "intermediate.dense": block.feed_forward.linear1,
            "output.dense": block.feed_forward.linear2,
        }
        for name, linear in linears.items():
            bias = np.asarray(linear.bias[...]).reshape(-1)
            entries[f"{layer}.{name}.weight"] = np.asarray(linear.kernel[...]).reshape(-1, bias.size).T
            entries[f"{layer}.{name}.bias"] = bias
        for name, norm in (("attention.output", block.norm1), ("output", block.norm2)):
            entries[f"{layer}.{name}.LayerNorm.weight"] = np.asarray(norm.scale[...])
            entries[f"{layer}.{name}.LayerNorm.bias"] = np.asarray(norm.bias[...])
    return entries


@pytest.fixture
def folder(tmp_path: Path, encoder: Bert) -> Path:
    beside = {"pooler.dense.bias": np.ones(12, np.float32), "embeddings.position_ids": np.arange(20)[None]}
    files.save(tmp_path / "model.safetensors", {**hugging_face_names(encoder), **beside})
    words().save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "1_Pooling").mkdir()
    write(tmp_path, "config.json", CONFIG)
    write(tmp_path, "modules.json", MODULES)
    write(tmp_path, "1_Pooling/config.json", {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False})
    write(tmp_path, "sentence_bert_config.json", {"max_seq_length": 9, "do_lower_case": False})
    return tmp_path


def write(folder: Path, name: str, content: Any) -> None:
    (folder / name).write_text(json.dumps(content))


# ----------------------------------------------------------------------------------------------------------------------
# Pooling, and batches.


def test_pool() -> None:
    hidden = jnp.array([[[1.0, 5.0], [3.0, 1.0], [9.0, 9.0]], [[-1.0, 0.0], [-2.0, 0.0], [-3.0, 6.0]]])
    valid_lens = jnp.array([2, 3])
    np.testing.assert_array_equal(pool(hidden, valid_lens), [[2, 3], [-2, 2]])
    np.testing.assert_array_equal(pool(hidden, valid_lens, "max"), [[3, 5], [-1, 6]])
    np.testing.assert_array_equal(pool(hidden, valid_lens, "cls"), [[1, 5], [-1, 0]])
    np.testing.assert_array_equal(pool(hidden, valid_lens, "lasttoken"), [[3, 1], [-3, 6]])
    expected = np.array([[4, 6], [-6, 6]]) / np.sqrt([[2], [3]])
    np.testing.assert_allclose(pool(hidden, valid_lens, "mean_sqrt_len"), expected, rtol=1e-6)
    expected = [[(1 + 2 * 3) / 3, (5 + 2) / 3], [(-1 - 4 - 9) / 6, 18 / 6]]
    np.testing.assert_allclose(pool(hidden, valid_lens, "weightedmean"), expected, rtol=1e-6)
    np.testing.assert_array_equal(jax.jit(lambda x: pool(x, valid_lens))(hidden), [[2, 3], [-2, 2]])


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            dict(mode="sum"),
            "mode must be one of 'mean', 'cls', 'max', 'mean_sqrt_len', 'weightedmean', 'lasttoken'. Got",
        ),
        (dict(valid_lens=jnp.array([2])), "valid_lens must have shape (2,). Got (1,)."),
        (dict(valid_lens=jnp.array([0, 3])), "valid_lens must lie between 1 and 3, all tokens. Got [0 3]."),
        (dict(valid_lens=jnp.array([4, 3])), "valid_lens must lie between 1 and 3, all tokens. Got [4 3]."),
        (dict(hidden=jnp.ones((2, 3))), "hidden must have the axes b t m. Got shape (2, 3)."),
    ],
)
def test_errors_of_pool(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        pool(**{"hidden": jnp.ones((2, 3, 4)), "valid_lens": jnp.array([2, 3]), **change})


def test_buckets() -> None:
    """Each fits and wastes less than a quarter, and there are few."""
    lengths = {n: bucket(n) for n in range(1, 513)}
    assert all(n <= length < 1.25 * n for n, length in lengths.items())
    assert len(set(lengths.values())) == 8 + 6 * 4


@pytest.mark.parametrize("n", [0, 1, 5, 300])
def test_plan_holds_each_sentence_once(n: int) -> None:
    lengths = np.random.default_rng(n).integers(1, 257, n)
    batches = list(plan_batches(lengths, 256))
    assert sorted(i for batch in batches for i in batch.indices) == list(range(n))
    for batch in batches:
        assert 0 < len(batch.indices) <= batch.rows
        assert lengths[batch.indices].max() <= batch.length <= 256
        assert batch.rows * batch.length <= TOKENS_PER_BATCH or batch.rows == 1


# ----------------------------------------------------------------------------------------------------------------------
# Sentences.


def test_embeddings_are_the_definition_in_the_order_given() -> None:
    """Whatever they are batched with: one by one, unpadded, pooled and normalised in NumPy."""
    encoder, rng = model(num_layers=1), np.random.default_rng(0)
    compiled = nnx.jit(encoder)
    sentences = [" ".join(rng.choice(list("abcde"), n)) for n in rng.integers(0, 30, 100)]
    embedded = SentenceEncoder(encoder, words()).embed(sentences)
    assert embedded.shape == (100, 12)
    for i in (0, 1, 17, 50, 98, 99):
        ids = [1, *[WORDS.index(w) if w in WORDS else 3 for w in sentences[i].split()][:18], 2]
        mean = np.asarray(compiled(jnp.array([ids])), np.float64)[0].mean(axis=0)
        np.testing.assert_allclose(embedded[i], mean / np.linalg.norm(mean), atol=1e-5)


def test_no_sentences_and_empty_ones(encoder: Bert) -> None:
    embed = SentenceEncoder(encoder, words(), normalize=False).embed
    assert embed([]).shape == (0, 12)
    np.testing.assert_allclose(embed([""])[0], encoder(jnp.array([[1, 2]]))[0].mean(0), atol=1e-6)
    np.testing.assert_array_equal(embed(("", " \n"))[0], embed(["", ""])[1])


def test_a_sentence_without_any_token(encoder: Bert) -> None:
    tokenizer = words()
    tokenizer.post_processor = tokenizers.processors.Sequence([])
    embedded = SentenceEncoder(encoder, tokenizer).embed(["a", "", "b"])
    np.testing.assert_allclose(np.linalg.norm(embedded, axis=-1), [1, 0, 1], atol=1e-6)


def test_long_texts_are_cut(encoder: Bert) -> None:
    embed = SentenceEncoder(encoder, words(), max_length=5).embed
    np.testing.assert_array_equal(embed(["a b c"]), embed(["a b c d d d d d d d d d d d d d d d d d d d d d"]))


def test_present_parameters_are_used() -> None:
    """Also after one call has compiled with others."""
    encoder = model()
    sentences = SentenceEncoder(encoder, words())
    before = sentences.embed(["a b"])
    encoder.words.embedding[...] = 2 * encoder.words.embedding[...]
    assert not np.allclose(before, sentences.embed(["a b"]))


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("sentences", "message"),
    [
        ("a b", "sentences must be several strings. Got one, 'a b'. Pass it in a list."),
        (["a", 5], "sentences must be strings. Got int at index 1."),
        ([None], "sentences must be strings. Got NoneType at index 0."),
        ([b"a"], "sentences must be strings. Got bytes at index 0."),
        (5, "sentences must be several strings. Got int."),
        (["a", "b\ud800"], "sentences must be Unicode text. Got a lone surrogate at index 1."),
    ],
)
def test_errors_of_sentences(encoder: Bert, sentences: Any, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        SentenceEncoder(encoder, words()).embed(sentences)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(max_length=21), "max_length must lie between 2 and the encoder's 20. Got 21."),
        (dict(max_length=1), "max_length must lie between 2 and the encoder's 20. Got 1."),
        (dict(pooling="sum"), "pooling must be one of 'mean', 'cls', 'max', 'mean_sqrt_len', 'weightedmean', 'last"),
    ],
)
def test_errors_of_the_sentence_encoder(encoder: Bert, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        SentenceEncoder(encoder, words(), **options)


def test_a_tokenizer_of_another_model_is_refused() -> None:
    with pytest.raises(ValueError, match=r"tokenizer must have no token beyond the encoder's 5\. Got 7\."):
        SentenceEncoder(model(vocab_size=5), words())


# ----------------------------------------------------------------------------------------------------------------------
# Folders.


def test_folder(folder: Path, encoder: Bert) -> None:
    loaded = SentenceEncoder.from_folder(folder)
    assert (loaded.pooling, loaded.normalize, loaded.max_length) == ("mean", True, 9)
    expected = SentenceEncoder(encoder, words(), max_length=9).embed(["a b", "c " * 30])
    np.testing.assert_array_equal(loaded.embed(["a b", "c " * 30]), expected)


def test_old_names_and_heads(folder: Path, encoder: Bert) -> None:
    """As in the file of bert-base-uncased."""
    entries = {
        "bert." + name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): x
        for name, x in hugging_face_names(encoder).items()
    }
    files.save(folder / "model.safetensors", {**entries, "cls.predictions.bias": np.ones(8, np.float32)})
    tokens = jnp.array([[1, 4, 2]])
    np.testing.assert_array_equal(TextEncoder.from_folder(folder)(tokens), encoder(tokens))


def test_other_dtypes(folder: Path) -> None:
    assert SentenceEncoder.from_folder(folder, param_dtype=jnp.bfloat16).embed(["a"]).dtype == jnp.bfloat16
    with jax.enable_x64(True):
        assert SentenceEncoder.from_folder(folder, param_dtype="float64").embed(["a"]).dtype == np.float64


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("config.json", {**CONFIG, "model_type": "gpt2"}, "model_type among bert"),
        ("config.json", {**CONFIG, "architectures": ["BertLMHeadModel"]}, "Got ['BertLMHeadModel']."),
        ("config.json", {**CONFIG, "hidden_act": "prelu"}, "config's hidden_act must be one of 'gelu'"),
        *[
            ("config.json", {**CONFIG, name: value}, f"{name} must be {must}. Got {value!r}.")
            for name, value, must in [
                ("position_embedding_type", "relative_key", "'absolute'"),
                ("is_decoder", True, "False"),
                ("add_cross_attention", True, "False"),
                ("quantization_config", {"bits": 4}, "None"),
            ]
        ],
        ("config.json", {"model_type": "bert"}, "config must have vocab_size. Got the settings model_type."),
        (
            "config.json",
            {**CONFIG, "hidden_size": "12"},
            "config's hidden_size must be an integer in [1, inf). Got '12'.",
        ),
        (
            "sentence_bert_config.json",
            {"max_seq_length": "x"},
            "max_seq_length in sentence_bert_config.json must be a number in [1, inf). Got 'x'.",
        ),
        ("config.json", [1], "config.json must hold a dict. Got a list."),
        ("config.json", {**CONFIG, "num_hidden_layers": 1}, "unknown: blocks.1."),
        (
            "modules.json",
            [*MODULES, {"path": "3_Dense", "type": "x.Dense"}],
            "in this order: nothing else is implemented. Got Transformer, Pooling, Normalize, Dense.",
        ),
        (
            "1_Pooling/config.json",
            {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True},
            "must be one of mean, cls, max, mean_sqrt_len, weightedmean, lasttoken: nothing else is implemented. Got "
            "mean_tokens and cls_token.",
        ),
        ("modules.json", [1], "modules.json must have a type and a path for each part. Got [1]."),
        ("modules.json", [{"type": "x.Transformer"}], "modules.json must have a type and a path for each part."),
        ("tokenizer.json", {}, "tokenizer.json must be one of the tokenizers package. Model missing."),
        ("1_Pooling/config.json", {"pooling_mode": "sum"}, "Got sum."),
        ("1_Pooling/config.json", {}, "Got none."),
        ("sentence_bert_config.json", {"do_lower_case": True}, "do_lower_case must be false"),
        (
            "config_sentence_transformers.json",
            {"default_prompt_name": "query"},
            "prompts are not implemented. Got 'query'.",
        ),
    ],
)
def test_what_is_refused(folder: Path, file: str, content: Any, message: str) -> None:
    write(folder, file, content)
    with pytest.raises(ValueError, match=re.escape(message)):
        SentenceEncoder.from_folder(folder)


@pytest.mark.parametrize("file", ["config.json", "modules.json", "tokenizer.json", "1_Pooling/config.json"])
@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_text("{")], ids=["missing", "damaged"])
def test_files_that_are_missing_or_damaged(folder: Path, file: str, damage: Callable[[Path], Any]) -> None:
    damage(folder / file)
    with pytest.raises(ValueError, match=rf"must be a model's folder with a readable {Path(file).name}\. Got .+"):
        SentenceEncoder.from_folder(folder)


DENSE = {"in_features": 12, "out_features": 5, "activation_function": "torch.nn.modules.activation.ReLU"}


def with_dense(folder: Path, **changed: Any) -> None:
    path = folder / "2_Dense"
    path.mkdir()
    rng = np.random.default_rng(0)
    weights = {"linear.weight": rng.normal(size=(5, 12)), "linear.bias": rng.normal(size=5)}
    files.save(path / "model.safetensors", {name: x.astype(np.float32) for name, x in weights.items()})
    write(path, "config.json", {**DENSE, **changed})
    write(folder, "modules.json", [*MODULES[:2], {"path": "2_Dense", "type": "x.Dense"}])


def test_a_layer_on_the_vectors(folder: Path, encoder: Bert) -> None:
    with_dense(folder)
    loaded = SentenceEncoder.from_folder(folder)
    projection = loaded.projections[0]
    pooled = SentenceEncoder(encoder, words(), max_length=9, normalize=False).embed(["a b", "c"])
    expected = np.maximum(pooled @ projection.linear.kernel[...] + projection.linear.bias[...], 0)
    assert expected.shape == (2, 5)
    assert (expected > 0).any()
    np.testing.assert_allclose(loaded.embed(["a b", "c"]), expected, rtol=1e-5, atol=1e-6)
    assert SentenceEncoder.from_folder(folder, param_dtype=jnp.bfloat16).embed(["a"]).dtype == jnp.bfloat16
    with_none = SentenceEncoder.from_folder(folder).embed([])
    assert with_none.shape == (0, 5)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"use_residual": True}, "use_residual must be false in"),
        (
            {"activation_function": "torch.nn.modules.activation.Mish"},
            "2_Dense/config.json must be one of None, 'tanh'",
        ),
        ({"module_input_name": "token_embeddings"}, "module_input_name must be 'sentence_embedding' in"),
        ({"out_features": 4}, "misshapen"),
    ],
)
def test_layers_on_the_vectors_that_are_refused(folder: Path, changed: dict[str, Any], message: str) -> None:
    with_dense(folder, **changed)
    with pytest.raises(ValueError, match=re.escape(message)):
        SentenceEncoder.from_folder(folder)
