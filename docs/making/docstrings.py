"""Docstrings and signatures on their way to a page, for Sphinx."""

import ast
import contextlib
import inspect
import re
import textwrap
from typing import Any

from sphinx.errors import PycodeError
from sphinx.pycode import ModuleAnalyzer
from sphinx.util.inspect import stringify_signature

__all__ = ["as_rst", "on_docstring", "on_signature", "on_skip", "shorter"]


def on_docstring(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Sphinx's event: the lines are changed in place, before Napoleon reads them."""
    lines[:] = as_rst("\n".join(lines)).splitlines()


def on_signature(
    app: Any, what: str, name: str, obj: Any, options: Any, arguments: str | None, returned: str | None
) -> tuple[str | None, str | None]:
    if what == "class" and arguments == "(*args: Any, **kwargs: Any)":  # Flax's metaclass stands before __init__
        signature = inspect.signature(obj.__init__)
        _, *own = signature.parameters.values()
        arguments = stringify_signature(
            signature.replace(parameters=own, return_annotation=signature.empty), unqualified_typehints=True
        )
    if what in ("function", "method"):
        _forget_overloads(obj.__module__)
    return shorter(arguments), shorter(returned)


def _forget_overloads(module: str) -> None:
    """They tell type checkers what an argument's value makes of the result; a page shows all arguments once."""
    with contextlib.suppress(PycodeError):
        analyzer = ModuleAnalyzer.for_module(module)
        analyzer.analyze()
        analyzer.overloads.clear()


def on_skip(app: Any, what: str, name: str, obj: Any, skip: bool, options: Any) -> bool | None:
    """The fields of a named tuple, which its own docstring speaks of."""
    return True if (getattr(obj, "__doc__", None) or "").startswith("Alias for field number") else None


def as_rst(text: str) -> str:
    """The docstring with indented blocks as literal ones, and each example at the level of the docstring.

    An example so ends the section of arguments that it follows.

    >>> text = "Twice x.\\n\\n    y = 2 * x\\n\\nArgs:\\n    x: a number.\\n\\n    >>> 1 + 1\\n    2"
    >>> print(as_rst(text).replace(">>>", "$"))
    Twice x.
    <BLANKLINE>
    .. code-block:: python
    <BLANKLINE>
        y = 2 * x
    <BLANKLINE>
    Args:
        x: a number.
    <BLANKLINE>
    $ 1 + 1
    2
    """
    text = text.replace("``*``", "``\\*``")
    blocks = re.split(r"\n\s*\n", text)
    written: list[str] = []
    inside, literal = False, False  # a section such as Args; a literal block that goes on
    for i, block in enumerate(blocks):
        indented = block.startswith("    ")
        if block.lstrip().startswith(">>> ") or (_example_goes_on(blocks, i) and indented):
            block, inside = textwrap.dedent(block), False
        elif not indented:
            inside = bool(re.match(r"\w+:(\n    |$)", block))
        elif not inside and not literal and not written[-1].endswith("::"):
            written.append(f".. code-block:: {_language(block)}")
            literal = True
        if not indented:
            literal = False
        written.append(block)
    return "\n\n".join(written)


def _example_goes_on(blocks: list[str], i: int) -> bool:
    return i > 0 and blocks[i - 1].rstrip().endswith("<BLANKLINE>")


def _language(block: str) -> str:
    try:
        ast.parse(textwrap.dedent(block))
    except SyntaxError:
        return "text"
    return "python"


def shorter(signature: str | None) -> str | None:
    """Without where JAX and jaxtyping keep their classes.

    >>> shorter("(x: jaxtyping.Float[jaxlib._jax.Array, '*b t'], dtype: ~typing.Any = <class 'jax.numpy.float32'>)")
    "(x: Float[Array, '*b t'], dtype: Any = float32)"
    """
    if signature is None:
        return None
    for pattern, short in (
        (r"\b(jaxlib\._jax|jaxtyping|collections\.abc|typing|flax\.nnx\.\w+)\.(?=\w)", ""),
        (r"\bnumpy\.", "np."),
        (r"Float\[ndarray|Int\[ndarray", lambda found: found[0].replace("ndarray", "np.ndarray")),
        (r"~(?=[A-Za-z])(?!jattn)", ""),
        (r"<function \S+( at \w+)?>", "..."),
        (r"<class '(?:\w+\.)*(\w+)'>", r"\1"),
        (r"Key\[Array, ''\] \| UInt32\[Array, '2'\] \| UInt32\[Array, '4'\]", "PRNGKeyArray"),
    ):
        signature = re.sub(pattern, short, signature)
    return signature
