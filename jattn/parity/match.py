"""Which submodule of the port is which of PyTorch's: by name, by their numbers, or by order, kind and shapes."""

import difflib
import fnmatch
from collections import defaultdict
from collections.abc import Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import jax
import numpy as np
from flax import nnx

from jattn.parity.arrays import aligned, numbers
from jattn.parity.trace import ModuleCall, Trace, submodules
from jattn.weights.table import Renaming, Table, moved, moved_name

if TYPE_CHECKING:
    import torch

__all__ = ["apply_renames", "ignored_modules", "is_added", "nearest", "pair_modules", "wrapper_prefix"]

T = TypeVar("T")


def pair_modules(
    torch_module: "torch.nn.Module",
    flax_module: nnx.Module,
    torch_trace: Trace,
    flax_trace: Trace,
    rename: Renaming,
    names: Mapping[str, str],
    ignored: Collection[str] = (),
) -> dict[str, str]:
    """Path on PyTorch's side to path on Flax's, of modules that were called and are not to be ignored."""
    theirs, ours = _first_calls(torch_trace), _first_calls(flax_trace)
    theirs = {path: call for path, call in theirs.items() if path not in ignored}
    pairs = {"": ""}

    def add(path: str, to: str) -> None:
        if path in theirs and to in ours and path not in pairs and to not in pairs.values():
            pairs[path] = to

    for path, to in names.items():
        add(path, to)
    for path in theirs:
        if (new := moved_name(f"{path}.", rename)) is not None:
            add(path, new.removesuffix("."))
    executed, our_executed = _as_executed(theirs, torch_trace), _as_executed(ours, flax_trace)
    for path, to in _same_numbers(executed, our_executed, pairs, torch_module, flax_module):
        if _look_alike(theirs[path], ours[to]):
            add(path, to)

    their_kinds, our_kinds = _kinds_of_torch(torch_module, theirs), _kinds_of_flax(flax_module, ours)
    for path in theirs:  # from the outside in: the children of a pair, in their order
        if path in pairs:
            children = [child for child in _child_paths(theirs, path) if child not in pairs]
            our_children = [child for child in _child_paths(ours, pairs[path]) if child not in pairs.values()]
            for child, to in _matching_runs(children, our_children, their_kinds, our_kinds):
                if _look_alike(theirs[child], ours[to]):
                    add(child, to)
    return pairs


def wrapper_prefix(torch_module: "torch.nn.Module", flax_module: nnx.Module, rename: Renaming) -> str:
    """What all of PyTorch's names begin with and the port's don't, as of a module that only calls another."""
    renamed = [moved_name(f"{path}.", rename) for path, _ in torch_module.named_modules() if path]
    theirs = [name for name in renamed if name is not None]
    ours = {f"{path}." for path, _ in submodules(flax_module)}
    candidates = [""]
    while True:
        prefix = candidates[-1]
        inner = {name.removeprefix(prefix).partition(".")[0] for name in theirs if name.startswith(prefix)} - {""}
        if len(inner) != 1:
            break
        candidates.append(f"{prefix}{inner.pop()}.")
    found = {p: sum(n.removeprefix(p) in ours for n in theirs if n.startswith(p) and n != p) for p in candidates}
    return max(found, key=lambda p: (found[p], -len(p)))


def ignored_modules(module: "torch.nn.Module", ignore: Any) -> set[str]:
    """The submodules that paths or patterns name, and those in them."""
    if isinstance(ignore, str):
        raise ValueError(f"ignore must be a sequence of paths. Got the string {ignore!r}. Write [{ignore!r}].")
    paths, found = [path for path, _ in module.named_modules() if path], set[str]()
    for pattern in ignore:
        named = [path for path in paths if path == pattern or fnmatch.fnmatchcase(path, pattern)]
        if not named:
            near = nearest(pattern, paths)
            raise ValueError(f"ignore must name submodules on PyTorch's side. Got {pattern!r}, which is none.{near}")
        found |= {path for path in paths for outer in named if path == outer or path.startswith(f"{outer}.")}
    return found


def nearest(name: str, names: Iterable[str]) -> str:
    """A sentence on the name that is most like it, for an error."""
    near = difflib.get_close_matches(name, [x for x in names if x], 1, cutoff=0.0)
    return f" The nearest is {near[0]!r}." if near else ""


def apply_renames(entries: Mapping[str, T], rename: Renaming) -> dict[str, T]:
    """As `jattn.weights.load_state_dict` renames them, but not all patterns need to match."""
    return moved(entries, rename)


def is_added(name: str, rename: Renaming) -> bool:
    """Whether the port has an entry that PyTorch's module lacks, as the table says."""
    return isinstance(rename, Table) and rename.adds(name)


def _first_calls(trace: Trace) -> dict[str, ModuleCall]:
    """Each module's first call, the outer before the inner and otherwise in the order in which they ended."""
    first: dict[str, ModuleCall] = {}
    for call in trace.calls:
        first.setdefault(call.path, call)
    return dict(sorted(first.items(), key=lambda item: len(list(item[1].ancestors()))))


def _as_executed(calls: Mapping[str, ModuleCall], trace: Trace) -> dict[str, ModuleCall]:
    return {call.path: calls[call.path] for call in trace.calls if call.path in calls}


def _child_paths(calls: Mapping[str, ModuleCall], path: str) -> list[str]:
    return [child for child, call in calls.items() if call.parent is not None and call.parent.path == path]


def _matching_runs(
    theirs: Sequence[str],
    ours: Sequence[str],
    their_kinds: Mapping[str, Hashable],
    our_kinds: Mapping[str, Hashable],
) -> Iterator[tuple[str, str]]:
    """The longest runs of modules of the same kinds, in the same order."""
    kinds = [their_kinds[path] for path in theirs], [our_kinds[path] for path in ours]
    for block in difflib.SequenceMatcher(None, *kinds, autojunk=False).get_matching_blocks():
        yield from zip(theirs[block.a : block.a + block.size], ours[block.b : block.b + block.size], strict=True)


def _same_numbers(
    theirs: Mapping[str, ModuleCall],
    ours: Mapping[str, ModuleCall],
    pairs: Mapping[str, str],
    torch_module: "torch.nn.Module",
    flax_module: nnx.Module,
) -> list[tuple[str, str]]:
    """Unpaired modules that hold the same numbers, in whatever layout, where as many hold them on either side."""
    groups: dict[bytes, tuple[list[str], list[str]]] = defaultdict(lambda: ([], []))
    modules = dict(submodules(flax_module))
    for path in theirs:
        if path not in pairs:
            groups[_fingerprint(list(torch_module.get_submodule(path).parameters()))][0].append(path)
    for path in ours:
        if path not in pairs.values():
            groups[_fingerprint(_param_leaves(modules[path]))][1].append(path)
    return [pair for key, group in groups.items() if key for pair in _in_order(group, theirs, ours)]


def _in_order(
    group: tuple[list[str], list[str]], theirs: Mapping[str, ModuleCall], ours: Mapping[str, ModuleCall]
) -> list[tuple[str, str]]:
    """One for one, as they were executed; where one side has more, as of tied weights, what fits just one."""
    if len(group[0]) == len(group[1]):
        return list(zip(*group, strict=True))
    fitting = [(path, to) for path in group[0] for to in group[1] if _look_alike(theirs[path], ours[to])]
    return [(a, b) for a, b in fitting if sum(a == c or b == d for c, d in fitting) == 1]


def _look_alike(theirs: ModuleCall, ours: ModuleCall) -> bool:
    """Whether they give as many numbers, which an embedding and the head that shares its weights don't."""
    if not theirs.outputs or not ours.outputs:
        return True
    x, y = theirs.outputs[0], ours.outputs[0]
    return x.size == y.size or aligned(y, x) is not None


def _fingerprint(parameters: list[Any]) -> bytes:
    if not parameters:
        return b""
    return np.sort(np.concatenate([numbers(x).astype(np.float64).ravel() for x in parameters])).tobytes()


def _param_leaves(module: nnx.Module) -> list[Any]:
    return jax.tree.leaves(nnx.state(module, nnx.Param))


def _kinds_of_torch(module: "torch.nn.Module", paths: Mapping[str, ModuleCall]) -> dict[str, Hashable]:
    return {
        path: _kind(call, [x.numel() for x in module.get_submodule(path).parameters()]) for path, call in paths.items()
    }


def _kinds_of_flax(module: nnx.Module, paths: Mapping[str, ModuleCall]) -> dict[str, Hashable]:
    modules = dict(submodules(module))
    return {path: _kind(call, [x.size for x in _param_leaves(modules[path])]) for path, call in paths.items()}


def _kind(call: ModuleCall, sizes: list[int]) -> Hashable:
    """How many numbers a module holds; of one that holds none, what it is called."""
    return sum(sizes) if sizes else call.kind.lower()
