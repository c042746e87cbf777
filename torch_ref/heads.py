"""Heads in the plainest PyTorch: their importance from whole weight matrices and gates, and their removal."""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from torch_ref.nn.multi_head import MultiHeadAttention
from torch_ref.nn.wide_multi_head import WideMultiHeadSelfAttention


def layers(model: nn.Module) -> dict[str, Any]:
    """The modules with heads, by name."""
    return {
        name: m for name, m in model.named_modules() if isinstance(m, MultiHeadAttention | WideMultiHeadSelfAttention)
    }


def counts(model: nn.Module) -> dict[str, int]:
    """How many heads each has."""
    return {
        name: layer.num_heads if isinstance(layer, MultiHeadAttention) else len(layer.query)
        for name, layer in layers(model).items()
    }


@contextmanager
def gated(model: nn.Module, gates: Mapping[str, Tensor]) -> Iterator[None]:
    """Within it, each head's output "*b t (h e)" has a factor before the output projection; gates "h"."""

    def multiply(h_gates: Tensor) -> Callable[..., Tensor]:
        return lambda module, args: (args[0].unflatten(-1, (len(h_gates), -1)) * h_gates[:, None]).flatten(-2)

    handles = [layers(model)[name].out.register_forward_pre_hook(multiply(g)) for name, g in gates.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def importance(
    model: nn.Module, batches: Sequence[Sequence[Tensor]], loss: Callable[[nn.Module, Sequence[Tensor]], Tensor]
) -> dict[str, dict[str, tuple[Tensor, Tensor]]]:
    """Layer -> metric -> (value "h", spread "h"), the mean over batches and their standard deviation.

    batches are tuples of tensors whose first axis counts the examples, loss(model, batch) is a mean over them.
    """
    sizes = torch.tensor([float(len(batch[0])) for batch in batches], dtype=torch.float64)
    share = (sizes / sizes.sum())[:, None]
    by_batch = [
        {name: {**of_weights[name], **of_gradients[name], **of_absence[name]} for name in layers(model)}
        for of_weights, of_gradients, of_absence in [
            (_of_weights(model, batch, loss), _of_gradients(model, batch, loss), _of_absence(model, batch, loss))
            for batch in batches
        ]
    ]
    result: dict[str, dict[str, tuple[Tensor, Tensor]]] = {}
    for name in layers(model):
        result[name] = {}
        for metric in by_batch[0][name]:
            values = torch.stack([of[name][metric] for of in by_batch])  # "batch h"
            mean = (share * values).sum(0)
            result[name][metric] = mean, (share * (values - mean) ** 2).sum(0).sqrt()
    return result


def _of_weights(model: nn.Module, batch: Sequence[Tensor], loss: Callable[..., Tensor]) -> dict[str, dict[str, Tensor]]:
    """From the whole weight matrices "b h t s", and what each head adds to the output, "b t h m"."""
    seen: dict[str, Any] = {}
    handles = []
    for name, layer in layers(model).items():

        def keep_heads(module: nn.Module, args: Any, name: str = name) -> None:
            seen[name] = {"heads": args[0]}

        def keep_weights(module: Any, args: Any, kwargs: Any, output: Any, name: str = name) -> None:
            heads = seen[name]["heads"]  # forward runs again, and with it the hook of its output projection
            seen[name] = {
                "heads": heads,
                "weights": module.forward(*args, **{**kwargs, "return_weights": True})[1],
                "self": len(args) == 1 and "key" not in kwargs,
                "valid_lens": kwargs.get("valid_lens"),
            }

        handles.append(layer.out.register_forward_pre_hook(keep_heads))
        handles.append(layer.register_forward_hook(keep_weights, with_kwargs=True))
    try:
        with torch.no_grad():
            loss(model, batch)
    finally:
        for handle in handles:
            handle.remove()
    return {name: _figures(layers(model)[name], **of) for name, of in seen.items()}


def _figures(layer: Any, heads: Tensor, weights: Tensor, valid_lens: Tensor | None, **rest: bool) -> dict[str, Tensor]:
    b, h, t, _ = weights.shape
    real = torch.ones(b, t, dtype=torch.bool)
    if rest["self"] and valid_lens is not None and valid_lens.ndim == 1:
        real = torch.arange(t) < valid_lens[:, None]
    added = torch.stack(  # what each head adds to the output
        [part @ w.T for part, w in zip(heads.chunk(h, -1), layer.out.weight.chunk(h, 1), strict=True)], dim=1
    )  # "b h t m"
    result: dict[str, list[Tensor]] = {}
    for i in range(h):
        counts = real & (weights[:, i].sum(-1) > 0)
        w, y = weights[:, i][counts], added[:, i][counts]  # "n s", "n m"
        figures = {
            "l1": w.abs().sum(-1).mean(),
            "l2": (w**2).sum(-1).sqrt().mean(),
            "entropy": torch.special.entr(w).sum(-1).mean(),
            "variance": w.var(0, correction=0).sum(),
            "output_variance": y.var(0, correction=0).sum(),
            "confidence": w.amax(-1).mean(),
        }
        for metric, value in figures.items():
            result.setdefault(metric, []).append(value)
    return {metric: torch.stack(values) for metric, values in result.items()}


def _ones(model: nn.Module) -> dict[str, Tensor]:
    return {name: torch.ones(h, dtype=torch.float64) for name, h in counts(model).items()}


def _of_gradients(
    model: nn.Module, batch: Sequence[Tensor], loss: Callable[..., Tensor]
) -> dict[str, dict[str, Tensor]]:
    """One example after the other."""
    slopes: dict[str, list[Tensor]] = {name: [] for name in layers(model)}
    for i in range(len(batch[0])):
        gates = {name: ones.requires_grad_() for name, ones in _ones(model).items()}
        with gated(model, gates):
            gradients = torch.autograd.grad(loss(model, [x[i : i + 1] for x in batch]), list(gates.values()))
        for name, gradient in zip(gates, gradients, strict=True):
            slopes[name].append(gradient)
    return {
        name: {"gradient": torch.stack(g).abs().mean(0), "taylor": (torch.stack(g) ** 2).mean(0)}
        for name, g in slopes.items()
    }


@torch.no_grad()
def _of_absence(model: nn.Module, batch: Sequence[Tensor], loss: Callable[..., Tensor]) -> dict[str, dict[str, Tensor]]:
    """The loss without a head, less the loss, one head after the other."""
    whole = loss(model, batch)
    result = {}
    for name, h in counts(model).items():
        rises = []
        for i in range(h):
            gates = _ones(model)[name]
            gates[i] = 0
            with gated(model, {name: gates}):
                rises.append(loss(model, batch) - whole)
        result[name] = {"leave_one_out": torch.stack(rises)}
    return result


def prune(model: nn.Module, heads: Mapping[str, Sequence[int]]) -> nn.Module:
    """A copy without these heads."""
    smaller = copy.deepcopy(model)
    for name, removed in heads.items():
        layer = layers(smaller)[name]
        kept = [h for h in range(counts(smaller)[name]) if h not in removed]
        if isinstance(layer, WideMultiHeadSelfAttention):
            for part in ("query", "key", "value"):
                setattr(layer, part, nn.ModuleList(getattr(layer, part)[h] for h in kept))
            layer.out = _columns(layer.out, kept, layer.out.in_features // (len(kept) + len(removed)))
            continue
        group = layer.num_heads // layer.num_kv_heads
        kv_heads = layer.kv_heads or [h // group for h in range(layer.num_heads)]
        used = sorted({kv_heads[h] for h in kept})
        d = layer.query.out_features // layer.num_heads
        e = layer.out.in_features // layer.num_heads
        layer.query = _rows(layer.query, kept, d)
        layer.key = _rows(layer.key, used, d)
        layer.value = _rows(layer.value, used, e)
        layer.out = _columns(layer.out, kept, e)
        layer.kv_heads = [used.index(kv_heads[h]) for h in kept]
        layer.num_heads, layer.num_kv_heads = len(kept), len(used)
    return smaller


def _rows(linear: nn.Linear, heads: list[int], width: int) -> nn.Linear:
    """Only the outputs of these heads."""
    index = torch.cat([torch.arange(h * width, (h + 1) * width) for h in heads])
    return _linear(linear.weight[index], None if linear.bias is None else linear.bias[index])


def _columns(linear: nn.Linear, heads: list[int], width: int) -> nn.Linear:
    """Only the inputs from these heads."""
    index = torch.cat([torch.arange(h * width, (h + 1) * width) for h in heads])
    return _linear(linear.weight[:, index], linear.bias)


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, dtype=weight.dtype)
    linear.weight = nn.Parameter(weight.detach().clone())
    if bias is not None:
        linear.bias = nn.Parameter(bias.detach().clone())
    return linear
