"""Attention with its gradients compiled for TPUs and a GPU by their own compilers, here, and never run.

    python -m benchmarks targets [--cases NAME ...] [--chips NAME ...] [--peers] [--json FILE]

It needs the extra ``targets`` for TPUs (libtpu, Linux), ``targets-gpu`` for an H100 (CUDA, 2 GB), no such device, and
some seconds a row; both go into one environment of their own. 8 heads of 128, 2 examples, bfloat16, unless the case
says otherwise. Of each case: what jattn chooses on the chip; the compiler's words where it refuses; how long it took;
scratch memory, which XLA may lay out in the chip's own; floating-point operations of the products of matrices. Where
that isn't jattn's kernel, the kernel too, and how many bytes of registers NVIDIA's assembler says that it spills. With
--peers beside it, where they have words for the case, XLA's own attention through jax.nn, and on TPUs splash attention
of jax.experimental with its own block sizes. A run of it is kept in targets.json.
"""

import argparse
import dataclasses
import functools
import importlib
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, SingleDeviceSharding
from rich import box
from rich.table import Table

from benchmarks.comparison import print_table, write
from benchmarks.programs import H100, flops_of, has_compiler, trace_on_cpu
from jattn import attention, biases, masks, scores
from jattn._engine.platform import platforms
from jattn.bound import bind
from jattn.implementations.choice import decide

KEPT = Path(__file__).with_name("targets.json")
CHIPS = {"v5e": "tpu", "v6e": "tpu", "h100": "cuda"}  # and their platforms
MIB = 2**20


@dataclasses.dataclass(frozen=True)
class Case:
    """Arrays' shapes, what jattn is asked for, and how its peers are, as far as they have words for it."""

    t: int = 4096
    s: int | None = None
    batch: int = 2
    heads: int = 8
    key_heads: int = 8
    width: int = 128
    dtype: Any = jnp.bfloat16
    arguments: Callable[[], dict[str, Any]] = dict
    xla: dict[str, Any] | None = None  # of jax.nn.dot_product_attention
    splash: Callable[[Any, int], Any] | None = None  # a mask of its module's, of so many tokens

    def arrays(self) -> tuple[jax.ShapeDtypeStruct, ...]:
        keys = (self.batch, self.t if self.s is None else self.s, self.key_heads, self.width)
        queries = (self.batch, self.t, self.heads, self.width)
        return tuple(jax.ShapeDtypeStruct(shape, self.dtype) for shape in (queries, keys, keys))

    def loss(self, attend: Callable[..., Any], arguments: Any) -> tuple[Any, tuple[Any, ...]]:
        """A function whose gradients are those of all that is learned, and what it is called with."""
        leaves, structure = jax.tree.flatten(arguments)
        places = [i for i, x in enumerate(leaves) if isinstance(x, jax.Array)]
        learned = [i for i in places if jnp.issubdtype(leaves[i].dtype, jnp.floating)]
        others = [i for i in places if i not in learned]

        def of(arrays: Any, parameters: Any, rest: Any) -> Any:
            values = dict(zip((*learned, *others), (*parameters, *rest), strict=True))
            given = jax.tree.unflatten(structure, [values.get(i, x) for i, x in enumerate(leaves)])
            return attend(*arrays, **given).astype(jnp.float32).sum()

        return jax.grad(of, argnums=(0, 1)), (self.arrays(), [leaves[i] for i in learned], [leaves[i] for i in others])


def _full(module: Any, t: int) -> Any:
    return module.FullMask((t, t))


def _causal(module: Any, t: int) -> Any:
    return module.CausalMask((t, t))


def _window(module: Any, t: int) -> Any:
    return module.LocalMask((t, t), (256, 0), 0)


def cases(length: int = 4096) -> dict[str, Case]:
    """All of them, by name, those that have no length in their name for so many tokens; no array is made yet."""
    found: dict[str, Case] = {}

    def more(name: str, arguments: Callable[[], dict[str, Any]], case: Case = Case(length)) -> None:
        found[name] = dataclasses.replace(case, arguments=arguments)

    def causal(**others: Any) -> dict[str, Any]:
        return {"mask": masks.causal(), **others}

    def segments() -> masks.Mask:
        return masks.segments(jnp.arange(length)[None] // 512)

    like_peers: dict[str, Any] = {"xla": {"is_causal": True}, "splash": _causal}
    for t in (4096, 8192, 16384):
        more(f"full {t:,}", dict, Case(t, xla={}, splash=_full))
    for t in (4096, 8192, 16384):
        more(f"causal {t:,}", causal, Case(t, **like_peers))
    more("window 256", lambda: {"mask": masks.sliding_window(256, 0)}, Case(length, splash=_window))
    more("segments 512", lambda: {"mask": segments()})
    more("causal in segments", lambda: {"mask": masks.causal() & segments()})
    more("half padded", lambda: {"mask": masks.lengths(jnp.array([length // 4, length - length // 4]))})
    more("prefix LM", lambda: {"mask": masks.causal() | masks.prefix(length // 8)})
    more("neighbourhood", lambda: {"mask": masks.neighbourhood((length // 64, 64), (3, 3))})
    more("a function of positions", lambda: {"mask": masks.where(lambda q, k: (q - k) % 7 < 3)})
    more("an array", lambda: {"mask": jnp.ones((length, length), bool)})
    more("ALiBi", lambda: causal(bias=biases.alibi(8)))
    more("T5's bias", lambda: causal(bias=biases.relative(jnp.zeros((32, 8)), bidirectional=False)))
    more("soft cap", lambda: causal(logits_soft_cap=50.0))
    more("sinks", lambda: causal(sinks=jnp.zeros(8)))
    more("dropout 0.1", lambda: causal(dropout_rate=0.1, dropout_rng=jax.random.key(0)))
    more("grouped heads", causal, Case(length, heads=32))
    more("float32", causal, Case(length, dtype=jnp.float32, **like_peers))
    more("heads of 64", causal, Case(length, width=64, **like_peers))
    more("heads of 256", causal, Case(length, width=256, **like_peers))
    more("4,000 queries, 1,001 keys", dict, Case(4000, 1001))
    more("Gaussian", lambda: {"score": scores.Gaussian()}, Case(length, dtype=jnp.float32, width=64))
    return found


def row_of(name: str, chip: str, peers: bool) -> dict[str, Any]:
    """The figures of a case on a chip."""
    case, device = cases()[name], _device(chip)
    row: dict[str, Any] = {"case": name, "chip": chip, "chosen": chosen_for(case, CHIPS[chip])}
    row["jattn"] = _compiled(*case.loss(attention, case.arguments()), device, counted=row["chosen"] != "cudnn")
    if row["chosen"] != "pallas":
        of_kernel = functools.partial(attention, implementation="pallas")
        row["pallas"] = _compiled(*case.loss(of_kernel, case.arguments()), device)
    if peers and case.xla is not None:
        attend = functools.partial(jax.nn.dot_product_attention, implementation="xla", **case.xla)
        row["XLA"] = _compiled(*case.loss(attend, {}), device)
    if peers and case.splash is not None and CHIPS[chip] == "tpu":
        row["splash"] = _compiled(*case.loss(_splash(case), {}), device, counted=False)
    return row


@functools.cache
def _device(chip: str) -> Any:
    """One that is not here."""
    from jax.experimental import topologies

    if CHIPS[chip] == "tpu":
        return topologies.get_topology_desc(platform="tpu", topology_name=f"{chip}:2x2").devices[0]
    return topologies.get_topology_desc(platform="cuda", target_config=H100, topology="1x1x1").devices[0]


def chosen_for(case: Case, platform: str) -> str:
    """What jattn chooses on a chip that is known."""
    known = dataclasses.replace(platforms(alone=True)[platform], is_known=True)
    known = dataclasses.replace(known, capability=9.0) if platform == "cuda" else known
    said: list[str] = []

    def look(*arrays: Any) -> None:
        said.append(decide(bind(*arrays, **case.arguments()).call, None, known).implementation)

    jax.eval_shape(look, *case.arrays())
    return said[0]


def _compiled(f: Callable[..., Any], arguments: Any, device: Any, counted: bool = True) -> dict[str, Any]:
    def placed(x: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=SingleDeviceSharding(device))

    platform = "tpu" if device.platform == "tpu" else "cuda"
    start = time.perf_counter()
    try:
        with jax.set_mesh(Mesh(np.array([device]), ("one",))):  # by which jattn knows what it is compiled for
            traced = jax.jit(f).trace(*jax.tree.map(placed, arguments))
            lowered = traced.lower(lowering_platforms=(platform,))
            with tempfile.TemporaryDirectory() as folder:
                done = lowered.compile({"xla_dump_to": folder} if platform == "cuda" else None)
                seconds = time.perf_counter() - start
                assembly = {name.read_text() for name in Path(folder).glob("*.ptx")}
    except (jax.errors.JaxRuntimeError, NotImplementedError, ValueError) as error:
        return {"refused": str(error).splitlines()[0]}
    memory: Any = done.memory_analysis()
    figures = {"seconds": seconds, "scratch": memory.temp_size_in_bytes}
    if kernels := [text for text in assembly if ".entry flash_" in text]:
        figures["spilled"] = sum(map(_spilled_by, kernels))
    return figures | {"flops": flops_of(traced.jaxpr, platform)} if counted else figures


def _spilled_by(kernel: str) -> int:
    """Bytes of registers that a kernel stores elsewhere."""
    [packages] = importlib.import_module("nvidia").__path__
    assembler = next(Path(packages).glob("*/bin/ptxas"))
    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
        file.write(kernel)
        file.flush()
        command = [str(assembler), "-v", "-arch=sm_90a", "-o", os.devnull, file.name]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    return sum(map(int, re.findall(r"(\d+) bytes spill stores", said)))


def _splash(case: Case) -> Callable[..., Any]:
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernels
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as rules

    assert case.splash is not None
    mask = rules.MultiHeadMask([case.splash(rules, case.t)] * case.heads)
    attend = kernels.make_splash_mha_single_device(mask, block_sizes=kernels.BlockSizes.get_default())

    def heads_first(*arrays: Any) -> Any:
        return jax.vmap(attend)(*(jnp.swapaxes(x, 1, 2) for x in arrays))

    return heads_first


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks targets", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", nargs="+", choices=list(cases()), default=list(cases()), help="of these only")
    parser.add_argument("--chips", nargs="+", choices=list(CHIPS), help="for these only; by default all that can be")
    parser.add_argument("--peers", action="store_true", help="with XLA's own attention and splash")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")
    options = parser.parse_args(arguments)
    able = [chip for chip, platform in CHIPS.items() if has_compiler(platform)]
    if unable := [chip for chip in options.chips or ([] if able else list(CHIPS)) if chip not in able]:
        extras = {"tpu": "targets", "cuda": "targets-gpu"}
        missing = sorted({extras[CHIPS[chip]] for chip in unable})
        sys.exit(f"No compiler for {', '.join(unable)} is here. Install it: pip install -e '.[{','.join(missing)}]'")
    trace_on_cpu()
    rows = []
    for chip in options.chips or able:
        for name in options.cases:
            rows.append(row_of(name, chip, options.peers))
            print(f"{name}, {chip}: {rows[-1]['jattn'].get('refused', 'compiled')}", flush=True)
    write(options.json, rows=rows)
    print_table(table(rows), width=170)


def table(rows: list[dict[str, Any]]) -> Table:
    """As it is printed."""
    result = Table(title="attention with its gradients, compiled", box=box.SIMPLE_HEAD, show_edge=False)
    for name in (
        "case",
        "chip",
        "chosen",
        "s",
        "MiB",
        "Tflop",
        "kernel s",
        "MiB",
        "spilled",
        "XLA s",
        "MiB",
        "splash s",
        "MiB",
    ):
        result.add_column(name, justify="left" if name in ("case", "chip", "chosen") else "right", no_wrap=True)
    for row in rows:
        cells = [row["case"], row["chip"], row["chosen"]]
        for name in ("jattn", "pallas", "XLA", "splash"):
            one = row.get(name)
            if one is None or "refused" in one:
                cells += ["" if one is None else "-", *[""] * (2 if name == "pallas" else 1)]
            else:
                cells += [f"{one['seconds']:.1f}", f"{one['scratch'] / MIB:,.0f}"]
            if name == "jattn":
                cells.append(f"{row['jattn']['flops'] / 1e12:.2f}" if "flops" in row["jattn"] else "")
            if name == "pallas" and one is not None and "refused" not in one:
                cells.append(f"{one['spilled']}")
        result.add_row(*cells)
    return result
