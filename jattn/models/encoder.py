"""A text encoder of the BERT family, and its weights from a Hugging Face folder.

More axes here: v vocabulary · f the feed-forward network's inner width.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int, PRNGKeyArray

from jattn import checks, torch_weights, weight_files
from jattn.nn import FeedForward, LayerNorm, LearnedPositions, MultiHeadAttention, embedding
from jattn.nn.dropout import Dropout, split


class EncoderBlock(nnx.Module):
    """Self-attention and a feed-forward network f, each with a residual: ``x = norm(x + dropout(f(x)))``.

    `jattn.nn.TransformerBlock` with ``norm="post"`` drops after the norm instead.

    Args:
        num_heads: how many heads.
        features: m, the width.
        feedforward_features: the feed-forward network's inner width.
        activation: ``"relu"`` or ``"gelu"``, the exact one.
        norm_epsilon: of the layer norms.
        dropout_rate: in training, in [0, 1).
        attention_dropout_rate: of the attention weights.
        options: dtype, param_dtype and rngs, as in ``flax.nnx.Linear``.
    """

    def __init__(
        self,
        num_heads: int,
        features: int,
        feedforward_features: int,
        *,
        activation: Literal["relu", "gelu"],
        norm_epsilon: float,
        dropout_rate: float,
        attention_dropout_rate: float,
        **options: Any,
    ) -> None:
        self.attention = MultiHeadAttention(
            num_heads, features, use_bias=True, dropout_rate=attention_dropout_rate, **options
        )
        self.norm1 = LayerNorm(features, epsilon=norm_epsilon, **options)
        self.feed_forward = FeedForward(features, feedforward_features, activation=activation, **options)
        self.norm2 = LayerNorm(features, epsilon=norm_epsilon, **options)
        self.dropout = Dropout(dropout_rate)

    def __call__(
        self,
        x: Float[Array, "*b t m"],
        valid_lens: int | Int[Array, "..."] | None = None,
        *,
        rng: PRNGKeyArray | None = None,
    ) -> tuple[Float[Array, "*b t m"], Float[Array, "*b h t t"]]:
        """The output and the attention weights."""
        rngs = split(rng, 3)
        y, weights = self.attention(x, valid_lens=valid_lens, return_weights=True, rng=rngs[0])
        # One axis of tokens, as in TransformerBlock.
        shape, x, y = x.shape, x.reshape(-1, x.shape[-1]), y.reshape(-1, x.shape[-1])
        x = self.norm1(x + self.dropout(y, rngs[1]))
        x = self.norm2(x + self.dropout(self.feed_forward(x), rngs[2]))
        return x.reshape(shape), weights


class TextEncoder(nnx.Module):
    """BERT's encoder: the sum of word, position and token type embeddings, normed, then post-norm blocks.

    Without the pooler, a layer on the first token that BERT's next-sentence task was trained with. Dropout is on at
    first, as in every module here; a model from `from_folder` has it off.

    Args:
        vocab_size: v, how many tokens there are.
        features: m, the width.
        num_heads: heads in each block.
        num_layers: how many blocks.
        feedforward_features: the feed-forward network's inner width.
        max_length: the longest sequence of tokens.
        num_token_types: how many types of tokens there are; BERT tells the sentences of a pair apart by them.
        activation: ``"gelu"``, the exact one, or ``"relu"``.
        norm_epsilon: of the layer norms.
        dropout_rate: in training, in [0, 1).
        attention_dropout_rate: of the attention weights.
        dtype, param_dtype: as in ``flax.nnx.Linear``.
        rngs: for the initial parameters.

    Source: Devlin et al., BERT: Pre-training of Deep Bidirectional Transformers for Language Understanding, 2019.

    Example (two sequences, the second with 3 real tokens and 2 of padding):

        >>> model = TextEncoder(
        ...     vocab_size=50, features=12, num_heads=3, num_layers=2, feedforward_features=20, rngs=nnx.Rngs(0)
        ... )
        >>> model.eval()
        >>> hidden, weights = model(jnp.ones((2, 5), int), jnp.array([5, 3]), return_weights=True)
        >>> hidden.shape, len(weights), weights[0].shape
        ((2, 5, 12), 2, (2, 3, 5, 5))
    """

    def __init__(
        self,
        *,
        vocab_size: int,
        features: int,
        num_heads: int,
        num_layers: int,
        feedforward_features: int,
        max_length: int = 512,
        num_token_types: int = 2,
        activation: Literal["relu", "gelu"] = "gelu",
        norm_epsilon: float = 1e-12,
        dropout_rate: float = 0.1,
        attention_dropout_rate: float = 0.1,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        options: dict[str, Any] = dict(dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        self.words = embedding(vocab_size, features, **options)
        self.positions = LearnedPositions(max_length, features, **options)
        self.token_types = embedding(num_token_types, features, **options)
        self.norm = LayerNorm(features, epsilon=norm_epsilon, **options)
        self.dropout = Dropout(dropout_rate)
        self.blocks = nnx.List(
            [
                EncoderBlock(
                    num_heads,
                    features,
                    feedforward_features,
                    activation=activation,
                    norm_epsilon=norm_epsilon,
                    dropout_rate=dropout_rate,
                    attention_dropout_rate=attention_dropout_rate,
                    **options,
                )
                for _ in range(num_layers)
            ]
        )

    def __call__(
        self,
        tokens: Int[Array, "b t"],
        valid_lens: int | Int[Array, "b"] | None = None,
        *,
        token_types: Int[Array, "b t"] | None = None,
        return_weights: bool = False,
        rng: PRNGKeyArray | None = None,
    ) -> Float[Array, "b t m"] | Any:
        """Encode.

        Args:
            tokens: numbers of tokens.
            valid_lens: how many tokens of each sequence are real; what follows them is not attended to.
            token_types: the type of each token; 0 by default.
            return_weights: also return the list of each block's weights ``b h t t``.
            rng: a ``jax.random.key`` for dropout in training.

        Returns:
            The last block's output ``b t m``; with return_weights also the list.

        Raises:
            ValueError: naming the argument that doesn't fit.
        """
        tokens = checks.tokens("tokens", tokens, self.words.num_embeddings, "b t", 2)
        if token_types is None:
            token_types = jnp.zeros((1, 1), int)
        else:
            token_types = checks.tokens("token_types", token_types, self.token_types.num_embeddings, "b t", 2)
            if token_types.shape != tokens.shape:
                raise ValueError(
                    f"token_types must have one entry for each of tokens, shape {tokens.shape}. "
                    f"Got shape {token_types.shape}."
                )
        rngs = split(rng, len(self.blocks) + 1)
        x = self.positions(self.words(tokens) + self.token_types(token_types))
        x = self.dropout(self.norm(x), rngs[0])
        weights = []
        for block, block_rng in zip(self.blocks, rngs[1:], strict=True):
            x, block_weights = block(x, valid_lens, rng=block_rng)
            weights.append(block_weights)
        return (x, weights) if return_weights else x

    @classmethod
    def from_folder(cls, path: str | Path, *, param_dtype: Any = None) -> "TextEncoder":
        """The encoder of a Hugging Face folder: ``config.json`` and ``model.safetensors``.

        Args:
            path: the folder.
            param_dtype: of the parameters; the file's own by default.

        Returns:
            The encoder, in eval mode.

        Raises:
            ValueError: if the folder lacks a file, its model is none of BERT's or has a part that is not implemented
                here, or its weights are not those of its configuration.
        """
        folder = Path(path)
        options = options_of(read_json(folder, "config.json"))
        weights = {
            name: weight if param_dtype is None else weight.astype(param_dtype)
            for name, weight in read_weights(folder).items()
            if not name.startswith(BESIDE_THE_ENCODER)
        }
        # All numbers are replaced, so none are drawn.
        graph, state = nnx.split(nnx.eval_shape(lambda: cls(**options, rngs=nnx.Rngs(0))))
        model = nnx.merge(graph, jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), state))
        torch_weights.load_state_dict(model, weights, rename=RENAME)
        model.eval()
        return model


# ----------------------------------------------------------------------------------------------------------------------
# Hugging Face's folder.

# A TextEncoder's arguments in config.json.
OPTIONS = {
    "vocab_size": "vocab_size",
    "features": "hidden_size",
    "num_heads": "num_attention_heads",
    "num_layers": "num_hidden_layers",
    "feedforward_features": "intermediate_size",
    "max_length": "max_position_embeddings",
    "num_token_types": "type_vocab_size",
    "activation": "hidden_act",
    "norm_epsilon": "layer_norm_eps",
    "dropout_rate": "hidden_dropout_prob",
    "attention_dropout_rate": "attention_probs_dropout_prob",
}
# What the other entries that change the numbers may be. An entry that is not there has the first value.
IMPLEMENTED: dict[str, tuple[Any, ...]] = {
    "model_type": ("bert",),
    "architectures": (None, ["BertModel"], ["BertForMaskedLM"], ["BertForPreTraining"]),
    "hidden_act": ("gelu", "relu"),
    "position_embedding_type": ("absolute",),
    "is_decoder": (False,),
    "add_cross_attention": (False,),
    "quantization_config": (None,),
}
# Names of BertModel's parts, and in a TextEncoder.
RENAME = {
    r"^embeddings\.word_embeddings\.": "words.",
    r"^embeddings\.position_embeddings\.": "positions.embedding.",
    r"^embeddings\.token_type_embeddings\.": "token_types.",
    r"^embeddings\.LayerNorm\.": "norm.",
    r"^encoder\.layer\.(\d+)\.": r"blocks.\1.",
    r"\.attention\.self\.": ".attention.",
    r"\.attention\.output\.dense\.": ".attention.out.",
    r"\.attention\.output\.LayerNorm\.": ".norm1.",
    r"\.intermediate\.dense\.": ".feed_forward.linear1.",
    r"\.output\.dense\.": ".feed_forward.linear2.",
    r"\.output\.LayerNorm\.": ".norm2.",
}
# What the file may hold beside the encoder: the layers of the tasks it was trained on, and the numbers 0, 1, 2, ...
BESIDE_THE_ENCODER = ("pooler.", "cls.", "embeddings.position_ids")


def options_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """A `TextEncoder`'s arguments for the ``config.json`` of a BERT model.

    Raises:
        ValueError: naming the entry that is missing or not implemented here.

    Example:

        >>> options_of({"model_type": "bert", "hidden_act": "gelu_new"})
        Traceback (most recent call last):
        ValueError: hidden_act must be 'gelu' or 'relu' in config.json: nothing else is implemented. Got 'gelu_new'.
    """
    for name, values in IMPLEMENTED.items():
        if config.get(name, values[0]) not in values:
            raise ValueError(
                f"{name} must be {' or '.join(repr(value) for value in values)} in config.json: nothing else is "
                f"implemented. Got {config[name]!r}."
            )
    config = {"hidden_act": "gelu", **config}
    missing = [name for name in OPTIONS.values() if name not in config]
    if missing:
        raise ValueError(f"config.json must describe the whole model. Got none of the entries {', '.join(missing)}.")
    return {ours: config[name] for ours, name in OPTIONS.items()}


def read_json(folder: Path, name: str, kind: type = dict, *, default: Any = None) -> Any:
    """What a JSON file holds; of one that is not there the default, or else a ValueError that names it."""
    path = folder / name
    if default is not None and not path.is_file():
        return default
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{folder} must be a model's folder with a readable {name}. Got {error}.") from error
    if not isinstance(content, kind):
        raise ValueError(f"{path} must hold a {kind.__name__}. Got a {type(content).__name__}.")
    return content


def read_weights(folder: Path) -> dict[str, np.ndarray]:
    """A BERT file's arrays under the names of Hugging Face's BertModel.

    Whole models with heads write ``bert.`` in front, and the oldest files call a norm's parameters gamma and beta.
    """

    def present(name: str) -> str:
        return re.sub(r"LayerNorm\.gamma$", "LayerNorm.weight", re.sub(r"LayerNorm\.beta$", "LayerNorm.bias", name))

    return {present(name.removeprefix("bert.")): array for name, array in weight_files.load(folder).items()}
