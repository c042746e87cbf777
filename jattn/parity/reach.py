"""What the inputs leave untried: windows, padding and long positions that would show with others only."""

import inspect
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from jattn.parity.arrays import is_floating, numbers
from jattn.parity.sides import Arguments

if TYPE_CHECKING:
    import torch

__all__ = ["empty_rows", "not_reached"]

WINDOWS = ("window", "window_size", "max_distance")  # what such settings' names end with
LIMITS = {"longrope": "original_max_position_embeddings", "dynamic": "max_position_embeddings"}


def not_reached(module: "torch.nn.Module", given: Arguments) -> list[str]:
    """A sentence for each, and what would try it."""
    length = _tokens_given(given)
    if length is None:
        return []
    return [*_windows(module, length), *_long_positions(module, length), *_masks(module, given)]


def _tokens_given(given: Arguments) -> int | None:
    """How many tokens there are: t of ``b t`` or ``b t m``, or the last of the positions."""
    args, kwargs = given
    named = [*[("", x) for x in args], *kwargs.items()]
    arrays = {name: numbers(x) for name, x in named if hasattr(x, "shape") and hasattr(x, "dtype")}
    lengths = [x.shape[1] for x in arrays.values() if x.ndim == (3 if is_floating(x) else 2)]
    positions = arrays.get("position_ids")
    last = [int(positions.max()) + 1] if positions is not None and positions.size else []
    return max([*lengths, *last], default=None)


def _settings(module: "torch.nn.Module") -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The attributes of each submodule and of its config, and where they are."""
    for path, m in module.named_modules():
        yield path or "the module itself", vars(m)
    for path, m in module.named_modules():
        if hasattr(m, "config") and hasattr(m.config, "__dict__"):
            yield f"{path}.config".removeprefix("."), vars(m.config)


def _windows(module: "torch.nn.Module", length: int) -> Iterator[str]:
    found: dict[tuple[str, int], str] = {}
    for path, settings in _settings(module):
        kinds = settings.get("layer_types")
        if settings.get("use_sliding_window") is False or (kinds and "sliding_attention" not in kinds):
            continue
        for name, x in settings.items():
            if name.endswith(WINDOWS) and isinstance(x, int) and not isinstance(x, bool) and x >= length:
                found.setdefault((name, x), path)
    for (name, x), path in found.items():
        yield (
            f"the {name} of {x} ({path}) was not reached by {length} tokens. Give more than {x}, or both sides a "
            "smaller one."
        )


def _long_positions(module: "torch.nn.Module", length: int) -> Iterator[str]:
    found: dict[tuple[str, int], None] = {}
    for _, settings in _settings(module):
        rotary = settings.get("rope_parameters") or settings.get("rope_scaling") or {}
        for options in [rotary, *rotary.values()] if isinstance(rotary, Mapping) else []:
            kind = options.get("rope_type") if isinstance(options, Mapping) else None
            if kind in LIMITS:
                most = options.get(LIMITS[kind], settings.get(LIMITS[kind]))
                if isinstance(most, int) and most >= length:
                    found[kind, most] = None
    for kind, most in found:
        yield (
            f"{kind} rotary positions are others beyond {most} tokens, which {length} did not reach. Give more, or "
            f"both sides a smaller {LIMITS[kind]}."
        )


def _masks(module: "torch.nn.Module", given: Arguments) -> Iterator[str]:
    named = _by_parameter(module, given)
    names = [name for name in _parameters(module) if _is_mask(name)]
    missing = [name for name in names if named.get(name) is None]
    idle = [name for name in names if name not in missing and np.unique(numbers(named[name])).size == 1]
    if missing:
        yield f"without {' and '.join(missing)}, padding and masks were not compared. Give one that hides something."
    if idle:
        yield f"{' and '.join(idle)} hides nothing or all, so that masks were not compared. Give one that hides some."


def _is_mask(name: str) -> bool:
    return name.endswith("mask") and not name.startswith(("encoder", "cross", "head", "tgt", "memory"))


def _parameters(module: "torch.nn.Module") -> list[str]:
    return list(inspect.signature(module.forward).parameters)


def _by_parameter(module: "torch.nn.Module", given: Arguments) -> dict[str, Any]:
    """The arrays that are given, by the names of the parameters they are given for."""
    args, kwargs = given
    named = {**dict(zip(_parameters(module), args, strict=False)), **kwargs}
    return {name: x for name, x in named.items() if hasattr(x, "shape") and hasattr(x, "dtype")}


def empty_rows(module: "torch.nn.Module", given: Arguments) -> Iterator[tuple[str, np.ndarray]]:
    """The masks among the inputs, and the queries ``b t`` to which each leaves something to attend to.

    Of one ``b t`` of tokens, if they see no later ones, or if it hides all of an example.
    """
    for name, x in _by_parameter(module, given).items():
        if is_floating(x) or not _is_mask(name):
            continue
        mask = numbers(x)
        if mask.ndim not in (2, 4) or set(np.unique(mask).tolist()) != {0, 1}:
            continue
        allowed = np.asarray(mask == 0 if "padding" in name else mask != 0)
        rows = np.asarray(np.logical_or.accumulate(allowed, 1) if mask.ndim == 2 else allowed.any((1, 3)))
        if not rows.all():
            yield name, rows
