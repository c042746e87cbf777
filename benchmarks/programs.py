"""What a program for devices that are not here multiplies and sends: compiled and read, not run."""

import dataclasses
import importlib.util
import math
import os
import re
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr
from jax.interpreters.partial_eval import dce_jaxpr

__all__ = ["H100", "Sent", "flops_of", "has_compiler", "sent_by", "start_tpu_compiler", "trace_on_cpu"]

COMPUTATION = re.compile(r"^(?:ENTRY )?%(\S+) \(.*\{\n((?:.*\n)*?)\}", re.MULTILINE)
LOOP = re.compile(r"condition=%([^\s,]+), body=%([^\s,]+)")
CALLED = re.compile(r"(?:calls|to_apply)=%([^\s,]+)|(?:branch_computations|called_computations)=\{([^}]*)\}")
COLLECTIVE = re.compile(
    r"= (\S.*?) (all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute)(-start)?\(.*?channel_id=(\d+)(.*)"
)
ARRAY = re.compile(r"\b(pred|[a-z]+\d+)(?:e\d\w*)?\[([\d,]*)\]")
BOUND = re.compile(r"= s32\[\]\S* constant\((\d+)\)")


# What XLA asks about a GPU that is not here, as NVIDIA says of an H100 (SXM, 80 GB).
H100 = """
gpu_device_info {
  cuda_compute_capability { major: 9 } clock_rate_ghz: 1.98 core_count: 132 fpus_per_core: 128
  threads_per_warp: 32 threads_per_block_limit: 1024 threads_per_core_limit: 2048
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  shared_memory_per_block: 49152 shared_memory_per_block_optin: 232448 shared_memory_per_core: 233472
  l2_cache_size: 52428800 memory_bandwidth: 3352320000000 device_memory_size: 84978434048
}
platform_name: "CUDA" device_description_str: "NVIDIA H100 80GB HBM3"
"""

_LIBTPU = {  # what it asks for where there is no TPU
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
}


def has_compiler(platform: str) -> bool:
    """Whether programs can be compiled here for a TPU, or a GPU."""
    names = {"tpu": ["libtpu"], "cuda": ["jax_cuda13_plugin", "jax_cuda12_plugin"]}[platform]
    return any(importlib.util.find_spec(name) is not None for name in names)


def trace_on_cpu() -> None:
    """Programs are traced on the CPU from here on, and compiled for what is asked for."""
    os.environ.update(_LIBTPU, JAX_SKIP_CUDA_CONSTRAINTS_CHECK="1")
    jax.config.update("jax_platforms", "cpu")


def start_tpu_compiler() -> None:
    """`trace_on_cpu`; ends the command where there is no compiler."""
    if not has_compiler("tpu"):
        sys.exit("The TPU's compiler is not here. Install it: pip install -e '.[targets]'")
    trace_on_cpu()


@dataclasses.dataclass(frozen=True)
class Sent:
    """What one device sends by the collectives of a kind, among groups of so many devices."""

    kind: str
    group: int
    bytes: float
    times: int


def sent_by(text: str) -> list[Sent]:
    """Of a compiled program's text, the largest first: an all-gather among n sends (n - 1) / n of its result, say.

    Loops are counted as often as they turn. A collective that goes on beside other work stands in several fusions,
    under one number.
    """
    computations = dict(COMPUTATION.findall(text))
    [entry] = re.findall(r"^ENTRY %(\S+) ", text, re.MULTILINE)
    found: dict[Any, tuple[str, int, float, int]] = {}
    for name, times, fused in _with_turns(computations, entry, 1, False):
        scattered = name.startswith("all-reduce-scatter")  # a fusion for a TPU
        for i, (result, kind, started, channel, rest) in enumerate(COLLECTIVE.findall(computations[name])):
            sizes = [_bytes(*array) for array in ARRAY.findall(result)]
            if started and kind != "all-reduce":  # beside the results also what it is given, and numbers of its own
                sizes = [size for size in sizes if size > 4]
                sizes = sizes[len(sizes) // 2 :]
            size = sum(sizes)
            group = _group(kind, rest)
            share = 1.0 if kind == "collective-permute" else (group - 1) / group
            if kind == "reduce-scatter":  # whose result is a part
                size *= group
            if kind == "all-reduce" and not scattered:
                share *= 2
            number = channel if fused else (name, i)
            if number not in found or found[number][3] < times:
                found[number] = ("reduce-scatter" if scattered else kind, group, size * share, times)
    kinds = sorted({x[:2] for x in found.values()})
    of_kind = {kind: [x for x in found.values() if x[:2] == kind] for kind in kinds}
    total = [Sent(*kind, sum(x[2] * x[3] for x in some), sum(x[3] for x in some)) for kind, some in of_kind.items()]
    return sorted(total, key=lambda sent: -sent.bytes)


def _bytes(dtype: str, dims: str) -> int:
    bits = 8 if dtype == "pred" else int(re.sub(r"\D", "", dtype))
    return math.ceil(bits * math.prod(map(int, filter(None, dims.split(",")))) / 8)


def _with_turns(computations: Mapping[str, str], name: str, times: int, fused: bool) -> Iterator[tuple[str, int, bool]]:
    """A computation and those that it calls, each with how often it runs, and whether within a fusion."""
    yield name, times, fused
    for condition, body in LOOP.findall(computations[name]):
        bounds = BOUND.findall(computations[condition])
        if len(bounds) != 1:
            raise ValueError(f"a loop's turns must be known. Got a condition with the constants {bounds}.")
        yield from _with_turns(computations, body, times * int(bounds[0]), fused)
    for one, several in CALLED.findall(computations[name]):
        for called in [one, *re.findall(r"%([^\s,]+)", several)]:
            if called:
                yield from _with_turns(computations, called, times, fused or bool(one))


def _group(kind: str, rest: str) -> int:
    """Among how many devices; a message to one other device is among two."""
    if kind == "collective-permute":
        return 2
    if of_mesh := re.search(r"replica_groups=mesh\[(.*?)\].*?\{(.*?)\}", rest):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", of_mesh[1]))
        return math.prod(int(sizes[name]) for name in re.findall(r"'(\w+)'", of_mesh[2]))
    if grid := re.search(r"replica_groups=\[\d+,(\d+)\]", rest):
        return int(grid[1])
    listed = re.search(r"replica_groups=\{\{([\d,]+)\}", rest)
    assert listed is not None, rest
    return len(listed[1].split(","))


def flops_of(jaxpr: Any, platform: str) -> int:
    """Of the matrix products of a traced program, on all devices together, lowered for the platform.

    A sum over k products is 2 k. What is elementwise is left out, and what nobody asks for; loops are counted as often
    as they turn, of branches that data choose the longest; a kernel of Pallas is what it says of itself.
    """
    jaxpr = getattr(jaxpr, "jaxpr", jaxpr)
    jaxpr, _ = dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))
    return _flops_of(jaxpr, platform)


def _flops_of(jaxpr: Any, platform: str) -> int:
    jaxpr = getattr(jaxpr, "jaxpr", jaxpr)
    chosen: dict[Any, int] = {}  # by the platform
    total = 0
    for equation in jaxpr.eqns:
        name, parameters = equation.primitive.name, equation.params
        if name == "platform_index":
            chosen[equation.outvars[0]] = _branch(parameters["platforms"], platform)
        elif (
            name in ("clamp", "convert_element_type", "pjit", "jit") and (known := _known(equation, chosen)) is not None
        ):
            chosen[equation.outvars[0]] = known
        elif name == "cond":
            index = chosen.get(equation.invars[0])
            branches = parameters["branches"] if index is None else [parameters["branches"][index]]
            total += max(_flops_of(branch, platform) for branch in branches)
        elif name == "pallas_call":
            total += parameters["cost_estimate"].flops
        elif name == "dot_general":
            (contracted, _), _ = parameters["dimension_numbers"]
            over = math.prod(equation.invars[0].aval.shape[axis] for axis in contracted)
            total += 2 * over * math.prod(equation.outvars[0].aval.shape)
        else:
            inner = sum(_flops_of(one, platform) for one in _inside(parameters))
            if name == "while" and inner:
                raise ValueError("flops must be of loops whose turns are known. Got a while loop with matrix products.")
            if name == "shard_map":
                inner *= math.prod(parameters["mesh"].shape[axis] for axis in parameters["newly_manual_axes"])
            total += inner * parameters.get("length", 1)
    return total


def _known(equation: Any, chosen: Mapping[Any, int]) -> int | None:
    """The choice that an index stands for after it was brought within bounds."""
    variables = [x for x in equation.invars if not hasattr(x, "val")]
    return next((chosen[x] for x in variables if x in chosen), None)


def _branch(platforms: Any, platform: str) -> int:
    of_it = [i for i, names in enumerate(platforms) if names is None or platform in names]
    return of_it[0]


def _inside(parameters: Mapping[str, Any]) -> Iterator[Any]:
    for value in parameters.values():
        for one in value if isinstance(value, tuple | list) else [value]:
            if isinstance(one, Jaxpr | ClosedJaxpr):
                yield one
