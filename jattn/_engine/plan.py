"""How queries are cut into blocks, and how many keys each block sees. The blocks are decided on tracing, data or not.

Axes: t queries · g heads for each · s keys.
"""

import itertools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array

from jattn._engine.extents import Extent
from jattn._engine.platform import Platform

__all__ = ["KEYS_LOOKED_AT", "Block", "Group", "KeyRange", "key_ranges", "plan"]

_ROWS = (1024, 512, 256, 128, 64)  # of a block: many keep its products busy, few keep it near what the mask allows
_OVERHEAD = 24  # what a block costs beside its rows, in rows
_LEAST_WIDTH = 64  # and the first step of rounding up
_LITTLE = 1 / 12  # of the work: what doesn't save as much isn't worth a loop
_LOGITS_APART = 2**18  # at most in blocks that get a loop for each width
KEYS_LOOKED_AT = 2**24  # while tracing, to try one size of blocks


class Block(NamedTuple):
    """Queries, and the keys that they see.

    ``first`` may be too late for ``width`` keys to follow, and is moved forward then. Where data decides, both stand
    for all keys.
    """

    start: int
    rows: int
    first: int
    width: int


class Group(NamedTuple):
    """Consecutive blocks of as many rows, which one loop goes over."""

    blocks: list[Block]
    widths: list[int]  # that are compiled, ascending
    by_data: bool  # whether data decides which of them a block needs, and its first key


KeyRange = Callable[[Extent, int], tuple[Extent, Extent]]  # of queries, by the first and how many they are


def plan(t: int, g: int, s: int, key_range: KeyRange, platform: Platform, matrices: int = 1) -> list[Group]:
    """The cheapest way to cut the queries into blocks, if those of so many heads and examples are computed at once."""
    sizes = [rows // g for rows in _ROWS if matrices * rows * s <= platform.logits and rows >= g]
    sizes = sizes or [max(_ROWS[-1] // g, 1)]
    if not all(isinstance(end, int) for end in key_range(0, t)):
        widths = sorted({min(max(math.ceil(part * s), platform.least_part), s) for part in platform.parts})
        blocks = _cut(t, min(sizes[0], max(platform.rows // g, 1)), lambda start, rows: (0, s))
        return [Group(list(alike), widths, by_data=True) for _, alike in itertools.groupby(blocks, lambda x: x.rows)]
    few = [rows for rows in sizes if t // rows * s <= KEYS_LOOKED_AT] or sizes[:1]
    cuts = [_rounded(_cut(t, rows, key_range), s, platform) for rows in few]
    blocks = min(cuts, key=lambda cut: sum(x.width * (x.rows * g + _OVERHEAD) for x in cut))
    # Small blocks are faster with a loop for each width than in one that chooses among them, and an accelerator would
    # wait for each choice.
    apart = not platform.is_cpu or max(x.width * x.rows * g for x in blocks) <= _LOGITS_APART
    if apart:
        blocks = _with_fewer_widths(blocks)
    alike = [list(x) for _, x in itertools.groupby(blocks, lambda x: (x.rows, x.width if apart else None))]
    return [Group(blocks, sorted({x.width for x in blocks}), by_data=False) for blocks in alike]


def key_ranges(
    key_range: KeyRange, starts: Array, rows: int, widths: list[int], platform: Platform
) -> tuple[Array, Array]:
    """For blocks of so many queries from ``starts`` on, by data: the first key, and the number of the least width."""

    def of_block(start: Array) -> tuple[Array, Array]:
        low, high = key_range(start, rows)
        return jnp.asarray(low), jnp.asarray(high)

    low, high = platform.each_matrix(of_block, starts)
    return low, jnp.searchsorted(jnp.asarray(widths), high - low, method="compare_all")


def _cut(t: int, rows: int, key_range: KeyRange) -> list[Block]:
    """Blocks of so many queries; of fewer if those leave no rest."""
    count = -(-t // rows)
    rows = t // count if t % count == 0 else min(rows, t)
    blocks = []
    for start in range(0, t, rows):
        some = min(rows, t - start)
        low, high = key_range(start, some)
        assert isinstance(low, int)
        assert isinstance(high, int)
        blocks.append(Block(start, some, low, high - low))
    return blocks


def _rounded(blocks: list[Block], s: int, platform: Platform) -> list[Block]:
    """The widths, rounded up to multiples of what leaves few different ones."""
    step = min(_LEAST_WIDTH, s)
    while True:
        rounded = [x._replace(width=max(min(-(-x.width // step) * step, s), step)) for x in blocks]
        if len({x.width for x in rounded}) <= platform.widths:
            return rounded
        step = min(2 * step, s)


def _with_fewer_widths(blocks: list[Block]) -> list[Block]:
    """Without the narrowest widths, where they save little work; but not if each block has a width of its own."""
    most = sum(x.rows * x.width for x in blocks) * (1 + _LITTLE)
    while 1 < len(widths := sorted({x.width for x in blocks})) < len(blocks):
        wider = [x._replace(width=max(x.width, widths[1])) for x in blocks]
        if sum(x.rows * x.width for x in wider) > most:
            break
        blocks = wider
    return blocks
