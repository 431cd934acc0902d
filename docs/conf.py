"""How Sphinx builds the site; `build.py` calls it."""

import inspect

from fastcore.docments import docments

project = "bloodcount"
author = "The bloodcount developers"
copyright = "the bloodcount developers, Apache-2.0"
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.autosummary"]
suppress_warnings = ["docutils"]  # Docstrings are plain sentences, with a stray asterisk now and then
html_theme = "sphinx_book_theme"
html_title = "bloodcount"
html_static_path = ["site.css"]
html_css_files = ["site.css"]
html_context = {"default_mode": "auto"}  # Light or dark, as the reader's system is
html_theme_options = {
    "show_navbar_depth": 1,
    "show_toc_level": 2,
    "use_download_button": False,
    "navbar_start": [],
    "navbar_center": [],
    "navbar_end": [],
    "navbar_persistent": [],
}
html_show_sphinx = False
html_show_sourcelink = False
html_copy_source = False

# The notebooks hold the outputs of their last run. Nothing is fetched: no widgets, no mathematics from elsewhere.
nb_execution_mode = "off"
nb_output_stderr = "remove"
nb_ipywidgets_js = {}
nb_code_prompt_show = nb_code_prompt_hide = "Imports"  # What is folded
myst_heading_anchors = 4

# Modules are imported for their docstrings, without the backend.
autodoc_mock_imports = ["keras", "tensorflow", "jax", "stardist"]
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_typehints = "signature"
default_role = "code"


def add_parameters(app, what, name, obj, options, lines) -> None:
    "Each parameter's comment in the source becomes a line of the docstring."
    if what not in ("function", "method") or not inspect.isroutine(obj):
        return
    try:
        known = docments(obj, full=True)
    except (OSError, TypeError, SyntaxError, ValueError):
        return
    comments = {key: about.get("docment") for key, about in known.items()}
    fields = [
        ("returns" if key == "return" else f"param {key}", text)
        for key, text in comments.items()
        if text
    ]
    if fields:
        lines += ["", *(f":{field}: {' '.join(text.split())}" for field, text in fields), ""]


def setup(app) -> None:
    app.connect("autodoc-process-docstring", add_parameters)
