"""Whom each token attended to while it was read: of what was generated, by one more pass over it."""

import inspect
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from jattn._engine import checks
from jattn.decoding.beams import BeamsFound
from jattn.decoding.decodable import Decodable
from jattn.decoding.generation import Generated
from jattn.decoding.request import checked, real_first
from jattn.decoding.speculative import Speculated

__all__ = ["Attended", "attention_of"]


class Attended(NamedTuple):
    """A prompt and what followed, and whom each of its tokens attended to."""

    tokens: Int[np.ndarray, "n"]
    weights: Any  # a list with h n n of each layer; of an encoder-decoder a mapping from kinds to such lists


def attention_of(
    model: Decodable,
    prompt: Int[Array, "b t"],
    found: Generated | BeamsFound | Speculated,
    prompt_valid_lens: Int[Array, "b"] | None = None,
    *,
    prompt_attention_mask: Bool[Array, "b t"] | Int[Array, "b t"] | None = None,
    example: int = 0,
    sequence: int = 0,
    layers: Sequence[int] | None = None,
    **given: Any,
) -> Attended:
    """The attention weights with which one example's tokens were read, as `jattn.plots.attention_view` takes them.

    Row i has the weights of token i, after which token i + 1 was chosen. The last new token is read here as well, and
    has a row. A causal model's weights are those of one pass over the whole, so this is one, and decoding needs not
    keep any.

    Args:
        model: that decoded, in eval mode; it must take ``return_weights=True``, as `jattn.models` do.
        prompt, prompt_valid_lens, prompt_attention_mask: what it was given.
        found: what `generate`, `beam_search` or `speculate` returned, or ``generated()`` of a `stream`.
        example: which of the prompts.
        sequence: which continuation of it, where there are several; of a beam search's the best one is 0.
        layers: the numbers of those that are wanted; all by default.
        given: what the model was given beside the prompt: ``source`` and ``source_attention_mask``.

    Returns:
        `Attended`: ``tokens`` ``n``, and ``weights``: a list with ``h n n`` of each layer; of an encoder-decoder a
        mapping with such lists of ``"encoder self-attention"``, ``"decoder self-attention"`` and ``"cross-attention"``.

    Example:

        >>> from flax import nnx
        >>> from jattn import decoding, plots
        >>> from jattn.models import GPT2
        >>> model = GPT2(50, max_length=32, features=12, num_heads=3, num_layers=2, rngs=nnx.Rngs(0))
        >>> model.eval()
        >>> prompt = jnp.array([[7, 4, 2]])
        >>> found = decoding.generate(model, prompt, max_new_tokens=4)
        >>> tokens, weights = decoding.attention_of(model, prompt, found, layers=[1])
        >>> tokens.shape, weights[0].shape
        ((7,), (3, 7, 7))
        >>> view = plots.attention_view([f"word {i}" for i in tokens], weights)
    """
    checked(model)
    if not callable(model) or "return_weights" not in inspect.signature(model).parameters:
        raise ValueError(
            "model must return its attention weights, by model(tokens, return_weights=True). "
            f"Got {type(model).__name__}, which does not."
        )
    prompt = checks.array("prompt", prompt)
    if prompt.ndim != 2:
        raise ValueError(f"prompt must have the axes b t. Got shape {prompt.shape}.")
    b, t = prompt.shape
    checks.number("example", example, f"[0, {b})", integer=True)
    prompt, lens = real_first(prompt, prompt_valid_lens, prompt_attention_mask)
    before = prompt[example, : t if lens is None else int(lens[example])]
    tokens = np.concatenate([np.asarray(before), _continuation(found, b, example, sequence)])
    weights = _read_again(
        model, jnp.asarray(tokens)[None], **{name: _of_example(x, example) for name, x in given.items()}
    )
    return Attended(tokens, jax.tree.map(np.asarray, _of_layers(weights, layers)))


def _continuation(found: Any, b: int, example: int, sequence: int) -> Int[np.ndarray, "n"]:
    """The new tokens, up to their end."""
    found = getattr(found, "beams", found)
    if not (hasattr(found, "tokens") and hasattr(found, "lengths")):
        raise ValueError(f"found must be what generate, beam_search or speculate returned. Got {type(found).__name__}.")
    if len(found.tokens) != b:
        raise ValueError(f"found must be of the {b} prompts. Got {len(found.tokens)}.")
    tokens, lens = np.asarray(found.tokens[example]), np.asarray(found.lengths[example])
    tokens, lens = np.atleast_2d(tokens), np.atleast_1d(lens)
    checks.number("sequence", sequence, f"[0, {len(tokens)})", integer=True)
    return tokens[sequence, : lens[sequence]]


def _of_example(x: Any, example: int) -> Any:
    return x[example : example + 1] if isinstance(x, jax.Array | np.ndarray) else x


def _read_again(model: Any, tokens: Int[Array, "1 n"], source: Any = None, **given: Any) -> Any:
    """Of all layers, as the model gives them for one example; of an encoder-decoder by their kinds."""
    if source is None:
        checks.keywords("attention_of", given, ["source", "source_attention_mask"])
        return model(tokens, return_weights=True)[1]
    checks.keywords("attention_of", given, ["source_attention_mask"])
    weights = model(source, tokens, attention_mask=given.get("source_attention_mask"), return_weights=True)[1]
    kinds = ("encoder self-attention", "decoder self-attention", "cross-attention")
    return dict(zip(kinds, weights, strict=True))


def _of_layers(weights: Any, layers: Any) -> Any:
    """Of these layers, the only example."""
    if isinstance(weights, dict):
        return {kind: _of_layers(x, layers) for kind, x in weights.items()}
    return [weights[i][0] for i in checks.selection("layers", layers, len(weights))]
