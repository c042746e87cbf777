"""Functions that take ``**options`` of another, and say so to whoever asks for their signature."""

import inspect
from collections.abc import Callable, Iterable
from typing import Any

__all__ = ["spell_out"]


def spell_out(function: Callable[..., Any], names: Iterable[str], of: Callable[..., Any]) -> None:
    """Put keywords of ``of`` into the signature of ``function``, in the place of its ``**options``.

    An editor shows them then, and Flax's Linen passes no argument that the signature doesn't have.
    """
    own, others = inspect.signature(function), inspect.signature(of).parameters
    known = [x for x in own.parameters.values() if x.kind is not x.VAR_KEYWORD]
    further = [others[name] for name in names if name not in own.parameters]
    function.__signature__ = own.replace(parameters=[*known, *further])  # type: ignore[attr-defined]
