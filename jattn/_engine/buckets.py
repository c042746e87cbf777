"""Lengths that are rounded up, so that few programs serve all of them."""

__all__ = ["bucket"]


def bucket(n: int) -> int:
    """n rounded up to three binary digits: at most a quarter more, and four lengths between a power of 2 and the next.

    Example:

        >>> [bucket(n) for n in (1, 8, 9, 50, 65, 100, 129, 257)]
        [1, 8, 10, 56, 80, 112, 160, 320]
    """
    step = 1 << max((n - 1).bit_length() - 3, 0)
    return -(-n // step) * step
