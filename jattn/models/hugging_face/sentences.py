"""Sentences to vectors: a text encoder with its tokenizer and pooling, as sentence-transformers saves them.

Sentences of about the same length are padded to the same length and encoded together, by a function that is compiled
once for each of a few lengths.
"""

import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from jattn._engine import checks
from jattn.models.hugging_face.encoder import TextEncoder
from jattn.models.hugging_face.family import read_json

__all__ = ["TOKENS_PER_BATCH", "Batch", "SentenceEncoder", "bucket", "plan_batches", "pool"]

POOLINGS = ("mean", "cls", "max")
# More in one batch gains nothing on a CPU, and one batch too large is padding.
TOKENS_PER_BATCH = 512


def pool(
    hidden: Float[Array, "b t m"],
    valid_lens: Int[Array, "b"],
    mode: Literal["mean", "cls", "max"] = "mean",
) -> Float[Array, "b m"]:
    """One vector for each sequence from those of its real tokens.

    Args:
        hidden: ``b t m``.
        valid_lens: how many tokens of each sequence are real, at least 1.
        mode: their mean, their maximum in each feature, or the first of them (BERT's ``[CLS]``).

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
    real = (jnp.arange(t) < valid_lens[:, None])[..., None]
    if mode == "max":
        return jnp.where(real, hidden, -jnp.inf).max(axis=1)
    return jnp.where(real, hidden, 0).sum(axis=1) / valid_lens[:, None].astype(hidden.dtype)


class SentenceEncoder:
    """Sentences to vectors: tokenize, encode, pool, and normalize if asked for.

    Args:
        encoder: in eval mode.
        tokenizer: of the ``tokenizers`` package; its truncation and padding are set anew.
        max_length: longer texts are cut to so many tokens, those that the tokenizer adds included; the encoder's
            by default.
        pooling: ``"mean"``, ``"cls"`` or ``"max"``, see `pool`.
        normalize: whether the vectors have the Euclidean length 1.

    Source: Reimers and Gurevych, Sentence-BERT, 2019.
    """

    def __init__(
        self,
        encoder: TextEncoder,
        tokenizer: Any,
        *,
        max_length: int | None = None,
        pooling: Literal["mean", "cls", "max"] = "mean",
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
        self.normalize = normalize

    @classmethod
    def from_folder(cls, path: str | Path, *, param_dtype: Any = None) -> "SentenceEncoder":
        """What a folder of sentence-transformers describes: a BERT model, ``tokenizer.json``, ``modules.json``.

        Args:
            path: the folder.
            param_dtype: of the encoder's parameters; the file's own by default.

        Raises:
            ValueError: if the folder lacks a file or describes what is not implemented here, which is named.
            ImportError: if the package ``tokenizers`` is not installed.
        """
        from tokenizers import Tokenizer

        folder = Path(path)
        parts = read_json(folder, "modules.json", list)
        try:
            modules = {part["type"].split(".")[-1]: folder / part["path"] for part in parts}
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"{folder / 'modules.json'} must have a type and a path for each part. Got {parts}."
            ) from error
        if list(modules) not in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]):
            raise ValueError(
                "modules.json must hold Transformer, Pooling and perhaps Normalize: nothing else is implemented. "
                f"Got {', '.join(modules)}."
            )
        transformer = modules["Transformer"]
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
            pooling=_pooling(modules["Pooling"]),
            normalize="Normalize" in modules,
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
        graph, parameters = nnx.split(self.encoder)
        batches = list(plan_batches(np.array([len(row) for row in ids], int), self.max_length))
        embedded = []
        for batch in batches:  # none is waited for: the next is filled while the last one runs
            tokens, valid_lens = np.zeros((batch.rows, batch.length), np.int32), np.ones(batch.rows, np.int32)
            for i, row in enumerate(batch.indices):
                tokens[i, : len(ids[row])], valid_lens[i] = ids[row], len(ids[row])
            embedded.append(_embed(graph, parameters, tokens, valid_lens, self.pooling, self.normalize))
        dtype = jax.tree.leaves(parameters)[0].dtype
        vectors = np.zeros((len(ids), self.encoder.words.features), dtype)
        for batch, rows in zip(batches, embedded, strict=True):
            vectors[batch.indices] = np.asarray(rows)[: len(batch.indices)]
        return jnp.asarray(vectors)

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


def bucket(n: int) -> int:
    """n rounded up to three binary digits: at most a quarter more, and four lengths between a power of 2 and the next.

    Example:

        >>> [bucket(n) for n in (1, 8, 9, 50, 65, 100, 129, 257)]
        [1, 8, 10, 56, 80, 112, 160, 320]
    """
    step = 1 << max((n - 1).bit_length() - 3, 0)
    return -(-n // step) * step


@functools.partial(jax.jit, static_argnums=(0, 4, 5))
def _embed(
    graph: Any, parameters: Any, tokens: Int[Array, "b t"], valid_lens: Int[Array, "b"], pooling: Any, normalize: bool
) -> Float[Array, "b m"]:
    vectors = pool(nnx.merge(graph, parameters)(tokens, valid_lens), valid_lens, pooling)
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
