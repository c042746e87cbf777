"""What is asked of decoding, checked once: prompts, how far to go, and what the model is given beside them."""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Int

from jattn._engine import checks
from jattn._engine.axes import Shape
from jattn._engine.buckets import bucket
from jattn._engine.captured import as_seen
from jattn._engine.of_caller import takes
from jattn.cache import Cache
from jattn.decoding.decodable import Decodable
from jattn.decoding.loop import Beginning, Parts, Setup, Structure, started
from jattn.masks import lengths

__all__ = ["Request", "checked", "lens_of", "real_first"]

_EVALUATED: dict[Structure, Structure] = {}  # of models that were seen to be in eval mode
_MOST = 64


@dataclasses.dataclass(frozen=True)
class Request:
    """Prompts as they are read: padded on the right to a length that many others have too."""

    parts: Parts
    beginning: Beginning
    settings: tuple[tuple[str, Any], ...]  # what the model starts with beside arrays
    longest: int  # of the prompts, without what was padded here
    past: int  # how many tokens the state has read before them
    max_new_tokens: int
    ends: Int[np.ndarray, "_"]
    pad: int | None
    processors: tuple[Any, ...]
    vocab_size: int

    @classmethod
    def of(
        cls,
        model: Decodable,
        prompt: Any,
        prompt_valid_lens: Any = None,
        *,
        prompt_attention_mask: Any = None,
        max_new_tokens: int,
        eos: int | Sequence[int] = (),
        pad: int | None = None,
        processors: Sequence[Callable[..., Any]] = (),
        state: Any = None,
        parts: Parts | None = None,
        **given: Any,
    ) -> "Request":
        """Check the arguments of `jattn.decoding.generate`; parts are what `checked` gave for the model before."""
        parts = checked(model) if parts is None else parts
        prompt = checks.array("prompt", prompt)
        if prompt.ndim != 2:
            raise ValueError(f"prompt must have the axes b t. Got shape {prompt.shape}.")
        if not checks.is_count(max_new_tokens) or max_new_tokens < 1:
            raise ValueError(
                f"max_new_tokens must be at least 1, an integer known while tracing. Got {max_new_tokens!r}."
            )
        b, t = prompt.shape
        arrays, settings = _given_to(model, state, given)
        v = _vocab_size(model, b, state, given)
        prompt = checks.tokens("prompt", prompt, v, "b t", 2).astype(jnp.int32)
        prompt, lens = real_first(prompt, prompt_valid_lens, prompt_attention_mask)
        past = _length_of(state)
        max_length = getattr(model, "max_length", None)
        if max_length is not None and past + t + max_new_tokens > max_length:
            before = f" after {past}" if past else ""
            raise ValueError(
                f"prompt and max_new_tokens must be at most max_length = {max_length} together. "
                f"Got {t} + {max_new_tokens}{before}."
            )
        ends: list[Any] = np.atleast_1d(np.asarray(eos, object)).tolist()
        for token in ends:
            checks.number("eos", token, f"[0, {v})", integer=True)
        if pad is not None:
            checks.number("pad", pad, "(-inf, inf)", integer=True)
        if not isinstance(processors, Sequence):
            raise ValueError(f"processors must be a list of functions. Got {processors!r:.80}. Write [...] around it.")
        for f in processors:
            if not callable(f):
                raise ValueError(f"processors must be functions of logits and transcript. Got {f!r}.")
            takes("each of processors", f, ("logits", "transcript"))
        width = t if t == 1 else bucket(max(t, 8))  # one token alone is what most encoder-decoders start with
        if width > t:
            lens = jnp.full(b, t, jnp.int32) if lens is None else lens
            widths = ((0, 0), (0, width - t))  # by NumPy where it can, which needs no program for each t
            prompt = jnp.asarray(np.pad(prompt, widths)) if checks.is_concrete(prompt) else jnp.pad(prompt, widths)
        limits = jnp.full(b, max_new_tokens, jnp.int32)
        return cls(
            parts,
            Beginning(prompt, lens, limits, state, arrays),
            settings,
            t,
            past,
            int(max_new_tokens),
            np.array(ends, np.int32),
            pad,
            tuple(f if _is_pytree(f) else jax.tree_util.Partial(as_seen(f)) for f in processors),
            v,
        )

    def begun(self, begin: Callable[..., Any], *how: Any, room: int, k: int = 1) -> Any:
        """What a loop begins with, k continuations of each prompt."""
        return begin(*self.parts, self.beginning, *how, Setup(self.settings, room, self.past, k))

    @property
    def prompt(self) -> Int[Array, "b t"]:
        """The prompts, padded."""
        return self.beginning.prompt

    @property
    def padding(self) -> int:
        """What stands after the end."""
        if self.pad is not None:
            return int(self.pad)
        return int(self.ends[0]) if len(self.ends) else 0

    @functools.cached_property  # as it is asked for with each token
    def is_traced(self) -> bool:
        """Whether this is part of a larger program, which cannot ask how far decoding is."""
        here = jnp.zeros(())  # under jit no array is known
        given = (self.beginning, self.processors, self.parts.arrays, here)
        return not all(map(checks.is_concrete, jax.tree.leaves(given)))


def checked(model: Any) -> Parts:
    """The parts of a model that can be decoded with, in eval mode."""
    if not isinstance(model, Decodable):
        raise ValueError(
            "model must have the methods start and step of jattn.decoding.Decodable. "
            f"Got {type(model).__name__}, which has not."
        )
    if not isinstance(model, nnx.Module):
        if not _is_pytree(model):
            raise ValueError(
                f"model must be a flax.nnx.Module or a pytree. Got {type(model).__name__}, which is neither."
            )
        return Parts.of(model)
    parts = Parts.of(model)
    if parts.structure not in _EVALUATED:  # looking through all modules takes as long as some steps of a small model
        if any(isinstance(m, nnx.Dropout) and m.rate > 0 and not m.deterministic for _, m in nnx.iter_modules(model)):
            raise ValueError(
                "model must be in eval mode. Got one in training mode, with dropout on. Call model.eval()."
            )
        if len(_EVALUATED) >= _MOST:
            _EVALUATED.clear()
        _EVALUATED[parts.structure] = parts.structure
    return parts._replace(structure=_EVALUATED[parts.structure])  # the same one, which is found at once


def _is_pytree(x: Any) -> bool:
    return not jax.tree_util.all_leaves([x])


def _given_to(model: Any, state: Any, given: dict[str, Any]) -> tuple[dict[str, Any], tuple[tuple[str, Any], ...]]:
    """What the model starts with: arrays, and the rest; what it does not know is an error."""
    if state is not None:
        if given:
            raise ValueError(f"state must be None where {', '.join(given)} is given: the model knows it. Got a state.")
        return {}, ()
    parameters = inspect.signature(model.start).parameters
    if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        names = [*parameters][2:]
        checks.keywords(f"{type(model).__name__}.start", given, names)
        for name in names:
            if parameters[name].default is inspect.Parameter.empty and name not in given:
                raise ValueError(f"{name} must be given to decode with {type(model).__name__}. Got none.")
    arrays = {name: x for name, x in given.items() if isinstance(x, jax.Array | np.ndarray)}
    return arrays, tuple((name, x) for name, x in given.items() if name not in arrays)


def _vocab_size(model: Any, b: int, state: Any, given: dict[str, Any]) -> int:
    """How many tokens the model knows."""
    said = getattr(model, "vocab_size", None)
    if said is not None:
        return int(said)

    def first() -> Any:
        return model.step(jnp.zeros((b, 1), jnp.int32), started(model, state, b, 1, **given))[0]

    return int(jax.eval_shape(first).shape[-1])


def lens_of(name: str, what: str, lens: Any, b: int, t: int) -> Any:
    """How many tokens of each of these are real, if it is said."""
    if lens is None:
        return None
    lens = jnp.asarray(checks.integers(name, lens))
    if lens.shape != (b,):
        raise ValueError(f"{name} must have one entry for each {what}, shape {(b,)}. Got shape {lens.shape}.")
    lengths(lens, per_query=False).check(Shape((b,), None, 1, t))
    return lens


def real_first(prompt: Int[Array, "b t"], lens: Any, prompt_attention_mask: Any) -> tuple[Int[Array, "b t"], Any]:
    """Prompts with their real tokens first, in their order, and how many those are; None if all."""
    lens = _prompt_lens(lens, *prompt.shape)
    if prompt_attention_mask is None:
        return prompt, lens
    if lens is not None:
        raise ValueError("prompt_valid_lens must be None beside a prompt_attention_mask. Got both.")
    real: Bool[Array, "b t"] = checks.array("prompt_attention_mask", prompt_attention_mask).astype(bool)
    if real.shape != prompt.shape:
        raise ValueError(f"prompt_attention_mask must have the shape of the prompt, {prompt.shape}. Got {real.shape}.")
    lens = real.sum(-1, dtype=jnp.int32)
    if checks.is_concrete(lens) and np.any(np.asarray(lens) < 1):
        raise ValueError("prompt_attention_mask must be 1 at least once for each prompt. Got one without.")
    return jnp.take_along_axis(prompt, jnp.argsort(~real, axis=-1, stable=True), axis=-1), lens


def _prompt_lens(lens: Any, b: int, t: int) -> Any:
    lens = lens_of("prompt_valid_lens", "prompt", lens, b, t)
    if lens is None:
        return None
    if checks.is_concrete(lens) and np.any(np.asarray(lens) < 1):
        raise ValueError("prompt_valid_lens must be at least 1: there is nothing to continue otherwise. Got 0.")
    return lens.astype(jnp.int32)


def _length_of(state: Any) -> int:
    """How many tokens a state has read, as far as its caches tell."""
    caches = jax.tree.leaves(state, is_leaf=lambda x: isinstance(x, Cache))
    known = [c.length for c in caches if isinstance(c, Cache) and checks.is_concrete(c.length)]
    return int(max((np.max(x, initial=0) for x in map(np.asarray, known)), default=0))
