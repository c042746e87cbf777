"""What PyTorch's attention starts from: queries, keys and values among the submodules of a site.

They are found by the names of the submodules, packed in one, inside torch.nn.MultiheadAttention, or given to the site.
"""

import itertools
from collections import defaultdict
from collections.abc import Iterator

import numpy as np

from jattn.parity.arrays import is_floating
from jattn.parity.attention_recipe import Projections
from jattn.parity.cause import agreed_within, is_own, maps_within
from jattn.parity.locate import Site
from jattn.parity.trace import ModuleCall

__all__ = ["AS_THEY_ARE", "projections_at"]

AS_THEY_ARE = "as they are"
WORDS = {"q": ("q", "query", "wq", "qs"), "k": ("k", "key", "wk", "ks"), "v": ("v", "value", "wv", "vs")}
PACKED = ("qkv", "c_attn", "attn_in", "in_proj", "query_key_value")


def projections_at(site: Site, h: int) -> Iterator[tuple[Projections, list[str]]]:
    """For so many heads, and which of the sources may be PyTorch's."""
    for sources, right in itertools.chain(_separate(site), _packed(site, h), _given(site)):
        for out in _outs(site):
            yield Projections(sources, out), right
    for call in site.torch_calls:
        own = next((layer.parameters for layer in site.layers if layer.name == call.path), {})
        if "in_proj_weight" in own and call.path not in agreed_within(site) and is_own(site, call.path):
            for x in _of_multihead_attention([x for x in call.inputs if is_floating(x)], own):
                yield x, [AS_THEY_ARE]


def _outs(site: Site) -> list[tuple[np.ndarray, np.ndarray] | None]:
    """What follows the heads: nothing, or a projection that is no call of its own."""
    if site.where.startswith("the input"):
        return [None]
    return [None, *maps_within(site)]


# ----------------------------------------------------------------------------------------------------------------------
# By the names of the submodules.


def _separate(site: Site) -> Iterator[tuple[dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]], list[str]]]:
    groups: dict[str, dict[str, list[ModuleCall]]] = defaultdict(lambda: defaultdict(list))
    for call in site.torch_calls:
        parent, _, name = call.path.rpartition(".")
        for role in "qkv":
            if call.outputs and call.path != site.torch_name and _plays(name.lower(), role):
                groups[parent][role].append(call)
    agreed = agreed_within(site)
    for parent, roles in groups.items():
        # What has parted already is no source.
        parted = any(call.path in site.pairs and call.path not in agreed for calls in roles.values() for call in calls)
        if len(roles) < 3 or parent in agreed or parted or not is_own(site, parent):
            continue
        v = _tokens(roles["v"][-1].outputs[0])
        chains = [_chain(roles[role]) for role in "qk"]
        q, k = chains[0][-1], chains[1][-1]
        sources = {AS_THEY_ARE: (q, k, v)}
        if len(chains[0]) > 1 and len(chains[1]) > 1:
            sources["neither queries nor keys are normed"] = (chains[0][-2], chains[1][-2], v)
        if len(chains[0]) > 1:
            sources["queries are not normed"] = (chains[0][-2], k, v)
        if len(chains[1]) > 1:
            sources["keys are not normed"] = (q, chains[1][-2], v)
        yield sources, [AS_THEY_ARE]


def _plays(name: str, role: str) -> bool:
    """Whether a submodule's name says that it makes queries, keys or values."""
    return any(part in WORDS[role] for part in name.split("_")) or (WORDS[role][1] in name and "_" not in name)


def _chain(calls: list[ModuleCall]) -> list[np.ndarray]:
    """A projection and what follows it, such as a norm, as ``b t (h d)`` each."""
    made = [_tokens(calls[0].outputs[0])]
    for call in calls[1:]:
        x, y = call.inputs[0], call.outputs[0]
        b, t, width = made[-1].shape
        if y.ndim == 4 and x.shape == y.shape and y.size == made[-1].size:
            # In which layout were the heads when they went in?
            turned = np.array_equal(x.swapaxes(1, 2).reshape(-1), made[-1].reshape(-1))
            turned = turned or (y.shape[1] != t and y.shape[2] == t)
            y = y.swapaxes(1, 2) if turned else y
        made.append(y.reshape(b, t, width) if y.size == made[-1].size else _tokens(y))
    return made


def _tokens(x: np.ndarray) -> np.ndarray:
    return x[None] if x.ndim == 2 else x if x.ndim == 3 else x.reshape(*x.shape[:2], -1)


# ----------------------------------------------------------------------------------------------------------------------
# Packed in one.


def _packed(site: Site, h: int) -> Iterator[tuple[dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]], list[str]]]:
    agreed = agreed_within(site)
    for call in site.torch_calls:
        if call.path == site.torch_name or not call.outputs or not call.inputs or call.outputs[0].ndim < 2:
            continue
        parent = call.path.rpartition(".")[0]
        if parent in agreed or not is_own(site, parent):
            continue
        y, name = call.outputs[0], call.path.rpartition(".")[2].lower()
        thirds = y.shape[-1] == 3 * call.inputs[0].shape[-1]
        if thirds or any(word in name for word in PACKED):
            y = _tokens(y)
            for g in dict.fromkeys([h, *(g for g in (*site.heads, 1) if h % g == 0)]):
                if y.shape[-1] % (h + 2 * g) == 0:
                    sources = _orders_of_pack(y, h, g)
                    yield sources, list(sources)


def _orders_of_pack(y: np.ndarray, h: int, g: int) -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """By how the last axis may be laid out: h query heads, g of keys and of values."""
    b, t, width = y.shape
    d = width // (h + 2 * g)
    q, k, v = np.split(y, [h * d, (h + g) * d], -1)
    found = {"(3 h d)" if g == h else "queries, keys, values": (q, k, v)}
    if g == h:
        x = y.reshape(b, t, h, 3, d)
        found["(h 3 d)"] = tuple(x[..., i, :].reshape(b, t, h * d) for i in range(3))  # type: ignore[assignment]
        x = y.reshape(b, t, h, d, 3)
        found["(h d 3)"] = tuple(x[..., i].reshape(b, t, h * d) for i in range(3))  # type: ignore[assignment]
    else:
        x = y.reshape(b, t, g, h // g + 2, d)
        found["groups of queries, key, value"] = (
            x[..., :-2, :].reshape(b, t, h * d),
            x[..., -2, :].reshape(b, t, g * d),
            x[..., -1, :].reshape(b, t, g * d),
        )
    return found


# ----------------------------------------------------------------------------------------------------------------------
# Given to the site, or inside torch.nn.MultiheadAttention.


def _given(site: Site) -> Iterator[tuple[dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]], list[str]]]:
    """Of a module that takes queries, keys and values and has no parameters."""
    given = [x.array for x in site.inputs if x.array.ndim in (3, 4)][:3]
    if len(given) < 3 or any(layer.name.startswith(site.torch_name) for layer in site.layers):
        return
    yield {AS_THEY_ARE: (_tokens(given[0]), _tokens(given[1]), _tokens(given[2]))}, [AS_THEY_ARE]
    if all(x.ndim == 4 for x in given):
        q, k, v = (_tokens(x.swapaxes(1, 2)) for x in given)
        yield {AS_THEY_ARE: (q, k, v)}, [AS_THEY_ARE]


def _of_multihead_attention(given: list[np.ndarray], own: dict[str, np.ndarray]) -> Iterator[Projections]:
    """torch.nn.MultiheadAttention's, which may have time first inside of a module that has the batch first."""
    weight, out = own["in_proj_weight"], own["out_proj.weight"]
    given = [x for x in given if x.shape[-1] == weight.shape[1] and x.ndim > 1]
    if not given:
        return
    given = [given[0]] * 3 if len(given) < 3 else given[:3]
    biases = np.split(own.get("in_proj_bias", np.zeros(len(weight))), 3)
    last = out, own.get("out_proj.bias", np.zeros(len(out)))
    for inside, outside in ((False, False), (True, True), (True, False)):
        turned = [_tokens(x).swapaxes(0, 1) if inside else _tokens(x) for x in given]
        plain = [x @ w.T for x, w in zip(turned, np.split(weight, 3), strict=True)]
        q, k, v = (x + bias for x, bias in zip(plain, biases, strict=True))
        yield Projections({AS_THEY_ARE: (q, k, v), "without biases": (plain[0], plain[1], plain[2])}, last, outside)
