"""Formulas as MathML, which browsers show by themselves: no script, and nothing is loaded."""

import re
from typing import Any

from docutils import nodes
from docutils.utils.math import latex2mathml

__all__ = ["on_setup"]


def on_setup(app: Any) -> None:
    """To Sphinx: the renderer of its name."""
    app.add_html_math_renderer("mathml", inline_renderers=(_inline, None), block_renderers=(_block, None))


def _inline(writer: Any, node: Any) -> None:
    writer.body.append(_mathml(node, as_block=False))
    raise nodes.SkipNode


def _block(writer: Any, node: Any) -> None:
    writer.body.append(f'<div class="formula">{_mathml(node, as_block=True)}</div>\n')
    raise nodes.SkipNode


def _mathml(node: Any, *, as_block: bool) -> str:
    """What docutils makes of it, which knows ``\\bigl``, ``\\bigr`` and ``\\ldots``, but not their short forms."""
    formula = re.sub(r"\\([bB]ig)(?=[)\]])", r"\\\1r", node.astext())
    formula = re.sub(r"\\([bB]ig)(?=\W)", r"\\\1l", formula)
    return latex2mathml.tex2mathml(formula.replace(r"\dots", r"\ldots"), as_block=as_block)
