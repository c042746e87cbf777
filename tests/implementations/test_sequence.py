"""A sequence over devices: what is chosen, what goes where, every error; `tests.divided_sequence` has the numbers.

Devices are made up where nothing is computed; where something is, another process has four.
"""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType, PartitionSpec

import jattn
from jattn import attention, biases, explain, masks, scores
from jattn.implementations.parts import hops, reached_parts
from jattn.sequence import reorder, restore, zigzag
from tests import processes
from tests.divided_sequence import SECTIONS
from tests.ingredients import Cosine, normal

B, T, S, H, K, D, E = 2, 16, 24, 4, 2, 6, 5
ALONG = PartitionSpec(None, "seq")


def tokens(t: int = T, s: int = S, k: int = K) -> tuple[jax.Array, jax.Array, jax.Array]:
    return normal(0, B, t, H, D), normal(1, B, s, k, D), normal(2, B, s, k, E)


def over(n: int, **others: int) -> AbstractMesh:
    shape = {"seq": n, **others}
    return AbstractMesh(tuple(shape.values()), tuple(shape), axis_types=(AxisType.Auto,) * len(shape))


def explained(n: int, *arrays: jax.Array, **options):
    with jax.sharding.use_abstract_mesh(over(n)):
        return explain(*arrays, **{"sequence_axis": "seq"} | options)


def shape_of_part(*arrays: jax.Array, n: int = 4, check: bool = True, **options):
    """Of what the devices compute in the caller's own shard_map, whose parts these are."""

    def part(*arrays: jax.Array) -> jax.Array:
        return attention(*arrays, **{"sequence_axis": "seq"} | options)

    mapped = jax.shard_map(part, mesh=over(n), in_specs=ALONG, out_specs=ALONG, check_vma=check)
    return jax.eval_shape(mapped, *arrays)


# ----------------------------------------------------------------------------------------------------------------------
# The numbers.


@pytest.mark.whole
@pytest.mark.parametrize("section", SECTIONS)
def test_beside_one_device(section):
    assert processes.lines_of("tests.divided_sequence", section)


# ----------------------------------------------------------------------------------------------------------------------
# What goes where.


def test_hops():
    """The fewest that bring all together, onward and back."""
    assert hops((True,)) == (0, 0)
    assert hops((True,) * 8) == (7, 0)
    assert hops((True, False, False, False, False, False, False, True)) == (0, 1)
    assert hops((True, True, True, False, False, False, True, True)) == (2, 2)
    assert hops((False, False, False, True, False)) == (0, 2)


@pytest.mark.parametrize(
    ("mask", "reached"),
    [
        (None, {0, 1, 2, 3}),
        (masks.causal(), {0, 1, 2, 3}),
        (masks.sliding_window(4, 0), {0, 1}),
        (masks.sliding_window(5, 0), {0, 1, 2}),
        (masks.sliding_window(0, 1), {0, 3}),
        (masks.sliding_window(1, 1), {0, 1, 3}),
        (masks.sliding_window(1, 0, offset=-8), {2, 3}),
        (masks.sliding_window(4, 0) & masks.lengths(jnp.array([3, 5])), {0, 1}),
        (masks.sliding_window(4, 0) & masks.segments(jnp.zeros((B, 4), int), jnp.zeros((B, 4), int)), {0, 1}),
        (masks.sliding_window(1, 0) | masks.prefix(4), {0, 1, 2, 3}),
        (masks.sliding_window(4, 0) | masks.lengths(jnp.array([3, 5])), {0, 1, 2, 3}),
        (~masks.causal(), {0, 1, 2, 3}),
        (masks.lengths(4), {0, 1, 2, 3}),
    ],
)
def test_which_parts_are_reached(mask, reached):
    """Of four parts of four: what a mask without data rules out, also beside one with data."""
    found = []

    def part(*arrays: jax.Array) -> jax.Array:
        bound = jattn.bind(*arrays, mask=mask, sequence_axis="seq")
        found.append({r for r, there in enumerate(reached_parts(bound.call)) if there})
        return arrays[0]

    mapped = jax.shard_map(part, mesh=over(4), in_specs=ALONG, out_specs=ALONG)
    jax.eval_shape(mapped, *tokens(16, 16))
    assert found == [reached]


def test_a_rule_lies_as_attention_needs_it():
    """What has an entry for each pair has all keys; what has one for each key goes where the key goes."""
    of_pairs, of_keys, of_queries = (jnp.ones((B, 1, t, s), bool) for t, s in ((T, S), (1, S), (T, 1)))
    rule = masks.segments(jnp.zeros((B, T), int), jnp.zeros((B, S), int)) & of_pairs & of_keys & of_queries
    specs = jax.tree.leaves(rule.partition_specs(batch=1, b=("data",), t="seq", s="seq"))
    by_token, pairs, keys, queries = specs[0], *specs[2:]
    assert specs[0] == specs[1] == PartitionSpec("data", "seq"), by_token
    assert pairs == queries == PartitionSpec("data", None, "seq", None)
    assert keys == PartitionSpec("data", None, None, "seq")


# ----------------------------------------------------------------------------------------------------------------------
# What is chosen.


def test_explain():
    said = explained(4, *tokens(16, 16, 4))
    assert str(said) == (
        "ulysses: it sends the least, 2,112 bytes from a device; dense computes what has met.\n"
        "not merge: the queries are divided, too.\n"
        "not cudnn: it needs an NVIDIA GPU, Ampere or newer.\n"
        "not pallas: its interpreter knows of no mesh."
    )
    assert explained(4, *tokens(), implementation="ring").reason == "it was asked for; dense computes what has met"


def test_what_sends_the_least_is_chosen():
    three = [normal(0, B, 12, 3, D)] * 3
    assert explained(4, *three).implementation == "ring", "3 heads for 4 devices"
    assert explained(4, *tokens(), mask=masks.sliding_window(3, 0)).implementation == "ring"
    assert explained(4, *tokens(16, 16, 4), mask=masks.causal()).implementation == "ulysses"
    assert explained(4, *three, return_weights=True).implementation == "all_gather"
    assert explained(4, *tokens(1), sequence_axis=(None, "seq")).implementation == "merge"
    whole_rows = explained(4, *tokens(1), sequence_axis=(None, "seq"), return_weights=True)
    assert whole_rows.implementation == "all_gather"
    streams = explained(4, *tokens(2048, 2048))
    assert streams.reason.endswith("streaming computes what has met")


def test_what_computes_a_part_can_be_asked_for():
    said = explained(4, *tokens(), implementation="streaming", mask=masks.sliding_window(3, 0))
    assert said.implementation == "ring"
    assert said.reason.endswith("bytes from a device; streaming computes what has met")


# ----------------------------------------------------------------------------------------------------------------------
# The order of tokens.


def test_zigzag():
    np.testing.assert_array_equal(zigzag(16, 4), [0, 1, 14, 15, 2, 3, 12, 13, 4, 5, 10, 11, 6, 7, 8, 9])
    x = normal(0, 3, 12, 5)
    for axis, y in ((1, x), (0, x[0]), (-2, x)):
        there = reorder(y, 3, axis)
        assert not np.array_equal(there, y)
        np.testing.assert_array_equal(restore(there, 3, axis), y)


@pytest.mark.every_case
@pytest.mark.parametrize("parts", [2, 4])
def test_zigzag_is_as_much_work_for_each(parts):
    """Causal pairs by device and step of a ring: the same for all devices, and for all steps but the first."""
    n = 48
    for order, is_balanced in ((np.asarray(zigzag(n, parts)), True), (np.arange(n), False)):
        places = order.reshape(parts, -1)
        pairs = np.array(
            [
                [(places[(i - r) % parts][None, :] <= places[i][:, None]).sum() for i in range(parts)]
                for r in range(parts)
            ]
        )
        assert pairs.sum() == n * (n + 1) // 2
        assert (np.ptp(pairs, axis=1) == 0).all() == is_balanced


# ----------------------------------------------------------------------------------------------------------------------
# Errors.

NO_COLUMNS = jnp.ones((16, 24), bool)
ERRORS = [
    (
        lambda: attention(*tokens(), sequence_axis="seq"),
        "sequence_axis must name an axis of the mesh. Got 'seq'; no mesh is set. Compute inside of "
        "`with jax.set_mesh(mesh):`, or of a jax.shard_map over that axis.",
    ),
    (
        lambda: explained(4, *tokens(), sequence_axis="sequence"),
        "sequence_axis must name an axis of the mesh. Got 'sequence'; the mesh has the axes 'seq'. Compute inside of",
    ),
    (
        lambda: explained(4, *tokens(), sequence_axis=("seq", None)),
        "sequence_axis must be the name of a mesh axis, or a pair of names, the queries' (or None) and the keys'. Got "
        "('seq', None).",
    ),
    (
        lambda: explained(4, *tokens(), sequence_axis=1),
        "sequence_axis must be the name of a mesh axis, or a pair of names, the queries' (or None) and the keys'. "
        "Got 1.",
    ),
    (
        lambda: explained(4, *tokens(10)),
        "query must have tokens that 4 devices, those of sequence_axis 'seq', can divide equally. Got 10. Pad them, "
        "and say by a mask what is padding. attention(..., sequence_axis=(None, 'seq')) leaves queries whole.",
    ),
    (
        lambda: explained(4, *tokens(16, 10)),
        "key must have tokens that 4 devices, those of sequence_axis 'seq', can divide equally. Got 10. Pad them, and "
        "say by a mask what is padding.",
    ),
    (
        lambda: shape_of_part(*tokens(), score=lambda q, k: jnp.einsum("bthd,bshd->bhts", q, k)),
        "score must be one of jattn.scores, or say by_pair = True, where a device has a part of the sequence. Got "
        "<function",
    ),
    (
        lambda: shape_of_part(*tokens(16, 4)),
        "key must have at least two keys on each device where a sequence is divided, or an axis of length 1 could "
        "stand for all. Got 1.",
    ),
    (
        lambda: shape_of_part(*tokens(), mask=NO_COLUMNS[:4, :6]),
        "mask must have all 24 keys for the device's own queries. Got shape (4, 6). Divide it over its queries' axis "
        "alone, as its partition_specs(t=..., s=...) says.",
    ),
    (
        lambda: shape_of_part(*tokens(), bias=biases.dense(jnp.ones((4, 7)))),
        "bias must broadcast to (2, 4, 4, 6), the axes *b h t s. Got shape (4, 7).",
    ),
    (
        lambda: shape_of_part(*tokens(), mask=masks.lengths(25)),
        "valid_lens must lie between 0 and the number of positions, 24. Got 25.",
    ),
    (
        lambda: attention(*tokens(), implementation="ring"),
        "implementation must be one for sequences that are whole where no mesh axis divides them. Got 'ring'; pass "
        "sequence_axis, the name of the axis.",
    ),
    (
        lambda: explained(4, *tokens(), implementation="ring", return_weights=True),
        "implementation must be None or one that honours every argument. Got 'ring': return_weights=True asks for all "
        "columns.",
    ),
    (
        lambda: explained(4, *tokens(1), implementation="ring", sequence_axis=(None, "seq")),
        "Got 'ring': each device has all queries, whose keys' partial results are merged.",
    ),
    (
        lambda: explained(4, *tokens(), implementation="merge"),
        "Got 'merge': the queries are divided, too.",
    ),
    (
        lambda: explained(8, *tokens(), implementation="ulysses"),
        "Got 'ulysses': 4 heads are not divisible by 8 devices.",
    ),
    (
        lambda: explained(4, *tokens(4), implementation="ulysses"),
        "Got 'ulysses': a device has a single query.",
    ),
    (
        lambda: explained(4, *tokens(), implementation="streaming", return_weights=True),
        "Got 'streaming': it needs what streaming refuses: return_weights=True asks for the whole matrix",
    ),
    (
        lambda: zigzag(10, 4),
        "n_tokens must be a multiple of 8, two pieces for each of 4 parts. Got 10. Pad the sequence, and say by a mask "
        "what is padding.",
    ),
    (lambda: zigzag(10, 0), "parts must be an integer in [1, inf). Got 0."),
    (lambda: reorder(jnp.ones((2, 8)), 2, 2), "axis must be one of the 2 axes of x, that of its tokens. Got 2."),
]


@pytest.mark.every_case
@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("case", range(len(ERRORS)))
def test_errors(case):
    run, text = ERRORS[case]
    with pytest.raises(ValueError, match=re.escape(text)):
        run()


def test_a_score_of_the_callers_own_is_given_all_keys_on_automatic_axes():
    assert explained(4, *tokens(), score=Cosine()).implementation in ("ring", "ulysses")

    def score(query, key):
        return jnp.einsum("bthd,bshd->bhts", query, key)

    assert explained(4, *tokens(), score=score).implementation == "dense"
    assert explained(4, *tokens(), score=scores.DotProduct(0.3)).implementation in ("ring", "ulysses")


def test_parts_are_not_looked_at_for_what_varies():
    """Also without JAX's check of what varies over the axis."""
    assert shape_of_part(*tokens(), check=False).shape == (B, T, H, E)
    assert shape_of_part(*tokens(), implementation="ring").shape == (B, T, H, E)
