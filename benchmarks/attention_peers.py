"""How each library is asked for the same attention: its own way to say a mask where it has one, an array elsewhere."""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jattn
from benchmarks.comparison import Column, LeftOut, jitted, torch_column, with_gradients
from benchmarks.products import products_of
from jattn import masks

HEADS, WIDTH = 8, 64
WINDOW = 256
SEGMENT = 512


class Case(NamedTuple):
    """Who may attend to whom, from a length on at which that is something of its own."""

    rule: Callable[[int], masks.Mask | None]
    peer: Callable[[int], dict[str, Any]] = lambda t: {}  # how jax.nn says it; an array where it has no words for it
    batch: int = 1
    shortest: int = 1
    dropout: float = 0.0


def _valid_lens(t: int) -> jax.Array:
    return jnp.array([t // 4, 3 * t // 8, 5 * t // 8, 3 * t // 4], jnp.int32)


CASES = {
    "full": Case(lambda t: None),
    "causal": Case(lambda t: masks.causal(), lambda t: {"is_causal": True}),
    f"window {WINDOW}": Case(
        lambda t: masks.sliding_window(WINDOW, 0),
        lambda t: {"local_window_size": (WINDOW, 0)},
        shortest=2 * WINDOW,
    ),
    "half padded": Case(
        lambda t: masks.lengths(_valid_lens(t)), lambda t: {"key_value_seq_lengths": _valid_lens(t)}, batch=4
    ),
    f"segments {SEGMENT}": Case(lambda t: masks.segments(jnp.arange(t)[None] // SEGMENT), shortest=2 * SEGMENT),
    "dropout 0.1": Case(lambda t: None, dropout=0.1),
}


class Work(NamedTuple):
    """A case at a length."""

    case: Case
    t: int
    dtype: str
    backward: bool
    abstract: bool = False  # shapes alone, to compile and never to run

    @property
    def shape(self) -> tuple[int, int, int, int]:  # b t h d
        return self.case.batch, self.t, HEADS, WIDTH

    def arrays(self) -> list[np.ndarray]:
        """Query, key, value and the cotangent of the output."""
        rng = np.random.default_rng(self.t)
        return [rng.standard_normal(self.shape, np.float32) for _ in range(4)]

    def array_mask(self) -> jax.Array | None:
        """For those who have no other word for it, the matrix: broadcasts to ``b h t s``."""
        rule = self.case.rule(self.t)
        if rule is None:
            return None
        on_cpu = jax.default_backend() == "cpu"  # cuDNN takes no axis of 1 there
        rows = 1 if on_cpu and "key_value_seq_lengths" in self.case.peer(self.t) else self.t

        def array() -> jax.Array:
            mask = rule.as_array(rows, self.t)
            return mask.reshape((1,) * (4 - mask.ndim) + mask.shape)

        return jax.eval_shape(array) if self.abstract else array()

    @property
    def matrix(self) -> int:
        """Bytes of all weights."""
        b, t, h, _ = self.shape
        return b * h * t * t * jnp.dtype(self.dtype).itemsize


def _jax_column(work: Work, f: Callable[..., jax.Array], *rest: Any) -> Column:
    shape = jax.ShapeDtypeStruct(work.shape, work.dtype)
    arrays: list[Any] = [shape] * 4 if work.abstract else [jnp.asarray(x, work.dtype) for x in work.arrays()]
    query, key, value, cotangent = arrays
    if work.backward:
        return jitted(with_gradients(f, 3), cotangent, query, key, value, *rest)
    return jitted(lambda *arguments: (f(*arguments),), query, key, value, *rest)


def ours(work: Work, implementation: Any = None) -> Column:
    def f(query: Any, key: Any, value: Any, mask: Any, rng: Any) -> Any:
        options: dict[str, Any] = {"dropout_rate": work.case.dropout, "dropout_rng": rng} if work.case.dropout else {}
        return jattn.attention(query, key, value, mask=mask, implementation=implementation, **options)

    return _jax_column(work, f, work.case.rule(work.t), jax.random.key(0))


def products(work: Work) -> Column:
    """The floor under jattn's: the same matrix products, of the same blocks, and nothing else."""
    mask = work.case.rule(work.t)
    if jax.tree.leaves(mask):
        raise LeftOut("are not known, as data decides how many")

    def f(query: Any, key: Any, value: Any) -> Any:
        return jattn.attention(query, key, value, mask=mask)

    query, key, value, cotangent = [jnp.asarray(x, work.dtype) for x in work.arrays()]
    inputs = (cotangent, query, key, value) if work.backward else (query, key, value)
    compiled = products_of(with_gradients(f, 3) if work.backward else f, *inputs)
    return Column(lambda: (compiled(),), 0, comparable=False)


def jax_nn(work: Work, implementation: Any = None, as_array: bool = False) -> Column:
    """In its own words for the mask, where it has some; or with the mask as an array all the same."""
    if work.case.dropout:
        raise LeftOut("has no dropout")
    if as_array and work.case.rule(work.t) is None:
        raise LeftOut("has no mask to be given")
    options = {} if as_array else work.case.peer(work.t)
    if implementation == "cudnn" and "local_window_size" in options:  # which leaves all later keys in by itself
        options = options | {"is_causal": True}
    data: dict[str, Any] = {name: x for name, x in options.items() if isinstance(x, jax.Array)}
    static = {name: x for name, x in options.items() if name not in data}
    if not options:
        data["mask"] = work.array_mask()

    def f(query: Any, key: Any, value: Any, data: Any) -> Any:
        return jax.nn.dot_product_attention(query, key, value, implementation=implementation, **data, **static)

    return _jax_column(work, f, data)


def flax_nnx(work: Work) -> Column:
    from flax import nnx

    causal = "is_causal" in work.case.peer(work.t)

    def f(query: Any, key: Any, value: Any, mask: Any, rng: Any) -> Any:
        options = {"dropout_rng": rng, "dropout_rate": work.case.dropout, "broadcast_dropout": False}
        return nnx.dot_product_attention(
            query, key, value, mask=mask, is_causal=causal, deterministic=not work.case.dropout, **options
        )

    return _jax_column(work, f, None if causal else work.array_mask(), jax.random.key(0))


def equinox(work: Work) -> Column:
    import equinox as eqx
    from equinox.nn._attention import dot_product_attention  # what its MultiheadAttention calls, head by head

    b, t, h, _ = work.shape
    dropout = eqx.nn.Dropout(work.case.dropout) if work.case.dropout else None

    def one(query: Any, key: Any, value: Any, mask: Any, rng: Any) -> Any:
        return dot_product_attention(query, key, value, mask, dropout, key=rng)

    def f(query: Any, key: Any, value: Any, mask: Any, rng: Any) -> Any:
        if mask is not None:
            mask = jnp.broadcast_to(mask[:, 0], (b, t, t))
        heads = jax.vmap(one, in_axes=(1, 1, 1, None, 0), out_axes=1)
        rngs = jax.random.split(rng, (b, h))
        return jax.vmap(heads, in_axes=(0, 0, 0, None if mask is None else 0, 0))(query, key, value, mask, rngs)

    return _jax_column(work, f, work.array_mask(), jax.random.key(0))


def _torch_column(work: Work, attend: Callable[[Any, Any, Any, Any], Any], matrices: float, causal: bool) -> Column:
    """In PyTorch's layout ``b h t d``; the mask is a tensor, unless ``causal`` stands for it."""
    import torch

    array = None if causal else work.array_mask()
    mask = None if array is None else torch.tensor(np.asarray(array))
    query, key, value, cotangent = [np.ascontiguousarray(x.swapaxes(1, 2)) for x in work.arrays()]
    return torch_column(
        lambda query, key, value: attend(query, key, value, mask),
        (query, key, value),
        cotangent if work.backward else None,
        dtype=work.dtype,
        view=lambda x: x.transpose(1, 2),
        scratch=round(matrices * work.matrix),
    )


def torch_sdpa(work: Work) -> Column:
    """Flash, which takes no dropout on a CPU: with it PyTorch falls back to its math path."""
    from torch.nn.functional import scaled_dot_product_attention

    causal, dropout = "is_causal" in work.case.peer(work.t), work.case.dropout
    math_path = (5 if work.backward else 3) if dropout else 0
    return _torch_column(
        work,
        lambda query, key, value, mask: scaled_dot_product_attention(query, key, value, mask, dropout, causal),
        math_path,
        causal,
    )


def torch_naive(work: Work) -> Column:
    """As one writes it: the product, the mask, the softmax, the product."""
    import torch

    def attend(query: Any, key: Any, value: Any, mask: Any) -> Any:
        logits = query @ key.mT / math.sqrt(WIDTH)
        if mask is not None:
            logits = logits.masked_fill(~mask, -torch.inf)
        weights = logits.softmax(-1)
        return torch.nn.functional.dropout(weights, work.case.dropout) @ value

    matrices = 2 + (work.case.rule(work.t) is not None) + 2 * bool(work.case.dropout)
    return _torch_column(work, attend, matrices + 2 * work.backward, causal=False)


JAX_COLUMNS: dict[str, Callable[..., Column]] = {
    "jattn": ours,
    "jax.nn": jax_nn,
    "nnx": flax_nnx,
    "Equinox": equinox,
}
FLOOR = {"products alone": products}
COLUMNS = {"jattn": ours, "PyTorch": torch_sdpa} | JAX_COLUMNS | {"naive PyTorch": torch_naive}
GPU_COLUMNS: dict[str, Callable[..., Column]] = {
    "jattn": ours,
    "cuDNN": functools.partial(jax_nn, implementation="cudnn"),
    "cuDNN, array": functools.partial(jax_nn, implementation="cudnn", as_array=True),
    "jax.nn": functools.partial(jax_nn, implementation="xla"),
}
