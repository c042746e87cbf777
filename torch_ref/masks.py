"""Who may attend to whom: bool tensors, True where query i may attend to key j."""

import torch
from torch import Tensor


def causal(t: int, s: int, offset: int = 0) -> Tensor:
    """No key later than the query: j <= i + offset.

    Returns "t s"; causal(3, 4) is

        1 0 0 0
        1 1 0 0
        1 1 1 0
    """
    return torch.arange(s) <= torch.arange(t)[:, None] + offset


def causal_lower_right(t: int, s: int) -> Tensor:
    """Causal with the last query aligned to the last key: j <= i + s - t.

    Returns "t s"; causal_lower_right(3, 4) is

        1 1 0 0
        1 1 1 0
        1 1 1 1
    """
    return causal(t, s, offset=s - t)


def sliding_window(t: int, s: int, left: int, right: int, offset: int = 0) -> Tensor:
    """Only keys near the query: i + offset - left <= j <= i + offset + right.

    Returns "t s"; sliding_window(3, 4, left=1, right=0) is

        1 0 0 0
        1 1 0 0
        0 1 1 0
    """
    i, j = torch.arange(t)[:, None] + offset, torch.arange(s)
    return (i - left <= j) & (j <= i + right)


def lengths(valid_lens: Tensor | int, s: int) -> Tensor:
    """Only the first keys, one number of them for all, per example or per query: j < valid_lens.

    Shapes: () -> "1 1 s", "b" -> "b 1 1 s", "b t" -> "b 1 t s".
    """
    valid_lens = torch.as_tensor(valid_lens)
    per_query = valid_lens if valid_lens.ndim == 2 else valid_lens[..., None]
    keys = torch.arange(s, device=valid_lens.device)
    return (keys < per_query[..., None]).unsqueeze(-3)


def segments(query_ids: Tensor, key_ids: Tensor) -> Tensor:
    """Only keys of the same segment: query_ids[i] == key_ids[j]. Shapes: "b t", "b s" -> "b 1 t s"."""
    return query_ids[..., None, :, None] == key_ids[..., None, None, :]


def prefix(n: int, s: int) -> Tensor:
    """Only the first n keys, for every query: j < n. Returns "1 s"."""
    return (torch.arange(s) < n)[None]


def all_of(*masks: Tensor | None) -> Tensor | None:
    """True where every mask is; a None allows everything."""
    combined = None
    for mask in masks:
        if mask is not None:
            combined = mask if combined is None else combined & mask
    return combined
