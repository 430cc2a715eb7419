"""Show the package's numpydoc docstrings in Markdown pages: formulas become drawings, roles become code.

Used by mkdocs.yml. Formulas are set by matplotlib, so that pages need no script and no network.
"""

from __future__ import annotations

import base64
import html
import io
import re

import griffe

_STYLE = "<style>svg{color:#24292f}@media (prefers-color-scheme:dark){svg{color:#e3e6ea}}</style>"
_BLOCK = re.compile(r"^( *)\.\. math::[ ]*(.*(?:\n(?:\1 +\S.*|[ ]*(?=\n\1 +\S)))*)", re.MULTILINE)
_INLINE = re.compile(r":math:`([^`]+)`")
_ROLE = re.compile(r":(?:func|class|meth|mod|attr|data|obj):`~?([^`]+)`")


def formula(tex: str) -> str:
    """Return a formula as a picture, in the text colour of a light or of a dark page.

    Parameters
    ----------
    tex : str
        What stands between dollar signs.

    Returns
    -------
    str
        One HTML tag; if matplotlib cannot set the formula, its text as code.
    """
    import matplotlib
    from matplotlib.font_manager import FontProperties
    from matplotlib.mathtext import math_to_image

    tex = " ".join(tex.split())
    file = io.StringIO()
    # mathtext knows these under other names, and wants braces
    known = tex.replace(r"\lVert", r"\|").replace(r"\rVert", r"\|").replace(r"\le ", r"\leq ")
    known = re.sub(r"\\sqrt (\w)", r"\\sqrt{\1}", known)
    with matplotlib.rc_context({"svg.hashsalt": tex, "mathtext.fontset": "cm", "svg.fonttype": "path"}):
        try:
            depth = math_to_image(f"${known}$", file, prop=FontProperties(size=11), format="svg", color="#010203")
        except ValueError:
            return f"<code>{html.escape(tex)}</code>"
    svg = re.sub(r"<metadata>.*?</metadata>", "", file.getvalue(), flags=re.DOTALL)
    svg = re.sub(r'<g id="patch_1">.*?</g>', "", svg, flags=re.DOTALL)  # the page behind it
    svg = re.sub(r"(<svg [^>]*>)", rf"\1{_STYLE}", svg.replace("#010203", "currentColor"), count=1)
    data = base64.b64encode(svg.encode()).decode()
    style = f"vertical-align:{-depth:.1f}px"
    return f'<img class="tex" alt="{html.escape(tex)}" style="{style}" src="data:image/svg+xml;base64,{data}">'


def to_markdown(text: str) -> str:
    """Return a docstring without the markup that Markdown does not know.

    Parameters
    ----------
    text : str
        Of the docstring.

    Returns
    -------
    str
    """
    text = _BLOCK.sub(lambda match: f"{match[1]}<p class='formula'>{formula(match[2])}</p>", text)
    text = _INLINE.sub(lambda match: formula(match[1]), text)
    return _ROLE.sub(lambda match: f"`{match[1]}`", text)


class Docstrings(griffe.Extension):
    """Translates every docstring as it is collected."""

    def on_object(self, *, obj: griffe.Object, **_: object) -> None:
        """Translate one."""
        if obj.docstring is not None:
            obj.docstring.value = to_markdown(obj.docstring.value)
