"""Which submodule of the port is which of PyTorch's: by name, by their numbers, or by order, kind and shapes."""

import difflib
import re
from collections import defaultdict
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from flax import nnx

from jattn.parity.arrays import numbers
from jattn.parity.trace import Call, Trace, submodules

if TYPE_CHECKING:
    import torch


def pair_modules(
    torch_module: "torch.nn.Module",
    flax_module: nnx.Module,
    torch_trace: Trace,
    flax_trace: Trace,
    rename: Mapping[str, str],
    names: Mapping[str, str],
) -> dict[str, str]:
    """Path on PyTorch's side to path on Flax's, of modules that were called."""
    theirs, ours = _called(torch_trace), _called(flax_trace)
    pairs = {"": ""}

    def add(path: str, to: str) -> None:
        if path in theirs and to in ours and path not in pairs and to not in pairs.values():
            pairs[path] = to

    for path, to in names.items():
        add(path, to)
    for path in theirs:
        add(path, renamed(path + ".", rename).removesuffix("."))
    for path, to in _same_numbers(theirs, ours, pairs, torch_module, flax_module):
        add(path, to)

    their_kinds, our_kinds = _kinds_of_torch(torch_module, theirs), _kinds_of_flax(flax_module, ours)
    for path in theirs:  # from the outside in: the children of a pair, in their order
        if path in pairs:
            add_in_order(_children(theirs, path), _children(ours, pairs[path]), their_kinds, our_kinds, pairs, add)
    return pairs


def renamed(name: str, rename: Mapping[str, str]) -> str:
    """As `jattn.torch_weights.load_state_dict` renames entries."""
    for pattern, replacement in rename.items():
        name = re.sub(pattern, replacement, name)
    return name


def add_in_order(
    theirs: Sequence[str],
    ours: Sequence[str],
    their_kinds: Mapping[str, Hashable],
    our_kinds: Mapping[str, Hashable],
    pairs: Mapping[str, str],
    add: Callable[[str, str], None],
) -> None:
    """The longest run of unpaired modules of the same kind, in the same order."""
    theirs = [path for path in theirs if path not in pairs]
    ours = [path for path in ours if path not in pairs.values()]
    kinds = [their_kinds[path] for path in theirs], [our_kinds[path] for path in ours]
    for block in difflib.SequenceMatcher(None, *kinds, autojunk=False).get_matching_blocks():
        for i in range(block.size):
            add(theirs[block.a + i], ours[block.b + i])


def _called(trace: Trace) -> dict[str, Call]:
    """Each module's first call, the outer before the inner and otherwise in the order in which they ended."""
    calls = {call.path: call for call in reversed(trace.calls)}
    return dict(sorted(reversed(calls.items()), key=lambda item: len(list(item[1].ancestors()))))


def _children(calls: Mapping[str, Call], path: str) -> list[str]:
    return [child for child, call in calls.items() if call.parent is not None and call.parent.path == path]


def _same_numbers(
    theirs: Mapping[str, Call],
    ours: Mapping[str, Call],
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
            groups[_fingerprint(_parameters(modules[path]))][1].append(path)
    return [
        pair
        for key, group in groups.items()
        if key and len(group[0]) == len(group[1])
        for pair in zip(*group, strict=True)
    ]


def _fingerprint(parameters: list[Any]) -> bytes:
    if not parameters:
        return b""
    return np.sort(np.concatenate([numbers(x).astype(np.float64).ravel() for x in parameters])).tobytes()


def _parameters(module: nnx.Module) -> list[Any]:
    return jax.tree.leaves(nnx.state(module, nnx.Param))


def _kinds_of_torch(module: "torch.nn.Module", paths: Mapping[str, Call]) -> dict[str, Hashable]:
    return {
        path: _kind(call, [x.numel() for x in module.get_submodule(path).parameters()]) for path, call in paths.items()
    }


def _kinds_of_flax(module: nnx.Module, paths: Mapping[str, Call]) -> dict[str, Hashable]:
    modules = dict(submodules(module))
    return {path: _kind(call, [x.size for x in _parameters(modules[path])]) for path, call in paths.items()}


def _kind(call: Call, sizes: list[int]) -> Hashable:
    """How many numbers a module holds; of one that holds none, what it is called."""
    return sum(sizes) if sizes else call.kind.lower()
