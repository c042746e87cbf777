"""Pictures of rules and of weights, drawn from the code of the page that they stand on.

In a page's Markdown ``<!-- drawn 8 x 12: mask -->`` is a picture of what ``mask`` is after the code above it, here for
8 queries and 12 keys; ``<!-- drawn: weights -->`` is one of an array ``*b t s``. What a notebook would show as HTML is
shown here, too. Commas part several.
"""

import html
import re
from typing import Any

import numpy as np

from docs.making.code import blocks, run

__all__ = ["MARK", "drawn", "on_source", "picture", "with_pictures"]

MARK = re.compile(r"^<!-- drawn(?: (\d+) x (\d+))?: (.+?) -->$", re.MULTILINE)
LEVELS = 10  # of shade
MOST = 4  # matrices beside each other


def on_source(app: Any, page: str, source: list[str]) -> None:
    """Sphinx's event: the text of a page is changed in place."""
    source[0] = with_pictures(source[0], page)


def with_pictures(text: str, page: str) -> str:
    """The page's Markdown with pictures in place of their marks."""
    names: dict[str, Any] = {}
    code, written, done = blocks(text), "", 0
    for mark in MARK.finditer(text):
        while code and code[0].end <= mark.start():
            run(code.pop(0).code, page, names)
        t, s, expressions = mark.groups()
        values = eval(f"[{expressions}]", names)
        pictures = [drawn(value, t and int(t), s and int(s)) for value in values]
        written += text[done : mark.start()] + f'<div class="drawn">{"".join(pictures)}</div>\n'
        done = mark.end()
    return written + text[done:]


def drawn(value: Any, t: int | None = None, s: int | None = None) -> str:
    """A rule for so many queries and keys, or an array ``*b t s``: a matrix for each example and head; or HTML."""
    if hasattr(value, "_repr_html_"):
        return value._repr_html_().replace("\n", "&#10;")  # an empty line would end it, to Markdown
    array = np.asarray(value.as_array(t, s) if hasattr(value, "as_array") else value)
    leading = array.shape[:-2]
    several = array.reshape(-1, *array.shape[-2:])[:MOST]
    if np.issubdtype(array.dtype, np.floating):
        several = several / max(float(np.abs(several[np.isfinite(several)]).max(initial=0)), 1e-30)
    names = [_name(leading, i) for i in range(len(several))]
    return "".join(picture(matrix, name) for matrix, name in zip(several, names, strict=True))


def _name(leading: tuple[int, ...], i: int) -> str:
    """Which example and head the i-th matrix is of, where there are several."""
    words = ("example", "head")[2 - len(leading) :] if len(leading) <= 2 else ()
    places = np.unravel_index(i, leading) if leading else ()
    return ", ".join(f"{word} {j}" for word, j, n in zip(words, places, leading, strict=False) if n > 1)


def picture(matrix: np.ndarray, name: str = "") -> str:
    """A matrix of queries and keys as SVG: filled where true, or darker the larger, in a second colour below zero."""
    t, s = matrix.shape
    title = f"{name + ': ' if name else ''}{t} queries, one a row, and {s} keys, one a column"
    numbers = matrix.astype(float)
    levels = np.ceil(np.abs(np.where(np.isfinite(numbers), numbers, 0)) * LEVELS - 1e-9).clip(0, LEVELS).astype(int)
    paths = []
    for sign, kind in ((1, "more"), (-1, "less")):
        for level in range(1, LEVELS + 1):
            cells = np.argwhere((levels == level) & (np.sign(numbers) == sign))
            if len(cells):
                path = "".join(f"M{x + 0.06:g} {y + 0.06:g}h.88v.88h-.88z" for y, x in cells)
                paths.append(f'<path class="{kind}" opacity="{level / LEVELS:g}" d="{path}"/>')
    grid = "".join(f"M0 {y}h{s}" for y in range(t + 1)) + "".join(f"M{x} 0v{t}" for x in range(s + 1))
    caption = f"<figcaption>{html.escape(name)}</figcaption>" if name else ""
    return (
        f'<figure><svg role="img" aria-label="{html.escape(title)}" viewBox="-0.1 -0.1 {s + 0.2:g} {t + 0.2:g}" '
        f'style="width:{_width(s)}em"><path class="ground" d="M0 0h{s}v{t}h-{s}z"/>{"".join(paths)}'
        f'<path class="lines" d="{grid}"/></svg>{caption}</figure>'
    )


def _width(s: int) -> float:
    return round(min(16.0, max(6.0, 0.95 * s)), 2)
