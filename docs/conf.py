"""How Sphinx builds these pages: `make docs`."""

import sys
from pathlib import Path

from docutils import nodes
from latex2mathml.converter import convert
from numpy.typing import ArrayLike
from sphinx.application import Sphinx
from sphinx.util.typing import stringify_annotation
from sphinx.writers.html5 import HTML5Translator

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE)]

import generated  # noqa: E402  # both paths have to be known first

project = "fewshot"
author = "the fewshot authors"
html_title = "fewshot"
html_theme = "furo"
html_math_renderer = "mathml"
html_static_path = ["style.css"]
html_css_files = ["style.css"]
html_show_copyright = False
html_copy_source = False
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
napoleon_use_ivar = True  # else fields of dataclasses would be described twice
nitpicky = True
# Annotations also name what other libraries and inner modules define, which has no page here.
nitpick_ignore_regex = [(r"py:.*", r"(?!fewshot\.\w+$).*")]
default_role = "code"  # what docstrings mean by `...`


def inline(translator: HTML5Translator, node: nodes.math) -> None:
    """Write $...$ as MathML, which browsers draw themselves: no script and no network."""
    translator.body.append(convert(node.astext()))
    raise nodes.SkipNode


def displayed(translator: HTML5Translator, node: nodes.math_block) -> None:
    """Write $$...$$ likewise."""
    equation = convert(node.astext(), display="block")
    translator.body.append(f'<div class="math">{equation}</div>')
    raise nodes.SkipNode


def by_its_name(
    app: object,
    kind: str,
    name: str,
    thing: object,
    options: object,
    signature: str | None,
    returned: str | None,
) -> tuple[str | None, str | None]:
    """The signature with `ArrayLike` in it, and not the dozen types which that stands for."""
    spelled_out = stringify_annotation(ArrayLike, "smart")
    return signature and signature.replace(spelled_out, "ArrayLike"), returned


def setup(app: Sphinx) -> None:
    """Tell Sphinx of what is written at build time."""
    app.add_html_math_renderer("mathml", (inline, None), (displayed, None))
    app.connect("source-read", generated.fill)
    app.connect("autodoc-skip-member", generated.of_scikit_learn)
    app.connect("autodoc-process-signature", by_its_name)
