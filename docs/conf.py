"""How Sphinx builds the site: `make docs`. Nothing is fetched, no notebook is run."""

from importlib import metadata
from inspect import isfunction
from pathlib import Path
from shutil import copytree, ignore_patterns, rmtree

from docutils.nodes import Element, TextElement
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment

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


def find_reexported(
    app: Sphinx, env: BuildEnvironment, node: pending_xref, text: TextElement
) -> Element | None:
    """Resolve a name that a package takes from one of its modules."""
    package, _, name = node.get("reftarget", "").rpartition(".")
    if node.get("refdomain") != "py" or not package.startswith("mlxlab"):
        return None
    domain = env.domains.python_domain
    homes = [
        target
        for target in domain.objects
        if target.startswith(f"{package}.") and target.endswith(f".{name}")
    ]
    if len(homes) != 1:
        return None
    found: Element | None = domain.resolve_xref(
        env, node["refdoc"], app.builder, node["reftype"], homes[0], node, text
    )
    return found


def skip_foreign(
    app: Sphinx, what: str, name: str, member: object, skip: bool, options: object
) -> bool | None:
    """Leave out methods that other projects add, such as matplotlib's ``set``."""
    foreign = isfunction(member) and not member.__module__.startswith("mlxlab")
    return skip or foreign or None


def setup(app: Sphinx) -> None:
    """Copy the notebooks below the sources: links between them need that."""
    app.connect("missing-reference", find_reexported)
    app.connect("autodoc-skip-member", skip_foreign)
    copies = Path(app.srcdir, "notebooks")
    rmtree(copies, ignore_errors=True)
    ignored = ignore_patterns("*.cfg", ".ipynb_checkpoints")
    copytree(Path(app.srcdir).parent / "notebooks", copies, ignore=ignored)
