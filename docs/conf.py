"""How Sphinx builds the site: `make docs`. Nothing is fetched, no notebook is run."""

from importlib import metadata
from pathlib import Path
from shutil import copytree, ignore_patterns, rmtree

from sphinx.application import Sphinx

project = "mlxlab"
copyright = "The mlxlab authors"
release = metadata.version("mlxlab")

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
]
templates_path = ["_templates"]

# References to mlxlab must resolve; those to other projects would need their indexes.
nitpicky = True
nitpick_ignore_regex = [
    ("py:.*", r"(?!mlxlab\.).*"),
    # Private names and type variables in signatures.
    ("py:.*", r"mlxlab\.(.*\.)?(_.*|[A-Z])"),
]
# Short names in signatures may name a class and its public alias: either will do.
suppress_warnings = ["ref.python"]

myst_heading_anchors = 3
nb_execution_mode = "off"
# It defaults to scripts of a CDN. Progress bars are shown as text instead.
nb_ipywidgets_js: dict[str, dict[str, str]] = {}
nb_mime_priority_overrides = [("*", "application/vnd.jupyter.widget-view+json", None)]

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_inherit_docstrings = False
napoleon_numpy_docstring = False
napoleon_use_ivar = True

html_theme = "furo"
html_title = "mlxlab"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False


def setup(app: Sphinx) -> None:
    """Copy the notebooks below the sources: links between them need that."""
    copies = Path(app.srcdir, "notebooks")
    rmtree(copies, ignore_errors=True)
    ignored = ignore_patterns("*.cfg", ".ipynb_checkpoints")
    copytree(Path(app.srcdir).parent / "notebooks", copies, ignore=ignored)
