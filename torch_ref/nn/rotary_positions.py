"""Rotary positions: pairs of features turned one by one, with each scaling's frequencies as a list of numbers.

A scaling is a function from base, n (how many features turn) and length (the largest position + 1) to n/2 frequencies
and the factor of sine and cosine.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from torch_ref.scores import at_least_float32

Scaling = Callable[[float, int, float], tuple[list[float], float]]


class Rotary(nn.Module):
    """Rotates features by the position, so that dot products know only distances (Su et al. 2021).

        (x_i, x_j) is rotated by the angle position * frequency_i,    frequency_i = base^(-2i / n) unless scaled

    The first n features turn, all of them by default, the others stay. Partners are i and j = i + n/2, as in GPT-NeoX
    and Llama, or 2i and 2i + 1 if interleaved, as in GPT-J.
    """

    def __init__(
        self,
        base: float = 10000.0,
        *,
        features: int | None = None,
        interleaved: bool = False,
        scaling: Scaling | None = None,
    ):
        super().__init__()
        self.base, self.features, self.interleaved, self.scaling = base, features, interleaved, scaling or no_scaling

    def forward(self, x: Tensor, positions: Tensor | None = None) -> Tensor:
        """x "*b t h d", positions "t" or "*b t", by default 0 ... t - 1 -> "*b t h d"."""
        t, d = x.shape[-3], x.shape[-1]
        n = d if self.features is None else self.features
        wide = at_least_float32(x)
        positions = torch.arange(t, device=x.device) if positions is None else positions
        positions = positions.to(wide.dtype)[..., None]  # "*b t 1", as all heads turn alike
        frequencies, factor = self.scaling(self.base, n, positions.max().item() + 1)
        columns = [wide[..., i] for i in range(d)]
        turned = list(columns)
        for i in range(n // 2):
            a, b = (2 * i, 2 * i + 1) if self.interleaved else (i, i + n // 2)
            angle = positions * frequencies[i]
            cos, sin = factor * angle.cos(), factor * angle.sin()
            turned[a] = columns[a] * cos - columns[b] * sin
            turned[b] = columns[a] * sin + columns[b] * cos
        return torch.stack(turned, dim=-1).to(x.dtype)


def rotary(x: Tensor, positions: Tensor | None = None, base: float = 10000.0) -> Tensor:
    """x "*b t h d" turned by its positions, without scaling."""
    return Rotary(base)(x, positions)


def no_scaling(base: float, n: int, length: float) -> tuple[list[float], float]:
    """base^(-2i / n)."""
    return [1 / base ** (2 * i / n) for i in range(n // 2)], 1.0


def linear_scaling(factor: float) -> Scaling:
    """Positions divided by the factor (Chen et al. 2023)."""
    return lambda base, n, length: ([f / factor for f in no_scaling(base, n, length)[0]], 1.0)


def dynamic_ntk_scaling(factor: float, max_length: int) -> Scaling:
    """The base grows with a length above max_length (bloc97, emozilla 2023)."""

    def frequencies(base: float, n: int, length: float) -> tuple[list[float], float]:
        length = max(length, max_length)
        return no_scaling(base * (factor * length / max_length - (factor - 1)) ** (n / (n - 2)), n, length)

    return frequencies


def yarn_scaling(
    factor: float,
    original_max_length: int,
    beta_fast: float = 32.0,
    beta_slow: float = 1.0,
    attention_factor: float | None = None,
    mscale: float | None = None,
    mscale_all_dim: float | None = None,
    truncate: bool = True,
) -> Scaling:
    """Frequencies that turn beta_fast times in original_max_length stay, those that turn beta_slow times are divided.

    Between the two is a ramp (Peng et al. 2023).
    """

    def temperature(weight: float) -> float:
        return 1.0 if factor <= 1 else 1 + 0.1 * weight * math.log(factor)

    if attention_factor is None:
        attention_factor = temperature(1.0)
        if mscale and mscale_all_dim:
            attention_factor = temperature(mscale) / temperature(mscale_all_dim)

    def frequencies(base: float, n: int, length: float) -> tuple[list[float], float]:
        # Pair i turns original_max_length * base^(-2i / n) / (2 pi) times; this solves it for i.
        first = n / 2 * math.log(original_max_length / (beta_fast * 2 * math.pi), base)
        last = n / 2 * math.log(original_max_length / (beta_slow * 2 * math.pi), base)
        if truncate:
            first, last = math.floor(first), math.ceil(last)
        first, last = max(first, 0), min(last, n - 1)
        if first == last:
            last += 0.001
        scaled = []
        for i, f in enumerate(no_scaling(base, n, length)[0]):
            ramp = min(max((i - first) / (last - first), 0.0), 1.0)
            scaled.append(ramp * f / factor + (1 - ramp) * f)
        return scaled, attention_factor

    return frequencies


def llama3_scaling(
    factor: float, low_frequency_factor: float, high_frequency_factor: float, original_max_length: int
) -> Scaling:
    """Short waves stay, long ones are stretched by the factor, and those between by something between (Llama 3.1)."""

    def frequencies(base: float, n: int, length: float) -> tuple[list[float], float]:
        scaled = []
        for f in no_scaling(base, n, length)[0]:
            wavelength = 2 * math.pi / f
            if wavelength < original_max_length / high_frequency_factor:
                scaled.append(f)
            elif wavelength > original_max_length / low_frequency_factor:
                scaled.append(f / factor)
            else:
                turns = original_max_length / wavelength
                smooth = (turns - low_frequency_factor) / (high_frequency_factor - low_frequency_factor)
                scaled.append((1 - smooth) * f / factor + smooth * f)
        return scaled, 1.0

    return frequencies


def long_rope_scaling(
    short_factors: Sequence[float],
    long_factors: Sequence[float],
    original_max_length: int,
    factor: float,
    attention_factor: float | None = None,
) -> Scaling:
    """A divisor for each frequency, other ones for a length above original_max_length (Ding et al. 2024)."""
    if attention_factor is None:
        attention_factor = 1.0
        if factor > 1:
            attention_factor = math.sqrt(1 + math.log(factor) / math.log(original_max_length))

    def frequencies(base: float, n: int, length: float) -> tuple[list[float], float]:
        divisors = long_factors if length > original_max_length else short_factors
        unscaled = no_scaling(base, n, length)[0]
        return [f / divisor for f, divisor in zip(unscaled, divisors, strict=True)], attention_factor

    return frequencies
