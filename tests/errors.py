"""What the tests of errors share."""

import re

import pytest


def raises(*phrases: str):
    """A ValueError with these phrases, in this order."""
    return pytest.raises(ValueError, match=r"[\s\S]*".join(map(re.escape, phrases)))
