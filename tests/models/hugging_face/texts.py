"""Texts of several lengths in one array: with padding on either side, or one behind the other."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from jattn import masks

__all__ = ["assert_padding_and_packing_change_nothing", "drawn", "packed", "padded"]


def drawn(vocab_size: int, lens: Sequence[int], seed: int = 0) -> list[np.ndarray]:
    """Random texts of these lengths."""
    rng = np.random.default_rng(seed)
    return [rng.integers(0, vocab_size, n) for n in lens]


def padded(texts: Sequence[Any], side: str, padding: int = 0) -> tuple[Any, Any]:
    """The texts with padding on that side, and the mask that is 1 where tokens are real."""
    n = max(map(len, texts))
    tokens, real = np.full((len(texts), n), padding), np.zeros((len(texts), n), int)
    for i, text in enumerate(texts):
        place = slice(n - len(text), n) if side == "left" else slice(0, len(text))
        tokens[i, place], real[i, place] = text, 1
    return jnp.asarray(tokens), jnp.asarray(real)


def packed(texts: Sequence[Any]) -> tuple[Any, Any, Any]:
    """The texts in one row, the number of each token's text, and its position within that."""
    lens = [len(text) for text in texts]
    ids, positions = np.repeat(np.arange(len(lens)), lens), np.concatenate([np.arange(n) for n in lens])
    return jnp.asarray(np.concatenate(texts))[None], jnp.asarray(ids)[None], jnp.asarray(positions)[None]


def assert_padding_and_packing_change_nothing(model: Any, texts: Sequence[np.ndarray]) -> None:
    """What a model in float64 makes of each text alone it makes of it beside others, whichever way they are laid."""
    alone = [np.asarray(model(jnp.asarray(text)[None]))[0] for text in texts]
    for side in ("left", "right"):
        tokens, real = padded(texts, side)
        found = [model(tokens, attention_mask=real)]
        if side == "right":
            found.append(model(tokens, valid_lens=jnp.array([len(text) for text in texts])))
        for x in found:
            for i, expected in enumerate(alone):
                np.testing.assert_allclose(np.asarray(x)[i][real[i] == 1], expected, rtol=1e-12, atol=1e-12)
    row, ids, positions = packed(texts[1:])
    found = model(row, positions=positions, mask=masks.segments(ids))
    np.testing.assert_allclose(found[0], np.concatenate(alone[1:]), rtol=1e-12, atol=1e-12)
