"""How queries are cut into blocks: all of them once, each with its keys, and with few widths to compile."""

import jax
import jax.numpy as jnp
import pytest

from jattn import masks
from jattn._engine.plan import Block, Group
from jattn._engine.plan import plan as plan_of
from jattn._engine.platform import CPU
from jattn.logits import Logits

MASKS = {
    "none": None,
    "causal": masks.causal(),
    "offset": masks.causal(offset=-40),
    "window": masks.sliding_window(100, 0),
    "prefix": masks.causal() | masks.prefix(300),
    "no keys": masks.lengths(0),
}


def key_range(mask, s: int):
    nothing = [None] * 9
    logits = Logits(*nothing[:6], None if mask is None else mask.aligned(0), *nothing[6:])
    return lambda start, rows: logits.key_range(start, rows, s)


def plan(t: int, g: int, s: int, mask) -> list[Group]:
    return plan_of(t, g, s, key_range(mask, s), CPU)


def blocks_of(t: int, g: int, s: int, mask) -> list[Block]:
    return [block for group in plan(t, g, s, mask) for block in group.blocks]


@pytest.mark.parametrize("s", [1, 50, 2048])
@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
def test_blocks_have_all_queries_once_and_the_keys_that_they_reach(mask, s):
    for t in (1, 63, 64, 255, 512, 513, 1000, 1024, 4097):
        for g in (1, 3):
            blocks = blocks_of(t, g, s, mask)
            assert [row for x in blocks for row in range(x.start, x.start + x.rows)] == list(range(t))
            for x in blocks:
                low, high = key_range(mask, s)(x.start, x.rows)
                first = min(x.first, s - x.width)
                assert first >= 0
                assert (first <= low and high <= first + x.width) or low == high


def test_groups_are_blocks_of_as_many_rows_and_have_their_widths():
    for mask in MASKS.values():
        for group in plan(1000, 1, 2048, mask):
            assert len({x.rows for x in group.blocks}) == 1
            assert not group.by_data
            assert group.widths == sorted({x.width for x in group.blocks})
            assert len(group.widths) <= 8


def test_where_data_decides_there_are_widths_up_to_all_keys():
    for t in (1, 63, 64, 255, 512, 513, 1000, 1024, 4097):
        groups = []
        jax.eval_shape(lambda n, t=t, groups=groups: groups.extend(plan(t, 1, 2048, masks.lengths(n))), jnp.array(7))
        blocks = [block for group in groups for block in group.blocks]
        assert [row for x in blocks for row in range(x.start, x.start + x.rows)] == list(range(t))
        for group in groups:
            assert group.by_data
            assert group.widths == [256, 512, 1024, 1536, 2048]


def test_a_window_sees_few_keys_in_one_loop():
    (group,) = plan(4096, 1, 4096, masks.sliding_window(256, 0))
    assert max(group.widths) <= 512
    assert sum(x.rows * x.width for x in group.blocks) < 4096 * 4096 / 8


def test_a_causal_mask_leaves_out_nearly_half():
    for t in (1024, 4096, 8192):
        work = sum(x.rows * x.width for x in blocks_of(t, 1, t, masks.causal()))
        assert work < 0.63 * t * t
