"""Keys and values seen so far, one after the other."""

import torch
from torch import Tensor


class Cache:
    """All that was appended; or of it, as the window of a token says, the last so many and what came with them."""

    def __init__(self, window: int | None = None):
        self.window = window
        self.keys: Tensor | None = None
        self.values: Tensor | None = None
        self.length = 0

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Of "*b t k d" and "*b t k e": keys and values "*b s k ." to attend to, positions of queries and of keys."""
        t = keys.shape[-3]
        if self.keys is not None and self.values is not None:
            keys, values = torch.cat([self.keys, keys], -3), torch.cat([self.values, values], -3)
        self.length += t
        positions = torch.arange(self.length - keys.shape[-3], self.length)
        kept = slice(0 if self.window is None else max(0, keys.shape[-3] - self.window), None)
        self.keys, self.values = keys[..., kept, :, :], values[..., kept, :, :]
        return keys, values, torch.arange(self.length - t, self.length), positions
