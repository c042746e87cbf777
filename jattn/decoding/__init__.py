"""Decoding: what a model says after a prompt, token by token."""

from jattn.decoding import processors
from jattn.decoding.history import History
from jattn.decoding.steps import Steps, cropped, grown, last_of, placed, reordered

__all__ = ["History", "Steps", "cropped", "grown", "last_of", "placed", "processors", "reordered"]
