"""What the examples take on the command line, for argparse's `type`: the value of a text, or why it has none."""

import argparse
import tempfile
from pathlib import Path


def seed(text: str) -> int:
    """A whole number from 0."""
    return _whole_number(text, 0)


def count(text: str) -> int:
    """A whole number from 1."""
    return _whole_number(text, 1)


def folder(text: str) -> Path:
    """A folder that can be written to, made if there is none. (A default goes through here only if it is text.)"""
    path = Path(text)
    try:
        path.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path).close()  # the sure way to know: a disk may be full, or read-only
    except OSError as error:
        message = f"must be a folder that can be written to. Got {text!r} ({error.strerror})."
        raise argparse.ArgumentTypeError(message) from error
    return path


def _whole_number(text: str, low: int) -> int:
    try:
        number = int(text)
    except ValueError:
        number = -1
    if not low <= number < 2**31:  # JAX's integers have 32 bits
        raise argparse.ArgumentTypeError(f"must be a whole number in [{low}, 2^31). Got {text!r:.80}.")
    return number
