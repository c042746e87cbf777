"""How many tokens decoding keeps room for: less than there may be at first, and more as it goes on."""

from jattn._engine.buckets import bucket

__all__ = ["GROWTH", "first_room", "larger"]

GROWTH = 256  # new tokens for which there is room at least, before a cache grows


def first_room(t: int, n: int, *, whole: bool) -> int:
    """For prompts of t tokens and up to n new ones; for all of them where decoding can't be interrupted."""
    return bucket(t + (n if whole else min(n, GROWTH)))


def larger(room: int, left: int) -> int:
    """What comes after ``room``, where it is full and up to ``left`` tokens may follow."""
    return bucket(room + min(left, max(GROWTH, room // 2)))
