"""Which implementation computes a call: what each one cannot honour, and which is chosen, where it is lowered."""

import dataclasses
import functools
from typing import Any, Literal, NamedTuple

from jaxtyping import Array

from jattn._engine import checks
from jattn._engine.compiled import compiled
from jattn._engine.platform import Platform, is_alone, platform_of, where_lowered
from jattn.implementations.call import Call, Implementation, Result
from jattn.implementations.cudnn import Cudnn
from jattn.implementations.dense import Dense
from jattn.implementations.explicit import over_mesh
from jattn.implementations.streaming import Streaming

__all__ = ["Explanation", "ImplementationName", "decide", "run"]

ImplementationName = Literal["dense", "streaming", "cudnn"]

_BY_NAME: dict[str, Implementation] = {one.name: one for one in (Dense(), Streaming(), Cudnn())}


class Explanation(NamedTuple):
    """What `jattn.explain` says."""

    implementation: str
    reason: str
    refused: dict[str, str]  # the others that could not be asked for, and why

    def __str__(self) -> str:
        lines = [f"{self.implementation}: {self.reason}."]
        return "\n".join(lines + [f"not {name}: {reason}." for name, reason in self.refused.items()])


def decide(call: Call, name: str | None, platform: Platform) -> Explanation:
    """Which implementation runs on a platform, and why; raises ValueError for one that cannot honour the arguments."""
    checks.one_of("implementation", name, (None, *_BY_NAME))
    refused = {other: reason for other, one in _BY_NAME.items() if (reason := one.refusal(call, platform))}
    if name is None:
        rest = [one for other, one in _BY_NAME.items() if other not in refused]
        best = max(rest, key=lambda one: one.rank(call, platform)[0])
        return Explanation(best.name, best.rank(call, platform)[1], refused)
    if name in refused:
        raise ValueError(
            f"implementation must be None or one that honours every argument. Got {name!r}: {refused[name]}."
        )
    return Explanation(name, "it was asked for", refused)


def run(call: Call, name: str | None) -> Result:
    """The result of the implementation of that name, or of the one that fits best on the platform of the program."""
    if name is not None:
        decide(call, name, platform_of(call.logits.query))  # raises where the one asked for can't
    call = dataclasses.replace(call, logits=call.logits.called())
    return _run(call, name, is_alone(call))


@compiled("name", "alone")
def _run(call: Call, name: str | None, alone: bool) -> Result:
    """Likewise; ``alone``: on one device."""
    asked_for = (True, call.return_weights, call.return_log_sum_exp)
    axes = Result(*(x if given else None for given, x in zip(asked_for, ("bthe", "bhts", "bth"), strict=True)))  # type: ignore[arg-type]
    return over_mesh(functools.partial(_run_here, name=name, alone=alone), call, axes)


def _run_here(call: Call, name: str | None, alone: bool) -> Result:
    def chosen(platform: Platform) -> Implementation:
        return _BY_NAME[name or decide(call, None, platform).implementation]

    def run_on(platform: Platform, call: Call) -> Result:
        return chosen(platform).run(call, platform)

    def alike(platform: Platform) -> Any:
        implementation = chosen(platform)
        return implementation.name, implementation.program(platform)

    result = where_lowered(run_on, call, alike, alone=alone)
    assert call.value is not None
    return result._replace(output=_gated(result.output, call.head_gates).astype(call.value.dtype))


def _gated(output: Array, gates: Array | None) -> Array:
    """The output ``*b t h e`` with a factor ``h`` or ``*b h`` on each head."""
    if gates is None:
        return output
    gates = gates.reshape((1,) * (output.ndim - 2 - gates.ndim) + gates.shape)
    return output * gates[..., None, :, None].astype(output.dtype)
