"""Tokens are data: whatever they hold is shown, on one line, and nothing of it is obeyed."""

import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["check_tokens", "visible"]

_SIGNS = {" ": "␣", "\n": "↵", "\r": "␍", "\t": "⇥"}
# What is not seen, or moves what stands beside it: controls, formats (such as a change of direction), halves of a
# surrogate pair, private characters, separators of lines and paragraphs, spaces of other widths.
_HIDDEN = {"Cc", "Cf", "Cs", "Co", "Zl", "Zp", "Zs"}
_JOINERS = "\u200c\u200d"  # within a word they shape letters and emoji


def visible(token: str) -> str:
    """A token as text in which everything can be seen, on one line.

    Example:

        >>> [visible(token) for token in (" cat", "a b", "\\n", "", "\\ud83d")]
        ['␣cat', 'a b', '↵', '⟨empty⟩', '⟨U+D83D⟩']
    """
    if not token:
        return "⟨empty⟩"
    shown = [_sign(character) for character in token]
    inner = token.strip(" " + _JOINERS)
    if inner:  # a space between two words is seen as it is
        start = token.index(inner)
        for i in range(start, start + len(inner)):
            if token[i] == " " or token[i] in _JOINERS:
                shown[i] = token[i]
    return "".join(shown)


def _sign(character: str) -> str:
    if character in _SIGNS:
        return _SIGNS[character]
    return f"⟨U+{ord(character):04X}⟩" if unicodedata.category(character) in _HIDDEN else character


def check_tokens(name: str, tokens: Sequence[Any], n: int | None = None, axis: str = "") -> list[str]:
    """Strings, ``n`` of them if that is known, as visible text."""
    no_sequence = isinstance(tokens, (str, set, frozenset, Mapping))
    if no_sequence or not hasattr(tokens, "__len__") or getattr(tokens, "ndim", 1) != 1:
        raise ValueError(f"{name} must be a sequence of strings, one for each position. Got {tokens!r:.60}.")
    strings = list(tokens)
    for i, token in enumerate(strings):
        if not isinstance(token, str):
            raise ValueError(
                f"{name} must be strings. Got {token!r:.60} at {i}. Take the tokenizer's tokens rather than its ids."
            )
    if n is not None and len(strings) != n:
        raise ValueError(f"{name} must have {n} entries, one for each of weights' {axis}. Got {len(strings)}.")
    return [visible(token) for token in strings]
