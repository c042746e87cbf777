"""Rotary positions, plainly, and what a site tells of PyTorch's: tables of cosines and sines, frequencies, bases.

Letters: b batch, t time, h heads, d features of a head, n features that turn.
"""

import dataclasses
import itertools
from collections.abc import Iterator

import numpy as np

from jattn.parity.arrays import is_floating
from jattn.parity.locate import Site

__all__ = [
    "COMMON_BASES",
    "RotaryRecipe",
    "angle_tables",
    "bases_at",
    "frequencies_of",
    "positions_at",
    "rotary_from_bases",
    "widths_at",
]

COMMON_BASES = (1e4, 5e5, 1e6, 1e5, 1e3, 1.5e5, 1.6e5, 2e5, 2.5e4, 5e4, 3e5, 5e6, 8e6, 1e7)


@dataclasses.dataclass(frozen=True, eq=False)
class RotaryRecipe:
    """By which angles which features turn."""

    angles: np.ndarray  # b|1 t n/2
    amplitude: float = 1.0  # cosine and sine are multiplied by it
    pairs: str = "half"  # which features turn together: those n/2 apart, or "interleaved", neighbours
    layout: str = "half"  # how the angles are laid out over the features; as the pairs, if nothing is wrong
    last: bool = False  # whether the last n features turn, not the first
    on: str = "qk"  # queries, keys or both
    positions: np.ndarray | None = None  # b|1 t, if the angles are positions times frequencies
    frequencies: np.ndarray | None = None  # n/2
    ahead: int = 0  # by how many positions queries are ahead

    def turned(self, x: np.ndarray, role: str) -> np.ndarray:
        """Heads ``b h t d``, by the angles."""
        if role not in self.on:
            return x
        angles, n = self.angles, 2 * self.angles.shape[-1]
        if self.ahead and role == "q" and self.frequencies is not None:
            angles = angles + self.ahead * self.frequencies
        part, rest = (x[..., -n:], x[..., :-n]) if self.last else (x[..., :n], x[..., n:])
        if self.pairs == "half":
            other = np.concatenate([-part[..., n // 2 :], part[..., : n // 2]], -1)
        else:
            other = np.stack([-part[..., 1::2], part[..., ::2]], -1).reshape(part.shape)
        spread = self.spread(angles)[:, None]
        part = self.amplitude * (part * np.cos(spread) + other * np.sin(spread))
        return np.concatenate([rest, part] if self.last else [part, rest], -1)

    def spread(self, angles: np.ndarray) -> np.ndarray:
        """Over the features."""
        return np.concatenate([angles, angles], -1) if self.layout == "half" else np.repeat(angles, 2, -1)

    def with_frequencies(self, frequencies: np.ndarray) -> "RotaryRecipe":
        """The same positions, turned by others."""
        assert self.positions is not None
        angles = self.positions[..., None] * frequencies
        return dataclasses.replace(self, angles=angles, frequencies=frequencies)

    def styled(self, pairs: str, layout: str | None = None) -> "RotaryRecipe":
        """With other pairs."""
        return dataclasses.replace(self, pairs=pairs, layout=layout or pairs)


def frequencies_of(base: float, n: int, over: int | None = None) -> np.ndarray:
    """Of n features that turn; ``over`` is the width by which their exponents are divided, n by default."""
    return base ** -(np.arange(0, n, 2) / (over or n))


def bases_at(site: Site) -> list[float]:
    """Those that PyTorch's modules have as attributes."""
    named = [x for name, xs in site.attributes.items() if "theta" in name or "base" in name for x in xs]
    return list(dict.fromkeys(float(x) for x in named if x > 1))


def positions_at(site: Site, t: int) -> list[np.ndarray]:
    """What may be the positions: integers among the arguments, or 0 to t - 1."""
    given = [x.reshape(-1, t) for x in site.arguments if np.issubdtype(x.dtype, np.integer) and x.shape[-1:] == (t,)]
    consecutive = np.arange(t)[None]
    padded = [np.maximum(np.cumsum(x != 0, -1) - 1, 0) for x in given if set(np.unique(x)) <= {0, 1}]
    return [consecutive, *(x for x in given if x.max(initial=0) < 1 << 24), *padded]


# ----------------------------------------------------------------------------------------------------------------------
# Read off tables.


def angle_tables(site: Site, t: int) -> list[RotaryRecipe]:
    """From cosines and sines among the arguments, the outputs of submodules and the buffers."""
    arrays = [*site.arguments, *(y for call in site.torch_calls for y in call.outputs), *site.buffers.values()]
    found: list[RotaryRecipe] = []
    for cos, sin in _circles(arrays):
        table = _as_table(cos, t), _as_table(sin, t)
        if table[0] is None or table[1] is None:
            continue
        angles, layouts = _without_repeats(np.arctan2(table[1], table[0]))
        amplitude = float(np.hypot(table[0], table[1]).flat[0])
        recipe = _with_positions(site, RotaryRecipe(angles, round(amplitude, 12)))
        same = (np.array_equal(recipe.angles, other.angles) for other in found)
        if not any(same):
            found += [recipe.styled(layout) for layout in layouts]
    return found


def _circles(arrays: list[np.ndarray]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Neighbours, parts or halves that are the cosine and the sine of the same angles."""
    floats = [x for x in arrays if is_floating(x) and x.size > 1]
    for x in (x for x in arrays if np.iscomplexobj(x) and x.size > 1):
        yield from _circle(x.real, x.imag)
    for x, y in itertools.pairwise(floats):
        yield from _circle(x, y)
    for x in floats:
        if x.ndim > 2 and x.shape[-1] == 2:
            yield from _circle(x[..., 0], x[..., 1])
        if x.ndim > 1 and x.shape[-1] % 2 == 0:
            yield from _circle(*np.split(x, 2, -1))


def _circle(x: np.ndarray, y: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    if x.shape != y.shape or x.ndim < 2:
        return
    square = x**2 + y**2
    first = float(square.flat[0])
    if first > 1e-3 and np.abs(square - first).max() < 1e-5 * first and np.ptp(x) > 0:
        # The angles of the slowest pair are small, so its cosines are large.
        slow = np.abs(x[..., -1]).sum() >= np.abs(y[..., -1]).sum()
        yield (x, y) if slow else (y, x)


def _as_table(x: np.ndarray, t: int) -> np.ndarray | None:
    """As b|1 t n; of a longer table its beginning."""
    for axis in range(x.ndim - 2, -1, -1):
        if x.ndim > 3 and x.shape[axis] == 1:
            x = x.squeeze(axis)
    if x.ndim == 3 and x.shape[1] == 1 and t > 1:
        x = x.swapaxes(0, 1)
    x = x[None] if x.ndim == 2 else x
    return x[:, :t] if x.ndim == 3 and x.shape[1] >= t else None


def _without_repeats(angles: np.ndarray) -> tuple[np.ndarray, tuple[str, ...]]:
    """One angle for each pair, and how they may be laid out: as they are here, first."""
    n = angles.shape[-1]
    if n % 2 == 0 and n > 1:
        if np.array_equal(angles[..., : n // 2], angles[..., n // 2 :]):
            return angles[..., : n // 2], ("half", "interleaved")
        if np.array_equal(angles[..., ::2], angles[..., 1::2]):
            return angles[..., ::2], ("interleaved", "half")
    return angles, ("interleaved", "half")


def _with_positions(site: Site, recipe: RotaryRecipe) -> RotaryRecipe:
    """With positions and frequencies, if the angles are their products."""
    t = recipe.angles.shape[1]
    for positions in positions_at(site, t):
        steps = np.argwhere(np.diff(positions, axis=1) == 1)
        if not len(steps) or len(positions) not in (1, len(recipe.angles)):
            continue
        i, j = steps[0]
        at = recipe.angles[i if len(recipe.angles) > 1 else 0]
        frequencies = np.angle(np.exp(1j * (at[j + 1] - at[j])))
        difference = np.exp(1j * positions[..., None] * frequencies) - np.exp(1j * recipe.angles)
        if np.abs(difference).max() < 1e-6:
            return dataclasses.replace(recipe, positions=positions, frequencies=frequencies)
    return recipe


# ----------------------------------------------------------------------------------------------------------------------
# Computed from a base.


def rotary_from_bases(site: Site, t: int, d: int) -> list[RotaryRecipe]:
    """From frequencies among the buffers, or from the bases that modules have as attributes, or from the usual one."""
    given = [x for name, x in site.buffers.items() if x.ndim == 1 and "freq" in name and 1 <= x.size <= d // 2]
    computed = [frequencies_of(base, n) for base in dict.fromkeys([*bases_at(site), 1e4]) for n in widths_at(site, d)]
    found = []
    for frequencies, positions in itertools.product([*given, *computed], positions_at(site, t)[:2]):
        recipe = RotaryRecipe(positions[..., None] * frequencies, positions=positions, frequencies=frequencies)
        found += [recipe.styled("half"), recipe.styled("interleaved")]
    return found


def widths_at(site: Site, d: int) -> list[int]:
    """How many features may turn: as attributes say, or all."""
    named = [x for name, xs in site.attributes.items() if "rot" in name or "rope" in name for x in xs]
    shares = [int(x * d) for x in named if 0 < x < 1]
    return [n for n in dict.fromkeys([*shares, *(int(x) for x in named), d]) if 0 < n <= d and n % 2 == 0]
