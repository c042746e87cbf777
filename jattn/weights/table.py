"""A table: the lines that lead from a state dict's names and layouts to a module's, and back."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from jattn.weights import names
from jattn.weights.passage import Line, Passage

__all__ = ["Renaming", "Table", "moved", "moved_name"]


@dataclass(frozen=True, init=False, repr=False)
class Table:
    """What the entries of a state dict are in a module: names, and how the numbers lie.

    Wherever a function takes ``rename``, it takes a table: `jattn.weights.load_state_dict`, and on the way back
    `state_dict` and `save`; `jattn.parity.compare`. The lines are gone through from first to last, each with the names
    and arrays that those before it left, and on the way back from last to first. A name that no line finds stays as
    it is. What goes in comes back bit for bit, but for what a line leaves out or adds.

    Args:
        lines: made by `rename`, `prefixed`, `transposed`, `split`, `merge`, `part`, `tied`, `zeros`, `dropped` and
            `convert`.

    Example (GPT-2's names for a block; its fused weights are ``(in, out)``):

        >>> import numpy as np
        >>> from jattn.weights import rename, split, transposed
        >>> table = Table(
        ...     [
        ...         rename("h.#.ln_1", "blocks.#.norm1"),
        ...         transposed("h.#.attn.c_attn"),
        ...         split("h.#.attn.c_attn", [f"blocks.#.attention.{part}" for part in ("query", "key", "value")]),
        ...     ]
        ... )
        >>> entries = {"h.0.ln_1.weight": np.ones(4), "h.0.attn.c_attn.weight": np.ones((4, 12))}
        >>> ours = table.load(entries)
        >>> {name: x.shape for name, x in ours.items() if "norm1" in name or "query" in name}
        {'blocks.0.norm1.weight': (4,), 'blocks.0.attention.query.weight': (4, 4)}
        >>> {name: x.shape for name, x in table.dump(ours).items()} == {name: x.shape for name, x in entries.items()}
        True
    """

    lines: tuple[Line, ...]

    def __init__(self, lines: Iterable[Line]) -> None:
        lines = tuple(lines)
        if alien := [type(line).__name__ for line in lines if not isinstance(line, Line)]:
            raise ValueError(
                f"lines must be made by functions of jattn.weights, such as rename. Got {', '.join(alien)}."
            )
        object.__setattr__(self, "lines", lines)

    def __repr__(self) -> str:
        return f"Table({list(self.lines)})"

    def load(self, entries: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]] | None = None) -> dict[str, Any]:
        """The entries of a state dict as the module has them.

        Args:
            entries: names to arrays.
            shapes: those that the module expects, which `zeros` may need.

        Raises:
            ValueError: for all lines that find nothing or don't fit.
        """
        passage = self.passage(entries, shapes)
        _refuse("state_dict must fit the table.", passage)
        return passage.entries

    def dump(self, entries: Mapping[str, Any]) -> dict[str, Any]:
        """The entries of a module as the state dict has them; errors as in `load`."""
        passage = Passage(dict(entries))
        for line in reversed(self.lines):
            line.dump(passage)
        _refuse("table must lead back from each entry of the module.", passage)
        return passage.entries

    def passage(self, entries: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]] | None = None) -> Passage:
        """As `load`, with what is wrong beside it."""
        passage = Passage(dict(entries), shapes)
        for line in self.lines:
            passage.lost = {new for name in passage.lost for new in line.new_names(name)}
            line.load(passage)
        return passage

    def new_names(self, name: str) -> list[str]:
        """What becomes of a name of the state dict."""
        found = [name]
        for line in self.lines:
            found = [new for name in found for new in line.new_names(name)]
        return found

    def old_names(self, name: str) -> list[str]:
        """And on the way back."""
        found = [name]
        for line in reversed(self.lines):
            found = [old for name in found for old in line.new_names(name, back=True)]
        return found

    def adds(self, name: str) -> bool:
        """Whether an entry of the module is nothing but what lines add, since the state dict has none."""
        found = [name]
        for line in reversed(self.lines):
            found = [old for name in found if not line.adds(name) for old in line.new_names(name, back=True)]
        return not found


Renaming = Mapping[str, str | None] | Table


def moved(entries: Mapping[str, Any], rename: Renaming) -> dict[str, Any]:
    """Entries, not all of a state dict perhaps, as the module has them; what the table adds is left out."""
    if isinstance(rename, Table):
        passage = rename.passage(entries)
        return {name: x for name, x in passage.entries.items() if passage.origins[name]}
    return {new: x for name, x in entries.items() if (new := names.new_name(name, rename)) is not None}


def moved_name(name: str, rename: Renaming) -> str | None:
    """What becomes of one name; None if it is dropped, or does not alone become another."""
    if isinstance(rename, Table):
        found = rename.new_names(name)
        return found[0] if len(found) == 1 and len(rename.old_names(found[0])) == 1 else None
    return names.new_name(name, rename)


def _refuse(headline: str, passage: Passage) -> None:
    if passage.problems:
        raise ValueError("\n  ".join([headline, *names.problem_lines(passage.problems)]))
