"""Matplotlib figures as SVG text for pages: real text, colours that follow the page, ids that do not clash."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK = "#000002"  # becomes currentColor: text, axes, outlines; plain black would not be written, as SVG's default
PAPER = "#fffffe"  # becomes the colour of the page, for holes
# Okabe and Ito's colours, which remain distinct without red, green or blue cones; the page may lighten or darken them.
PALETTE = ("#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#56b4e9", "#b0a000")
_NAMES = {INK: "currentColor", PAPER: f"var(--paper, {PAPER})"} | {
    colour: f"var(--c{number}, {colour})" for number, colour in enumerate(PALETTE, 1)
}
_FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif"
_SVG, _XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
_STYLE: Any = {  # matplotlib types the keys as a list of all settings
    "svg.fonttype": "none",
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.labelsize": 9,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.fontsize": 8.5,
    "legend.frameon": False,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.minor.width": 0.4,
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "savefig.facecolor": "none",
    "text.parse_math": False,
    "axes.formatter.use_mathtext": False,
    "path.simplify": False,
}


@contextmanager
def style(name: str) -> Iterator[None]:
    """Set what figures share for as long as one is drawn and written; ``name`` makes its ids its own."""
    import matplotlib as mpl

    with mpl.rc_context(_STYLE | {"svg.hashsalt": name}):
        yield


def clean(text: object, length: int = 40) -> str:
    """Make any name printable on one line: control characters are replaced, the middle of a long one is left out."""
    line = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in str(text))
    if len(line) > length:
        line = f"{line[: length // 2 - 1]}\N{HORIZONTAL ELLIPSIS}{line[len(line) - length // 2 :]}"
    return line


def to_svg(figure: Figure, name: str, title: str, description: str, *, shrinks: bool = False) -> str:
    """Write a figure as an SVG element.

    Parameters
    ----------
    figure : matplotlib.figure.Figure
        Drawn within :func:`style` of the same name, with `INK`, `PAPER` and `PALETTE` as its colours.
    name : str
        Prefix of all its ids.
    title, description : str
        For those who do not see it.
    shrinks : bool, default False
        Whether it may become as narrow as the page, because nobody has to read small letters in it.

    Returns
    -------
    str
        An ``<svg>`` element; the same text for the same figure.
    """
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    ElementTree.register_namespace("", _SVG)
    ElementTree.register_namespace("xlink", _XLINK)
    root = ElementTree.fromstring(buffer.getvalue())
    for metadata in root.findall(f"{{{_SVG}}}metadata"):
        root.remove(metadata)
    for element in root.iter():
        _adapt(element, name)
    width = float(root.attrib.pop("width").removesuffix("pt"))
    root.attrib.pop("height")
    root.attrib.pop("version", None)
    root.set("role", "img")
    root.set("aria-labelledby", f"{name}-title {name}-desc")
    root.set("style", f"--width: {width / 72 * 96:.0f}px" + ("; --least: 0px" if shrinks else ""))
    for place, (tag, text) in enumerate((("title", title), ("desc", description))):
        child = ElementTree.Element(f"{{{_SVG}}}{tag}", id=f"{name}-{tag}")
        child.text, child.tail = clean(text, 2000), "\n"
        root.insert(place, child)
    text = ElementTree.tostring(root, encoding="unicode")
    return re.sub(r"\s*\n\s*", "\n", text)


def _adapt(element: ElementTree.Element, name: str) -> None:
    """Make ids and references the figure's own, and colours the page's."""
    for key, value in list(element.attrib.items()):
        if key == "id":
            element.set(key, f"{name}-{value}")
        elif key.endswith("href"):
            element.set(key, value.replace("#", f"#{name}-", 1))
        elif "url(#" in value:
            element.set(key, value.replace("url(#", f"url(#{name}-"))
        elif key == "style":
            value = re.sub(r"'DejaVu Sans'(, [^;]*)?", _FONT, value)
            value = re.sub(r"#[0-9a-f]{6}\b", lambda found: _NAMES.get(found[0], found[0]), value)
            element.set(key, value)
    if element.tag == f"{{{_SVG}}}text" and "fill" not in element.get("style", ""):
        element.set("fill", "currentColor")
    if element.tag == f"{{{_SVG}}}style":  # applies to the whole page
        element.text = None
