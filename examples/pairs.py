"""Sentence pairs: as text, as tokens, and as the arrays that a `jattn.models.Seq2Seq` is trained on.

Axes: b batch · s source position · t target position
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

Pair = tuple[str, str]
Tokenize = Callable[[str], list[str]]

UNK, PAD, BOS, EOS = range(4)
SPECIAL = ("<unk>", "<pad>", "<bos>", "<eos>")


# ----------------------------------------------------------------------------------------------------------------------
# Text.


def read_pairs(path: str | Path) -> list[Pair]:
    """The pairs of a file: on each line a sentence, a tab and its translation, in UTF-8.

    Raises:
        ValueError: naming the file, the first line that is none of that, what was found there, and what to do.
    """
    path = Path(path)
    lines = path.read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n")
    if not lines[-1]:
        lines.pop()  # the last line's own end
    if not lines:
        raise ValueError(f"{path} must have a pair of sentences on each line. Got an empty file.")
    return [_pair(line, f"{path}, line {number},") for number, line in enumerate(lines, 1)]


def _pair(line: bytes, place: str) -> Pair:
    try:
        text = line.decode()
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{place} must be UTF-8. Got the byte 0x{line[error.start]:02x} at position {error.start + 1}. "
            "Save the file as UTF-8."
        ) from error
    sides = [side.strip() for side in text.split("\t")]
    if len(sides) != 2:
        found = "an empty line" if not text.strip() else f"{len(sides) - 1} tabs: {text.strip()!r:.80}"
        remedy = "Remove the columns after the second." if len(sides) > 2 else "Write the tab, or remove the line."
        raise ValueError(f"{place} must be a sentence, one tab and its translation. Got {found}. {remedy}")
    if not all(sides):
        side = "before" if not sides[0] else "after"
        raise ValueError(
            f"{place} must have a sentence on either side of the tab. Got none {side} it: {text.rstrip()!r:.80}. "
            "Write it, or remove the line."
        )
    return sides[0], sides[1]


def hold_out(pairs: Sequence[Pair], share: float, seed: int) -> tuple[list[Pair], list[Pair]]:
    """Training pairs, and a share held out: no source is on both sides, whatever its case and apostrophes."""
    if not 0 < share < 1:
        raise ValueError(f"share must lie in (0, 1). Got {share}.")
    by_source: dict[str, list[Pair]] = {}
    for pair in pairs:
        by_source.setdefault(" ".join(words(pair[0])), []).append(pair)
    sources = sorted(by_source)
    if len(sources) < 2:
        raise ValueError(f"pairs must have two different sources at least, one to hold out. Got {len(sources)}.")
    n = min(max(round(share * len(sources)), 1), len(sources) - 1)
    held_out = {sources[i] for i in np.random.default_rng(seed).permutation(len(sources))[:n]}
    return (
        [pair for source, same in by_source.items() if source not in held_out for pair in same],
        [pair for source, same in by_source.items() if source in held_out for pair in same],
    )


# ----------------------------------------------------------------------------------------------------------------------
# Tokens.


def words(text: str) -> list[str]:
    """In lower case; a word keeps its inner apostrophes and hyphens, any other mark is a token of its own.

    >>> words("Don't go, mon p\u2019tit!")
    ["don't", 'go', ',', 'mon', "p'tit", '!']
    """
    text = unicodedata.normalize("NFC", text).lower().replace("\u2019", "'")
    return re.findall(r"\w+(?:['-]\w+)*|[^\w\s]", text)


def characters(text: str) -> list[str]:
    """As they are, an accented letter being one.

    >>> characters("am 3.")
    ['a', 'm', ' ', '3', '.']
    """
    return list(unicodedata.normalize("NFC", text))


class Vocabulary:
    """Numbers for tokens, the special ones first, then the most frequent.

    Args:
        texts: of which the tokens are counted.
        min_frequency: how often a token must occur; a rarer one is read as ``<unk>``.

    >>> vocabulary = Vocabulary([["to", "be", "or", "not", "to", "be"]], min_frequency=2)
    >>> vocabulary.tokens
    ('<unk>', '<pad>', '<bos>', '<eos>', 'be', 'to')
    >>> vocabulary.encode(["to", "see"])
    [5, 0]
    """

    def __init__(self, texts: Iterable[Sequence[str]], min_frequency: int = 1) -> None:
        if min_frequency < 1:
            raise ValueError(f"min_frequency must be at least 1. Got {min_frequency}.")
        counts = Counter(token for text in texts for token in text if token not in SPECIAL)
        frequent = [token for token, count in counts.items() if count >= min_frequency]
        self.tokens = (*SPECIAL, *sorted(frequent, key=lambda token: (-counts[token], token)))
        self._numbers = {token: number for number, token in enumerate(self.tokens)}

    def __len__(self) -> int:
        return len(self.tokens)

    def encode(self, text: Sequence[str]) -> list[int]:
        """The tokens' numbers, that of ``<unk>`` for one that is not known."""
        return [self._numbers.get(token, UNK) for token in text]

    def decode(self, numbers: Iterable[int]) -> list[str]:
        """The tokens up to ``<eos>``, without ``<pad>`` and ``<bos>``."""
        text: list[str] = []
        for number in map(int, numbers):
            if not 0 <= number < len(self):
                raise ValueError(f"numbers must lie between 0 and {len(self) - 1}, the vocabulary. Got {number}.")
            if number == EOS:
                break
            if number not in (PAD, BOS):
                text.append(self.tokens[number])
        return text


# ----------------------------------------------------------------------------------------------------------------------
# Arrays.


class Batch(NamedTuple):
    """Pairs as numbers, padded to one length on each side."""

    source: np.ndarray  # b s
    source_valid_lens: np.ndarray  # b
    target: np.ndarray  # b t, <bos> first and <eos> last
    target_valid_lens: np.ndarray  # b, <bos> and <eos> included


class Corpus:
    """How the text of pairs becomes numbers: the way it is cut, and a vocabulary for each side.

    Args:
        pairs: to learn the vocabularies from, the training pairs.
        tokenize: `words` or `characters`.
        min_frequency: of a token, as in `Vocabulary`.
    """

    def __init__(self, pairs: Sequence[Pair], tokenize: Tokenize, min_frequency: int = 1) -> None:
        self.tokenize = tokenize
        self.source = Vocabulary((tokenize(source) for source, _ in pairs), min_frequency)
        self.target = Vocabulary((tokenize(target) for _, target in pairs), min_frequency)

    def batch(self, pairs: Sequence[Pair], source_length: int | None = None, target_length: int | None = None) -> Batch:
        """The pairs as arrays of these lengths, by default those of the longest source and target."""
        sources = [self.source.encode(self.tokenize(source)) for source, _ in pairs]
        targets = [[BOS, *self.target.encode(self.tokenize(target)), EOS] for _, target in pairs]
        return Batch(*padded(sources, source_length), *padded(targets, target_length))


def padded(rows: Sequence[Sequence[int]], length: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Rows of numbers as one array ``b length``, filled up with ``<pad>``, and how long each was, ``b``."""
    valid_lens = np.array([len(row) for row in rows], np.int32)
    longest = int(valid_lens.max(initial=0))
    length = longest if length is None else length
    if length < longest:
        raise ValueError(f"length must be at least that of the longest row, {longest}. Got {length}.")
    array = np.full((len(rows), length), PAD, np.int32)
    for numbers, row in zip(array, rows, strict=True):
        numbers[: len(row)] = row
    return array, valid_lens
