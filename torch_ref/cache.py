"""Keys and values seen so far, one after the other."""

import torch
from torch import Tensor


def quantized(x: Tensor) -> tuple[Tensor, Tensor]:
    """Of "*b f" int8 codes and "*b 1" scales: the largest entry of each vector is 127 or -127."""
    wide = x if x.dtype == torch.float64 else x.float()
    scales = (wide.abs().amax(-1, keepdim=True) / 127).float()
    codes = torch.where(scales == 0, torch.zeros_like(wide), torch.round(wide / scales.to(wide.dtype)))
    return codes.to(torch.int8), scales


class Cache:
    """All that was appended; or of it, as the window of a token says, the last so many and what came with them.

    With int8 keys and values are kept as codes and scales, and appended ones come back as those say, without gradients.
    """

    def __init__(self, window: int | None = None, int8: bool = False):
        self.window = window
        self.int8 = int8
        self.kept: tuple[Tensor, ...] | None = None  # keys and values, or codes and scales of keys, then of values
        self.length = 0

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Of "*b t k d" and "*b t k e": keys and values "*b s k ." to attend to, positions of queries and of keys."""
        t = keys.shape[-3]
        seen: tuple[Tensor, ...] = (
            (*quantized(keys.detach()), *quantized(values.detach())) if self.int8 else (keys, values)
        )
        if self.kept is not None:
            seen = tuple(torch.cat([old, new], -3) for old, new in zip(self.kept, seen, strict=True))
        self.length += t
        s = seen[0].shape[-3]
        last = slice(0 if self.window is None else max(0, s - self.window), None)
        self.kept = tuple(x[..., last, :, :] for x in seen)
        if self.int8:
            wide = torch.float64 if keys.dtype == torch.float64 else torch.float32
            seen = tuple((seen[i].to(wide) * seen[i + 1].to(wide)).to(keys.dtype) for i in (0, 2))
        return seen[0], seen[1], torch.arange(self.length - t, self.length), torch.arange(self.length - s, self.length)
