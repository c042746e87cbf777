"""Sentence pairs: what a file must be, tokens, vocabularies and padded arrays."""

import doctest
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from examples import pairs
from examples.pairs import BOS, EOS, PAD, UNK, Corpus, Vocabulary, characters, hold_out, padded, read_pairs, words
from tests.errors import raises

DATA = Path(__file__).parents[2] / "examples" / "data" / "eng-fra.tsv"


def test_the_examples_in_the_docstrings() -> None:
    assert doctest.testmod(pairs).failed == 0


def test_reading(tmp_path: Path) -> None:
    """Line ends of any system, a byte order mark, spaces around, no end to the last line."""
    path = tmp_path / "pairs.tsv"
    path.write_bytes("\ufeffGo!\tVa !\r\n Tea. \t Du thé.\nOne\u2028line\tUne ligne".encode())
    assert read_pairs(path) == [("Go!", "Va !"), ("Tea.", "Du thé."), ("One\u2028line", "Une ligne")]


@pytest.mark.parametrize(
    ("line", "phrases"),
    [
        (b"Go! Va !", ("must be a sentence, one tab", "Got 0 tabs: 'Go! Va !'", "Write the tab")),
        (b"Go!\tVa !\tCC", ("must be a sentence, one tab", "Got 2 tabs: 'Go!\\tVa !\\tCC'", "Remove the columns")),
        (b"", ("must be a sentence, one tab", "Got an empty line", "remove the line")),
        (b" \r", ("must be a sentence, one tab", "Got an empty line")),
        (b"\tVa !", ("on either side", "Got none before it: '\\tVa !'", "Write it")),
        (b"Go!\t \r", ("on either side", "Got none after it: 'Go!'")),
        (b"Tea.\tDu th\xe9.", ("must be UTF-8", "byte 0xe9 at position 11", "Save the file as UTF-8")),
    ],
)
def test_a_malformed_line_is_named(tmp_path: Path, line: bytes, phrases: tuple[str, ...]) -> None:
    path = tmp_path / "pairs.tsv"
    path.write_bytes(b"Yes.\tOui.\nNo.\tNon.\n" + line + b"\nTea.\tDu the.\n")
    with raises(f"{path}, line 3, ", *phrases):
        read_pairs(path)


def test_an_empty_file(tmp_path: Path) -> None:
    path = tmp_path / "pairs.tsv"
    path.touch()
    with raises(f"{path} must have a pair", "Got an empty file"):
        read_pairs(path)


def test_the_pairs_that_come_along() -> None:
    found = read_pairs(DATA)
    assert len(found) >= 60
    assert len(set(found)) == len(found)


def test_words() -> None:
    assert words("J'ai deux SŒURS, va-t'en !") == ["j'ai", "deux", "sœurs", ",", "va-t'en", "!"]
    assert words("cafe\u0301...") == ["café", ".", ".", "."]
    assert words("l\u2019été\u00a0: 3.5 %") == ["l'été", ":", "3", ".", "5", "%"]


def test_characters() -> None:
    assert characters("e\u0301 B") == ["é", " ", "B"]


@given(st.text())
def test_nothing_but_spaces_is_lost(text: str) -> None:
    kept = unicodedata.normalize("NFC", text).lower().replace("\u2019", "'")
    assert "".join(words(text)) == "".join(kept.split())


def test_vocabulary() -> None:
    vocabulary = Vocabulary([words("to be or not to be"), words("be <eos>")], min_frequency=2)
    assert vocabulary.tokens == ("<unk>", "<pad>", "<bos>", "<eos>", "be", "to")
    assert len(vocabulary) == 6
    assert vocabulary.encode(words("to be or")) == [5, 4, UNK]
    assert vocabulary.decode([BOS, 5, 4, UNK, PAD, 5, EOS, 4]) == ["to", "be", "<unk>", "to"]
    assert vocabulary.decode(np.array([4, EOS, 77])) == ["be"]


def test_a_special_token_in_a_text_is_not_counted_twice() -> None:
    assert Vocabulary([["<eos>", "a"]]).tokens == ("<unk>", "<pad>", "<bos>", "<eos>", "a")


@given(st.lists(st.text(min_size=1), min_size=1))
def test_what_was_encoded_is_decoded(texts: list[str]) -> None:
    for cut in (words, characters):
        tokens = [cut(text) for text in texts]
        vocabulary = Vocabulary(tokens)
        for text in tokens:
            assert vocabulary.decode([*vocabulary.encode(text), EOS]) == text


def test_wrong_numbers() -> None:
    with raises("min_frequency must be at least 1", "Got 0"):
        Vocabulary([], min_frequency=0)
    with raises("numbers must lie between 0 and 3", "Got 4"):
        Vocabulary([]).decode([2, 4])
    with raises("numbers must lie between 0 and 3", "Got -1"):
        Vocabulary([]).decode([-1])


def test_padded() -> None:
    array, valid_lens = padded([[4, 5], [], [6]], length=3)
    np.testing.assert_array_equal(array, [[4, 5, PAD], [PAD, PAD, PAD], [6, PAD, PAD]])
    np.testing.assert_array_equal(valid_lens, [2, 0, 1])
    assert array.dtype == valid_lens.dtype == np.int32
    assert padded([[4, 5], [6]])[0].shape == (2, 2)
    with raises("length must be at least that of the longest row, 2", "Got 1"):
        padded([[4, 5], [6]], length=1)


def test_batch() -> None:
    corpus = Corpus([("go go", "va"), ("go on", "va va va")], words, min_frequency=2)
    batch = corpus.batch([("go on", "va"), ("go", "va va")], source_length=4)
    np.testing.assert_array_equal(batch.source, [[4, UNK, PAD, PAD], [4, PAD, PAD, PAD]])
    np.testing.assert_array_equal(batch.source_valid_lens, [2, 1])
    np.testing.assert_array_equal(batch.target, [[BOS, 4, EOS, PAD], [BOS, 4, 4, EOS]])
    np.testing.assert_array_equal(batch.target_valid_lens, [3, 4])


def test_held_out_sources_are_not_trained_on() -> None:
    found = [(f"{'S' if i % 2 else 's'}{i // 3}", str(i)) for i in range(60)]
    train, held_out = hold_out(found, 0.25, seed=0)
    assert sorted(train + held_out) == sorted(found)
    assert {source.lower() for source, _ in held_out}.isdisjoint(source.lower() for source, _ in train)
    assert len({source.lower() for source, _ in held_out}) == 5
    assert (train, held_out) == hold_out(found, 0.25, seed=0)
    assert held_out != hold_out(found, 0.25, seed=1)[1]


def test_holding_out_what_cannot_be() -> None:
    with raises("share must lie in (0, 1)", "Got 1.0"):
        hold_out([("a", "b"), ("c", "d")], 1.0, seed=0)
    with raises("two different sources", "Got 1"):
        hold_out([("a", "b"), ("A", "c")], 0.5, seed=0)
    with raises("two different sources", "Got 1"):
        hold_out([("Don\u2019t", "b"), ("don't", "c")], 0.5, seed=0)
