"""What is read of programs that are never run: `benchmarks.programs`."""

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from benchmarks.programs import Sent, flops_of, sent_by

X, Y = jnp.ones((2, 3, 5)), jnp.ones((2, 5, 7))
PRODUCT = 2 * 2 * 3 * 5 * 7  # multiplications and additions of X @ Y


def flops(f, *arguments, platform: str = "cpu") -> int:
    return flops_of(jax.jit(f).trace(*arguments).jaxpr, platform)


def test_flops_of_products() -> None:
    assert flops(jnp.matmul, X, Y) == PRODUCT
    assert flops(lambda x, y: jnp.tanh(x) @ y + 1, X, Y) == PRODUCT
    assert (
        flops(jax.grad(lambda x, y: (x @ y).sum(), (0, 1)), X, Y) == 2 * PRODUCT
    )  # nobody asks for the product itself


def test_flops_of_loops_and_branches() -> None:
    def four_times(x):
        return lax.scan(lambda total, _: (total + (X @ x).sum(), None), 0.0, length=4)[0]

    def sometimes(x):
        return lax.cond(x[0, 0, 0] > 0, lambda: (X @ x).sum(), lambda: (X[:, :1] @ x).sum())

    assert flops(four_times, Y) == 4 * PRODUCT
    assert flops(sometimes, Y) == PRODUCT
    with pytest.raises(ValueError, match="loops whose turns are known"):
        flops(lambda x: lax.while_loop(lambda x: x.sum() < 9, lambda x: x + (X @ Y).sum(), x), jnp.zeros(()))


def test_flops_of_the_platform() -> None:
    def f(x):
        return lax.platform_dependent(x, cpu=lambda x: X @ x, default=lambda x: X @ x + X @ (2 * x))

    assert flops(lambda x: f(x).sum(), Y) == PRODUCT
    assert flops(lambda x: f(x).sum(), Y, platform="tpu") == 2 * PRODUCT


PROGRAM = """HloModule jit_f, is_scheduled=true

%add (x: f32[], y: f32[]) -> f32[] {
  ROOT %add = f32[] add(%x, %y)
}

%again (turn: (s32[], f32[8,4])) -> pred[] {
  %constant.1 = s32[]{:T(128)} constant(3)
  ROOT %lt = pred[] compare(%turn, %constant.1), direction=LT
}

%turn (turn: (s32[], f32[8,4])) -> (s32[], f32[8,4]) {
  %part = bf16[8,4]{1,0} all-gather(%x), channel_id=1, replica_groups=[2,4]<=[8], dimensions={0}
  %more = bf16[8,4]{1,0} fusion(%part), kind=kCustom, calls=%beside
  %still = bf16[8,4]{1,0} fusion(%part), kind=kCustom, calls=%beside.1
  %sum = f32[8,4]{1,0} fusion(%part), kind=kCustom, calls=%all-reduce-scatter.1
}

%beside (x: bf16[2,4]) -> bf16[8,4] {
  %part.3 = bf16[8,4]{1,0} all-gather(%x), channel_id=7, replica_groups=[2,4]<=[8], dimensions={0}
}

%beside.1 (x: bf16[2,4]) -> bf16[8,4] {
  %part.4 = bf16[8,4]{1,0} all-gather(%x), channel_id=7, replica_groups=[2,4]<=[8], dimensions={0}
}

%all-reduce-scatter.1 (input: f32[8,4]) -> f32[2,4] {
  %all-reduce.2 = f32[8,4]{1,0} all-reduce(%input), channel_id=2, replica_groups={{0,2,4,6},{1,3,5,7}}, to_apply=%add
}

ENTRY %main (x: f32[2,4]) -> f32[8,4] {
  %while = (s32[], f32[8,4]) while(%tuple), condition=%again, body=%turn
  %part.2 = bf16[8,4]{1,0} all-gather(%x), channel_id=1, replica_groups=[2,4]<=[8], dimensions={0}
  %total = (f32[8,4]{1,0}, f32[]) all-reduce(%a, %b), channel_id=3, replica_groups=mesh['a'=4,'b'=2] {'b'}
  %flags = pred[2,8]{1,0} all-to-all(%d), channel_id=5, replica_groups=[2,4]<=[8], dimensions={0}
  %begun = (f32[2]{0}, f32[3]{0}) all-reduce-start(%e, %f), channel_id=6, replica_groups=[1,8]<=[8], to_apply=%add
  %after = (bf16[6]{0}, bf16[6]{0}, u32[], u32[]) collective-permute-start(%c), channel_id=8, source_target_pairs={}
  %next = bf16[6]{0} collective-permute(%c), channel_id=4, source_target_pairs={{0,1},{1,0}}
}
"""


def test_what_is_sent() -> None:
    """A loop of three turns; a collective that goes on in another fusion; the three ways to write groups.

    Those of a `jax.shard_map` have one number, all of them.
    """
    assert sent_by(PROGRAM) == [
        Sent("all-gather", 4, (3 + 3 + 1) * 64 * 3 / 4, 7),
        Sent("reduce-scatter", 4, 3 * 128 * 3 / 4, 3),
        Sent("all-reduce", 2, 2 * (128 + 4) / 2, 1),
        Sent("all-reduce", 8, 2 * 20 * 7 / 8, 1),
        Sent("collective-permute", 2, 2 * 12, 2),
        Sent("all-to-all", 4, 12, 1),
    ]
    with pytest.raises(ValueError, match="a loop's turns must be known"):
        sent_by(PROGRAM.replace("constant(3)", "parameter(0)"))
