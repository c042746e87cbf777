"""Models that come from Hugging Face and go back: their settings, and their names for the weights."""

import dataclasses
import json
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jattn import weights
from jattn.models.hugging_face.settings import (
    PLAIN,
    WITHOUT_EFFECT,
    MissingSetting,
    NotedSettings,
    check_settings,
    missing_message,
)
from jattn.nn import MultiHeadAttention
from jattn.portable import Exportable

if TYPE_CHECKING:
    import torch

__all__ = [
    "FAMILIES",
    "Family",
    "PretrainedModel",
    "family_of",
    "folder_of",
    "read_json",
]

M = TypeVar("M", bound="PretrainedModel")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Family:
    """How Hugging Face stores the models of a family.

    Attributes:
        table: from a model here to the table that leads to it from its state dict there.
        implemented: the values of a setting that are, the default first.
        options: from its settings to the arguments of the model here.
        without_effect: settings that change nothing that the model computes, beside those of every family.
        any_head_features: whether heads may be wider or narrower than m / h.
        optional_parts: layers that a file may lack, though the settings don't say so: attributes of the model here, and
            regular expressions that find their names there.
    """

    table: Callable[[Any], weights.Table]
    implemented: Mapping[str, tuple[Any, ...]]
    options: Callable[[Mapping[str, Any]], dict[str, Any]]
    without_effect: frozenset[str] = frozenset()
    any_head_features: bool = False
    optional_parts: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def arguments(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """Of the model here; ValueError for a setting that is not implemented, or of which nothing is known."""
        implemented = {**PLAIN, **self.implemented}
        check_settings(config, implemented)
        settings = NotedSettings(config)
        try:
            options = self.options(settings)
        except MissingSetting as error:
            raise ValueError(missing_message(config, error.args[0])) from None
        known = {*settings.read, *implemented, *self.without_effect, *WITHOUT_EFFECT}
        if unknown := {name: x for name, x in config.items() if name not in known and x is not None}:
            told = ", ".join(f"{name}={x!r:.60}" for name, x in sorted(unknown.items()))
            raise ValueError(
                f"config must have settings that are known here, as others may change what the model computes. Got "
                f"{told}. Leave out what has no effect. In a family of your own, read them in options, or name them in "
                "implemented or without_effect."
            )
        return options


# By the ``model_type`` of a configuration; `loading.py` says which.
FAMILIES: dict[str, "type[PretrainedModel]"] = {}


class PretrainedModel(Exportable, nnx.Module):
    """A model that `transformers` has too: from its folder or its weights, and back.

    A class without a family of its own, such as `TextEncoder`, gives the model of a folder whatever its family is, if
    that is one of its subclasses.
    """

    hugging_face: ClassVar[Family]
    config: str | None = None  # that it came with, as JSON

    if TYPE_CHECKING:  # what `jattn.models.load` gives can be called; each class says with what

        def __call__(self, *inputs: Any, **options: Any) -> Any: ...

    @classmethod
    def from_folder(cls: type[M], path: str | Path, *, param_dtype: Any = None) -> M:
        """The model of a Hugging Face folder: ``config.json``, and ``model.safetensors`` or its shards.

        Args:
            path: the folder.
            param_dtype: of the parameters; the file's own by default.

        Returns:
            The model in eval mode.

        Raises:
            ValueError: if the folder lacks a file, a setting is not implemented here, or the weights don't fit the
                settings.
        """
        config, state_dict = read_json(folder_of(path), "config.json"), weights.files.load(path)
        return cls.from_hugging_face(config, state_dict, param_dtype=param_dtype)

    @classmethod
    def from_hugging_face(
        cls: type[M], config: Mapping[str, Any], state_dict: Mapping[str, Any], *, param_dtype: Any = None
    ) -> M:
        """The model with the settings and the weights of one of `transformers`.

        Args:
            config: its ``config.to_dict()``.
            state_dict: its ``state_dict()``, names to tensors (PyTorch's, NumPy's or JAX's).
            param_dtype: of the parameters; the state dict's own by default.

        Returns:
            The model in eval mode.

        Raises:
            ValueError: if a setting is not implemented here, or the state dict doesn't fit the settings.
        """
        if param_dtype is not None:
            param_dtype = _floating_dtype("param_dtype", param_dtype)
        config, state_dict = cls._reconciled(config, state_dict)
        model = cls._blank(config)
        family = model._family()
        if param_dtype is not None:
            arrays = weights.files.to_arrays("state_dict", state_dict)
            floating = {name: x for name, x in arrays.items() if jnp.issubdtype(x.dtype, jnp.floating)}
            state_dict = {**arrays, **{name: x.astype(param_dtype) for name, x in floating.items()}}
        for part, pattern in family.optional_parts.items():
            if not any(re.search(pattern, name) for name in state_dict):
                setattr(model, part, None)
        model.eval()
        model.config = _as_json(config)
        return weights.load_state_dict(model, state_dict, rename=family.table(model))

    def to_hugging_face(self) -> "dict[str, torch.Tensor]":
        """The state dict of the model of `transformers` with these weights, bit for bit.

        Raises:
            ValueError: if heads were pruned such that no settings of `transformers` say which.
        """
        self._check_heads()
        return weights.state_dict(self, rename=self._family().table(self))

    def save(self, path: str | Path, *, config: Mapping[str, Any] | None = None) -> None:
        """A folder that `transformers` opens: ``config.json`` and ``model.safetensors``, bit for bit.

        Args:
            path: the folder; made if it isn't there.
            config: of the model, as ``config.to_dict()`` of `transformers`; by default the one that it came with.

        Raises:
            ValueError: if there is no config, it isn't this model's, or as `to_hugging_face` does.
        """
        family = self._family()
        text = self.config if config is None else _as_json(config)
        if text is None:
            raise ValueError(
                "config must be given for a model that was made here, as its folder needs one. Got None. Pass "
                "config.to_dict() of the model of transformers."
            )
        self._check_heads()
        blank = type(self)._blank(json.loads(text))
        for part in family.optional_parts:
            if getattr(self, part) is None:
                setattr(blank, part, None)
        made = _shapes(blank)
        if (own := _shapes(self)) != made:
            parts = sorted(name for name in own.keys() | made.keys() if own.get(name) != made.get(name))
            told = "; ".join(f"{name} {own.get(name)}, by the config {made.get(name)}" for name in parts[:3])
            raise ValueError(f"config must be of this model. Got another one, of which {len(parts)} differ: {told}.")
        Path(path).mkdir(parents=True, exist_ok=True)
        weights.save(self, Path(path) / "model.safetensors", rename=family.table(self))
        (Path(path) / "config.json").write_text(text, encoding="utf-8")

    @classmethod
    def _reconciled(
        cls, config: Mapping[str, Any], state_dict: Mapping[str, Any]
    ) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
        """Both, where weights decide what the settings leave open."""
        return config, state_dict

    @classmethod
    def _blank(cls: type[M], config: Mapping[str, Any]) -> M:
        """The model of these settings, without numbers; they are not drawn, as all are replaced."""
        make = cls._maker(config)
        graph, state = nnx.split(nnx.eval_shape(lambda: make(nnx.Rngs(0))))
        return nnx.merge(graph, jax.tree.map(lambda x: np.broadcast_to(np.zeros((), x.dtype), x.shape), state))

    @classmethod
    def _maker(cls: type[M], config: Mapping[str, Any]) -> Callable[[nnx.Rngs], M]:
        """What makes the model of these settings."""
        kind = cls if hasattr(cls, "hugging_face") else family_of(config, cls)
        options = kind.hugging_face.arguments(config)
        return lambda rngs: kind(**options, rngs=rngs)  # type: ignore[call-arg]

    def _family(self) -> Family:
        if not hasattr(self, "hugging_face"):
            raise ValueError(
                f"model must be of a family that transformers knows. Got a {type(self).__name__} that was made here. "
                "Make it of a subclass with a jattn.models.Family as its hugging_face, or keep it with "
                "jattn.weights.save."
            )
        return self.hugging_face

    def _check_heads(self) -> None:
        for stack in self._stacks_of_equal_heads():
            self._check_heads_of(stack)

    def _stacks_of_equal_heads(self) -> list[nnx.Module]:
        """Each part of which the settings say one number of heads."""
        return [self]

    def _check_heads_of(self, stack: nnx.Module) -> None:
        """Hugging Face's settings have one number of heads for all layers, and equal groups."""
        attentions = [layer for _, layer in nnx.iter_modules(stack) if isinstance(layer, MultiHeadAttention)]
        remedy = "Keep it with jattn.weights.save instead."
        shapes = {(layer.query.kernel.shape[1], layer.key.kernel.shape[1]) for layer in attentions}
        if len(shapes) > 1:
            raise ValueError(
                "model must have as many heads in each layer, as transformers' settings say one number for all. Got "
                f"layers of {', '.join(f'{h} query and {k} key' for h, k in sorted(shapes))} heads. {remedy}"
            )
        if any(layer.kv_heads is not None for layer in attentions):
            raise ValueError(
                "model must have groups of equal size, query heads to a key head, as transformers' settings say no "
                f"other. Got unequal ones. {remedy}"
            )
        if getattr(stack, "biased_by_head", False) and any(layer.head_numbers is not None for layer in attentions):
            raise ValueError(
                "model must have all of its heads, as each has a bias of its own, which transformers finds by its "
                f"number. Got one of which some were pruned. {remedy}"
            )
        m, h, d = attentions[0].query.kernel.shape
        if not self._family().any_head_features and h * d != m:
            raise ValueError(
                f"model must have heads that together are as wide as the model, {m}, as transformers' settings say "
                f"nothing else. Got {h * d}. {remedy}"
            )


def family_of(config: Mapping[str, Any], kind: type[M] = PretrainedModel) -> type[M]:  # type: ignore[assignment]
    """The class for a configuration, which must be of a kind."""
    given = config.get("model_type")
    known = {name: cls for name, cls in FAMILIES.items() if issubclass(cls, kind)}
    if given not in known:
        raise ValueError(
            f"config must be of a model with a model_type among {', '.join(sorted(known))}. Got {given!r}. For another "
            "one write a subclass of jattn.models.TextDecoder or TextEncoder with a jattn.models.Family."
        )
    return known[given]


def _as_json(config: Mapping[str, Any]) -> str:
    try:
        return json.dumps(dict(config), indent=2, sort_keys=True)
    except (TypeError, ValueError) as error:
        raise ValueError(f"config must hold what JSON can, as transformers' to_dict gives it. Got {error}.") from error


def _shapes(model: nnx.Module) -> dict[str, tuple[int, ...]]:
    return {".".join(map(str, path)): x.shape for path, x in nnx.to_flat_state(nnx.state(model))}


def _floating_dtype(name: str, given: Any) -> Any:
    """The dtype that is meant, of floating-point numbers."""
    try:
        dtype = jnp.dtype(given)
    except TypeError:
        dtype = None
    if dtype is None or not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(f"{name} must be a floating-point dtype, such as jnp.bfloat16. Got {given!r:.80}.")
    return dtype


def folder_of(path: Any) -> Path:
    """The folder that a caller names."""
    if not isinstance(path, str | os.PathLike):
        raise ValueError(f"path must be a model's folder, a str or a Path. Got {path!r:.80}.")
    return Path(path)


def read_json(folder: Path, name: str, kind: type = dict, *, default: Any = None) -> Any:
    """What a JSON file holds; of one that is not there the default, or else a ValueError that names it."""
    path = folder / name
    if default is not None and not path.is_file():
        return default
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{folder} must be a model's folder with a readable {name}. Got {error}.") from error
    if not isinstance(content, kind):
        raise ValueError(f"{path} must hold a {kind.__name__}. Got a {type(content).__name__}.")
    return content
