"""How much memory a compiled function needs beside its arguments and results."""

import math
import re
from typing import Any

FUSION = re.compile(r"calls=%([\w.-]+).*__ynn_fusion")
ARRAY = re.compile(r"^  (ROOT )?%\S+ = [a-z]+(\d+)\[([\d,]*)\]\S* (\w+)", re.MULTILINE)


def scratch_of(compiled: Any) -> int:
    """Bytes, as XLA says it, and the largest matrix product within one of its fusions for YNNPACK on the CPU.

    What is allocated there is missing from XLA's own figure: softmax(query @ key) @ value, all in one such fusion, has
    none by that, while the process grows by its matrix of weights. It may be two of them, so this is a lower bound.
    """
    text = compiled.as_text()
    within = [_largest_within(text, name) for name in FUSION.findall(text)]
    return compiled.memory_analysis().temp_size_in_bytes + max(within, default=0)


def _largest_within(text: str, name: str) -> int:
    """Of the products in a fusion; none where they are no larger than its result, which may be made in their place."""
    start = text.index(f"\n%{name} ")
    largest = {True: 0, False: 0}
    for root, bits, dimensions, operation in ARRAY.findall(text[start : text.index("\n}", start)]):
        if root or operation == "dot":
            count = int(bits) // 8 * math.prod(int(n) for n in dimensions.split(",") if n)
            largest[bool(root)] = max(largest[bool(root)], count)
    return largest[False] if largest[False] > largest[True] else 0
