"""What of a function or a model becomes a program: functions whose arguments and results are plain."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from jattn._engine import checks
from jattn.portable.plain import plain, rebuilt
from jattn.portable.shapes import Described, Letters

__all__ = ["PROMPTS", "Callee", "Program", "decoding_programs", "forward_program"]

PROMPTS = {"tokens": "int32[b,t]", "valid_lens": "int32[b]"}


class Program(NamedTuple):
    """A function that takes its arguments by name."""

    f: Callable[..., Any]
    arguments: Mapping[str, Any]  # the shapes of arrays, or dicts of them
    constraints: Sequence[str]  # what must hold of their lengths

    def exported(self, name: str, platforms: Sequence[str]) -> jax.export.Exported:
        """As JAX saves it, under a name, and with all of its arguments, whether it needs them or not."""

        def named(**x: Any) -> Any:
            return self.f(**x)

        named.__name__ = name
        return jax.export.export(jax.jit(named, keep_unused=True), platforms=platforms)(**self.arguments)


class Callee(NamedTuple):
    """What is called, and its parameters beside it or inside."""

    merged: Callable[[Any], Any]  # with these parameters
    parameters: dict[str, Any]  # arrays by name; empty of a function
    inside: bool

    @classmethod
    def of(cls, f: Any, inside: bool) -> "Callee":
        """Of a module what it holds, but for what it draws random numbers from; of a function nothing."""
        if not isinstance(f, nnx.Module):
            return cls(lambda parameters: f, {}, inside)
        graph, *states = nnx.split(f, nnx.RngState, ...)
        random, state = states
        parameters = plain(state)
        if not all(map(checks.is_concrete, parameters.values())):
            raise ValueError(
                "f must have parameters whose numbers are known. Got traced ones, as within jax.jit or jax.grad. "
                "Export outside of it."
            )
        parameters = {name: jnp.asarray(x) for name, x in parameters.items()}
        return cls(lambda parameters: nnx.merge(graph, random, rebuilt(state, parameters)), parameters, inside)

    def program(self, f: Callable[..., Any], letters: Letters, arguments: Mapping[str, Any]) -> Program:
        """``f(model, **arguments)``, without the model."""
        shapes, known = letters.shapes(arguments), letters.known(arguments)
        if self.inside or not self.parameters:
            return Program(lambda **x: f(self.merged(self.parameters), **x), shapes, known)
        own = {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in self.parameters.items()}
        return Program(lambda parameters, **x: f(self.merged(parameters), **x), {"parameters": own, **shapes}, known)


def forward_program(callee: Callee, letters: Letters, arguments: Mapping[str, Described]) -> Program:
    """A call."""
    return callee.program(lambda f, /, **x: plain(f(**x)), letters, arguments)


def decoding_programs(
    callee: Callee, letters: Letters, given: Mapping[str, Described], room: int
) -> dict[str, Program]:
    """``prefill``, which reads prompts, and ``step``, which reads one token more of each.

    Args:
        callee: of a `jattn.decoding.Decodable`.
        letters: of what the programs are called with.
        given: what its ``start`` is given.
        room: how many tokens its state must be able to keep.
    """
    letters = letters._replace(constraints=(*letters.constraints, f"t <= {room}"))
    described = {**PROMPTS, **given}
    prompts = letters.shapes(described)

    def begun(model: Any, /, tokens: Any, valid_lens: Any, **given: Any) -> tuple[Any, Any]:
        start = model.start(tokens.shape[0], room, **given)
        result: tuple[Any, Any] = model.step(tokens, start, valid_lens=valid_lens)
        return result

    def prefill(model: Any, /, **x: Any) -> dict[str, Any]:
        logits, state = begun(model, **x)
        return {"logits": logits, "state": plain(state)}

    _, like = jax.eval_shape(lambda x: begun(callee.merged(callee.parameters), **x), prompts)

    def step(model: Any, tokens: Any, state: Any) -> dict[str, Any]:
        logits, after = model.step(tokens[:, None], rebuilt(like, state))
        return {"logits": logits, "state": plain(after)}

    one = {"tokens": jax.ShapeDtypeStruct(prompts["valid_lens"].shape, jnp.int32), "state": plain(like)}
    return {
        "prefill": callee.program(prefill, letters, described),
        "step": callee.program(step, letters, one),  # with symbols of its own
    }
