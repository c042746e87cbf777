"""How many tokens decoding keeps room for: less than there may be at first, and more as it goes on."""

from jattn._engine.buckets import bucket

__all__ = ["first_room", "larger", "stretch"]

GROWTH = 256  # new tokens for which there is room at least, before a cache grows


def first_room(t: int, n: int, *, whole: bool) -> int:
    """For prompts of t tokens and up to n new ones; for all of them where decoding can't be interrupted."""
    return bucket(t + (n if whole else min(n, GROWTH)))


def larger(room: int, left: int) -> int:
    """What comes after ``room``, where it is full and up to ``left`` tokens may follow."""
    return bucket(room + min(left, max(GROWTH, room // 2)))


def stretch(room: int, full: int, left: int) -> tuple[int, int]:
    """The room, a larger one where all of it is full, and for how many of the tokens that are left it has place."""
    room = larger(room, left) if full >= room else room
    return room, min(room - full, left)
