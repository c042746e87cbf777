"""Sentences to vectors: a text encoder with its tokenizer and pooling, as sentence-transformers saves them.

Sentences of about the same length are padded to the same length and encoded together, by a function that is compiled
once for each of a few lengths.
"""

import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from jattn._engine import checks
from jattn._engine.buckets import bucket
from jattn.models.hugging_face.activations import ACTIVATIONS
from jattn.models.hugging_face.encoder import TextEncoder
from jattn.models.hugging_face.family import folder_of, read_json
from jattn.models.hugging_face.settings import count_setting
from jattn.nn import Linear
from jattn.nn.feed_forward import activation_function
from jattn.weights import files, load_state_dict

__all__ = ["TOKENS_PER_BATCH", "Batch", "Projection", "SentenceEncoder", "plan_batches", "pool"]

Pooling = Literal["mean", "cls", "max", "mean_sqrt_len", "weightedmean", "lasttoken"]
POOLINGS = get_args(Pooling)
# Of a `Projection`, by the names of PyTorch's classes in small letters.
PROJECTION_ACTIVATIONS: dict[str | None, Any] = {
    None: ACTIVATIONS["linear"],
    **{name: ACTIVATIONS[name] for name in ("tanh", "relu", "gelu", "silu", "sigmoid")},
}
# More in one batch gains nothing on a CPU, and one batch too large is padding.
TOKENS_PER_BATCH = 512


def pool(
    hidden: Float[Array, "b t m"],
    valid_lens: Int[Array, "b"],
    mode: Pooling = "mean",
) -> Float[Array, "b m"]:
    """One vector for each sequence from those of its real tokens.

    Args:
        hidden: ``b t m``.
        valid_lens: how many tokens of each sequence are real, at least 1.
        mode: ``"mean"``, their mean; ``"max"``, their maximum in each feature; ``"cls"``, the first of them (BERT's
            ``[CLS]``); ``"lasttoken"``, the last of them; ``"mean_sqrt_len"``, their sum over the square root of their
            number; ``"weightedmean"``, their mean with the weights 1, 2, 3, ...

    Example:

        >>> pool(jnp.array([[[1.0], [3.0], [100.0]]]), jnp.array([2]))
        Array([[2.]], dtype=float32)
    """
    checks.one_of("mode", mode, POOLINGS)
    hidden = checks.floating("hidden", hidden, "b t m", 3)
    valid_lens = jnp.asarray(checks.integers("valid_lens", valid_lens))
    if valid_lens.shape != hidden.shape[:1]:
        raise ValueError(f"valid_lens must have shape {hidden.shape[:1]}. Got {valid_lens.shape}.")
    t = hidden.shape[1]
    if checks.is_concrete(valid_lens) and not all(0 < n <= t for n in np.asarray(valid_lens)):
        raise ValueError(f"valid_lens must lie between 1 and {t}, all tokens. Got {valid_lens}.")
    if mode == "cls":
        return hidden[:, 0]
    if mode == "lasttoken":
        return hidden[jnp.arange(hidden.shape[0]), valid_lens - 1]
    real = (jnp.arange(t) < valid_lens[:, None])[..., None]
    if mode == "max":
        return jnp.where(real, hidden, -jnp.inf).max(axis=1)
    n = valid_lens[:, None].astype(hidden.dtype)
    if mode == "weightedmean":
        share = jnp.arange(1, t + 1, dtype=hidden.dtype)[:, None] / (n * (n + 1) / 2)[:, None]
        return (jnp.where(real, hidden, 0) * jnp.where(real, share, 0)).sum(axis=1)
    return jnp.where(real, hidden, 0).sum(axis=1) / (n if mode == "mean" else jnp.sqrt(n))


class Projection(nnx.Module):
    """A layer on pooled vectors: sentence-transformers' ``Dense``.

    Args:
        in_features, out_features: from which width to which.
        use_bias: whether the layer has a bias.
        activation: what follows it: ``"tanh"``, ``"relu"``, ``"gelu"``, ``"silu"``, ``"sigmoid"``; nothing if None.
        dtype, param_dtype: as in ``flax.nnx.Linear``.
        rngs: for the initial parameters.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        use_bias: bool = True,
        activation: str | None = "tanh",
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        checks.one_of("activation", activation, tuple(PROJECTION_ACTIVATIONS))
        types: dict[str, Any] = dict(dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        self.linear = Linear(in_features, out_features, use_bias=use_bias, **types)
        self.activation = activation

    def __call__(self, x: Float[Array, "... m"]) -> Float[Array, "... n"]:
        return activation_function(PROJECTION_ACTIVATIONS[self.activation])(self.linear(x))


class SentenceEncoder:
    """Sentences to vectors: tokenize, encode, pool, and project and normalize if asked for.

    Args:
        encoder: a `TextEncoder` of any family, in eval mode.
        tokenizer: of the ``tokenizers`` package; its truncation and padding are set anew.
        max_length: longer texts are cut to so many tokens, those that the tokenizer adds included; the encoder's
            by default.
        pooling: ``"mean"`` or another mode of `pool`.
        projections: layers on the pooled vectors, one after the other.
        normalize: whether the vectors have the Euclidean length 1.

    Source: Reimers and Gurevych, Sentence-BERT, 2019.
    """

    def __init__(
        self,
        encoder: TextEncoder,
        tokenizer: Any,
        *,
        max_length: int | None = None,
        pooling: Pooling = "mean",
        projections: Sequence[Projection] = (),
        normalize: bool = True,
    ) -> None:
        checks.one_of("pooling", pooling, POOLINGS)
        max_length = encoder.max_length if max_length is None else max_length
        least = max(1, tokenizer.num_special_tokens_to_add(is_pair=False))  # it cuts off none of those
        if not checks.is_count(max_length) or not least <= max_length <= encoder.max_length:
            raise ValueError(
                f"max_length must lie between {least} and the encoder's {encoder.max_length}. Got {max_length!r}."
            )
        most = max(tokenizer.get_vocab(with_added_tokens=True).values(), default=0)
        if most >= encoder.words.num_embeddings:
            raise ValueError(
                f"tokenizer must have no token beyond the encoder's {encoder.words.num_embeddings}. Got {most}."
            )
        tokenizer.no_padding()
        tokenizer.enable_truncation(max_length)
        self.encoder = encoder
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.pooling = pooling
        self.projections = nnx.List(projections)
        self.normalize = normalize

    @classmethod
    def from_folder(cls, path: str | Path, *, param_dtype: Any = None) -> "SentenceEncoder":
        """What a folder of sentence-transformers describes: an encoder, ``tokenizer.json``, ``modules.json``.

        Args:
            path: the folder.
            param_dtype: of the encoder's parameters; the file's own by default.

        Raises:
            ValueError: if the folder lacks a file or describes what is not implemented here, which is named.
            ImportError: if the package ``tokenizers`` is not installed.
        """
        from tokenizers import Tokenizer

        folder = folder_of(path)
        parts = read_json(folder, "modules.json", list)
        try:
            modules = [(part["type"].split(".")[-1], folder / part["path"]) for part in parts]
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"{folder / 'modules.json'} must have a type and a path for each part. Got {parts}."
            ) from error
        kinds = [kind for kind, _ in modules]
        middle = kinds[2:-1] if kinds[-1:] == ["Normalize"] else kinds[2:]
        if kinds[:2] != ["Transformer", "Pooling"] or set(middle) - {"Dense"}:
            raise ValueError(
                "modules.json must hold Transformer, Pooling, and perhaps Dense and Normalize, in this order: nothing "
                f"else is implemented. Got {', '.join(kinds)}."
            )
        transformer = modules[0][1]
        encoder = TextEncoder.from_folder(transformer, param_dtype=param_dtype)
        read_json(transformer, "tokenizer.json")  # the package's own error doesn't name the file
        try:
            tokenizer = Tokenizer.from_file(str(transformer / "tokenizer.json"))
        except Exception as error:  # it raises nothing more special
            raise ValueError(
                f"{transformer / 'tokenizer.json'} must be one of the tokenizers package. {error}"
            ) from error
        return cls(
            encoder,
            tokenizer,
            max_length=_max_length(folder, transformer, encoder),
            pooling=_pooling(modules[1][1]),
            projections=[_projection(path, param_dtype) for kind, path in modules if kind == "Dense"],
            normalize="Normalize" in kinds,
        )

    def embed(self, sentences: Sequence[str]) -> Float[Array, "n m"]:
        """A vector for each sentence, in the order given.

        The first sentences of a length wait for a compilation. An empty sentence is what the tokenizer makes of it,
        ``[CLS] [SEP]`` in BERT's; one without any token is embedded as zeros.

        Args:
            sentences: strings.

        Returns:
            ``n m``, in the dtype of the encoder's parameters.

        Raises:
            ValueError: if sentences is one string, or something in it is not a string.
        """
        ids = self._tokenize(sentences)
        graph, parameters = nnx.split((self.encoder, self.projections))
        batches = list(plan_batches(np.array([len(row) for row in ids], int), self.max_length))
        embedded = []
        for batch in batches:  # none is waited for: the next is filled while the last one runs
            tokens, valid_lens = np.zeros((batch.rows, batch.length), np.int32), np.ones(batch.rows, np.int32)
            for i, row in enumerate(batch.indices):
                tokens[i, : len(ids[row])], valid_lens[i] = ids[row], len(ids[row])
            embedded.append(_embed(graph, parameters, tokens, valid_lens, self.pooling, self.normalize))
        vectors = np.zeros((len(ids), self._width()), jax.tree.leaves(parameters)[0].dtype)
        for batch, rows in zip(batches, embedded, strict=True):
            vectors[batch.indices] = np.asarray(rows)[: len(batch.indices)]
        return jnp.asarray(vectors)

    def _width(self) -> int:
        if self.projections:
            return self.projections[-1].linear.out_features
        return self.encoder.blocks[-1].attention.query.in_features[0]

    def _tokenize(self, sentences: Any) -> list[list[int]]:
        if isinstance(sentences, str):
            raise ValueError(f"sentences must be several strings. Got one, {sentences!r:.80}. Pass it in a list.")
        try:
            sentences = list(sentences)
        except TypeError as error:
            raise ValueError(f"sentences must be several strings. Got {type(sentences).__name__}.") from error
        for i, sentence in enumerate(sentences):
            if not isinstance(sentence, str):
                raise ValueError(f"sentences must be strings. Got {type(sentence).__name__} at index {i}.")
            if any("\ud800" <= c <= "\udfff" for c in sentence):
                raise ValueError(f"sentences must be Unicode text. Got a lone surrogate at index {i}.")
        return [encoding.ids for encoding in self.tokenizer.encode_batch_fast(sentences)]


class Batch(NamedTuple):
    """Which sentences are encoded together, and the shape that they are padded to."""

    indices: Int[np.ndarray, "n"]
    rows: int
    length: int


def plan_batches(lengths: Int[np.ndarray, "n"], max_length: int) -> Iterator[Batch]:
    """Batches of at most `TOKENS_PER_BATCH`, from the longest sentences to the shortest; none for those of length 0.

    A batch that isn't full is filled with shorter sentences, and the last one has as many rows as the next power of
    two, so there are few shapes and little padding.

    Example:

        >>> list(plan_batches(np.array([3, 300, 9, 5]), 512))
        [Batch(indices=array([1]), rows=1, length=320), Batch(indices=array([2, 3, 0]), rows=4, length=10)]
    """
    order = np.argsort(-lengths, kind="stable")[: np.count_nonzero(lengths)]
    while order.size:
        length = min(bucket(int(lengths[order[0]])), max_length)
        rows = max(1, TOKENS_PER_BATCH // length)
        indices, order = order[:rows], order[rows:]
        yield Batch(indices, min(rows, 1 << (len(indices) - 1).bit_length()), length)


@functools.partial(jax.jit, static_argnums=(0, 4, 5))
def _embed(
    graph: Any, parameters: Any, tokens: Int[Array, "b t"], valid_lens: Int[Array, "b"], pooling: Any, normalize: bool
) -> Float[Array, "b m"]:
    encoder, projections = nnx.merge(graph, parameters)
    vectors = pool(encoder(tokens, valid_lens), valid_lens, pooling)
    for project in projections:
        vectors = project(vectors)
    if not normalize:
        return vectors
    norms = jnp.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors / jnp.maximum(norms, 1e-12)


# ----------------------------------------------------------------------------------------------------------------------
# The folder.


def _pooling(folder: Path) -> Any:
    """The one pooling that a folder asks for: ``pooling_mode`` today, formerly a flag for each."""
    config = read_json(folder, "config.json")
    flags = [
        name.removeprefix("pooling_mode_") for name, on in config.items() if name.startswith("pooling_mode_") and on
    ]
    modes = np.atleast_1d(config.get("pooling_mode", flags)).tolist()
    names = [mode.removesuffix("_tokens").removesuffix("_token") for mode in modes]
    if len(names) != 1 or names[0] not in POOLINGS:
        raise ValueError(
            f"the pooling in {folder / 'config.json'} must be one of {', '.join(POOLINGS)}: nothing else is "
            f"implemented. Got {' and '.join(modes) or 'none'}."
        )
    return names[0]


def _projection(folder: Path, param_dtype: Any) -> Projection:
    """A ``Dense``."""
    config = read_json(folder, "config.json")
    name = str(config.get("activation_function", "torch.nn.modules.activation.Tanh")).split(".")[-1].lower()
    activation = None if name == "identity" else name
    place = f"in {folder / 'config.json'}"
    checks.one_of(f"activation_function {place}", activation, tuple(PROJECTION_ACTIVATIONS))
    for key in ("module_input_name", "module_output_name"):
        if config.get(key, "sentence_embedding") not in ("sentence_embedding", None):
            raise ValueError(f"{key} must be 'sentence_embedding' {place}. Got {config[key]!r}.")
    if config.get("use_residual"):
        raise ValueError(f"use_residual must be false {place}: nothing else is implemented. Got true.")
    sizes = [count_setting(config, name) for name in ("in_features", "out_features")]
    made = Projection(*sizes, use_bias=config.get("bias", True), activation=activation, rngs=nnx.Rngs(0))
    older = folder / "pytorch_model.bin"
    load_state_dict(made, files.load(older if older.is_file() else folder))
    if param_dtype is not None:
        graph, state = nnx.split(made)
        made = nnx.merge(graph, jax.tree.map(lambda x: x.astype(param_dtype), state))
    return made


def _max_length(folder: Path, transformer: Path, encoder: TextEncoder) -> int:
    """How many tokens of a text are read, and that nothing else is done to it before."""
    prompt = read_json(folder, "config_sentence_transformers.json", default={}).get("default_prompt_name")
    if prompt is not None:
        raise ValueError(f"default_prompt_name must be None: prompts are not implemented. Got {prompt!r}.")
    config = read_json(transformer, "sentence_bert_config.json", default={})
    if config.get("do_lower_case"):
        raise ValueError("do_lower_case must be false in sentence_bert_config.json: nothing else is implemented.")
    name, length = "max_seq_length in sentence_bert_config.json", config.get("max_seq_length")
    if length is None:
        name = "model_max_length in tokenizer_config.json"
        length = read_json(transformer, "tokenizer_config.json", default={}).get("model_max_length")
    if length is None:
        return encoder.max_length
    return min(int(checks.number(name, length, "[1, inf)")), encoder.max_length)
