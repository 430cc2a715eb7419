"""How the pages of reports are made: HTML templates beside the code that fills them, and the macros that they share."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jinja2 import Template

HERE = Path(__file__).parent


def template(name: str, folder: Path = HERE) -> Template:
    """Return a template of a folder, in which those of this one may be used.

    It escapes what it is given, and what it is not given is an error.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(list(dict.fromkeys([folder, HERE]))),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(name)
