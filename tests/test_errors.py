"""Every error of the functional core: it names the argument, says what it must be, and what it was.

Mistakes that are easily made get jattn's own error, rather than one from JAX's inside or a wrong result.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jattn import (
    additive_attention,
    attention,
    attention_statistics,
    attention_weights,
    dot_product_attention,
    explain,
    masked_softmax,
    masks,
    nadaraya_watson,
    scores,
)
from tests.errors import raises

pytestmark = [pytest.mark.usefixtures("unchecked"), pytest.mark.every_case]

B, T, S, H, D, E = 2, 5, 7, 4, 3, 6
QUERY, KEY, VALUE = jnp.ones((B, T, H, D)), jnp.ones((B, S, 2, D)), jnp.ones((B, S, 2, E))


def attend(query=QUERY, key=KEY, value=VALUE, **arguments):
    return attention(query, key, value, **arguments)


def drop_in(**arguments):
    return dot_product_attention(QUERY, KEY, VALUE, **arguments)


def weights(**arguments):
    return attention_weights(QUERY, KEY, **arguments)


def additive(query=QUERY[:, :, 0], key=KEY[:, :, 0], value=VALUE[:, :, 0], w_query=None, **arguments):
    w_query = jnp.ones((D, 8)) if w_query is None else w_query
    return additive_attention(query, key, value, w_query, jnp.ones((D, 8)), jnp.ones(8), **arguments)


def regress(query=QUERY[:, :, 0], key=KEY[:, :, 0], value=VALUE[:, :, 0], **arguments):
    return nadaraya_watson(query, key, value, **arguments)


def softmax(mask):
    return masked_softmax(jnp.zeros((B, H, T, S)), mask)


@dataclasses.dataclass(frozen=True, eq=False)
class Near(scores.Score):
    """A user's own that streams, and returns booleans."""

    by_pair = True

    def __call__(self, query, key):
        return scores.Constant()(query, key) > 0


def raw_key(numbers):
    return jnp.zeros(numbers, jnp.uint32)


ARRAYS = [
    (lambda: additive(w_query="a"), "w_query must be an array. Got str: 'a'."),
    (lambda: additive(w_query=jnp.ones((D, 8)) * 1j), "w_query must be a real number. Got Array("),
    (
        lambda: attend(score=scores.Additive([[1.0]] * 3, [[1.0]] * 3, [1.0])),
        "w_query must be an array. Got list: [[1.0], [1.0], [1.0]].",
    ),
    (lambda: attend(score=scores.Gaussian(factor="a")), "factor must be a real number. Got 'a'."),
    (lambda: attend(score=scores.Gaussian(factor=[[1.0], [1.0, 2.0]])), "factor must be a real number. Got [[1.0],"),
    (
        lambda: attend(score=lambda query, key: jnp.ones((B, H, T, S), bool)),
        "score must return floating-point logits. Got bool.",
    ),
    (
        lambda: attend(score=Near(), implementation="streaming"),
        "score must return floating-point logits. Got bool.",
    ),
    (lambda: attend(scale=float("nan")), "scale must be finite. Got nan."),
    (lambda: attend(dropout_rate=0.5, dropout_rng=raw_key(3)), "dropout_rng must be a jax.random.key. Got Array("),
    (lambda: attend(implementation=np.array([1, 2])), "implementation must be one of None, 'dense',"),
    (
        lambda: weights(heads=[[1], [1, 2]]),
        "heads must be an integer, a slice or a list of integers. Got [[1], [1, 2]].",
    ),
    (lambda: weights(heads=slice("a")), "heads must be an integer, a slice or a list of integers. Got slice("),
    (
        lambda: jax.jit(lambda i: weights(queries=[i, 0]))(1),
        "queries must be known while tracing. Got a traced array; pass a Python or NumPy one.",
    ),
    (lambda: masked_softmax(None), "logits must be an array. Got NoneType: None."),
    (lambda: masks.causal_lower_right(2.5, 3), "t must be a non-negative integer. Got 2.5."),
    (lambda: masks.causal_lower_right(2, -3), "s must be a non-negative integer. Got -3."),
    (lambda: attend(query=QUERY[0, 0]), "query must have the axes *b t h d. Got shape (4, 3)."),
    (lambda: attend(key=KEY[0, 0]), "key must have the axes *b s k d. Got shape (2, 3)."),
    (lambda: attend(value=VALUE[0, 0]), "value must have the axes *b s k e. Got shape (2, 6)."),
    (
        lambda: attend(query=QUERY.astype(int)),
        "query must be floating point. Got int32. Convert it with .astype(jnp.float32).",
    ),
    (lambda: attend(key=KEY > 0), "key must be floating point. Got bool. Convert it with .astype(jnp.float32)."),
    (lambda: attend(value=VALUE + 1j), "value must be floating point. Got complex64."),
    (
        lambda: attend(query=QUERY.astype(jnp.float8_e4m3fn)),
        "query must have 16 bits or more. Got float8_e4m3fn. Convert it with .astype(jnp.bfloat16).",
    ),
    (lambda: attend(query=QUERY[:, :, :0]), "query must have at least one head, the axis before its last."),
    (lambda: attend(mask="causal"), "mask must be a mask of jattn.masks or a boolean array. Got str: 'causal'."),
    (lambda: attend(mask=True), "Got shape (). None allows all."),
    (lambda: attend(bias="alibi"), "bias must be a bias of jattn.biases or a floating-point array. Got str: 'alibi'."),
    (lambda: attend(bias=jnp.ones((T, S), int)), "bias must be floating point. Got int32. Convert it with"),
    (
        lambda: masks.lengths(jnp.ones((B, S), bool)),
        "valid_lens must be integers. Got bool. Which tokens are real, *b s, is a mask: "
        "masks.dense(real[:, None, None, :] != 0).",
    ),
    (
        lambda: attend(key=KEY[:1]),
        "key must have query's batch axes (2,), in front of its last three. Got shape (1, 7, 2, 3) "
        "(query has shape (2, 5, 4, 3)).",
    ),
    (lambda: attend(value=VALUE[0]), "value must have query's batch axes (2,), in front of its last three."),
    (
        lambda: attend(value=VALUE[:, 1:]),
        "value must have one entry for each key. Got 6 values (shape (2, 6, 2, 6)) and 7 keys (shape (2, 7, 2, 3)).",
    ),
    (
        lambda: attend(value=VALUE[:, :, :1]),
        "value must have as many heads as key. Got value heads 1 and key heads 2.",
    ),
    (
        lambda: attend(query=QUERY[:, :, :3]),
        "key must have a number of heads that divides the query's 3. Got 2. The layout is *b s k d: if heads stand "
        "before positions, swap those two axes.",
    ),
    (
        lambda: attend(key=KEY[..., :2]),
        "key must have the query's width under DotProduct. Got query width 3 and key width 2. Project one of them, "
        "or use the Additive score.",
    ),
    (
        lambda: attention_weights(QUERY[0, 0], KEY),
        "query must have the axes *b t h d.",
    ),
    (lambda: attention_weights(QUERY, KEY[:1]), "key must have query's batch axes (2,)"),
    (lambda: attention_weights(QUERY[:, :, :3], KEY), "key must have a number of heads that divides the query's 3."),
    (
        lambda: masked_softmax(jnp.zeros((2, 3), int)),
        "logits must be floating point with the axes *b t s. Got shape (2, 3), int32.",
    ),
    (
        lambda: masked_softmax(jnp.zeros(3)),
        "logits must be floating point with the axes *b t s. Got shape (3,), float32.",
    ),
]

NUMBER_MASK = "mask must be boolean, True where a query may attend to a key."
MASKS = [
    (
        lambda: attend(mask=jnp.ones((T, S), int)),
        f"{NUMBER_MASK} Got int32. Compare it (mask != 0), or pass an additive mask as bias.",
    ),
    (lambda: attend(mask=jnp.zeros((T, S))), f"{NUMBER_MASK} Got float32."),
    (lambda: masks.causal() & jnp.ones((T, S)), f"{NUMBER_MASK} Got float32."),
    (lambda: np.ones((T, S), np.uint8) | masks.causal(), f"{NUMBER_MASK} Got uint8."),
    (lambda: masks.dense(jnp.ones((T, S))), f"{NUMBER_MASK} Got float32."),
    (lambda: softmax(jnp.ones((T, S))), f"{NUMBER_MASK} Got float32."),
    (lambda: drop_in(mask=jnp.ones((B, 1, T, S))), f"{NUMBER_MASK} Got float32."),
    (
        lambda: attend(mask=jnp.ones(S, bool)),
        "mask must have the axes t s, with heads and batch in front where it has them. Got shape (7,). For one entry "
        "a key, write mask[None, :].",
    ),
    (
        lambda: attend(mask=jnp.ones((S, T), bool)),
        "mask must broadcast to (2, 4, 5, 7), the axes *b h t s. Got shape (7, 5).",
    ),
    (
        lambda: attend(mask=jnp.ones((B, T, S), bool)),
        "Got shape (2, 5, 7). Insert the axes it lacks: mask[:, None] for a mask *b t s, mask[:, None, None] for a "
        "mask *b s of keys.",
    ),
    (lambda: attend(mask=jnp.ones((1, B, H, T, S), bool)), "mask must broadcast to (2, 4, 5, 7)"),
    (lambda: weights(mask=jnp.ones((T, T), bool)), "mask must broadcast to (2, 4, 5, 7), the axes *b h t s."),
    (
        lambda: drop_in(is_causal=True, mask=jnp.ones((1, 1, S, S), bool)),
        "mask must broadcast to (2, 4, 5, 7), the axes *b h t s. Got shape (1, 1, 7, 7).",
    ),
    (
        lambda: masks.dense(jnp.ones((T, T), bool)).as_array(T, S),
        "mask must broadcast to (5, 7), the axes t s. Got shape (5, 5).",
    ),
    (
        lambda: softmax(jnp.ones((3, 1, T, S), bool)),
        "mask must broadcast to the shape of logits, (2, 4, 5, 7). Got shape (3, 1, 5, 7).",
    ),
    (lambda: softmax(masks.lengths(jnp.array([1, 2, 3]))), "mask must broadcast to the shape of logits, (2, 4, 5, 7)."),
    (
        lambda: attend(mask=masks.lengths(jnp.array([3, -1]))),
        "valid_lens must lie between 0 and the number of positions, 7. Got -1.",
    ),
    (
        lambda: attend(mask=masks.lengths(jnp.array([3, 8]))),
        "valid_lens must lie between 0 and the number of positions, 7. Got 8.",
    ),
    (lambda: masks.lengths(6).as_array(T, 5), "valid_lens must lie between 0 and the number of positions, 5. Got 6."),
    (
        lambda: softmax(masks.causal() & ~masks.lengths(8)),
        "valid_lens must lie between 0 and the number of positions, 7. Got 8.",
    ),
    (lambda: attend(mask=masks.prefix(-1)), "n must not be negative. Got -1."),
    (
        lambda: attend(mask=masks.lengths(jnp.array([1, 2, 3]))),
        "valid_lens must broadcast to (2,), the axes *b. Got shape (3,).",
    ),
    (
        lambda: attend(mask=masks.lengths(jnp.ones((B, S), int))),
        "valid_lens must broadcast to (2, 5), the axes *b t. Got shape (2, 7).",
    ),
    (
        lambda: attend(mask=masks.causal(offset=jnp.zeros(3, int))),
        "offset must broadcast to (2,), the axes *b. Got shape (3,).",
    ),
    (
        lambda: attend(mask=masks.sliding_window(1, 1, offset=jnp.zeros(3, int))),
        "offset must broadcast to (2,), the axes *b. Got shape (3,).",
    ),
    (
        lambda: attend(mask=masks.segments(jnp.zeros((B, T), int))),
        "key_ids must broadcast to (2, 7), the axes *b s. Got shape (2, 5).",
    ),
    (
        lambda: attend(mask=masks.segments(jnp.zeros((3, T), int), jnp.zeros((3, S), int))),
        "query_ids must broadcast to (2, 5), the axes *b t. Got shape (3, 5).",
    ),
    (lambda: masks.lengths(jnp.array([1.0])), "valid_lens must be integers. Got float32."),
    (lambda: masks.lengths(2.0), "valid_lens must be integers. Got float32."),
    (lambda: masks.lengths(True), "valid_lens must be integers. Got bool. Which tokens are"),
    (
        lambda: masks.lengths(3, per_query=True),
        "valid_lens must have a query axis when per_query=True. Got a single length.",
    ),
    (lambda: masks.prefix(jnp.array([1.0])), "n must be integers. Got float32."),
    (lambda: masks.causal(1.5), "offset must be integers. Got float32."),
    (lambda: masks.segments(jnp.array([0.0, 1.0])), "query_ids must be integers. Got float32."),
    (lambda: masks.segments(jnp.array([0, 1]), jnp.array([True])), "key_ids must be integers. Got bool."),
    (lambda: masks.segments(jnp.array(1)), "query_ids must have one entry for each position. Got a single number."),
    (lambda: masks.sliding_window(-1, 2), "left must be a non-negative integer, a number of keys. Got -1."),
    (lambda: masks.sliding_window(1, -2), "right must be a non-negative integer, a number of keys. Got -2."),
    (lambda: masks.sliding_window(1.0, 2), "left must be a non-negative integer, a number of keys. Got 1.0."),
]

LOGITS = [
    (
        lambda: attend(bias=jnp.ones((T, S), bool)),
        "bias must be floating point. Got bool. Pass a boolean array as mask.",
    ),
    (lambda: attend(bias=jnp.ones((T, S), int)), "bias must be floating point. Got int32."),
    (
        lambda: attend(bias=jnp.ones((B, T, S))),
        "bias must broadcast to (2, 4, 5, 7), the axes *b h t s. Got shape (2, 5, 7).",
    ),
    (
        lambda: weights(bias=jnp.ones((S, T))),
        "bias must broadcast to (2, 4, 5, 7), the axes *b h t s. Got shape (7, 5).",
    ),
    (lambda: drop_in(bias=jnp.ones((3, 1, 1, S))), "bias must broadcast to (2, 4, 5, 7)"),
    (
        lambda: attend(score=scores.Constant(), scale=2.0),
        "scale must be None when score is given, as a score has its own. Got 2.0.",
    ),
    (lambda: weights(score=scores.DotProduct(), scale=0.5), "scale must be None when score is given"),
    (lambda: attend(logits_soft_cap=0.0), "logits_soft_cap must be positive. Got 0.0."),
    (lambda: attend(logits_soft_cap=-30.0), "logits_soft_cap must be positive. Got -30.0."),
    (lambda: weights(logits_soft_cap=jnp.nan), "logits_soft_cap must be positive. Got nan."),
    (lambda: scores.Gaussian(bandwidth=0.0), "bandwidth must be positive. Got 0.0."),
    (lambda: scores.Boxcar(bandwidth=jnp.array([1.0, -2.0])), "bandwidth must be positive. Got [ 1. -2.]."),
    (lambda: scores.Epanechnikov(bandwidth=jnp.nan), "bandwidth must be positive. Got nan."),
    (
        lambda: scores.Gaussian(bandwidth=1.0, factor=1.0),
        "bandwidth must be None when factor is given, as factor = 1 / bandwidth. Got both.",
    ),
    (
        lambda: attend(score=scores.Gaussian(bandwidth=jnp.ones(2))),
        "bandwidth must be one number or one per feature, (3,). Got shape (2,).",
    ),
    (
        lambda: attend(score=scores.Boxcar(factor=jnp.ones((1, 3)))),
        "factor must be one number or one per feature, (3,). Got shape (1, 3).",
    ),
    (
        lambda: attend(key=KEY[..., :2], score=scores.Gaussian()),
        "key must have the query's width under Gaussian. Got query width 3 and key width 2.",
    ),
    (
        lambda: attend(score=scores.Additive(jnp.ones((D, 8)), jnp.ones((2, 8)), jnp.ones(8))),
        "w_key must map the width 3 to the hidden width of w_value, which has shape (8,). Got shape (2, 8).",
    ),
]

OTHERS = [
    (lambda: attend(dropout_rate=1.0), "dropout_rate must lie in [0, 1), a Python number. Got 1.0."),
    (lambda: attend(dropout_rate=-0.1), "dropout_rate must lie in [0, 1), a Python number. Got -0.1."),
    (
        lambda: attend(dropout_rate=0.1),
        "dropout_rng must be given when dropout_rate is above 0. Got None with dropout_rate 0.1. Pass a "
        "jax.random.key, or turn dropout off (a module's eval() does).",
    ),
    (
        lambda: attend(head_gates=jnp.ones(2)),
        "head_gates must have one entry for each of the 4 heads, shape (4,) or (2, 4). Got shape (2,).",
    ),
    (lambda: attend(head_gates=jnp.ones((3, H))), "head_gates must have one entry for each of the 4 heads"),
    (lambda: attend(implementation="flash"), "implementation must be one of None, 'dense'"),
    (lambda: attend(implementation="flash"), "Got 'flash'."),
    (lambda: drop_in(implementation="flash"), "implementation must be one of None, 'xla', 'cudnn'. Got 'flash'."),
    (lambda: drop_in(implementation="cudnn"), "Got 'cudnn': it needs an NVIDIA GPU, Ampere or newer."),
    (
        lambda: drop_in(key_value_seq_lengths=jnp.array([3, 8])),
        "key_value_seq_lengths must lie between 0 and the number of positions, 7. Got 8.",
    ),
    (lambda: drop_in(query_seq_lengths=jnp.array([3, -1])), "query_seq_lengths must lie between 0 and the number of"),
    (
        lambda: drop_in(key_value_seq_lengths=jnp.array([1, 2, 3])),
        "key_value_seq_lengths must broadcast to (2,), the axes *b. Got shape (3,).",
    ),
    (lambda: weights(heads=4), "heads must lie between -4 and 3. Got 4."),
    (lambda: weights(heads=[0, -5]), "heads must lie between -4 and 3. Got [0, -5]."),
    (lambda: weights(queries=5), "queries must lie between -5 and 4. Got 5."),
    (lambda: weights(queries=1.0), "queries must be an integer, a slice or a list of integers. Got 1.0."),
    (lambda: weights(heads=[True, False, False, True]), "heads must be an integer, a slice or a list of integers."),
    (lambda: weights(heads=[[0, 1]]), "heads must be an integer, a slice or a list of integers. Got [[0, 1]]."),
    (lambda: additive(query=jnp.ones(D)), "query must have the axes *b t d. Got shape (3,)."),
    (lambda: additive(value=jnp.ones((B, S, E), int)), "value must be floating point. Got int32."),
    (
        lambda: additive(w_query=jnp.ones((2, 8))),
        "w_query must map the width 3 to the hidden width of w_value, which has shape (8,). Got shape (2, 8).",
    ),
    (lambda: additive(mask=jnp.ones((B, T, S))), f"{NUMBER_MASK} Got float32."),
    (
        lambda: regress(kernel="cosine"),
        "kernel must be one of 'gaussian', 'boxcar', 'epanechnikov', 'constant'. Got 'cosine'.",
    ),
    (lambda: regress(bandwidth=0.0), "bandwidth must be positive. Got 0.0."),
    (lambda: regress(bandwidth=-1.0, kernel="constant"), "bandwidth must be positive. Got -1.0."),
    (lambda: regress(bandwidth=jnp.array([1.0, 0.0, 1.0])), "bandwidth must be positive. Got [1. 0. 1.]."),
    (lambda: regress(bandwidth=jnp.ones(2)), "bandwidth must be one number or one per feature, (3,). Got shape (2,)."),
    (
        lambda: regress(key=jnp.ones(S)),
        "key must have as many axes as query. Got shapes (7,) and (2, 5, 3). Scalars are t and s, features *b t d "
        "and *b s d.",
    ),
    (
        lambda: regress(value=jnp.ones(S)),
        "value must have the axes *b s or *b s e for a key of shape (2, 7, 3). Got shape (7,).",
    ),
    (lambda: regress(query=jnp.ones(()), key=jnp.ones(S)), "query must have the axes t, or *b t d. Got shape ()."),
    (lambda: regress(query=jnp.ones(T, int), key=jnp.ones(S), value=jnp.ones(S)), "query must be floating point."),
    (
        lambda: regress(query=jnp.ones((B, T)), key=jnp.ones((B, S)), value=jnp.ones((B, S))),
        "key must have the query's width under Gaussian. Got query width 5 and key width 7.",
    ),
]


CASES = [*ARRAYS, *MASKS, *LOGITS, *OTHERS]


@pytest.mark.parametrize(("call", "message"), CASES, ids=[message for _, message in CASES])
def test_message(call, message):
    with pytest.raises(ValueError) as error:  # noqa: PT011, the text is compared below
        call()
    assert message in str(error.value)


@pytest.mark.parametrize("name", ["query_seq_lengths", "key_value_seq_lengths"])
@pytest.mark.parametrize(("lengths", "dtype"), [(jnp.array([3.5, 2.0]), "float32"), (jnp.array([True, False]), "bool")])
def test_lengths_that_are_not_integers(name, lengths, dtype):
    with raises(f"{name} must be integers", f"Got {dtype}"):
        dot_product_attention(QUERY, KEY, VALUE, **{name: lengths})


@pytest.mark.parametrize("window", [-1, (1, -1), (1, 2, 3), (1,), 1.0, True])
def test_local_window_size(window):
    with raises("local_window_size must be", "Got", str(window)):
        dot_product_attention(QUERY, KEY, VALUE, local_window_size=window)


@pytest.mark.parametrize("name", ["scale", "logits_soft_cap"])
def test_one_number_for_all_heads(name):
    """An array of it would be spread along the keys."""
    with raises(f"{name} must be one number", "Got shape (7,)"):
        attention(QUERY, KEY, VALUE, **{name: jnp.ones(S)})


def test_a_score_that_was_not_made():
    with raises("score must be", "Gaussian"):
        attention(QUERY, KEY, VALUE, score=scores.Gaussian)
    with raises("score must be", "'gaussian'"):
        attention(QUERY, KEY, VALUE, score="gaussian")


def test_a_seed_for_an_rng():
    with raises("dropout_rng must be a jax.random.key", "Got 0"):
        attention(QUERY, KEY, VALUE, dropout_rate=0.1, dropout_rng=0)


@pytest.mark.parametrize("attend", ["additive_attention", "nadaraya_watson"])
def test_errors_show_the_shapes_that_were_given(attend):
    """Without the head axis that these functions add and take away again."""

    def call(query=QUERY[:, :, 0], key=KEY[:, :, 0], value=VALUE[:, :, 0], mask=None):
        if attend == "nadaraya_watson":
            return nadaraya_watson(query, key, value, mask=mask)
        return additive_attention(query, key, value, jnp.ones((D, 8)), jnp.ones((D, 8)), jnp.ones(8), mask=mask)

    with raises("value must have one entry for each key", "(2, 6, 6)", "(2, 7, 3)"):
        call(value=VALUE[:, 1:, 0])
    with raises("key must have query's batch axes (2,)", "Got shape (1, 7, 3)"):
        call(key=KEY[:1, :, 0])
    with raises("mask must broadcast to (2, 5, 7)", "Got shape (2, 5, 6)"):
        call(mask=jnp.ones((B, T, 6), bool))


def test_numbers_are_not_looked_at_while_tracing():
    """What is wrong is found out of jit; inside, the same call runs, whatever it computes."""
    jitted = jax.jit(lambda lengths: attention(QUERY, KEY, VALUE, mask=masks.lengths(lengths)))
    assert jitted(jnp.array([-1, 8])).shape == (B, T, H, E)
    jitted = jax.jit(lambda cap: attention(QUERY, KEY, VALUE, logits_soft_cap=cap))
    assert jitted(0.0).shape == (B, T, H, E)
    jitted = jax.jit(lambda h: attention(QUERY, KEY, VALUE, score=scores.Gaussian(bandwidth=h)))
    assert jitted(-1.0).shape == (B, T, H, E)


@pytest.mark.parametrize(
    ("name", "arguments", "right", "wrong"),
    [
        ("valid_lens", lambda x: {"mask": masks.lengths(x)}, jnp.array([3, 0]), jnp.array([-1, 7])),
        ("logits_soft_cap", lambda x: {"logits_soft_cap": x}, 2.0, 0.0),
        ("logits_soft_cap", lambda x: {"logits_soft_cap": x}, jnp.array(2.0), jnp.array(-1.0)),
        ("bandwidth", lambda x: {"score": scores.Gaussian(bandwidth=x)}, 2.0, -1.0),
        ("bandwidth", lambda x: {"score": scores.Gaussian(bandwidth=x)}, jnp.ones(D), jnp.zeros(D)),
    ],
)
def test_numbers_that_are_known_are_looked_at_inside_jit(name, arguments, right, wrong):
    def attend(query, known):
        return attention(query, KEY, VALUE, **arguments(known))

    assert jax.jit(lambda query: attend(query, right))(QUERY).shape == (B, T, H, E)
    with raises(f"{name} must"):
        jax.jit(lambda query: attend(query, wrong))(QUERY)


@pytest.mark.parametrize(
    ("call", "phrases"),
    [
        (lambda: attention(None, KEY, VALUE), ("query must be an array", "Got NoneType")),
        (lambda: attention(QUERY, KEY, VALUE, mask=masks.causal), ("mask must be", "call it")),
        (
            lambda: attention(QUERY, KEY, VALUE, mask="causal"),
            ("mask must be a mask of jattn.masks or", "'causal'"),
        ),
        (lambda: masks.lengths(None), ("valid_lens must be an array", "Got NoneType")),
        (lambda: masks.causal() & None, ("mask must be a mask of jattn.masks or", "Got NoneType")),
        (lambda: masks.causal() and masks.prefix(2), ("no truth value", "&, | and ~")),
        (lambda: attention(QUERY, KEY, VALUE, head_gates=1j * jnp.ones(H)), ("head_gates must be real", "complex64")),
        (lambda: attention(QUERY, KEY, VALUE, logits_soft_cap=jnp.inf), ("logits_soft_cap must be finite", "inf")),
        (lambda: attention(QUERY, KEY, VALUE, score=scores.DotProduct(jnp.ones(S))), ("scale must be one", "(7,)")),
        (lambda: attention(QUERY[..., :0], KEY[..., :0], VALUE), ("query must have at least one feature", "width 0")),
        (lambda: attention(QUERY, KEY, VALUE, dropout_rate="0.1"), ("dropout_rate must lie in", "'0.1'")),
        (
            lambda: attention(QUERY, KEY, VALUE, dropout_rate=0.1, dropout_rng=jax.random.split(jax.random.key(0))),
            ("dropout_rng must be a jax.random.key",),
        ),
        (
            lambda: nadaraya_watson(*(x[:, :, 0] for x in (QUERY, KEY, VALUE)), mask=jnp.ones(S, bool)),
            ("mask must have the axes t s", "(7,)"),
        ),
    ],
)
def test_one_clear_error(call, phrases):
    with raises(*phrases):
        call()


def test_a_part_of_a_name_is_completed():
    with pytest.raises(TypeError, match=r"argument 'rng'\. Did you mean 'dropout_rng'\?"):
        attend(rng=jax.random.key(0))


@pytest.mark.parametrize(("t", "s"), [("a", 3), (-1, 3), (2, 2.0), (True, 3)])
def test_a_matrix_of_no_size(t, s):
    with raises("must be a non-negative integer"):
        masks.causal().as_array(t, s)


@pytest.mark.parametrize("function", [attention, explain, attention_weights, attention_statistics])
def test_an_argument_that_there_is_not(function):
    arrays = (QUERY, KEY, VALUE) if function in (attention, explain) else (QUERY, KEY)
    with pytest.raises(
        TypeError, match=rf"^{function.__name__}\(\) got an unexpected .* 'maks'\. Did you mean 'mask'\?"
    ):
        function(*arrays, maks=masks.causal())
    with pytest.raises(TypeError, match=rf"^{function.__name__}\(\) got an unexpected keyword argument 'heat'\.$"):
        function(*arrays, heat=1)
