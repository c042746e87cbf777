"""A function or a model as files that any process with JAX runs."""

import inspect
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import jax.numpy as jnp
from flax import nnx

from jattn._engine import checks
from jattn._engine.platform import NAMES, saved_for
from jattn.portable.folder import check_parameters_can_be_saved, checked_path, write
from jattn.portable.programs import PROMPTS, Callee, Program, decoding_programs, forward_program
from jattn.portable.shapes import Described, Letters

__all__ = ["PLATFORMS", "Exportable", "Inputs", "export", "for_platforms"]

PLATFORMS = ("cpu", "cuda", "tpu")


def export(
    f: Any,
    path: str | Path,
    arguments: Mapping[str, Described] | None = None,
    *,
    sizes: Mapping[str, int] | None = None,
    constraints: Sequence[str] = (),
    platforms: Sequence[str] = PLATFORMS,
    parameters_inside: bool = False,
    room: int | None = None,
    given: Mapping[str, Described] | None = None,
) -> None:
    """Write a folder of programs that run without jattn, on any of several platforms, with arrays of any length.

    Arguments make ``forward``, a call of ``f``. A room makes ``prefill`` and ``step`` of a `jattn.decoding.Decodable`:

        forward(parameters, **arguments)                  what f returns
        prefill(parameters, tokens, valid_lens, **given)  {"logits": b v, "state": ...}
        step(parameters, tokens, state)                   {"logits": b v, "state": ...}

    A prompt's ``tokens`` are ``b t``, of which the first ``valid_lens`` (``b``) are real; a step's are ``b``, what was
    chosen by the logits before. Programs take their arguments by name. What is more than one array is a dict of names
    to arrays: parameters, as in ``parameters.safetensors``; a state, which goes into the next step as it is; whatever
    else than an array ``f`` returns.

    ``NAME.jax`` is for `jax.export.deserialize`, ``NAME.mlirbc`` is StableHLO in its portable bytecode, and
    ``manifest.json`` lists names, dtypes and lengths in the order in which StableHLO has them, the constraints on
    lengths, and room.

    Args:
        f: a function of arrays, or an ``nnx.Module`` in eval mode.
        path: of the folder, which is made.
        arguments: of ``f``, by name: dtype and lengths of each, such as ``"float32[b,t,8]"``, or an array. A letter is
            any length, the same wherever it stands.
        sizes: letters that have one length, such as ``{"b": 1, "t": 128}``. Attention that knows the number of its
            tokens is computed in blocks, in little memory; and few other runtimes take lengths that are open.
        constraints: what is known of open lengths, such as ``["t <= 64"]``; a program holds those of its own letters.
        platforms: of ``"cpu"``, ``"cuda"``, ``"rocm"`` and ``"tpu"`` those that the programs run on.
        parameters_inside: whether parameters are inside of each program, rather than an argument and a file.
        room: the size of a decoder's caches in tokens, prompt plus continuation, at most ``f.max_length`` where there
            is one. Prompts have at most as many; stop there, as a program doesn't report a full cache.
        given: what ``f.start`` is given beside it, described as arguments are.

    Raises:
        ValueError: if the path is there, or an argument is not what it must be.
        ImportError: if flatbuffers is not installed, or safetensors for a file of parameters.

    Example:

        >>> import tempfile, jax, jax.numpy as jnp, jattn
        >>> path = Path(tempfile.mkdtemp()) / "block"
        >>> block = jattn.nn.TransformerBlock(2, 8, 16, causal=True, rngs=nnx.Rngs(0))
        >>> export(block, path, {"x": "float32[b,t,8]"}, sizes={"b": 3, "t": 5})
        >>> sorted(file.name for file in path.iterdir())
        ['forward.jax', 'forward.mlirbc', 'manifest.json', 'parameters.safetensors']
        >>> program = jax.export.deserialize((path / "forward.jax").read_bytes())
        >>> parameters = jattn.weights.files.load(path / "parameters.safetensors")
        >>> x = jax.random.normal(jax.random.key(0), (3, 5, 8))
        >>> bool(jnp.allclose(program.call(parameters=parameters, x=x), block(x), atol=1e-6))
        True
    """
    for name, described in {"arguments": arguments, "sizes": sizes, "given": given}.items():
        _check_mapping(name, described)
    folder = checked_path(path)
    _check_runnable(f, arguments, room, given)
    _check_room(f, room, sizes or {}, given or {})
    names = _checked_platforms(platforms)
    callee = Callee.of(f, checks.flag("parameters_inside", parameters_inside))
    if not checks.is_concrete(jnp.zeros(())):  # also of a function, whose own arrays can't be looked at
        raise ValueError("f must be exported where nothing is traced. Got a call within jax.jit. Export outside of it.")
    if callee.parameters and not callee.inside:
        check_parameters_can_be_saved(folder)
    letters = Letters(dict(sizes or {}), constraints)
    letters.check(arguments or {}, given or {}, {} if room is None else PROMPTS)
    with saved_for(*names):
        programs: dict[str, Program] = {}
        if arguments is not None:
            programs["forward"] = forward_program(callee, letters, arguments)
        if room is not None:
            programs |= decoding_programs(callee, letters, given or {}, room)
        exported = {name: program.exported(name, names) for name, program in programs.items()}
    known = {name: program.constraints for name, program in programs.items()}
    write(folder, exported, known, {} if callee.inside else callee.parameters, room)


def for_platforms(*platforms: str) -> AbstractContextManager[Any]:
    """Inside, what is traced is made for these platforms at once, for those who call `jax.export` themselves.

    A program for several of them holds no kernel of one, which JAX cannot save beside others, and the same is made
    wherever it is made.

    Args:
        platforms: of ``"cpu"``, ``"cuda"``, ``"rocm"`` and ``"tpu"``.

    Example:

        >>> import jax, jax.numpy as jnp, jattn
        >>> x = jnp.ones((1, 300, 2, 8))
        >>> with for_platforms("cpu", "tpu"):
        ...     exported = jax.export.export(jax.jit(jattn.attention), platforms=["cpu", "tpu"])(x, x, x)
        >>> exported.platforms
        ('cpu', 'tpu')
    """
    return saved_for(*_checked_platforms(platforms))


class Inputs(NamedTuple):
    """What a model of a class is called with, for `export`."""

    arguments: dict[str, str]
    constraints: tuple[str, ...] = ()
    given: Mapping[str, str] = MappingProxyType({})  # to `start`


class Exportable:
    """A model that knows what it is called with."""

    def inputs(self) -> Inputs:
        """What `export` says that it is called with; a class of your own may say otherwise."""
        raise NotImplementedError

    def export(
        self,
        path: str | Path,
        *,
        sizes: Mapping[str, int] | None = None,
        platforms: Sequence[str] = PLATFORMS,
        parameters_inside: bool = False,
        room: int | None = None,
    ) -> None:
        """Write a folder of programs that run without jattn, as `jattn.portable.export` does.

        Args:
            path: of the folder, which is made.
            sizes: letters of `inputs` that have one length, such as ``{"b": 1, "t": 128}``; others are any.
            platforms: of ``"cpu"``, ``"cuda"``, ``"rocm"`` and ``"tpu"`` those that the programs run on.
            parameters_inside: whether parameters are inside of each program, rather than an argument and a file.
            room: of what can decode, so that there are ``prefill`` and ``step`` beside ``forward``: the size of the
                caches in tokens, prompt plus continuation. Stop there, as a program doesn't report a full cache.
        """
        arguments, constraints, given = self.inputs()
        options: dict[str, Any] = dict(sizes=sizes, platforms=platforms, parameters_inside=parameters_inside, room=room)
        export(self, path, arguments, constraints=constraints, given=None if room is None else given, **options)


def _checked_platforms(platforms: Sequence[str]) -> tuple[str, ...]:
    if isinstance(platforms, str) or not isinstance(platforms, Sequence) or not platforms:
        raise ValueError(f"platforms must be one or several names, such as ['cpu', 'tpu']. Got {platforms!r}.")
    for name in platforms:
        checks.one_of("platforms", name, NAMES)
    return tuple(dict.fromkeys(platforms))


def _check_mapping(name: str, x: Any) -> None:
    if x is not None and not (isinstance(x, Mapping) and all(isinstance(key, str) for key in x)):
        raise ValueError(f"{name} must be a mapping with names for keys. Got {x!r:.80}.")


def _check_runnable(f: Any, arguments: Any, room: Any, given: Any) -> None:
    """Raise ValueError unless there are programs of it, in eval mode, with these arguments."""
    if isinstance(f, type) or not (callable(f) or hasattr(f, "step")):
        got = f"the class {f.__name__}" if isinstance(f, type) else type(f).__name__
        raise ValueError(f"f must be a function of arrays or an nnx.Module. Got {got}.")
    if arguments is None and room is None:
        raise ValueError("arguments must be given for a call of f, or room to decode with it. Got neither.")
    if isinstance(f, nnx.Module):
        for path, layer in nnx.iter_modules(f):
            if _trains(layer):
                raise ValueError(
                    f"f must be in eval mode. Got a {type(f).__name__} in training mode, with a {type(layer).__name__} "
                    f"that is on, {'.'.join(map(str, path)) or 'itself'}. Call its eval()."
                )
    if arguments is not None:
        known = inspect.signature(f).parameters
        if not any(one.kind is one.VAR_KEYWORD for one in known.values()):
            checks.keywords(getattr(f, "__name__", type(f).__name__), arguments, known)
        owners = {"parameters": "f's own have", "self": "the call of a loaded program has"}
        for name in owners.keys() & arguments.keys():
            raise ValueError(f"arguments must have other names than {name}, which {owners[name]}. Got that name.")


def _check_room(f: Any, room: Any, sizes: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """Raise ValueError unless f decodes, with so many tokens, from a prompt and what is given."""
    if room is None:
        if given:
            raise ValueError(f"given must be None where nothing is decoded. Got {', '.join(given)}. Pass room, too.")
        return
    checks.positive_integers(room=room)
    if not (hasattr(f, "start") and hasattr(f, "step")):
        raise ValueError(
            "room must be None for what cannot decode, for lack of the methods start and step of "
            f"jattn.decoding.Decodable. Got {room} for a {type(f).__name__}."
        )
    most = getattr(f, "max_length", None)
    if isinstance(most, int) and room > most:
        raise ValueError(f"room must be at most max_length = {most}, how many positions f has. Got {room}.")
    if checks.is_count(t := sizes.get("t")) and t > room:
        raise ValueError(f"sizes must have prompts that room is for, t of at most {room}. Got {t}.")
    for name in given:
        if name in PROMPTS or name == "parameters":
            raise ValueError(f"given must have other names than {', '.join(PROMPTS)} and parameters. Got {name}.")
    known = list(inspect.signature(f.start).parameters.values())[2:]  # after the number of examples, and room
    if not any(one.kind is one.VAR_KEYWORD for one in known):
        checks.keywords(f"{type(f).__name__}.start", given, (one.name for one in known))


def _trains(layer: Any) -> bool:
    rate = getattr(layer, "rate", getattr(layer, "dropout_rate", 0))
    drops = getattr(layer, "deterministic", None) is False and isinstance(rate, int | float) and rate > 0
    return drops or getattr(layer, "use_running_average", None) is False
