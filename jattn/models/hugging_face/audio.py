"""Sound as Whisper takes it: log-mel features, and the convolutions that read them."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from jattn._engine import checks
from jattn._engine.dtypes import at_least_float32
from jattn.nn import Conv

__all__ = ["FrameEmbedding", "log_mel"]

SAMPLES_PER_SECOND = 16000
WINDOW, HOP = 400, 160  # samples: of 25 ms each, every 10 ms
QUIETEST, RANGE = 1e-10, 8.0  # the least power, and how many powers of ten below the loudest are told apart


def log_mel(
    samples: Float[Array, "*b n"], *, mel_bins: int = 80, seconds: int | float | None = 30
) -> Float[Array, "*b mel t"]:
    """Whisper's features: the logarithms of how loud a sound is in each of its mel bands, every 10 ms.

    Args:
        samples: ``*b n``, 16,000 a second, one channel, about -1 to 1.
        mel_bins: how many bands, 80, or 128 for Whisper's large-v3.
        seconds: how long the sound is made, by silence after it or by cutting it off; None leaves it as it is.

    Returns:
        ``*b mel t``, t = 100 for each second.

    Example:

        >>> log_mel(jnp.sin(jnp.arange(8000.0)), seconds=1).shape
        (80, 100)

    Source: Radford et al., Robust Speech Recognition via Large-Scale Weak Supervision, 2023; the bands are those of
    Slaney, Auditory Toolbox, 1998.
    """
    samples = checks.floating("samples", samples, "*b n", 1)
    checks.positive_integers(mel_bins=mel_bins)
    samples = samples.astype(at_least_float32(samples))
    if seconds is not None:
        n = round(checks.number("seconds", seconds, "(0, inf)") * SAMPLES_PER_SECOND)
        short = max(n - samples.shape[-1], 0)
        samples = jnp.pad(samples[..., :n], [(0, 0)] * (samples.ndim - 1) + [(0, short)])
    n, half = samples.shape[-1], WINDOW // 2
    if n <= half:
        raise ValueError(
            f"samples must be more than {half}, half a window, as both ends are mirrored. Got {n}. Give seconds, so "
            "that silence follows them."
        )
    mirrored = jnp.pad(samples, [(0, 0)] * (samples.ndim - 1) + [(half, half)], mode="reflect")
    starts = HOP * np.arange(n // HOP)
    frames = mirrored[..., starts[:, None] + np.arange(WINDOW)]
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(WINDOW) / WINDOW)
    power = jnp.abs(jnp.fft.rfft(frames * jnp.asarray(hann, frames.dtype))) ** 2
    bands = jnp.einsum("...tf,fm->...mt", power, jnp.asarray(_mel_bands(mel_bins), power.dtype), precision="highest")
    logs = jnp.log10(jnp.maximum(bands, QUIETEST))
    return (jnp.maximum(logs, logs.max((-2, -1), keepdims=True) - RANGE) + 4) / 4


def _mel_bands(n: int) -> np.ndarray:
    """How much each frequency counts in each band, (frequency, band): triangles of equal area, overlapping by half."""
    corners = _hertz(np.linspace(0, _mel(SAMPLES_PER_SECOND / 2), n + 2))
    frequencies = np.linspace(0, SAMPLES_PER_SECOND / 2, WINDOW // 2 + 1)
    left, middle, right = corners[:-2], corners[1:-1], corners[2:]
    rising = (frequencies[:, None] - left) / (middle - left)
    falling = (right - frequencies[:, None]) / (right - middle)
    return np.maximum(np.minimum(rising, falling), 0) * 2 / (right - left)


# Below 1,000 Hz, mel 15, the scale is linear; above it is logarithmic, 27 mel to a factor of 6.4.
def _mel(hertz: float) -> float:
    return hertz * 3 / 200 if hertz < 1000 else 15 + 27 * float(np.log(hertz / 1000) / np.log(6.4))


def _hertz(mel: np.ndarray) -> np.ndarray:
    return np.where(mel < 15, mel * 200 / 3, 1000 * 6.4 ** ((mel - 15) / 27))


class FrameEmbedding(nnx.Module):
    """From log-mel features to vectors, one for every two frames: two convolutions, each followed by GELU.

    Args:
        mel_bins: how many bands the features have.
        features: m, the width of the vectors.
        dtype, param_dtype: as in ``flax.nnx.Conv``.
        rngs: for the initial parameters.

    Example:

        >>> FrameEmbedding(80, 16, rngs=nnx.Rngs(0))(jnp.zeros((2, 80, 100))).shape
        (2, 50, 16)
    """

    def __init__(self, mel_bins: int, features: int, *, rngs: nnx.Rngs, **types: Any) -> None:
        self.conv1 = Conv(mel_bins, features, 3, padding=1, rngs=rngs, **types)
        self.conv2 = Conv(features, features, 3, strides=2, padding=1, rngs=rngs, **types)

    def __call__(self, frames: Float[Array, "b mel t"]) -> Float[Array, "b s m"]:
        """The vectors of these features."""
        frames = checks.floating("source", frames, "b mel t", 3)
        if frames.ndim != 3 or frames.shape[1] != self.conv1.in_features:
            raise ValueError(
                f"source must be log-mel features b mel t, of {self.conv1.in_features} bands. Got shape "
                f"{frames.shape}. jattn.models.log_mel makes them of samples."
            )
        x = jax.nn.gelu(self.conv1(frames.swapaxes(1, 2)), approximate=False)
        return jax.nn.gelu(self.conv2(x), approximate=False)
