"""The notebooks, which are Python with comments, as notebooks that the site runs and shows."""

from pathlib import Path
from typing import Any

import jupytext

__all__ = ["on_start", "written"]


def on_start(app: Any) -> None:
    """Sphinx's event: before pages are looked for."""
    written(Path(app.srcdir).parent / "notebooks", Path(app.srcdir) / "notebooks")


def written(source: Path, target: Path) -> list[Path]:
    """Each notebook of a folder in another one, where it has changed."""
    target.mkdir(exist_ok=True)
    paths = []
    for file in sorted(source.glob("*.py")):
        cells = jupytext.read(file)
        for i, cell in enumerate(cells["cells"]):
            cell["id"] = f"cell-{i}"  # or it would be another one each time
        notebook = jupytext.writes(cells, fmt="ipynb")
        paths.append(target / f"{file.stem}.ipynb")
        if not paths[-1].exists() or paths[-1].read_text(encoding="utf-8") != notebook:
            paths[-1].write_text(notebook, encoding="utf-8")
    return paths
