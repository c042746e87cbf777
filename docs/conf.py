"""The site: `sphinx-autobuild docs build/site` shows it while it is written."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import jattn  # noqa: E402
from docs.making import docstrings, drawing, formulas, notebooks, tables  # noqa: E402

project = "jattn"
author = copyright = "The jattn authors"
version = release = jattn.__version__

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]
exclude_patterns = ["making", "_static", "_extra", "**/.ipynb_checkpoints"]

myst_enable_extensions = ["dollarmath"]
html_math_renderer = "mathml"
myst_heading_anchors = 3
nb_execution_mode = "cache"  # a notebook runs where it has changed
nb_execution_cache_path = str(ROOT / "build" / "notebooks")
nb_execution_raise_on_error = True
nb_execution_timeout = 300

# Docstrings: a name in single backticks is one of ours, or stays as it is.
default_role = "py:obj"
autodoc_default_options = {"members": True, "member-order": "bysource"}
autodoc_typehints = "signature"
autodoc_class_signature = "mixed"
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_use_param = False
napoleon_custom_sections = [("Attributes", "params_style")]
python_maximum_signature_line_length = 88
add_module_names = False
toc_object_entries_show_parents = "hide"

html_theme = "sphinx_book_theme"
html_title = "jattn"
html_static_path = ["_static"]
html_extra_path = ["_extra"]
html_css_files = ["site.css"]
html_show_sphinx = False
html_copy_source = False
html_theme_options = {
    "show_navbar_depth": 1,
    "show_toc_level": 2,
    "footer_content_items": [],
    "use_download_button": False,
    "use_fullscreen_button": False,
    "navbar_persistent": [],
}
copybutton_exclude = ".linenos, .gp, .go"
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True


def setup(app):
    formulas.on_setup(app)
    app.connect("builder-inited", notebooks.on_start)
    app.connect("source-read", drawing.on_source)
    app.connect("doctree-read", tables.on_doctree)
    app.connect("autodoc-process-docstring", docstrings.on_docstring, priority=400)  # before Napoleon
    app.connect("autodoc-process-signature", docstrings.on_signature)
    app.connect("autodoc-skip-member", docstrings.on_skip)
