"""How Sphinx builds the site: `make docs`, then open docs/_build/html/docs/index.html. The guides are Markdown."""

import maml

project, author = "maml", "the maml developers"
version = release = maml.__version__
html_title = f"maml {release}"
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
html_theme = "furo"
root_doc = "docs/index"  # of the whole repository, so that links between its pages hold
include_patterns = ["*.md", "docs/*.md", "docs/*.ipynb", "[a-z]*/README.md", "pretrained/**/README.md"]
include_patterns += ["tests/core/golden/README.md"]
nb_execution_mode = "off"  # shown as it was run; a test runs it
default_role = "code"
myst_heading_anchors = 3  # links to headings, as the forge makes them
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
napoleon_google_docstring, napoleon_numpy_docstring = True, False
