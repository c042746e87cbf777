"""The most probable tokens, with processors of logits and without: those of ``generate`` of `transformers`."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jattn import decoding
from parity_tests.decoding.hugging_face import PAD, PAIRS, N, V, pair

pytest.importorskip("transformers", reason="no transformers: decoding was not compared with its own")


@pytest.mark.whole
@pytest.mark.parametrize("name", PAIRS)
def test_transformers(name: str, tmp_path: Path) -> None:
    """Cut off, ended, and with processors, each of which makes a difference."""
    with pair(name, tmp_path) as both:
        if name.startswith("Mistral"):
            assert all(cache.ring and cache.room < N for cache in both.ours.new_cache(3, 7 + N))

        def assert_same(eos: list[int], processors: list[Any], theirs: dict[str, Any]) -> np.ndarray:
            expected = both.generate(eos_token_id=eos, **theirs).sequences
            found = decoding.generate(
                both.ours, **both.given, max_new_tokens=N, eos=eos, pad=PAD, processors=processors
            )
            np.testing.assert_array_equal(found.tokens, expected)
            for row, length in zip(expected, found.lengths, strict=True):
                assert length == N or row[length - 1] in eos
            return expected

        free = both.generate().sequences
        np.testing.assert_array_equal(assert_same([*set(range(V)) - set(free.flat)][:2], [], {}), free)
        eos = both.ends()
        assert np.any(assert_same(eos, [], {}) != free)
        processors, theirs = both.processors(eos)
        expected = assert_same(eos, processors, theirs)
        for one in theirs:
            others = {name: x for name, x in theirs.items() if name != one}
            assert np.any(both.generate(eos_token_id=eos, **others).sequences != expected), f"{one} changes nothing"
