"""A document of sections, as Markdown with its pictures beside it, and as one HTML file with them inside."""

import base64
import html
import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

__all__ = ["Section", "html_page", "markdown", "picture_file", "png"]


class Section(NamedTuple):
    """A heading, text, a table (its first row the head) and a picture."""

    heading: str
    text: str
    table: Sequence[Sequence[str]] = ()
    picture: Any = None


def markdown(title: str, sections: Sequence[Section]) -> str:
    def cell(text: str) -> str:
        return text.replace("|", "\\|").replace("\n", " ")

    parts = [f"# {title}"]
    for section in sections:
        parts += [f"## {section.heading}", section.text]
        if section.table:
            head, *rows = [f"| {' | '.join(map(cell, row))} |" for row in section.table]
            parts.append("\n".join([head, "|" + "---|" * len(section.table[0]), *rows]))
        if section.picture is not None:
            parts.append(f"![{section.heading}]({picture_file(section.heading)})")
    return "\n\n".join(parts) + "\n"


_STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; font-size: 0.85rem; display: block; overflow-x: auto; margin: 1rem 0; }
th, td { border: 1px solid #8886; padding: 0.2rem 0.5rem; text-align: left; vertical-align: top; }
img { max-width: 100%; background: white; }
section:first-of-type p { font-size: 1.15rem; }
"""


def html_page(title: str, sections: Sequence[Section], images: Mapping[str, bytes]) -> str:
    escape: Callable[[str], str] = html.escape
    parts = []
    for section in sections:
        parts.append(f"<section><h2>{escape(section.heading)}</h2>\n<p>{escape(section.text)}</p>")
        if section.table:
            head, *rows = section.table
            parts.append("<table><tr>" + "".join(f"<th>{escape(x)}</th>" for x in head) + "</tr>")
            parts += ["<tr>" + "".join(f"<td>{escape(x)}</td>" for x in row) + "</tr>" for row in rows]
            parts.append("</table>")
        if section.heading in images:
            data = base64.b64encode(images[section.heading]).decode()
            parts.append(f'<img alt="{escape(section.heading)}" src="data:image/png;base64,{data}">')
        parts.append("</section>")
    body = "\n".join(parts)
    return (
        f'<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n<meta name="viewport" '
        f'content="width=device-width, initial-scale=1">\n<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n'
        f"<h1>{escape(title)}</h1>\n{body}\n</html>\n"
    )


def png(figure: Any) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=100)
    return buffer.getvalue()


def picture_file(heading: str) -> str:
    return "".join(c if c.isalnum() else "_" for c in heading.lower()).strip("_") + ".png"
