"""Files: written so that readers see the old one or the whole new one, and read as if a stranger had made them."""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

_TEMPORARY = re.compile(r"\..+\.(json|jsonl|safetensors|html)\.[a-z0-9_]{8}")
LARGEST = 64 << 20  # bytes of a JSON file or a log; a plan for a million channels has a tenth of it


class DamagedFile(ValueError):
    """A file that is not what it should be; commands show the message in one line, whatever they wanted it for."""


def replace_file(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` make a file under a temporary name and rename it: readers see the old file or the whole new one.

    Parameters
    ----------
    path : Path
        The final name.
    write : callable
        Writes the file at the path it is given.
    """
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    os.close(handle)
    try:
        write(Path(temporary))
        _to_disk(Path(temporary))  # or, after a power cut, the name could be there and nothing in it
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)  # mkstemp's own mode would hide the file from everyone else
        os.replace(temporary, path)
        _to_disk(path.parent)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def remove_temporary(folder: Path) -> None:
    """Remove what `replace_file` has left in a folder when it was killed; nobody may be writing there."""
    for path in folder.glob(".*"):
        if _TEMPORARY.fullmatch(path.name):
            path.unlink()


def _to_disk(path: Path) -> None:
    """Wait until a file, or the names in a folder, have reached the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def cache_folder() -> Path:
    """Return the package's folder in the user's cache, by the XDG base directory specification."""
    given = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(given) if os.path.isabs(given) else Path.home() / ".cache") / "srr_ext"


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file through :func:`replace_file`."""
    replace_file(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_json(path: Path, value: Any) -> None:
    """Write indented JSON through :func:`replace_file`; a value that is not finite is an error."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises
    ------
    ValueError
        The file is missing or damaged.
    """
    content = read_bytes(existing(path))
    try:
        return parse_json(content.decode("utf-8"))
    except ValueError as error:
        raise DamagedFile(f"{path} is damaged ({error})") from error


def parse_json(text: str) -> Any:
    """Read JSON text.

    Raises
    ------
    ValueError
        It is none, or nested so deeply that reading it would exhaust the stack.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def read_bytes(path: Path) -> bytes:
    """Read a small file: no more than ``LARGEST`` bytes, whatever size it has or claims to have.

    Raises
    ------
    ValueError
        It is larger.
    """
    with path.open("rb") as file:
        content = file.read(LARGEST + 1)
    if len(content) > LARGEST:
        raise DamagedFile(f"{path} has more than {LARGEST >> 20} MiB, which no file of this kind has")
    return content


def existing(path: Path) -> Path:
    """Return the path of a file that is there; otherwise raise a ValueError that names it."""
    if not path.is_file():
        raise DamagedFile(f"there is no file {path}; is {path.parent} a run folder?")
    return path
