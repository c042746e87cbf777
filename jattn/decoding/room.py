"""How many tokens decoding keeps room for: less than there may be at first, and more as it goes on."""

from jattn._engine.buckets import bucket
from jattn.decoding.request import Request

__all__ = ["Room"]

GROWTH = 256  # new tokens for which there is room at least, before a cache grows


class Room:
    """Room for prompts and new tokens, between one compiled stretch of decoding and the next.

    Attributes:
        size: for how many tokens.
        left: how many more may come.
    """

    def __init__(self, size: int, taken: int, left: int) -> None:
        self.size, self._taken, self.left = size, taken, left

    @classmethod
    def of(cls, request: Request, *, whole: bool) -> "Room":
        """To begin with; the whole of it where decoding can't be interrupted."""
        n = request.max_new_tokens
        first = n if whole else min(n, GROWTH)
        return cls(bucket(request.prompt.shape[1] + first), request.longest, n)

    def enlarge(self) -> bool:
        """Make room for at least one more token; whether there was none."""
        if self._taken < self.size:
            return False
        self.size = bucket(self.size + min(self.left, max(GROWTH, self.size // 2)))
        return True

    def take(self, steps: int) -> int:
        """How many of these steps there is room for, which then are done."""
        steps = min(steps, self.size - self._taken, self.left)
        self._taken += steps
        self.left -= steps
        return steps
