"""What is here, to be pasted into a report of a fault: python -m jattn."""

import platform
import re
from collections.abc import Iterator
from importlib import metadata

import jax
import jax.numpy as jnp

import jattn
from jattn import masks

__all__ = ["main"]

_SHAPE = (1, 4096, 8, 64)


def main() -> None:
    """Print versions, devices, which attention runs here, and which extras there are."""
    print(f"jattn {jattn.__version__}, Python {platform.python_version()}, {platform.platform()}")
    requirements = _requirements()
    needed = [name for name, extra in requirements if extra is None] or ["jax", "flax", "numpy"]
    print(", ".join(f"{name} {_version(name) or 'missing'}" for name in ("jaxlib", *needed)))
    devices = jax.devices()
    print(f"\n{len(devices)} x {devices[0].device_kind} ({devices[0].platform}), of {jax.process_count()} process")
    print(f"\nAttention, causal, {_SHAPE[1]:,} tokens, {_SHAPE[2]} heads of {_SHAPE[3]} features:")
    for dtype in ("float32", "bfloat16"):
        x = jax.ShapeDtypeStruct(_SHAPE, jnp.dtype(dtype))
        print(f"  {dtype}:", *_explained(x).splitlines(), sep="\n    ")
    extras = sorted({extra for _, extra in requirements if extra is not None})
    print("\nExtras:" if extras else "\nIt is not installed, so which extras there are is not known.")
    for extra in extras:
        missing = [name for name in _of_extra(extra, requirements) if _version(name) is None]
        print(f"  {extra}: " + (f'without {", ".join(missing)}: pip install -e ".[{extra}]"' if missing else "here"))


def _explained(x: jax.ShapeDtypeStruct) -> str:
    found: list[str] = []

    def look(x: jax.Array) -> jax.Array:
        found.append(str(jattn.explain(x, x, x, mask=masks.causal())))
        return x

    jax.eval_shape(look, x)
    return found[0]


def _requirements() -> list[tuple[str, str | None]]:
    """The packages that jattn names, each with its extra; None for those that it always needs."""
    try:
        lines = metadata.requires("jattn") or []
    except metadata.PackageNotFoundError:
        return []
    found = (re.match(r"([\w.-]+(?:\[[\w,-]+\])?)[^;]*(?:;.*extra == ['\"]([\w-]+)['\"])?", line) for line in lines)
    return [(one[1], one[2]) for one in found if one]


def _of_extra(extra: str, requirements: list[tuple[str, str | None]]) -> Iterator[str]:
    """Also what the extras need that it names."""
    for name, where in requirements:
        if where == extra and (others := re.fullmatch(r"jattn\[(.+)\]", name)):
            for other in others[1].split(","):
                yield from _of_extra(other, requirements)
        elif where == extra:
            yield name.partition("[")[0]


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


if __name__ == "__main__":
    main()
