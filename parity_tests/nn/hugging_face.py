"""Attention classes of Hugging Face's `transformers`, on parameters that are named and laid out as jattn's are."""

import dataclasses
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from flax import nnx
from torch import Tensor
from torch.func import functional_call

from jattn.biases import Bias
from jattn.masks import Mask
from jattn.weights import state_dict

__all__ = ["Family", "Theirs", "bloom", "by_head", "concatenated", "mpnet", "renamed", "rotary", "t5"]

Parameters = Mapping[str, Tensor]
# From parameters, x "b t m", what their model makes of the mask, the real tokens "b t", all positions "b t", and more
# arrays, to output and weights.
Attend = Callable[..., tuple[Tensor, Tensor | None]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Family:
    """How jattn's module is configured, and the attention class of a family of models that it then is."""

    name: str
    folder: str  # in transformers.models
    attention: str  # a class there, ...
    config: str  # ... that of its config, ...
    settings: Mapping[str, Any]  # ... and what is in it
    layer: int = 0
    prepare: Callable[["Family", ModuleType, Any], Attend]  # makes the modules, and returns what calls them
    parameters: Callable[[Parameters], Parameters]  # theirs, of ours
    their_mask: str  # the function of transformers that their model calls for its mask
    implementations: tuple[str, ...] = ("eager", "sdpa")

    options: Mapping[str, Any]  # of our module
    mask: Mask | None  # ours, where there is no padding
    tokens: int = 7
    more: Mapping[str, tuple[int, ...]] = dataclasses.field(default_factory=dict)  # arrays by shape
    bias: Callable[..., Bias | None] = lambda: None  # ours, of these arrays

    def __str__(self) -> str:
        return self.name


class Theirs(torch.nn.Module):
    """An attention class of theirs as a function of the parameters of ``ours``."""

    def __init__(self, family: Family, implementation: str, ours: nnx.Module) -> None:
        super().__init__()
        for name, tensor in state_dict(ours).items():
            part, _, last = name.rpartition(".")
            if part not in dict(self.named_modules()):
                self.add_module(part, torch.nn.Module())
            self.get_submodule(part).register_parameter(last, torch.nn.Parameter(tensor))
        why = f"{family.name} was not compared, as transformers has no such attention"
        modeling = pytest.importorskip(f"transformers.models.{family.folder}.modeling_{family.folder}", reason=why)
        if not hasattr(modeling, family.attention):
            pytest.skip(why)
        config = getattr(modeling, family.config)(**family.settings, attn_implementation=implementation)
        self.to_theirs, self.attend = family.parameters, family.prepare(family, modeling, config)
        self.mask = _mask(family, config)

    def forward(self, query: Tensor, real: Tensor | None, positions: Tensor | None, **more: Tensor) -> Any:
        """``b t m``, which of these tokens are no padding, and where these are -> output, weights."""
        mask = self.mask(query, real)
        if real is None or positions is None:
            real = torch.ones(query.shape[:-1], dtype=torch.bool)
            positions = torch.arange(query.shape[-2]).expand(query.shape[:-1])
        return self.attend(self.to_theirs(dict(self.named_parameters())), query, mask, real, positions, **more)


def _mask(family: Family, config: Any) -> Callable[[Tensor, Tensor | None], Tensor | None]:
    from transformers import masking_utils

    make = getattr(masking_utils, family.their_mask)
    named = inspect.signature(make).parameters  # which had other names in transformers 5.0

    def mask(x: Tensor, real: Tensor | None) -> Tensor | None:
        given = {"config": config, "attention_mask": None if real is None else real.long()}
        given |= {"inputs_embeds": x, "input_embeds": x, "cache_position": torch.arange(x.shape[-2])}
        given |= {"cache": None, "past_key_values": None}
        return make(**{name: argument for name, argument in given.items() if name in named})

    return mask


# ----------------------------------------------------------------------------------------------------------------------
# Parameters: ours as theirs.


def renamed(**names: str) -> Callable[[Parameters], Parameters]:
    """Each part under the name that it has with them."""

    def theirs(ours: Parameters) -> Parameters:
        split = {name: name.partition(".") for name in ours}
        return {names.get(part, part) + dot + last: ours[name] for name, (part, dot, last) in split.items()}

    return theirs


def concatenated(ours: Parameters) -> Parameters:
    """All queries, then all keys, then all values."""
    packed = torch.cat([ours[f"{part}.weight"] for part in ("query", "key", "value")])
    return {"qkv_proj.weight": packed, "o_proj.weight": ours["out.weight"]}


def by_head(num_heads: int) -> Callable[[Parameters], Parameters]:
    """Query, key and value of the first head, then those of the second, and so on."""

    def theirs(ours: Parameters) -> Parameters:
        named = {f"dense.{last}": ours[f"out.{last}"] for last in ("weight", "bias")}
        for last in ("weight", "bias"):
            parts = [ours[f"{part}.{last}"].unflatten(0, (num_heads, -1)) for part in ("query", "key", "value")]
            named[f"query_key_value.{last}"] = torch.stack(parts, dim=1).flatten(0, 2)
        return named

    return theirs


# ----------------------------------------------------------------------------------------------------------------------
# How their models call their attention.


class Wide:
    """torch, in which float32 is float64."""

    float = float32 = torch.float64

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


@contextmanager
def in_float64(*modules: ModuleType) -> Iterator[None]:
    """Where they cast to float32 whatever the dtype of a model, as in norms, softmax, frequencies and angles, float64.

    They do so by ``torch.float32``, ``torch.float`` and ``x.float()``, and would otherwise agree with us to 1e-7 only.
    """
    with pytest.MonkeyPatch.context() as patch:
        for module in modules:
            patch.setattr(module, "torch", Wide())
        patch.setattr(torch.Tensor, "float", torch.Tensor.double)
        yield


def rotary(family: Family, modeling: ModuleType, config: Any) -> Attend:
    """The model turns positions into sines and cosines, once for all layers or for all of a type."""
    from transformers import modeling_rope_utils

    with in_float64(modeling, modeling_rope_utils):
        attention = getattr(modeling, family.attention)(config, family.layer).eval()
        embed = getattr(modeling, family.attention.replace("Attention", "RotaryEmbedding"))(config)
    by_type = isinstance(embed.rope_type, dict)  # as in Gemma 3
    of_layer = {"layer_type": config.layer_types[family.layer]} if by_type else {}

    def attend(parameters: Parameters, x: Tensor, mask: Any, real: Tensor, positions: Tensor) -> Any:
        with in_float64(modeling, modeling_rope_utils):
            arguments = {"position_embeddings": embed(x, positions, **of_layer), "attention_mask": mask}
            return functional_call(attention, parameters, (x,), arguments)

    return attend


def t5(family: Family, modeling: ModuleType, config: Any) -> Attend:
    """The first layer has the table and makes the bias of all layers out of it. Nothing is cast but distances."""
    if not hasattr(modeling, "ALL_ATTENTION_FUNCTIONS"):
        pytest.skip(f"{family.name} was not compared, as this transformers is older than its sdpa")
    layer = modeling.T5LayerSelfAttention(config, has_relative_attention_bias=True, layer_idx=0)
    attention = layer.SelfAttention.eval()

    def attend(
        parameters: Parameters, x: Tensor, mask: Any, real: Tensor, positions: Tensor, table: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        parameters = {**parameters, "relative_attention_bias.weight": table}
        output, _, weights = functional_call(attention, parameters, (x,), {"mask": mask})
        return output, weights

    return attend


def mpnet(family: Family, modeling: ModuleType, config: Any) -> Attend:
    """The encoder has the table and makes the bias of all layers out of it. Nothing is cast but distances."""
    attention = getattr(modeling, family.attention)(config).eval()
    encoder = modeling.MPNetEncoder

    def attend(
        parameters: Parameters, x: Tensor, mask: Any, real: Tensor, positions: Tensor, table: Tensor
    ) -> tuple[Tensor, Tensor]:
        of_table = SimpleNamespace(
            relative_attention_bias=lambda buckets: table[buckets],
            relative_position_bucket=encoder.relative_position_bucket,
        )
        bias = encoder.compute_position_bias(of_table, x)
        return functional_call(attention, parameters, (x, mask, bias), {"output_attentions": True})

    return attend


def bloom(family: Family, modeling: ModuleType, config: Any) -> Attend:
    """The model makes ALiBi's numbers out of the padding; the attention adds the residual, which is zero here."""
    attention = getattr(modeling, family.attention)(config, family.layer).eval()

    def attend(parameters: Parameters, x: Tensor, mask: Any, real: Tensor, positions: Tensor) -> Any:
        with in_float64(modeling):
            alibi = modeling.build_alibi_tensor(real.long(), config.n_head, x.dtype)
            arguments = {"residual": torch.zeros_like(x), "alibi": alibi, "attention_mask": mask}
            return functional_call(attention, parameters, (x,), arguments)

    return attend
