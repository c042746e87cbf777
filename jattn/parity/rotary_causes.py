"""Causes in rotary positions: in attention, in a module that turns heads, or in one that makes cosines and sines."""

import dataclasses
import itertools
from collections.abc import Callable, Iterator

import numpy as np

from jattn.parity.attention_search import FoundAttention, alters, attention_at, fitting_number
from jattn.parity.cause import Cause, outermost
from jattn.parity.fitted import fitting_numbers
from jattn.parity.locate import Site
from jattn.parity.rotary_recipe import (
    COMMON_BASES,
    RotaryRecipe,
    angle_tables,
    bases_at,
    frequencies_of,
    positions_at,
    rotary_from_bases,
    widths_at,
)

__all__ = ["ROTARY_CAUSES"]

# Whether an altered recipe, or none, gives Flax's numbers.
Gives = Callable[[RotaryRecipe | None], bool]
# Heads to ``b h t d``, or back.
Layout = Callable[[np.ndarray], np.ndarray]


@dataclasses.dataclass(frozen=True)
class _Turning:
    """PyTorch's rotary positions at a site."""

    recipe: RotaryRecipe | None
    d: int
    gives: Gives
    # The number for which a recipe gives Flax's numbers, from the lowest to the highest that it may be.
    number: Callable[[Callable[[float], RotaryRecipe], float, float], float | None]

    @classmethod
    def of(
        cls, site: Site, recipe: RotaryRecipe, d: int, made: Callable[[RotaryRecipe | None], np.ndarray]
    ) -> "_Turning":
        """Of what is made by the turning alone."""

        def number(change: Callable[[float], RotaryRecipe], lowest: float, highest: float) -> float | None:
            if not site.has_many_digits:
                return None
            numbers = fitting_numbers(lambda x: made(change(x)), site.flax.reshape(site.torch.shape), lowest, highest)
            return next((x for x in numbers if site.is_flax(made(change(x)))), None)

        return cls(recipe, d, lambda r: site.is_flax(made(r)), number)


def _turning_at(site: Site) -> _Turning | None:
    if "_turning" not in vars(site):
        vars(site)["_turning"] = _of_attention(site) or _of_turned_heads(site) or _of_table(site)
    return vars(site)["_turning"]


def _of_attention(site: Site) -> _Turning | None:
    found = attention_at(site)
    if found is None or found.sizes[2] != found.sizes[3]:
        return None
    return _Turning(
        found.recipe.rotary,
        found.sizes[4],
        lambda x: alters(site, {"rotary": x}) is not None,
        lambda change, *limits: fitting_number(site, lambda x: {"rotary": change(x)}, *limits),
    )


def _of_turned_heads(site: Site) -> _Turning | None:
    """Where what is observed are heads that were turned."""
    if not (site.heads and site.torch.ndim in (3, 4)):
        return None
    for x in (x.array for x in outermost(site) if x.array.size == site.torch.size):
        for there, back in _head_layouts(x, site.heads):
            heads = there(x)
            t, d = heads.shape[2:]
            tables = angle_tables(site, t) or (rotary_from_bases(site, t, d) if bases_at(site) else [])
            for recipe in (recipe for recipe in tables if 2 * recipe.angles.shape[-1] <= d):
                if site.is_torch(back(recipe.turned(heads, "q"))):

                    def made(r: RotaryRecipe | None, heads: np.ndarray = heads, back: Layout = back) -> np.ndarray:
                        return back(heads if r is None else r.turned(heads, "q"))

                    return _Turning.of(site, dataclasses.replace(recipe, on="q"), d, made)
    return None


def _head_layouts(x: np.ndarray, counts: list[int]) -> Iterator[tuple[Layout, Layout]]:
    """To ``b h t d`` and back."""
    if x.ndim == 4:
        yield lambda y: y, lambda y: y
        yield lambda y: y.swapaxes(1, 2), lambda y: y.swapaxes(1, 2)
    if x.ndim == 3:
        b, t, width = x.shape
        for h in (h for h in dict.fromkeys([*counts, 1]) if width % h == 0):
            yield (
                lambda y, h=h: y.reshape(b, t, h, -1).swapaxes(1, 2),  # type: ignore[misc]
                lambda y: y.swapaxes(1, 2).reshape(b, t, width),
            )


def _of_table(site: Site) -> _Turning | None:
    """Where what is observed are cosines or sines."""
    if site.torch.ndim < 2 or site.where.startswith("the input"):
        return None
    t = site.torch.shape[-2]
    for recipe in angle_tables(site, t):
        for wave in (np.cos, np.sin):
            for spread in (True, False):
                still = dataclasses.replace(recipe, angles=0 * recipe.angles, amplitude=1.0)

                def made(
                    r: RotaryRecipe | None, wave: Callable = wave, spread: bool = spread, still: RotaryRecipe = still
                ) -> np.ndarray:
                    r = still if r is None else r
                    return r.amplitude * wave(r.spread(r.angles) if spread else r.angles)

                if site.is_torch(made(recipe)):
                    return _Turning.of(site, recipe, 2 * recipe.angles.shape[-1], made)
    return None


def _alternatives(
    name: str, text: str, alter: Callable[[Site, _Turning, RotaryRecipe], Iterator[tuple[str, RotaryRecipe | None]]]
) -> Callable[[Site], str | None]:
    """A cause that is one of these recipes, of which each is told by a word."""

    def test(site: Site) -> str | None:
        turning = _turning_at(site)
        if turning is None or turning.recipe is None:
            return None
        for told, recipe in alter(site, turning, turning.recipe):
            if turning.gives(recipe):
                return text.format(told)
        return None

    test.__name__ = name
    return test


# ----------------------------------------------------------------------------------------------------------------------
# What may be altered.


def _pairs(site: Site, turning: _Turning, r: RotaryRecipe) -> Iterator[tuple[str, RotaryRecipe | None]]:
    told = {"half": "features n / 2 apart", "interleaved": "neighbours"}
    for pairs, layout in itertools.product(told, told):
        if (pairs, layout) != (r.pairs, r.layout):
            also = "" if pairs == layout else f", with angles laid out as for {told[layout]}"
            yield f"{told[pairs]} are turned together{also}", r.styled(pairs, layout)


def _roles(site: Site, turning: _Turning, r: RotaryRecipe) -> Iterator[tuple[str, RotaryRecipe | None]]:
    if attention_at(site) is not None:
        yield from (
            (what, dataclasses.replace(r, on=on)) for on, what in (("q", "queries"), ("k", "keys")) if on != r.on
        )


def _shifts(site: Site, turning: _Turning, r: RotaryRecipe) -> Iterator[tuple[str, RotaryRecipe | None]]:
    if r.frequencies is None:
        return
    for by in (-1, 1):
        if attention_at(site) is not None:
            whose = "the queries", "ahead" if by > 0 else "behind"
            yield f"{whose[0]} are a position {whose[1]}", dataclasses.replace(r, ahead=by)
        else:
            angles = r.angles + by * r.frequencies
            yield f"they are a position {'ahead' if by > 0 else 'behind'}", dataclasses.replace(r, angles=angles)


def _directions(site: Site, turning: _Turning, r: RotaryRecipe) -> Iterator[tuple[str, RotaryRecipe | None]]:
    yield "", dataclasses.replace(r, angles=-r.angles)


def _base_of(r: RotaryRecipe) -> float | None:
    """That of the frequencies' ratio."""
    f = r.frequencies
    return None if f is None or len(f) < 2 or f[0] <= 0 or f[1] <= 0 else float((f[1] / f[0]) ** -len(f))


def _is_plain(r: RotaryRecipe) -> bool:
    """Whether the frequencies are the powers of one base, beginning with one."""
    base, f = _base_of(r), r.frequencies
    return base is not None and f is not None and np.allclose(frequencies_of(base, 2 * len(f)), f, rtol=1e-6, atol=0)


def _bases(site: Site, turning: _Turning, r: RotaryRecipe) -> Iterator[tuple[str, RotaryRecipe | None]]:
    if r.positions is None or not _is_plain(r):
        return
    n, theirs = 2 * r.angles.shape[-1], _base_of(r)
    for base in dict.fromkeys([*bases_at(site), *COMMON_BASES]):
        if theirs is not None and abs(base / theirs - 1) > 1e-6:
            yield _told_bases(base, theirs), r.with_frequencies(frequencies_of(base, n))


def _unusual_bases(site: Site, turning: _Turning, r: RotaryRecipe) -> Iterator[tuple[str, RotaryRecipe | None]]:
    theirs = _base_of(r)
    if r.positions is not None and theirs is not None and _is_plain(r) and r.angles.shape[-1] > 2:

        def of(base: float) -> RotaryRecipe:
            return r.with_frequencies(frequencies_of(base, 2 * r.angles.shape[-1]))

        other = turning.number(of, 2.0, 1e9)
        if other is not None:
            yield _told_bases(other, theirs), of(other)


def _told_bases(ours: float, theirs: float) -> str:
    return f"{ours:.10g} in the port, {theirs:.10g}"


def _widths(site: Site, turning: _Turning, r: RotaryRecipe) -> Iterator[tuple[str, RotaryRecipe | None]]:
    if r.positions is None:
        return
    n, d, base = 2 * r.angles.shape[-1], turning.d, _base_of(r)
    bases = [base] if base is not None and _is_plain(r) else bases_at(site) or [1e4]
    for width, b in itertools.product(dict.fromkeys([*widths_at(site, d), *_even(d)]), bases):
        for over in dict.fromkeys([width, d, n]):
            if width >= 2 and width % 2 == 0 and (width, over) != (n, n):
                told = f"{width} of {d} features turn, in PyTorch {n}"
                yield told, r.with_frequencies(frequencies_of(b, width, over))
    if n < d:
        yield f"the last {n} features turn, not the first", dataclasses.replace(r, last=not r.last)


def _even(d: int) -> list[int]:
    """The widths that there may be, of d."""
    return [n for n in range(2, d + 1, 2) if d <= 32 or n % (d // 8) == 0]


def _scalings(site: Site, turning: _Turning, r: RotaryRecipe) -> Iterator[tuple[str, RotaryRecipe | None]]:
    plain = dataclasses.replace(r, amplitude=1.0)
    if r.amplitude != 1:
        yield f"the factor {r.amplitude:.4g} of cosines and sines is missing", plain
    if r.positions is None or r.frequencies is None:
        return
    if not _is_plain(r):
        for unscaled in _unscaled(site, r):
            for like in (unscaled, dataclasses.replace(unscaled, amplitude=1.0)):
                yield "the frequencies are not scaled", like
    else:
        for factor in (2.0, 4.0, 8.0, 16.0, 32.0):
            yield f"the frequencies are divided by {factor:.0f}", r.with_frequencies(r.frequencies / factor)


def _unusual_factors(site: Site, turning: _Turning, r: RotaryRecipe) -> Iterator[tuple[str, RotaryRecipe | None]]:
    """All frequencies, scaled or not, divided by the same number."""
    if r.positions is None or r.frequencies is None:
        return
    for like in (dataclasses.replace(x, amplitude=1.0) for x in _unscaled(site, r)):
        yield from _divided(turning, like)


def _unscaled(site: Site, r: RotaryRecipe) -> Iterator[RotaryRecipe]:
    """With the frequencies that PyTorch's may come from."""
    assert r.frequencies is not None
    f, n = r.frequencies, 2 * r.angles.shape[-1]
    # High frequencies stay as they are under most scalings, and all have one factor under a linear one.
    first = float(f[1] ** -(n / 2)) if len(f) > 1 and f[1] > 0 else 1e4
    for base in dict.fromkeys([x for x in (_base_of(r), first) if x is not None] + bases_at(site)):
        yield r.with_frequencies(frequencies_of(base, n))


def _divided(turning: _Turning, r: RotaryRecipe) -> Iterator[tuple[str, RotaryRecipe]]:
    """Positions that are interpolated."""
    frequencies = r.frequencies
    assert frequencies is not None
    factor = turning.number(lambda x: r.with_frequencies(frequencies / x), 0.1, 100.0)
    if factor is not None:
        yield f"all frequencies are divided by {factor:.10g}", r.with_frequencies(frequencies / factor)


def missing_rotary(site: Site) -> str | None:
    turning = _turning_at(site)
    if turning is None:
        return None
    if turning.recipe is not None:
        return "The port turns nothing, PyTorch does." if turning.gives(None) else None
    found = attention_at(site)
    return None if found is None else _rotary_of_port(site, found, turning)


def _rotary_of_port(site: Site, found: FoundAttention, turning: _Turning) -> str | None:
    _, _, t, _, d = found.sizes
    if d % 2:
        return None
    for base, pairs in itertools.product(COMMON_BASES[:3], ("half", "interleaved")):
        positions, frequencies = positions_at(site, t)[0], frequencies_of(base, d)
        recipe = RotaryRecipe(positions[..., None] * frequencies, positions=positions, frequencies=frequencies)
        if turning.gives(recipe.styled(pairs)):
            return f"The port turns queries and keys, by the base {base:.6g}; PyTorch doesn't."
    return None


_BASE = Cause(
    "rotary base",
    "The base of the wavelengths is another one; configs call it rope_theta.",
    "Give jattn.nn.Rotary PyTorch's base.",
    _alternatives("rotary_base_of_port", "The base is {} in PyTorch.", _bases),
)
_SCALING = Cause(
    "rotary scaling",
    "Frequencies are scaled for sequences longer than those of the training, on one side only or by another rule.",
    "Give jattn.nn.Rotary the scaling, such as LinearScaling or YaRNScaling.",
    _alternatives("rotary_scaling_of_port", "In the port, {}.", _scalings),
)
ROTARY_CAUSES = [
    Cause(
        "missing rotary positions",
        "Queries and keys are turned by their positions on one side only.",
        "Give both sides rotary positions, or neither.",
        missing_rotary,
    ),
    Cause(
        "pairs of rotary features",
        "Feature i turns with i + n / 2 in GPT-NeoX and Llama, 2 i with 2 i + 1 in GPT-J, RoFormer and Meta's Llama.",
        "Set interleaved of jattn.nn.Rotary as PyTorch's module has it, or permute the projections' weights.",
        _alternatives("pairs_of_features", "In the port, {}.", _pairs),
    ),
    Cause(
        "rotary positions of queries or keys alone",
        "Both must turn, as their product sees the difference of their angles.",
        "Turn queries and keys.",
        _alternatives("queries_or_keys_alone", "Only the {} turn in the port.", _roles),
    ),
    Cause(
        "rotary positions off by one",
        "The positions by which one side turns begin at another number.",
        "Give queries and keys the same positions, from 0.",
        _alternatives("rotary_off_by_one", "In the port, {}.", _shifts),
    ),
    Cause(
        "direction of rotary positions",
        "The features turn the other way round.",
        "The first feature of a pair becomes x cos a - y sin a.",
        _alternatives("direction_of_turning", "The port's angles have the other sign.{}", _directions),
    ),
    _BASE,
    _BASE._replace(test=_alternatives("unusual_base", "The base is {} in PyTorch.", _unusual_bases), rank=1),
    Cause(
        "rotary width",
        "Some models turn only some of a head's features, and count the exponents over those.",
        "Give jattn.nn.Rotary that many features.",
        _alternatives("rotary_width", "In the port, {}.", _widths),
    ),
    _SCALING,
    _SCALING._replace(test=_alternatives("unusual_factor", "In the port, {}.", _unusual_factors), rank=1),
]
