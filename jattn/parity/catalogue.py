"""The known causes. Each recomputes what Flax would have given if it were the one, and fits only if that is so.

A new cause is a function from a `Site` to a sentence, or None where it doesn't fit, and a line in the table at the end
of its file. It says nothing unless the plain recomputation gives PyTorch's numbers too.
"""

from typing import NamedTuple

import numpy as np

from jattn.parity.attention_causes import ATTENTION_CAUSES
from jattn.parity.bias_causes import BIAS_CAUSES
from jattn.parity.block_causes import BLOCK_CAUSES
from jattn.parity.cause import Cause
from jattn.parity.embedding_causes import EMBEDDING_CAUSES
from jattn.parity.layer_causes import LAYER_CAUSES, NUMBER_CAUSES
from jattn.parity.locate import Site
from jattn.parity.mask_causes import MASK_CAUSES
from jattn.parity.mlp_causes import MLP_CAUSES
from jattn.parity.norm_causes import NORM_CAUSES
from jattn.parity.pooling_causes import POOLING_CAUSES
from jattn.parity.rotary_causes import ROTARY_CAUSES

__all__ = ["CAUSES", "Diagnosis", "diagnose"]


class Diagnosis(NamedTuple):
    """The cause that makes the difference vanish."""

    cause: str
    found: str
    explanation: str
    remedy: str
    others: "tuple[Diagnosis, ...]" = ()  # that make it vanish as well


def diagnose(site: Site) -> Diagnosis | None:
    """The first cause of the lowest rank that fits, with the others there that say more than little."""
    for rank in range(3):
        found = [x for cause in CAUSES if cause.rank == rank and (x := _tried(cause, site)) is not None]
        if found:
            return found[0]._replace(others=tuple(found[1:]) if rank < 2 else ())
    return None


def _tried(cause: Cause, site: Site) -> Diagnosis | None:
    with np.errstate(all="ignore"):
        try:
            found = cause.test(site)
        except (
            ValueError,
            LookupError,
            ArithmeticError,
        ):  # shapes that this cause can't be of; the report must come all the same
            return None
    return None if found is None else Diagnosis(cause.name, found, cause.explanation, cause.remedy)


CAUSES: list[Cause] = [
    *NORM_CAUSES,
    *LAYER_CAUSES,
    *MLP_CAUSES,
    *EMBEDDING_CAUSES,
    *POOLING_CAUSES,
    *BLOCK_CAUSES,
    *ATTENTION_CAUSES,
    *MASK_CAUSES,
    *ROTARY_CAUSES,
    *BIAS_CAUSES,
    *NUMBER_CAUSES,
]
