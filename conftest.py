"""In the tests, and only there, beartype checks every jaxtyping annotation of jattn."""

from jaxtyping import install_import_hook

install_import_hook("jattn", "beartype.beartype")
