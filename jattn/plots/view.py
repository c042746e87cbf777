"""Attention weights as a page to look around in."""

import base64
import hashlib
import html
import json
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from jattn.plots import layers as layers_of
from jattn.plots import tokens as token_text

__all__ = ["AttentionView", "attention_view"]

# A browser holds a page's text in one string, and this is about half of what Chromium's can be.
MOST_WEIGHTS = 2**28
SCRIPTS = ("weights.js", "state.js", "lines.js", "matrix.js", "heads.js", "main.js")


@dataclass(frozen=True, repr=False)
class AttentionView:
    """A page: ``html`` is all of it, ``save`` writes it, and in a notebook it is what a cell shows."""

    html: str

    def save(self, path: str | Path) -> None:
        """Write the page to a file, which any browser opens, without a network."""
        Path(path).write_bytes(self.html.encode())

    def __repr__(self) -> str:
        return f"AttentionView of {len(self.html) / 1e6:.1f} MB: save(path), then open it in a browser"

    def _repr_html_(self) -> str:
        # A frame of its own, so that neither several views nor the notebook disturb each other.
        return (
            f'<iframe srcdoc="{html.escape(self.html)}" sandbox="allow-scripts" title="Attention weights" '
            'style="width: 100%; height: 680px; border: 0"></iframe>'
        )


def attention_view(
    tokens: Sequence[str],
    weights: Any,
    *,
    query_tokens: Sequence[str] | None = None,
    example: int | None = None,
    title: str = "Attention",
) -> AttentionView:
    """A page in one file in which to choose layers and heads and see who attends to whom.

    Lines between tokens, the matrix, and all heads at a glance; search, the state in the address, keyboard, screen
    readers, light and dark, phones. It loads nothing and asks for nothing.

    ``weights`` are what ``return_weights=True`` gave, in any of these forms (NumPy, JAX, or PyTorch on the CPU):

    - a list or tuple with an array for each layer, ``h t s`` or ``b h t s``, as BertViz takes it too. Layers may have
      different numbers of heads, as a pruned model's do;
    - one array: ``t s`` (alignments), ``h t s``, ``l h t s`` or ``l b h t s``. A single layer's ``b h t s`` goes into a
      list: ``[weights]``. Three axes are always heads: of alignments ``b t s``, such as `Seq2Seq`'s, give
      ``weights[example]``;
    - a list of pairs (self-attention, cross-attention), one for each block of a decoder. One block's goes into a list
      too, ``[(self, cross)]``: two arrays in a tuple are two layers;
    - a mapping from strings, to choose from, to any of these but pairs. ``"encoder self-attention"`` is among
      ``tokens``, ``"decoder self-attention"`` among ``query_tokens``; ``"cross-attention"`` and all other names are
      from ``query_tokens`` to ``tokens``.

    Weights are stored in 8 bits: a row's largest weight m as it is, and each weight of that row to the nearest of
    0, m/255, 2m/255 ... m; so none is off by more than m/510. They are compressed for each layer and unpacked when it
    is chosen. So 12 layers of 12 heads for 512 tokens, from a BERT, make a file of 22 MB.

    Args:
        tokens: of the keys; also of the queries unless they have their own. They are shown as they are; spaces at
            their ends and what can't be seen show as signs.
        weights: see above.
        query_tokens: of the queries of a decoder that attends to ``tokens``.
        example: which of the batch, if there is more than one in it.
        title: what the page is called.

    Returns:
        The page. ``save(path)`` writes it; as the last line of a notebook's cell it is shown.

    Example:

        >>> view = attention_view(["the", "cat"], [np.array([[[1.0, 0.0], [0.5, 0.5]]])])
        >>> view.html.startswith("<!DOCTYPE html>")
        True
    """
    if not isinstance(title, str):
        raise ValueError(f"title must be a string. Got {title!r:.60}.")
    keys = token_text.check_tokens("tokens", tokens)
    queries = keys if query_tokens is None else token_text.check_tokens("query_tokens", query_tokens)
    for name, side in (("tokens", keys), ("query_tokens", queries)):
        if not side:
            raise ValueError(f"{name} must have at least one token. Got none.")
    sides = (keys, queries)

    described, packed, total = [], [], 0
    for number, kind in enumerate(layers_of.kinds(weights)):
        t, s = len(sides[kind.queries]), len(sides[kind.keys])
        heads = []
        for i, layer in enumerate(kind.layers):
            array = layers_of.head_weights(f"weights of {kind.name}, layer {i},", layer, t, s, example)
            total += array.size
            if total > MOST_WEIGHTS:
                raise ValueError(
                    f"weights must have at most {MOST_WEIGHTS:,} entries, so that browsers open the page. Got more by "
                    f"layer {i}. Choose some of the layers or heads, or draw them with heatmaps."
                )
            heads.append(len(array))
            packed.append(f'<script type="text/plain" id="weights-{number}-{i}">{pack(array)}</script>')
        described.append({"name": kind.name, "queries": kind.queries, "keys": kind.keys, "heads": heads})
    data = {"title": token_text.visible(title), "tokens": [keys] if keys is queries else sides, "kinds": described}
    return AttentionView(page(data, packed))


def pack(weights: np.ndarray) -> str:
    """A layer ``h t s`` as text: the rows' largest weights in float32, then 8 bits for each weight; zlib, base64."""
    largest = weights.max(axis=-1, keepdims=True, initial=0).astype("<f4")
    codes = np.rint(weights / np.where(largest > 0, largest, 1) * 255).astype(np.uint8)
    return base64.b64encode(zlib.compress(largest.tobytes() + codes.tobytes(), 6)).decode()


def page(data: dict[str, Any], packed: list[str]) -> str:
    """The page's parts in one."""
    folder = resources.files("jattn.plots") / "page"
    template, style = ((folder / name).read_text(encoding="utf-8") for name in ("page.html", "page.css"))
    script = "\n".join((folder / name).read_text(encoding="utf-8") for name in SCRIPTS)
    # Only this style and this script may run, whatever else came to stand in the page; and nothing may be loaded.
    policy = f"default-src 'none'; style-src {_hash(style)}; script-src {_hash(script)}"
    # No < in it can end the element that holds the data, and its text is ASCII, half of an emoji included.
    text = json.dumps(data, ensure_ascii=True, separators=(",", ":")).replace("<", "\\u003c")
    parts = {"policy": policy, "style": style, "script": script, "data": text, "weights": "\n".join(packed)}
    return re.sub(r"\{\{(\w+)\}\}", lambda place: parts[place[1]], template)  # in one pass: a token may be such a place


def _hash(text: str) -> str:
    """How a content security policy names an inline script or style."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
