"""What is added to a logit, because of where its query and its key are: tensors that broadcast to "*b h t s".

Positions are 0 ... n - 1 unless they are given: "*b t" for the queries, "*b s" for the keys.
"""

import math

import torch
from torch import Tensor

from torch_ref.masks import positions
from torch_ref.masks import where as where  # here of numbers
from torch_ref.scores import at_least_float32


def alibi_slopes(num_heads: int) -> Tensor:
    """The slopes of ALiBi (Press et al. 2022), "h" in float64.

    Of a power of two of heads, n, the i-th has 2^(-8 i / n), i from 1. Any other number takes those of the largest
    power below it, and then the 1st, 3rd, 5th ... of twice that power.
    """
    power = 1
    while 2 * power <= num_heads:
        power = 2 * power
    slopes = [2 ** (-8 * i / power) for i in range(1, power + 1)]
    between = [2 ** (-8 * i / (2 * power)) for i in range(1, 2 * power, 2)]
    return torch.tensor((slopes + between)[:num_heads], dtype=torch.float64)


def alibi(
    slopes: Tensor, t: int, s: int, query_positions: Tensor | None = None, key_positions: Tensor | None = None
) -> Tensor:
    """The farther a key, the less: -slope * |j - i|. Shapes: slopes "h" -> "h t s", "*b h" -> "*b h t s"."""
    i, j = positions(t, s, query_positions, key_positions)
    return -at_least_float32(slopes)[..., None, None] * (j - i).abs()


def relative(
    table: Tensor,
    t: int,
    s: int,
    bidirectional: bool = True,
    max_distance: int = 128,
    query_positions: Tensor | None = None,
    key_positions: Tensor | None = None,
) -> Tensor:
    """A number for each head and each bucket of distances j - i (Raffel et al. 2020): table[bucket(j - i)].

    Shapes: table "n h" -> "h t s", or "*b h t s" where positions have a batch. If bidirectional, the first half of
    the n buckets is for keys before the query, the second for keys after it; otherwise all are for keys before it,
    and those after it count as distance 0.
    """
    i, j = positions(t, s, query_positions, key_positions)
    distance = j - i
    n = table.shape[0]
    if bidirectional:
        buckets = torch.where(distance > 0, n // 2, 0) + _bucket(distance.abs(), n // 2, max_distance)
    else:
        buckets = _bucket((-distance).clamp(min=0), n, max_distance)
    if buckets.ndim > 2:
        buckets = buckets.squeeze(-3)  # positions have no heads
    return at_least_float32(table)[buckets].movedim(-1, -3)


def _bucket(distance: Tensor, n: int, max_distance: int) -> Tensor:
    """The bucket, of n, of a distance from 0 on.

    The first n // 2 distances have one each. The others share the rest, which grow with the logarithm of the distance
    up to max_distance. In float32 and in this order of operations, as the buckets of trained models are: the other
    side of a rounding is another bucket.
    """
    exact = n // 2
    share = torch.log(distance.float() / exact) / math.log(max_distance / exact)  # -inf at 0, which isn't looked at
    shared = exact + (share * (n - exact)).clamp(0, n - 1 - exact).long()
    return torch.where(distance < exact, distance, shared)
