"""Rotary positions beyond the length that a model was trained for: what becomes of their frequencies.

Below, n features turn, in pairs i = 0 ... n/2 - 1 with the frequencies ``f_i = base^(-2i/n)`` before they are scaled;
the length is the largest position + 1. The numbers of a scaling are Python's, so that it is equal to others of its kind
with the same numbers, hashes, and can be structure under ``jit``.
"""

import abc
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jattn._engine import checks

__all__ = [
    "DynamicNTKScaling",
    "LinearScaling",
    "Llama3Scaling",
    "LongRoPEScaling",
    "RotaryScaling",
    "YaRNScaling",
    "rotary_frequencies",
    "static_number",
]

Positions = Float[Array, "..."]
Frequencies = Float[np.ndarray, "pairs"] | Float[Array, "pairs"]


def rotary_frequencies(base: float | Array, features: int) -> Frequencies:
    """``base^(-2i/n)`` for each pair of the n features: in float64 before anything is rounded, if the base is known."""
    return base ** (-np.arange(0, features, 2) / features)


def static_number(name: str, x: Any, interval: str, *, integer: bool = False) -> Any:
    """A number in an interval as Python's own; one that is traced is refused."""
    if not checks.is_concrete(x):
        raise ValueError(
            f"{name} must be known while tracing. Got a traced array; pass a Python number, or one that jit is told is "
            "static."
        )
    known = checks.number(name, x, interval, integer=integer)
    return int(known) if integer else float(known)


class RotaryScaling(abc.ABC):
    """What becomes of the frequencies; a frozen dataclass with this method is one, too."""

    @abc.abstractmethod
    def frequencies(self, base: float, features: int, positions: Positions) -> tuple[Frequencies, float]:
        """The frequency of each pair, and the factor that sine and cosine are multiplied by.

        Args:
            base: of the wavelengths.
            features: n, how many features turn.
            positions: all of those that are to turn, in the dtype of the angles; they may be traced.
        """

    def _check(self, interval: str, *names: str, integer: bool = False) -> None:
        """Each of these fields a number in the interval, as Python's own."""
        for name in names:
            number = static_number(name, getattr(self, name), interval, integer=integer)
            object.__setattr__(self, name, number)


@dataclass(frozen=True)
class LinearScaling(RotaryScaling):
    """Positions closer together, ``f_i / factor``.

    Args:
        factor: how many times as long the sequences become.

    Source: Chen et al., Extending Context Window of Large Language Models via Positional Interpolation, 2023.

        >>> LinearScaling(4.0).frequencies(100.0, 4, jnp.arange(3.0))
        (array([0.25 , 0.025]), 1.0)
    """

    factor: float

    def __post_init__(self) -> None:
        self._check("(0, inf)", "factor")

    def frequencies(self, base: float, features: int, positions: Positions) -> tuple[Frequencies, float]:
        return rotary_frequencies(base, features) / self.factor, 1.0


@dataclass(frozen=True)
class DynamicNTKScaling(RotaryScaling):
    """A base that grows with the length, once that is above max_length.

    ``f_i r^(-2i / (n - 2)),  r = max(1, 1 + factor (length / max_length - 1))``

    This is ``(base r^(n / (n - 2)))^(-2i/n)``. It depends on all positions of a call: a shorter one turns by other
    angles, so that keys turned earlier don't fit queries turned later, if the length has grown above max_length since.

    Args:
        factor: how fast the base grows.
        max_length: up to where nothing changes.

    Source: bloc97's and emozilla's interpolation, in Peng et al., YaRN: Efficient Context Window Extension of Large
    Language Models, 2023.

        >>> DynamicNTKScaling(2.0, 3).frequencies(100.0, 4, jnp.arange(3.0))  # and with r = 3 for twice the length
        (Array([1. , 0.1], dtype=float32), 1.0)
        >>> DynamicNTKScaling(2.0, 3).frequencies(100.0, 4, jnp.arange(6.0))
        (Array([1. , 0.03333334], dtype=float32), 1.0)
    """

    factor: float
    max_length: int

    def __post_init__(self) -> None:
        self._check("(0, inf)", "factor")
        self._check("[1, inf)", "max_length", integer=True)

    def frequencies(self, base: float, features: int, positions: Positions) -> tuple[Frequencies, float]:
        if features < 4:
            raise ValueError(
                f"features must be at least 4 for DynamicNTKScaling, as it divides by n - 2. Got {features}."
            )
        growth = jnp.maximum(1, 1 + self.factor * (_length(positions) / self.max_length - 1))
        exponents = jnp.asarray(-np.arange(0, features, 2) / (features - 2), positions.dtype)
        return jnp.asarray(rotary_frequencies(base, features), positions.dtype) * growth**exponents, 1.0


@dataclass(frozen=True)
class YaRNScaling(RotaryScaling):
    """Fast pairs as they are, slow ones closer together, and a ramp between the two.

    ``f_i (1 - ramp_i + ramp_i / factor),  ramp_i = clip((i - low) / (high - low), 0, 1)``

    Here low and high are the pairs, as real numbers in [0, n - 1], that turn beta_fast and beta_slow times within
    original_max_length: ``n ln(original_max_length / (2 pi beta)) / (2 ln base)``. Sine and cosine are multiplied by
    attention_factor, ``0.1 ln(factor) + 1`` by default and 1 for a factor below 1.

    Args:
        factor: how many times as long the sequences become.
        original_max_length: of the sequences that the model was trained with before.
        beta_fast: from how many turns on a pair stays as it is.
        beta_slow: up to how many a pair is scaled by the whole factor.
        attention_factor: of sine and cosine.
        mscale, mscale_all_dim: where both are given, neither of them 0, and attention_factor is not, that is
            ``(0.1 mscale ln(factor) + 1) / (0.1 mscale_all_dim ln(factor) + 1)``, as in DeepSeek.
        truncate: whether low and high are rounded to integers, down and up.

    Source: Peng et al., YaRN: Efficient Context Window Extension of Large Language Models, 2023.

        >>> frequencies, attention_factor = YaRNScaling(4.0, 64).frequencies(100.0, 8, jnp.arange(3.0))
        >>> frequencies / rotary_frequencies(100.0, 8)
        array([1.  , 0.75, 0.5 , 0.25])
        >>> round(attention_factor, 4)
        1.1386
    """

    factor: float
    original_max_length: int
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True

    def __post_init__(self) -> None:
        self._check("(0, inf)", "factor", "beta_fast", "beta_slow")
        self._check("[1, inf)", "original_max_length", integer=True)
        if self.attention_factor is not None:
            self._check("(0, inf)", "attention_factor")
        if (self.mscale is None) != (self.mscale_all_dim is None):
            raise ValueError(
                "mscale and mscale_all_dim must be given together, as their quotient is what counts. Got mscale "
                f"{self.mscale!r} and mscale_all_dim {self.mscale_all_dim!r}; attention_factor says the quotient."
            )
        if self.mscale is not None:
            self._check("[0, inf)", "mscale", "mscale_all_dim")
        if self.beta_fast < self.beta_slow:
            raise ValueError(f"beta_fast must be at least beta_slow, {self.beta_slow}. Got {self.beta_fast}.")
        object.__setattr__(self, "truncate", checks.flag("truncate", self.truncate))

    def frequencies(self, base: float, features: int, positions: Positions) -> tuple[Frequencies, float]:
        if base <= 1:
            raise ValueError(f"base must be above 1 for YaRNScaling, as it divides by its logarithm. Got {base}.")
        low, high = self._pair(self.beta_fast, base, features), self._pair(self.beta_slow, base, features)
        if self.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, features - 1)
        width = high - low or 0.001  # a step, where the two are one
        ramp = np.clip((np.arange(features // 2) - low) / width, 0, 1)
        return rotary_frequencies(base, features) * (1 - ramp + ramp / self.factor), self._attention_factor()

    def _pair(self, turns: float, base: float, features: int) -> float:
        """The pair that turns so often within original_max_length."""
        return features * math.log(self.original_max_length / (2 * math.pi * turns)) / (2 * math.log(base))

    def _attention_factor(self) -> float:
        if self.attention_factor is not None:
            return self.attention_factor
        if self.factor <= 1:
            return 1.0
        if not (self.mscale and self.mscale_all_dim):
            return 0.1 * math.log(self.factor) + 1
        return (0.1 * self.mscale * math.log(self.factor) + 1) / (0.1 * self.mscale_all_dim * math.log(self.factor) + 1)


@dataclass(frozen=True)
class Llama3Scaling(RotaryScaling):
    """Short wavelengths as they are, long ones times the factor, and a ramp of frequencies between the two.

    ``f_i (s_i + (1 - s_i) / factor)`` with
    ``s_i = clip((turns_i - low_frequency_factor) / (high_frequency_factor - low_frequency_factor), 0, 1)``, where
    ``turns_i = original_max_length f_i / (2 pi)``.

    Args:
        factor: of the long wavelengths.
        low_frequency_factor: up to how many turns in original_max_length a wavelength is long.
        high_frequency_factor: from how many on it is short.
        original_max_length: of the sequences that the model was trained with before.

    Source: the code that was released with Llama 3.1 (Grattafiori et al., The Llama 3 Herd of Models, 2024).

        >>> Llama3Scaling(8.0, 1.0, 4.0, 64).frequencies(100.0, 4, jnp.arange(3.0))  # 10 turns, and 1.02 turns
        (array([1.        , 0.01304226]), 1.0)
    """

    factor: float
    low_frequency_factor: float
    high_frequency_factor: float
    original_max_length: int

    def __post_init__(self) -> None:
        self._check("(0, inf)", "factor", "low_frequency_factor", "high_frequency_factor")
        self._check("[1, inf)", "original_max_length", integer=True)
        if self.high_frequency_factor <= self.low_frequency_factor:
            raise ValueError(
                f"high_frequency_factor must be above low_frequency_factor, {self.low_frequency_factor}. Got "
                f"{self.high_frequency_factor}."
            )

    def frequencies(self, base: float, features: int, positions: Positions) -> tuple[Frequencies, float]:
        unscaled = rotary_frequencies(base, features)
        turns, low = self.original_max_length * unscaled / (2 * math.pi), self.low_frequency_factor
        smooth = np.clip((turns - low) / (self.high_frequency_factor - low), 0, 1)
        return unscaled * (smooth + (1 - smooth) / self.factor), 1.0


@dataclass(frozen=True)
class LongRoPEScaling(RotaryScaling):
    """A divisor for each pair, one set of them for short sequences and one for long ones.

    ``f_i / short_factors_i`` if the length is at most original_max_length, ``f_i / long_factors_i`` otherwise. Sine and
    cosine are multiplied by attention_factor, ``sqrt(1 + ln(factor) / ln(original_max_length))`` by default and 1 for a
    factor below 1. It depends on all positions of a call: keys turned while the sequence was short don't fit queries
    turned after it became long.

    Args:
        short_factors, long_factors: n/2 numbers each.
        original_max_length: of the sequences that the model was trained with before.
        factor: how many times as long the longest sequences are now, max_length / original_max_length.
        attention_factor: of sine and cosine; then factor is of no effect.

    Source: Ding et al., LongRoPE: Extending LLM Context Window Beyond 2 Million Tokens, 2024.

        >>> scaling = LongRoPEScaling((1.0, 1.0), (1.0, 8.0), original_max_length=4, factor=4.0)
        >>> scaling.frequencies(100.0, 4, jnp.arange(4.0))
        (Array([1. , 0.1], dtype=float32), 1.4142135623730951)
        >>> scaling.frequencies(100.0, 4, jnp.arange(5.0))
        (Array([1.    , 0.0125], dtype=float32), 1.4142135623730951)
    """

    short_factors: tuple[float, ...]
    long_factors: tuple[float, ...]
    original_max_length: int
    factor: float
    attention_factor: float | None = None

    def __post_init__(self) -> None:
        for name in ("short_factors", "long_factors"):
            numbers = getattr(self, name)
            if not isinstance(numbers, Iterable) or isinstance(numbers, str):
                raise ValueError(f"{name} must be a tuple of numbers, one for each pair. Got {numbers!r:.80}.")
            each = tuple(static_number(f"{name}[{i}]", x, "(0, inf)") for i, x in enumerate(numbers))
            object.__setattr__(self, name, each)
        self._check("[2, inf)", "original_max_length", integer=True)
        self._check("(0, inf)", "factor")
        if self.attention_factor is not None:
            self._check("(0, inf)", "attention_factor")

    def frequencies(self, base: float, features: int, positions: Positions) -> tuple[Frequencies, float]:
        unscaled = rotary_frequencies(base, features)
        short, long = (self._divided(unscaled, name, positions.dtype) for name in ("short_factors", "long_factors"))
        is_long = _length(positions) > self.original_max_length
        return jnp.where(is_long, long, short), self._attention_factor()

    def _divided(self, unscaled: Frequencies, name: str, dtype: Any) -> Array:
        factors = getattr(self, name)
        if len(factors) != len(unscaled):
            raise ValueError(
                f"{name} must have one number for each of the {len(unscaled)} pairs of features that turn. Got "
                f"{len(factors)}."
            )
        return jnp.asarray(unscaled / np.array(factors), dtype)

    def _attention_factor(self) -> float:
        if self.attention_factor is not None:
            return self.attention_factor
        return math.sqrt(1 + math.log(max(self.factor, 1.0)) / math.log(self.original_max_length))


def _length(positions: Positions) -> Array:
    """The largest position + 1."""
    return jnp.max(positions, initial=0) + 1
