"""The lines of a table: what an entry of a state dict is called in a module, and how its numbers lie there.

Those for fused weights are in `fused.py`.

A name stands for a parameter, or for a module with all of its parameters; ``#`` in it stands for a number, the same on
either side. Where an entry keeps its name, or is dropped, a regular expression finds it too: a text is one if it has
any of ``\\ ^ $ * + ? ( ) [ ] { } |``.

Each line takes ``optional``: whether it may find nothing. A line that is not, and does, is an error.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from jattn.weights import layouts
from jattn.weights.files import to_numpy
from jattn.weights.passage import Conversion, Line, Zeros
from jattn.weights.patterns import (
    NoWay,
    Pattern,
    Prefix,
    Substitution,
    as_written,
    both_sides,
    check_regex,
    is_regex,
    pattern_of,
)

__all__ = ["convert", "dropped", "part", "prefixed", "rename", "tied", "transposed", "zeros"]


def rename(theirs: str, ours: str, *, optional: bool = False, back: bool | tuple[str, str] = True) -> Line:
    """An entry under another name.

    Args:
        theirs: the name in the state dict; or a regular expression that is looked for in each name.
        ours: the name in the module; or what ``re.sub`` replaces the regular expression by.
        optional: whether it may find nothing.
        back: whether names are renamed on the way back too; False for an older name of something. A regular expression
            needs to be told how: another and its replacement.

    Example:

        >>> from jattn.weights import Table
        >>> older = rename(r"\\.gamma$", ".weight", optional=True, back=False)
        >>> table = Table([older, rename("h.#.ln_1", "blocks.#.norm1")])
        >>> list(table.load({"h.0.ln_1.gamma": np.ones(2), "h.0.ln_1.bias": np.ones(2)}))
        ['blocks.0.norm1.weight', 'blocks.0.norm1.bias']
        >>> list(table.dump({"blocks.0.norm1.weight": np.ones(2)}))
        ['h.0.ln_1.weight']
    """
    written = as_written("rename", theirs, ours)
    if not isinstance(theirs, str) or not is_regex(theirs):
        sources, targets = both_sides(written, (theirs,), (ours,))
        return Conversion(written, sources, targets, _unchanged, _unchanged, optional, bool(back))
    check_regex(f"{written}'s name", theirs, ours)
    if not isinstance(back, bool):
        check_regex(f"back of {written}", *back)
    way_back = NoWay() if isinstance(back, bool) else Substitution(*back)
    return Conversion(
        written, (Substitution(theirs, ours),), (way_back,), _unchanged, _unchanged, optional, back is not False
    )


def prefixed(
    theirs: str, ours: str = "", *, but: str | Sequence[str] = (), optional: bool = False, back: bool = True
) -> Line:
    """All entries whose names begin with a prefix, under names without it, or with another.

    Args:
        theirs: the prefix in the state dict, ``"model."``; empty for names that get one.
        ours: the prefix in the module.
        but: names that are as they are on either side, such as that of an output layer beside the prefixed model.
        optional: whether it may find nothing.
        back: whether the prefix is put back on the way back.

    Example:

        >>> from jattn.weights import Table
        >>> table = Table([prefixed("model.", but="lm_head")])
        >>> list(table.load({"model.norm.weight": np.ones(2), "lm_head.weight": np.ones(2)}))
        ['norm.weight', 'lm_head.weight']
        >>> list(table.dump({"norm.weight": np.ones(2), "lm_head.weight": np.ones(2)}))
        ['model.norm.weight', 'lm_head.weight']
    """
    written = as_written("prefixed", theirs, *([ours] if ours else []))
    for prefix in (theirs, ours):
        if not isinstance(prefix, str) or (prefix and not prefix.endswith(".")):
            raise ValueError(f"{written} must have prefixes that end in a dot. Got {prefix!r}.")
    kept = tuple(pattern_of(f"but of {written}", name) for name in _each_of(but))
    return Conversion(written, (Prefix(theirs, kept),), (Prefix(ours, kept),), _unchanged, _unchanged, optional, back)


def transposed(
    name: str, ours: str | None = None, *, axes: Sequence[int] | None = None, optional: bool = False
) -> Line:
    """An entry with its axes in another order, such as GPT-2's ``Conv1D``, whose weights are ``(in, out)``.

    Args:
        name: the name in the state dict; or a regular expression, of entries that keep their names.
        ours: the name in the module; the same by default.
        axes: of theirs, in the order that the module has them, as for ``np.transpose``; by default the last two are
            swapped, and a vector, such as the bias beside a matrix, stays as it is.
        optional: whether it may find nothing.

    Example:

        >>> from jattn.weights import Table
        >>> table = Table([transposed("h.#.mlp.c_fc", "blocks.#.linear1")])
        >>> entries = table.load({"h.0.mlp.c_fc.weight": np.ones((2, 8)), "h.0.mlp.c_fc.bias": np.ones(8)})
        >>> {name: x.shape for name, x in entries.items()}
        {'blocks.0.linear1.weight': (8, 2), 'blocks.0.linear1.bias': (8,)}
    """
    written = as_written("transposed", name, *([] if ours is None else [ours]))
    sources: tuple[Pattern, ...] = (pattern_of(f"{written}'s name", name),)
    targets: tuple[Pattern, ...] = sources
    if ours is not None:
        sources, targets = both_sides(written, (name,), (ours,))
    order = None if axes is None else tuple(axes)
    inverse = None if order is None else tuple(np.argsort(order).tolist())
    return Conversion(
        written,
        sources,
        targets,
        lambda xs: [layouts.turned(xs[0], order)],
        lambda xs: [layouts.turned(xs[0], inverse)],
        optional,
    )


def part(
    theirs: str,
    ours: str,
    where: slice,
    *,
    axis: int = 0,
    fill: int | float | None = None,
    size: int | None = None,
    optional: bool = False,
) -> Line:
    """A stretch of an entry: RoBERTa's positions, whose first two rows no token has.

    Args:
        theirs: the name in the state dict.
        ours: the name in the module.
        where: which stretch of theirs, in steps of one.
        axis: along which.
        fill: what stands in the rest on the way back, which is an error where it is not given.
        size: how long theirs is, for the way back; not needed where ``where`` tells.
        optional: whether it may find nothing.

    Example:

        >>> from jattn.weights import Table
        >>> table = Table([part("pos", "positions", slice(2, None), fill=0)])
        >>> table.load({"pos.weight": np.array([7, 7, 1, 2])})
        {'positions.weight': array([1, 2])}
        >>> table.dump({"positions.weight": np.array([1, 2])})
        {'pos.weight': array([0, 0, 1, 2])}
    """
    written = as_written("part", theirs, ours, where)
    if not isinstance(where, slice) or where.step not in (None, 1):
        raise ValueError(f"{written} must have a slice in steps of one. Got {where!r}.")
    sources, targets = both_sides(written, (theirs,), (ours,))

    def refilled(xs: list[Any]) -> list[np.ndarray]:
        if fill is None:
            raise ValueError("is a part, and nothing says what is in the rest; give fill")
        return [layouts.refilled(xs[0], where, axis, fill, size)]

    return Conversion(written, sources, targets, lambda xs: [layouts.taken(xs[0], where, axis)], refilled, optional)


def tied(copy: str, name: str, *, optional: bool = False) -> Line:
    """Two entries of the state dict that are one parameter of the module, such as an output and an embedding.

    They are found equal, bit for bit; one alone is enough, since files hold tied weights once. Both are written on the
    way back. The one that stays has its name in the state dict, for the lines that follow.

    Args:
        copy: the name of the one that goes.
        name: the name of the one that stays.
        optional: whether it may find neither.

    Example:

        >>> from jattn.weights import Table
        >>> table = Table([tied("lm_head.weight", "wte.weight"), rename("wte", "embedding")])
        >>> table.load({"wte.weight": np.array([1, 2]), "lm_head.weight": np.array([1, 2])})
        {'embedding.weight': array([1, 2])}
        >>> table.dump({"embedding.weight": np.array([1, 2])})
        {'lm_head.weight': array([1, 2]), 'wte.weight': array([1, 2])}
    """
    written = as_written("tied", copy, name)
    sources, _ = both_sides(written, (copy, name), ())

    def one(xs: list[Any]) -> list[Any]:
        present = [x for x in xs if x is not None]
        if len({layouts.bits(x) for x in present}) > 1:
            raise ValueError(f"must be equal: the table has {copy} tied to {name}. Got other numbers")
        return present[-1:]

    return Conversion(written, sources, sources[1:], one, lambda xs: [xs[0], xs[0]], optional, all_needed=False)


def zeros(name: str, *, like: str | None = None, optional: bool = False) -> Line:
    """An entry of the module that the state dict lacks, and that is zero: a bias that an original has not.

    It is left out on the way back, where it must still be zero.

    Args:
        name: the name in the module, or a regular expression for several.
        like: an entry of the same shape and dtype, under the name that it has at this line. By default the shape is the
            module's, and the dtype that of the entry whose name begins most alike.
        optional: whether it may find nothing, leave an entry that is there, and keep on the way back what is not zero.

    Example:

        >>> from jattn.weights import Table
        >>> table = Table([zeros("key.bias", like="query.bias")])
        >>> table.load({"query.bias": np.array([1.0, 2.0])})
        {'query.bias': array([1., 2.]), 'key.bias': array([0., 0.])}
        >>> table.dump({"query.bias": np.array([1.0, 2.0]), "key.bias": np.array([0.0, 0.0])})
        {'query.bias': array([1., 2.])}
    """
    written = as_written("zeros", name)
    if like is None:
        return Zeros(written, pattern_of(f"{written}'s name", name), None, optional)
    (other,), (pattern,) = both_sides(written, (like,), (name,))
    return Zeros(written, pattern, other, optional)


def dropped(name: str, *, optional: bool = False) -> Line:
    """An entry that the module does without: a constant, or a layer of another task. It does not come back.

    Args:
        name: its name, or a regular expression.
        optional: whether it may find nothing.

    Example:

        >>> from jattn.weights import Table
        >>> Table([dropped(r"\\.inv_freq$")]).load({"rotary.inv_freq": np.ones(2), "norm.weight": np.ones(2)})
        {'norm.weight': array([1., 1.])}
    """
    written = as_written("dropped", name)
    return Conversion(
        written,
        (pattern_of(f"{written}'s name", name),),
        (),
        lambda xs: [],
        lambda xs: [],
        optional,
        back=False,
    )


def convert(
    theirs: str | Sequence[str],
    ours: str | Sequence[str],
    load: Callable[..., Any],
    dump: Callable[..., Any],
    *,
    optional: bool = False,
) -> Line:
    """Entries that functions of yours make of others, where no other line says how.

    Args:
        theirs: the names in the state dict.
        ours: the names in the module.
        load: from as many NumPy arrays as theirs to a tuple of as many as ours, or to one array if that is one.
        dump: and back. A ValueError of either is told with the entry's name.
        optional: whether it may find nothing.

    Example:

        >>> from jattn.weights import Table
        >>> table = Table([convert("norm.weight", "norm.weight", lambda x: x + 1, lambda x: x - 1)])  # Gemma's
        >>> table.load({"norm.weight": np.array([0.0, 0.5])})
        {'norm.weight': array([1. , 1.5])}
    """
    names = [*_each_of(theirs), *_each_of(ours)]
    written = as_written("convert", theirs, ours)
    sources, targets = both_sides(written, names[: len(_each_of(theirs))], names[len(_each_of(theirs)) :])

    def through(function: Callable[..., Any], count: int) -> Callable[[list[Any]], Sequence[Any]]:
        def arrays(xs: list[Any]) -> Sequence[Any]:
            made = function(*map(to_numpy, xs))
            made = made if isinstance(made, tuple | list) else (made,)
            if len(made) != count:
                raise ValueError(f"must become {count}, by {written}. Got {len(made)}")
            return made

        return arrays

    return Conversion(written, sources, targets, through(load, len(targets)), through(dump, len(sources)), optional)


def _each_of(names: str | Sequence[str]) -> Sequence[str]:
    return (names,) if isinstance(names, str) else names


def _unchanged(xs: list[Any]) -> list[Any]:
    return xs
