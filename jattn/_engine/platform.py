"""What differs between processors and accelerators: one record, chosen where a program is lowered, not where traced.

So a program that a CPU process exports for a TPU has a TPU's loops, and arrays placed on a CPU beside a GPU a CPU's.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import jax
from jax import lax

from jattn._engine.loops import Each, one_by_one, side_by_side

__all__ = [
    "ACCELERATOR",
    "CPU",
    "NAMES",
    "Platform",
    "capability_here",
    "divided_among",
    "is_alone",
    "platforms",
    "platforms_of",
    "saved_for",
    "where_lowered",
]

NAMES = ("cpu", "cuda", "rocm", "tpu")  # JAX's

# For which of these the programs are saved that are traced inside of it: a caller's words, which JAX's caches know.
_saved_for = jax.make_user_context(default_value=())


@dataclasses.dataclass(frozen=True)
class Platform:
    """How to cut work up, and which way XLA runs fastest; the figures are measured with ``python -m benchmarks``."""

    name: str
    is_cpu: bool
    logits: int  # at most in the blocks that are computed at a time, so that they stay near the core that made them
    widths: int  # of blocks, each of which is compiled for itself, so there are few
    # Where data decides which keys a block sees:
    parts: tuple[float, ...]  # of all keys: the widths
    least_part: int
    rows: int  # at most, as the keys that more of them see lie further apart
    # Among how many XLA may have to divide the program's arrays, which it can't where a loop goes over examples or
    # heads, nor without a message where all of them decide together.
    devices: int = 1
    capability: float = 0.0  # of an NVIDIA GPU that is here, or in the mesh that is set, such as 9.0 for Hopper
    is_known: bool = False  # of a TPU, or an NVIDIA GPU: whether one is here, or the mesh that is set has such
    saved_for: tuple[str, ...] = ()  # the platforms that the program is saved for; none where it is not

    @property
    def each_matrix(self) -> Each:
        """A processor's cores share the work of one matrix; an accelerator takes all at once."""
        return one_by_one if self.is_cpu else side_by_side


# On a processor, of six widths two blocks of a causal mask on 1,024 tokens share one, which takes 1.4 times as long.
CPU = Platform("cpu", True, logits=2**22, widths=8, parts=(1 / 8, 1 / 4, 1 / 2, 3 / 4, 1.0), least_part=64, rows=512)
# An accelerator takes many blocks at once, and takes longer to compile.
ACCELERATOR = Platform(
    "accelerator", False, logits=2**24, widths=4, parts=(1 / 64, 1 / 16, 1 / 4, 1.0), least_part=512, rows=256
)


def platforms(*, alone: bool = False) -> dict[str, Platform]:
    """Those that a program can be lowered for, by JAX's names; ``alone``: on one device of it."""
    nvidia = dataclasses.replace(ACCELERATOR, name="cuda", capability=_compute_capability(), is_known=_is_known("cuda"))
    known = {
        "cpu": CPU,
        "cuda": nvidia,
        "rocm": dataclasses.replace(ACCELERATOR, name="rocm"),
        "tpu": dataclasses.replace(ACCELERATOR, name="tpu", is_known=_is_known("tpu")),
    }
    if names := _saved_for.value:
        known = {name: dataclasses.replace(known[name], saved_for=names) for name in names}
    return known if alone else {name: _spread(one) for name, one in known.items()}


def saved_for(*names: str) -> AbstractContextManager[Any]:
    """Inside, what is traced is saved for these platforms, and runs on one device of one of them."""
    return _saved_for(names)


def _spread(platform: Platform) -> Platform:
    devices = divided_among(platform.name)
    if devices == 1:
        return platform
    alike = {name: getattr(platform, name) for name in ("name", "capability", "is_known", "saved_for")}
    return dataclasses.replace(ACCELERATOR, **alike, parts=(1.0,), devices=devices)


def divided_among(platform: str | None = None) -> int:
    """How many devices of a platform, by default JAX's, XLA may divide among what is traced here.

    It divides over automatic axes. Those of a mesh that is set are known; else it may be any, and outside of a
    `jax.shard_map` all of the devices there are. What is saved is for one.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return 1 if _saved_for.value else _device_count(platform or jax.default_backend())
    return math.prod(mesh.shape[axis] for axis in mesh.auto_axes)


def is_alone(arguments: Any) -> bool:
    """Whether arrays lie on one device each, as far as they are there."""
    arrays = [x for x in jax.tree.leaves(arguments) if isinstance(x, jax.Array)]
    return all(not isinstance(x, jax.core.Tracer) and len(x.sharding.device_set) == 1 for x in arrays)


def platforms_of(x: Any) -> list[Platform]:
    """That of an array's device; where it is traced, of the mesh that is set, or of the default backend.

    Several where a program is saved for several.
    """
    if _saved_for.value:
        return list(platforms().values())
    if isinstance(x, jax.Array) and not isinstance(x, jax.core.Tracer):
        name = next(iter(x.devices())).platform
    else:
        name = _of_mesh() or jax.default_backend()
    if name == "gpu":
        name = "cuda" if _compute_capability() else "rocm"
    return [platforms(alone=is_alone(x)).get(name, ACCELERATOR)]


def where_lowered(
    run: Callable[[Platform, Any], Any], arguments: Any, alike: Callable[[Platform], Any], *, alone: bool = False
) -> Any:
    """``run(platform, arguments)`` for the platform that the program is lowered for; ``alone``: on one device of it.

    Platforms for which ``alike`` gives the same are one program, and where all are there is nothing to choose.
    """
    programs: dict[Any, Platform] = {}
    names: dict[str, Platform] = {}
    for name, platform in platforms(alone=alone).items():
        names[name] = programs.setdefault(alike(platform), platform)
    if len(programs) == 1:
        return run(next(iter(programs.values())), arguments)
    leaves, structure = jax.tree.flatten(arguments)

    def branch(platform: Platform) -> Callable[..., Any]:
        return lambda *leaves: run(platform, jax.tree.unflatten(structure, leaves))

    branches = {id(platform): branch(platform) for platform in programs.values()}
    last = list(names.values())[-1]
    default = branches[id(last)]
    others = {name: branches[id(platform)] for name, platform in names.items() if platform is not last}
    return lax.platform_dependent(*leaves, default=default, **others)


@functools.cache
def _device_count(platform: str) -> int:
    """Of all processes; 1 where there are none."""
    try:
        return jax.device_count(backend=platform)
    except RuntimeError:
        return 1


def _is_known(platform: str) -> bool:
    of_mesh = _of_mesh()
    return _is_here(platform) if of_mesh is None else of_mesh == platform


def _of_mesh() -> str | None:
    """The platform of the mesh that is set: "" for one that is not known by its kind, None without a mesh."""
    kind = _kind_of_mesh()
    if kind is None:
        return None
    makers = {"TPU": "tpu", "NVIDIA": "cuda", "Tesla": "cuda", "Quadro": "cuda", "GeForce": "cuda"}
    return next((platform for maker, platform in makers.items() if maker in kind), "")


def _kind_of_mesh() -> str | None:
    device = getattr(jax.sharding.get_abstract_mesh(), "abstract_device", None)
    return None if device is None else str(device.device_kind)


@functools.cache
def _is_here(platform: str) -> bool:
    try:
        return bool(jax.local_devices(backend=platform))
    except RuntimeError:
        return False


# Of NVIDIA GPUs that programs are compiled for elsewhere.
_CAPABILITIES = {
    **dict.fromkeys(("A100", "A30"), 8.0),
    **dict.fromkeys(("A10", "A40"), 8.6),
    **dict.fromkeys(("L4", "L40"), 8.9),
    **dict.fromkeys(("H20", "H100", "H200", "GH200"), 9.0),
    **dict.fromkeys(("B200", "GB200"), 10.0),
    **dict.fromkeys(("B300", "GB300"), 10.3),
}


def _compute_capability() -> float:
    """Of the NVIDIA GPUs in the mesh that is set, or of the first one here; 0 if there is none."""
    kinds = re.findall(r"\b[A-Z]+\d+", _kind_of_mesh() or "") if _of_mesh() == "cuda" else []
    return next((_CAPABILITIES[kind] for kind in kinds if kind in _CAPABILITIES), capability_here())


@functools.cache
def capability_here() -> float:
    """Of the first NVIDIA GPU here; 0 if there is none."""
    try:
        device = jax.local_devices(backend="gpu")[0]
    except (RuntimeError, IndexError):
        return 0.0
    version = str(getattr(device, "compute_capability", ""))
    return float(version) if re.fullmatch(r"\d+\.\d+", version) else 0.0  # AMD's has letters
