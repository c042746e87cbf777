"""How queries are cut into blocks, and how many keys each block sees. The blocks are decided on tracing, data or not.

Axes: t queries · g heads for each · s keys.
"""

import itertools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from jattn.extents import Extent
from jattn.loops import on_cpu
from jattn.mask_types import Mask

_ROWS = (1024, 512, 256, 128, 64)  # of a block: many keep its products busy, few keep it near what the mask allows
_OVERHEAD = 24  # what a block costs beside its rows, in rows
_LEAST_WIDTH = 64  # and the first step of rounding up
_LITTLE = 1 / 12  # of the work: what doesn't save as much isn't worth a loop
_LOGITS_APART = 2**18  # at most in blocks that get a loop for each width


class _Limits(NamedTuple):
    """What differs between processors."""

    logits: int  # at most in the blocks that are computed at a time, so that they stay near the core that made them
    widths: int  # each is compiled for itself, so there are few
    # Where data decides which keys a block sees:
    parts: tuple[float, ...]  # of all keys: the widths
    least_part: int
    rows: int  # at most, as the keys that more of them see lie further apart


# On a processor, of six widths two blocks of a causal mask on 1,024 tokens share one, which takes 1.4 times as long.
_CPU = _Limits(2**22, widths=8, parts=(1 / 8, 1 / 4, 1 / 2, 3 / 4, 1), least_part=64, rows=512)
# An accelerator takes many blocks at once, and takes longer to compile.
_ACCELERATOR = _Limits(2**24, widths=4, parts=(1 / 64, 1 / 16, 1 / 4, 1), least_part=512, rows=256)


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


def limits() -> _Limits:
    """Those of the default device."""
    return _CPU if on_cpu() else _ACCELERATOR


def plan(t: int, g: int, s: int, mask: Mask | None, matrices: int = 1) -> list[Group]:
    """The cheapest way to cut the queries into blocks, if those of so many heads and examples are computed at once."""
    limit = limits()
    sizes = [rows // g for rows in _ROWS if matrices * rows * s <= limit.logits and rows >= g]
    sizes = sizes or [max(_ROWS[-1] // g, 1)]

    def spans(start: int, stop: int) -> tuple[Extent, Extent]:
        return (0, s) if mask is None else mask.span(start, stop, s)

    if not all(isinstance(end, int) for end in spans(0, t)):
        widths = sorted({min(max(math.ceil(part * s), limit.least_part), s) for part in limit.parts})
        blocks = _cut(t, min(sizes[0], max(limit.rows // g, 1)), lambda start, stop: (0, s))
        return [Group(list(alike), widths, by_data=True) for _, alike in itertools.groupby(blocks, lambda x: x.rows)]
    cuts = [_rounded(_cut(t, rows, spans), s) for rows in sizes]
    blocks = min(cuts, key=lambda cut: sum(x.width * (x.rows * g + _OVERHEAD) for x in cut))
    # Small blocks are faster with a loop for each width than in one that chooses among them, and an accelerator would
    # wait for each choice.
    apart = not on_cpu() or max(x.width * x.rows * g for x in blocks) <= _LOGITS_APART
    if apart:
        blocks = _with_fewer_widths(blocks)
    alike = [list(x) for _, x in itertools.groupby(blocks, lambda x: (x.rows, x.width if apart else None))]
    return [Group(blocks, sorted({x.width for x in blocks}), by_data=False) for blocks in alike]


def reach(mask: Mask, starts: Array, rows: int, s: int, widths: list[int]) -> tuple[Array, Array]:
    """For blocks of so many queries from ``starts`` on, by data: the first key, and the number of the least width."""

    def span(start: Array) -> tuple[Array, Array]:
        low, high = mask.span(start, start + rows, s)
        return jnp.asarray(low), jnp.asarray(high)

    low, high = lax.map(span, starts) if on_cpu() else jax.vmap(span)(starts)
    return low, jnp.searchsorted(jnp.asarray(widths), high - low, method="compare_all")


def _cut(t: int, rows: int, spans: Callable[[int, int], tuple[Extent, Extent]]) -> list[Block]:
    """Blocks of so many queries; of fewer if those leave no rest."""
    count = -(-t // rows)
    rows = t // count if t % count == 0 else min(rows, t)
    blocks = []
    for start in range(0, t, rows):
        stop = min(start + rows, t)
        low, high = spans(start, stop)
        if not (isinstance(low, int) and isinstance(high, int)):
            raise TypeError(f"A mask's span must be integers for any queries or for none. Got {low!r} and {high!r}.")
        blocks.append(Block(start, stop - start, low, high - low))
    return blocks


def _rounded(blocks: list[Block], s: int) -> list[Block]:
    """The widths, rounded up to multiples of what leaves few different ones."""
    step = min(_LEAST_WIDTH, s)
    while True:
        rounded = [x._replace(width=max(min(-(-x.width // step) * step, s), step)) for x in blocks]
        if len({x.width for x in rounded}) <= limits().widths:
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
