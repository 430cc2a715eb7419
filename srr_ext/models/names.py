"""Say which known names are like an unknown one."""

from __future__ import annotations

import difflib
from collections.abc import Sequence


def nearest(name: str, known: Sequence[str]) -> str:
    """Say which known names are like the unknown one.

    Parameters
    ----------
    name : str
        What was asked for.
    known : sequence of str
        What there is.

    Returns
    -------
    str
        Such as ``"did you mean resnet20 or resnet20b?"``; all known names where none is near and they are few.
    """
    close = difflib.get_close_matches(name.lower(), known, n=3, cutoff=0.5)
    if close:
        return f"did you mean {' or '.join(close)}?"
    listed = ", ".join(known[:20]) + (", ..." if len(known) > 20 else "")
    return f"known are {listed}"


def reason(error: BaseException) -> str:
    """Return the first line of an exception's own text, or its class where it has none."""
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
