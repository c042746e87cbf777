"""Which implementation computes a call: what each one cannot honour, and which is chosen, where it is lowered.

Where a sequence is divided over a mesh there is one around it, which brings queries and keys together.
"""

import dataclasses
import functools
from typing import Any, Literal, NamedTuple

from jaxtyping import Array

from jattn._engine import checks
from jattn._engine.compiled import compiled
from jattn._engine.platform import Platform, is_alone, platforms_of, where_lowered
from jattn.implementations.call import Call, Implementation, Result
from jattn.implementations.cudnn import Cudnn
from jattn.implementations.dense import Dense
from jattn.implementations.explicit import over_mesh, part_of
from jattn.implementations.pallas import Pallas
from jattn.implementations.ring import Ring
from jattn.implementations.sequence import AllGather, Merge, OverSequence, Ulysses
from jattn.implementations.streaming import Streaming

__all__ = ["Explanation", "ImplementationName", "decide", "run"]

ImplementationName = Literal["dense", "streaming", "cudnn", "pallas", "ring", "all_gather", "ulysses", "merge"]

_BY_NAME: dict[str, Implementation] = {one.name: one for one in (Dense(), Streaming(), Cudnn(), Pallas())}
# Of those that send as much, the first.
_OVER_SEQUENCE: dict[str, OverSequence] = {one.name: one for one in (Merge(), Ulysses(), Ring(), AllGather())}


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
    checks.one_of("implementation", name, (None, *_BY_NAME, *_OVER_SEQUENCE))
    part = part_of(call)
    if name in _OVER_SEQUENCE and part.divided is None and call.sequence_axes is not None:
        raise _refusal(name, "scores of a function's, and a single key on each device, are not divided")
    return _decide_here(part, name, platform) if part.divided is None else _decide_over(part, name, platform)


def _decide_over(part: Call, name: str | None, platform: Platform) -> Explanation:
    """Likewise, where a sequence is divided; the name may also be that of what computes a part."""
    here = name if name in _BY_NAME else None
    refused = {}
    for other, one in _OVER_SEQUENCE.items():
        reason = one.refusal(part)
        if reason is None and here is not None and (unable := _BY_NAME[here].refusal(one.met(part), platform)):
            reason = f"it needs what {here} refuses: {unable}"
        if reason is not None:
            refused[other] = reason
    if name in refused:
        raise _refusal(name, refused[name])
    rest = [one for other, one in _OVER_SEQUENCE.items() if other not in refused]
    if not rest:
        raise _refusal(name, refused[AllGather.name])
    best = _OVER_SEQUENCE[name] if name in _OVER_SEQUENCE else min(rest, key=lambda one: one.sent(part))
    of_part = _decide_here(best.met(part), here, platform)
    why = "it was asked for" if name == best.name else f"it sends the least, {best.sent(part):,} bytes from a device"
    return Explanation(best.name, f"{why}; {of_part.implementation} computes what has met", refused | of_part.refused)


def _decide_here(call: Call, name: str | None, platform: Platform) -> Explanation:
    """Which implementation runs on what one device has."""
    if name in _OVER_SEQUENCE:
        raise ValueError(
            f"implementation must be one for sequences that are whole where no mesh axis divides them. Got {name!r}; "
            "pass sequence_axis, the name of the axis."
        )
    refused = {other: reason for other, one in _BY_NAME.items() if (reason := one.refusal(call, platform))}
    if name is None:
        rest = [one for other, one in _BY_NAME.items() if other not in refused]
        best = max(rest, key=lambda one: one.rank(call, platform)[0])
        return Explanation(best.name, best.rank(call, platform)[1], refused)
    if name in refused:
        raise _refusal(name, refused[name])
    return Explanation(name, "it was asked for", refused)


def _refusal(name: str | None, reason: str) -> ValueError:
    return ValueError(f"implementation must be None or one that honours every argument. Got {name!r}: {reason}.")


def run(call: Call, name: str | None) -> Result:
    """The result of the implementation of that name, or of the one that fits best on the platform of the program."""
    if name is not None:
        for platform in platforms_of(call.logits.query):
            decide(call, name, platform)  # raises where the one asked for can't
    call = dataclasses.replace(call, logits=call.logits.called())
    return _run(call, name, is_alone(call))


@compiled("name", "alone")
def _run(call: Call, name: str | None, alone: bool) -> Result:
    """Likewise; ``alone``: on one device."""
    asked_for = (True, call.return_weights, call.return_log_sum_exp)
    axes = Result(*(x if given else None for given, x in zip(asked_for, ("bthe", "bhts", "bth"), strict=True)))  # type: ignore[arg-type]
    return over_mesh(functools.partial(_run_here, name=name, alone=alone), call, axes)


def _run_here(call: Call, name: str | None, alone: bool) -> Result:
    attend = functools.partial(_attended, name=name if name in _BY_NAME else None, alone=alone)
    if call.divided is None:
        result = attend(call)
    else:
        best = _decide_over(call, name, platforms_of(call.logits.query)[0]).implementation
        result = _OVER_SEQUENCE[best].run(attend, call)
    assert call.value is not None
    return result._replace(output=result.output.astype(call.value.dtype))


def _attended(call: Call, name: str | None, alone: bool) -> Result:
    """What one device computes, in the call's `output_dtype`."""

    def chosen(platform: Platform) -> Implementation:
        return _BY_NAME[name or _decide_here(call, None, platform).implementation]

    def run_on(platform: Platform, call: Call) -> Result:
        result = chosen(platform).run(call, platform)
        return result._replace(output=result.output.astype(call.output_dtype))

    def alike(platform: Platform) -> Any:
        implementation = chosen(platform)
        return implementation.name, implementation.program(platform)

    result: Result = where_lowered(run_on, call, alike, alone=alone)
    return result._replace(output=_gated(result.output, call.head_gates))


def _gated(output: Array, gates: Array | None) -> Array:
    """The output ``*b t h e`` with a factor ``h`` or ``*b h`` on each head."""
    if gates is None:
        return output
    gates = gates.reshape((1,) * (output.ndim - 2 - gates.ndim) + gates.shape)
    return output * gates[..., None, :, None].astype(output.dtype)
