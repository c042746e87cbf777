"""Decoding: what a model says after a prompt, token by token."""

from jattn.decoding.generation import Generated, Stream, generate, stream
from jattn.decoding.history import History
from jattn.decoding.steps import Steps, cropped, grown, last_of, placed, reordered, repeated

__all__ = [
    "Generated",
    "History",
    "Steps",
    "Stream",
    "cropped",
    "generate",
    "grown",
    "last_of",
    "placed",
    "reordered",
    "repeated",
    "stream",
]
