"""Which differences reach the output: PyTorch's autograd graph, read as the flow of numbers."""

from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

__all__ = ["Flow", "Place"]

Place = tuple[int, int]  # where a tensor stands in the graph: a node, and which of its outputs; -1 is a tensor itself


class Flow:
    """The places that tensors had, and how to walk back from them."""

    def __init__(self) -> None:
        self._nodes: dict[Place, Any] = {}
        self._kept: list[Any] = []  # as an id is another's once its object is gone

    def place(self, tensor: "torch.Tensor") -> Place:
        """Where a tensor stands now; operations in place would move it."""
        from torch.autograd.graph import get_gradient_edge

        if not tensor.requires_grad:
            self._kept.append(tensor)
            return id(tensor), -1
        edge = get_gradient_edge(tensor)
        place = id(edge.node), edge.output_nr
        self._nodes[place] = edge.node
        return place

    def known(self, places: Iterable[Place]) -> bool:
        """Whether any of these is in the graph, rather than a tensor that no gradient flows through."""
        return any(place in self._nodes for place in places)

    def back(self, ends: Iterable[Place], without: Collection[Place]) -> set[Place]:
        """All places from which numbers flow to these, other than through ``without``."""
        found: set[Place] = set()
        waiting = [(place, self._nodes.get(place)) for place in ends]
        while waiting:
            place, node = waiting.pop()
            if place in found or place in without:
                continue
            found.add(place)
            for before, number in () if node is None else node.next_functions:
                if before is not None:
                    self._kept.append(before)
                    waiting.append(((id(before), number), before))
        return found
