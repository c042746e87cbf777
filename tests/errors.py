"""What the tests of errors share."""

import re

import pytest


def raises(*phrases: str, kind: type[Exception] = ValueError):
    """A ValueError with these phrases, in this order."""
    return pytest.raises(kind, match=r"[\s\S]*".join(map(re.escape, phrases)))
