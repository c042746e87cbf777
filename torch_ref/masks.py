"""Who may attend to whom: bool tensors, True where query i may attend to key j."""

from collections.abc import Callable

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


def dilated_window(t: int, s: int, left: int, right: int, dilation: int, offset: int = 0) -> Tensor:
    """Only keys near the query, dilation apart: j = i + offset + n * dilation, for n from -left to right.

    Returns "t s"; dilated_window(3, 5, left=0, right=1, dilation=2) is

        1 0 1 0 0
        0 1 0 1 0
        0 0 1 0 1
    """
    i, j = torch.arange(t)[:, None] + offset, torch.arange(s)
    return torch.isin(j - i, dilation * torch.arange(-left, right + 1))


def neighbourhood(t: int, s: int, shape: tuple[int, ...], radius: int | tuple[int, ...]) -> Tensor:
    """Positions are a grid of that shape, row by row: only keys at most radius away from the query along every axis.

    Positions past the grid are a second grid, and so on; none sees another. Returns "t s";
    neighbourhood(3, 6, (2, 3), radius=1) is

        1 1 0 1 1 0
        1 1 1 1 1 1
        0 1 1 0 1 1
    """
    radii = (radius,) * len(shape) if isinstance(radius, int) else radius
    size = torch.Size(shape).numel()
    i, j = torch.arange(t)[:, None], torch.arange(s)
    allowed = i // size == j // size
    queries, keys = torch.unravel_index(i % size, shape), torch.unravel_index(j % size, shape)
    for a, b, most in zip(queries, keys, radii, strict=True):
        allowed = allowed & ((a - b).abs() <= most)
    return allowed


def where(
    f: Callable[[Tensor, Tensor], Tensor],
    t: int,
    s: int,
    query_positions: Tensor | None = None,
    key_positions: Tensor | None = None,
) -> Tensor:
    """f(i, j), a function of the positions of query and key, which broadcast against each other to "*b 1 t s"."""
    return f(*positions(t, s, query_positions, key_positions))


def positions(
    t: int, s: int, query_positions: Tensor | None = None, key_positions: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The positions of the queries and of the keys, as given or 0 ... n - 1.

    Shapes: None -> "t 1", "s"; "*b t" -> "*b 1 t 1", "*b s" -> "*b 1 1 s".
    """
    i = torch.arange(t)[:, None] if query_positions is None else query_positions[..., None, :, None]
    j = torch.arange(s) if key_positions is None else key_positions[..., None, None, :]
    return i, j


def all_of(*masks: Tensor | None) -> Tensor | None:
    """True where every mask is; a None allows everything."""
    combined = None
    for mask in masks:
        if mask is not None:
            combined = mask if combined is None else combined & mask
    return combined
