"""Models that come from Hugging Face and go back: their settings, and their names for the weights."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, TypeVar

import jax
import numpy as np
from flax import nnx

from jattn import torch_weights, weight_files
from jattn.models.encoder import read_json

if TYPE_CHECKING:
    import torch


M = TypeVar("M", bound="Model")


class Format(NamedTuple):
    """How Hugging Face stores a model."""

    names: Mapping[str, str]  # of its parts there and here, # for a number
    options: Callable[[Mapping[str, Any]], dict[str, Any]]  # the arguments of our model, from their settings
    take: Callable[[Mapping[str, Any], Mapping[str, Any]], dict[str, np.ndarray]]  # their entries, ready for our names
    give: Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]  # and back


class Model(nnx.Module):
    """A model with a `Format`."""

    hugging_face: ClassVar[Format]

    @classmethod
    def from_folder(cls: type[M], path: str | Path) -> M:
        """The model of a Hugging Face folder: ``config.json``, and ``model.safetensors`` or its shards.

        Result and errors as in `from_hugging_face`.
        """
        return cls.from_hugging_face(read_json(Path(path), "config.json"), weight_files.load(path))

    @classmethod
    def from_hugging_face(cls: type[M], config: Mapping[str, Any], state_dict: Mapping[str, Any]) -> M:
        """The model with the settings and the weights of one of `transformers`.

        Args:
            config: its ``config.to_dict()``.
            state_dict: its ``state_dict()``, names to tensors (PyTorch's, NumPy's or JAX's).

        Returns:
            The model in eval mode, its parameters in the dtypes of the state dict.

        Raises:
            ValueError: if a setting is not implemented here, or the state dict doesn't fit the settings.
        """
        names, options = renames(cls.hugging_face.names), cls.hugging_face.options(config)
        arrays = cls.hugging_face.take(state_dict, options)
        # The initial numbers are all replaced, so they are not drawn.
        graph, state = nnx.split(nnx.eval_shape(lambda: cls(**options, rngs=nnx.Rngs(0))))  # type: ignore[call-arg]
        model = nnx.merge(graph, jax.tree.map(lambda x: np.broadcast_to(np.zeros((), x.dtype), x.shape), state))
        model.eval()
        # A part without an entry is for load_state_dict to report, as missing, not as a pattern without a match.
        present = {old: new for old, new in names.items() if any(re.match(old, name) for name in arrays)}
        return torch_weights.load_state_dict(model, arrays, rename=present)

    def to_hugging_face(self) -> "dict[str, torch.Tensor]":
        """The state dict, bit for bit, of the model of `transformers` with these weights."""
        arrays = {}
        for name, tensor in torch_weights.state_dict(self).items():
            for pattern, theirs in renames(self.hugging_face.names, back=True).items():
                name = re.sub(pattern, theirs, name)
            arrays[name] = weight_files.to_numpy(tensor)
        return {name: weight_files.to_tensor(x) for name, x in self.hugging_face.give(arrays).items()}


def check_settings(config: Mapping[str, Any], implemented: Mapping[str, tuple[Any, ...]]) -> None:
    """One error that names every setting with a value that is not implemented; the first one is the default."""
    problems = [
        f"{name} must be {' or '.join(map(repr, values))}. Got {config.get(name, values[0])!r}."
        for name, values in implemented.items()
        if config.get(name, values[0]) not in values
    ]
    if problems:
        raise ValueError("\n  ".join(["config must have settings that are implemented here.", *problems]))


def setting(config: Mapping[str, Any], name: str) -> Any:
    """A setting without a default."""
    if config.get(name) is None:
        raise ValueError(f"config must have {name}. Got the settings {', '.join(sorted(config))}.")
    return config[name]


def parameters(state_dict: Mapping[str, Any], *, constants: str, tied: str | None = None) -> dict[str, np.ndarray]:
    """The entries of a state dict that are parameters.

    Args:
        state_dict: names to tensors.
        constants: a regular expression for the names of those that are not: they follow from the settings.
        tied: the name of the embedding that ``lm_head.weight`` is the same as; it is in some files and not in others.
    """
    entries = {name: x for name, x in state_dict.items() if not re.search(constants, name)}
    arrays = weight_files.to_arrays("state_dict", entries)
    if tied in arrays and "lm_head.weight" in arrays:
        if not np.array_equal(arrays[tied], arrays["lm_head.weight"]):
            raise ValueError(f"state_dict must have lm_head.weight tied to {tied}. Got other numbers.")
        del arrays["lm_head.weight"]
    return arrays


def renames(names: Mapping[str, str], *, back: bool = False) -> dict[str, str]:
    """A table of Hugging Face's names and ours, ``#`` for a number, as the patterns that `load_state_dict` takes.

    >>> renames({"transformer.h.#.ln_1": "blocks.#.norm1"})
    {'^transformer\\\\.h\\\\.(\\\\d+)\\\\.ln_1(?=\\\\.)': 'blocks.\\\\1.norm1'}
    """
    pairs = [(ours, theirs) if back else (theirs, ours) for theirs, ours in names.items()]
    return {
        "^" + old.replace(".", r"\.").replace("#", r"(\d+)") + r"(?=\.)": new.replace("#", r"\1") for old, new in pairs
    }
