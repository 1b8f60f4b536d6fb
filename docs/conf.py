"""Settings of the site: `make docs` builds it into docs/_build, with warnings as errors."""

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE / "_ext")]
import simulator  # noqa: E402

project = "Modality-gap simulator"
author = "The modality-gap-simulator developers"
copyright = author
release = simulator.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx-mathjax-offline",  # formulas are set without a network
    "sphinx_copybutton",
    "stored",
    "docstrings",
]
exclude_patterns = ["_build", "_ext"]
default_role = "code"

# Notebooks are Markdown. A test executes them; a build trains nothing.
nb_execution_mode = "off"
myst_enable_extensions = ["amsmath", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 4
suppress_warnings = ["misc.highlighting_failure"]  # the output of a command is not Python

autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_typehints = "signature"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_param = False  # one entry may name several arguments
napoleon_use_rtype = False
napoleon_custom_sections = [("Attributes", "params_style"), "Assumes", "Error", "Source"]

html_theme = "furo"
html_title = project
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#0072B2", "color-brand-content": "#0072B2"},
    "dark_css_variables": {"color-brand-primary": "#56B4E9", "color-brand-content": "#56B4E9"},
}
html_static_path = ["_static"]
html_css_files = ["site.css"]
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True
