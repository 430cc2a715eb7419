"""From a configuration dataclass to flags, and from errors to one line that names the flag."""

from __future__ import annotations

import inspect
import re
import reprlib
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import MISSING, Field, fields, is_dataclass
from pathlib import Path
from typing import Any, NoReturn, TypeVar, get_args, get_origin, get_type_hints

import yaml
from jsonargparse import ActionYesNo, ArgumentParser, Namespace

from srr_ext.data.base import BadImage
from srr_ext.files import DamagedFile
from srr_ext.processes import is_first, leave, let_the_first_speak, started, together

C = TypeVar("C")

_LARGEST_CONFIG = 1 << 20  # characters; a configuration with every setting has 3,000
_DEEPEST_CONFIG = 20  # brackets in brackets; the settings of a command have two
_LONGEST_LINE = 2000  # characters of a message
_FIELD_DOC = re.compile(r"^(\w+) : .*\n((?:    .+\n?)+)", re.MULTILINE)


class UsageError(Exception):
    """Something the user can put right: shown in one line, with exit code 2.

    Parameters
    ----------
    flag : str
        The flag to change, e.g. ``--data``; may be empty.
    message : str
        What is wrong and what to do.
    """

    def __init__(self, flag: str, message: str) -> None:
        super().__init__(one_line(f"{flag}: {message}" if flag else message))


def one_line(text: str) -> str:
    """Make a line of a text that may quote a file: nothing that a terminal would obey, and not too long to be read."""
    line = " ".join(text.split())
    line = "".join(character if character.isprintable() else repr(character)[1:-1] for character in line)
    return line if len(line) <= _LONGEST_LINE else f"{line[:_LONGEST_LINE]} ..."


@contextmanager
def blame(flag: str, config: type | None = None, **groups: type) -> Iterator[None]:
    """Turn the errors that bad values cause into a :class:`UsageError` of this flag.

    Parameters
    ----------
    flag : str
        E.g. ``--weights``.
    config : type, optional
        A dataclass: a message that begins with the name of one of its fields (``floor must be ...``) blames that one.
    **groups : type
        Dataclasses that are groups of flags, by name: ``fine_tune=TrainConfig`` for ``--fine-tune.lr``.
    """
    try:
        with blame_images():
            yield
    except (ValueError, TypeError, OSError) as error:
        message = str(error) or type(error).__name__
        flags = {entry.name: flag_of(entry.name) for entry in fields(config)} if config else {}
        for group, kind in groups.items():
            flags |= {entry.name: flag_of(f"{group}.{entry.name}") for entry in fields(kind)}
        flags[flag.removeprefix("--").replace("-", "_")] = flag
        first = re.match(r"(\w+)(?:: | )", message)
        if first and first[1] in flags:
            flag, message = flags[first[1]], message[first.end() :]
        raise UsageError(flag, message) from error


@contextmanager
def blame_images() -> Iterator[None]:
    """Turn an image that cannot be used into a :class:`UsageError` of ``--data``, whatever it was wanted for."""
    try:
        yield
    except BadImage as error:
        raise UsageError(flag_of("data"), str(error).removeprefix("data: ")) from error


def flag_of(name: str) -> str:
    """Return the flag of a configuration field: ``--keep-macs`` for ``keep_macs``."""
    return "--" + name.replace("_", "-")


class _Parser(ArgumentParser):
    """A parser whose errors are one line."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print ``prog: error: what`` and exit with code 2."""
        let_the_first_speak()
        sys.stderr.write(f"{self.prog}: error: {one_line(_shortened(message))}\n")
        sys.exit(2)

    def parse_path(self, *arguments: Any, **keywords: Any) -> Any:
        """Read a file of settings that ``--config`` names, or one that such a file names."""
        if (path := Path(_first(arguments, keywords))).is_file():
            with path.open(encoding="utf-8") as file:
                check_settings(file.read(_LARGEST_CONFIG + 1))
        return super().parse_path(*arguments, **keywords)

    def parse_string(self, *arguments: Any, **keywords: Any) -> Any:
        """Read settings that stand in place of such a file."""
        check_settings(_first(arguments, keywords))
        return super().parse_string(*arguments, **keywords)


def _first(arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
    """Return the first argument, whose name differs between versions of jsonargparse."""
    return arguments[0] if arguments else next(iter(keywords.values()))


def check_settings(text: str) -> None:
    """Refuse YAML that no configuration needs: huge, nested deeply, or with aliases, which multiply.

    Raises
    ------
    UsageError
        It says which.
    """
    if len(text) > _LARGEST_CONFIG:
        raise UsageError("--config", "the file is too large for settings; is it another one?")
    depth = 0
    with suppress(yaml.YAMLError):  # which is told when the file is read
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            if isinstance(event, yaml.AliasEvent):
                raise UsageError("--config", "the file has an alias (*name); write the value again in its place")
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > _DEEPEST_CONFIG:
                raise UsageError("--config", "the file is nested too deeply for settings; is it another one?")


def make_parser(config: type[C], prog: str) -> ArgumentParser:
    """Return a parser with one flag per field of the dataclass.

    Parameters
    ----------
    config : type
        A dataclass; the Attributes section of its docstring is the help text. Fields that are dataclasses themselves
        become groups with dotted flags; an attribute ``SHORT`` maps dotted keys to a second spelling of their flags,
        ``NAMES`` to what lists the names they take.
    prog : str
        Name of the command.

    Returns
    -------
    jsonargparse.ArgumentParser
        It also has ``--config FILE`` (YAML or JSON) and ``--print_config``.
    """
    summary = inspect.cleandoc(config.__doc__ or "").split("\n\n")[0]
    parser = _Parser(prog=prog, description=summary, default_env=False)
    parser.add_argument("--config", action="config", help="YAML or JSON file with any of these settings.")
    groups: dict[str, Any] = {"": parser}
    short: dict[str, str] = getattr(config, "SHORT", {})
    names_of: dict[str, Callable[[], list[str]]] = getattr(config, "NAMES", {})
    for key, kind, default, text in _flat(config):
        if key in names_of:  # those of installed packages among them
            text = f"{text} There are: {', '.join(names_of[key]())}."
        prefix = key.rpartition(".")[0]
        if prefix not in groups:
            groups[prefix] = parser.add_argument_group(prefix.replace("_", "-"), _field_texts(config)[prefix])
        names = [flag_of(key)] + ([short[key]] if key in short else [])
        if kind is bool:
            groups[prefix].add_argument(*names, action=ActionYesNo(no_prefix="no-"), default=default, help=text)
        elif get_origin(kind) is tuple:
            groups[prefix].add_argument(*names, nargs="*", type=get_args(kind)[0], default=list(default), help=text)
        else:
            groups[prefix].add_argument(*names, type=kind, default=default, help=text)
    return parser


def parse(config: type[C], argv: Sequence[str] | None, prog: str) -> C:
    """Read the command line into the dataclass.

    Parameters
    ----------
    config : type
        The dataclass.
    argv : sequence of str or None
        Arguments; None takes those of the process.
    prog : str
        Name of the command.

    Returns
    -------
    object
        An instance of ``config``.

    Raises
    ------
    UsageError
        A value that a dataclass refuses.
    SystemExit
        With code 2 for a bad flag, 0 after ``--help`` and ``--print_config``.
    """
    try:
        values = make_parser(config, prog).parse_args(argv)
    except UnicodeDecodeError as error:
        raise UsageError("--config", f"the file is not text in UTF-8 ({error})") from error
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise UsageError("--config", f"cannot be read as settings ({error})") from error
    return _build(config, values, "")


def command(
    config: type[C], module: str, job: Callable[[C, list[str], str], None], *, by_many: bool = False
) -> Callable[..., int]:
    """Make the ``main`` of a command: read its flags, do its job, turn expected failures into one line.

    Parameters
    ----------
    config : type
        The dataclass of its flags.
    module : str
        What ``python -m`` runs.
    job : callable
        Does the work, given the configuration, the arguments and the name of the command.
    by_many : bool, default False
        Whether several processes that torchrun has started can do it together.

    Returns
    -------
    callable
        ``main(argv=None, prog="python -m MODULE")``, with the process's own arguments by default. It returns the exit
        code: 0 for success, 2 for something the user can put right, 130 after Ctrl-C.
    """

    def main(argv: Sequence[str] | None = None, prog: str = f"python -m {module}") -> int:
        arguments = list(sys.argv[1:] if argv is None else argv)
        try:
            settings = parse(config, arguments, prog)
            if not by_many and started() > 1:
                raise UsageError("", f"{prog} is one process, but {started()} were started; leave torchrun out")
            with together(), blame_images():
                job(settings, arguments, prog)
        except (UsageError, DamagedFile) as error:
            let_the_first_speak()
            sys.stderr.write(f"{prog}: error: {one_line(str(error))}\n")
            return leave(2)
        except KeyboardInterrupt as stop:  # with a message where there is something to say
            if is_first():
                sys.stderr.write(f"{prog}: {'; '.join(['stopped', *map(str, stop.args)])}\n")
            return leave(130)
        return 0

    return main


def as_dict(config: Any) -> dict[str, Any]:
    """Return a configuration as plain values, such that ``--config`` reads them back."""
    result: dict[str, Any] = {}
    for entry in fields(config):
        value = getattr(config, entry.name)
        if is_dataclass(value):
            value = as_dict(value)
        elif isinstance(value, tuple):
            value = list(value)
        elif value is not None and not isinstance(value, bool | int | float | str):
            value = str(value)
        result[entry.name] = value
    return result


def _flat(config: type, prefix: str = "", defaults: Any = None) -> Iterator[tuple[str, Any, Any, str]]:
    """Yield dotted key, type, default and help of every field, nested ones in place."""
    kinds, texts = get_type_hints(config), _field_texts(config)
    for entry in fields(config):
        key, kind = prefix + entry.name, kinds[entry.name]
        default = _default(entry) if defaults is None else getattr(defaults, entry.name)
        if is_dataclass(kind) and isinstance(kind, type):
            yield from _flat(kind, f"{key}.", default)
        else:
            yield key, kind, default, texts[entry.name]


def _default(entry: Field[Any]) -> Any:
    """Return the default value of a field."""
    return entry.default_factory() if entry.default_factory is not MISSING else entry.default


def _field_texts(config: type) -> dict[str, str]:
    """Collect the field descriptions in the docstrings of a dataclass and its bases."""
    texts: dict[str, str] = {}
    for base in reversed(config.__mro__):
        for name, text in _FIELD_DOC.findall(inspect.cleandoc(base.__doc__ or "")):
            texts[name] = " ".join(text.split()).replace("``", "").replace("%", "%%")
    return texts


def _build(config: type[C], values: Namespace, prefix: str) -> C:
    """Make the dataclass from the parsed values."""
    kinds = get_type_hints(config)
    arguments: dict[str, Any] = {}
    for entry in fields(config):  # type: ignore[arg-type]  # config is a dataclass
        value = values[entry.name]
        kind = kinds[entry.name]
        flag, group = flag_of(prefix + entry.name), is_dataclass(kind) and isinstance(kind, type)
        if isinstance(value, Namespace) != group or (value is None and type(None) not in get_args(kind)):
            raise UsageError(flag, f"cannot be {reprlib.repr(value)}; leave it out, or see --help")
        if "\0" in str(value):
            raise UsageError(flag, f"cannot hold a zero character, as {reprlib.repr(value)} does")
        if group:
            value = _build(kind, value, f"{prefix}{entry.name}.")
        arguments[entry.name] = tuple(value) if get_origin(kind) is tuple else value
    try:
        return config(**arguments)
    except ValueError as error:  # dataclasses begin their messages with the name of the field
        name, _, rest = str(error).partition(" ")
        raise UsageError(flag_of(prefix + name), rest) from error


def _shortened(message: str) -> str:
    """Shorten what jsonargparse says to the flag, the value and what was expected."""
    key = re.search(r'[Pp]arser key "([^"]+)"', message)
    given = re.search(r"(?:Given|Got) value: (.*)", message)
    if not key or not given:
        return " ".join(re.sub(r'Parser key "([^"]+)"', lambda m: flag_of(m[1]), message).split())
    wanted = re.findall(r"Expected an? (.+?)(?:\n|$|\. Got)", message)
    named = [re.sub(r"<class '(?:\w+\.)*(\w+)'>|typing\.Literal", r"\1", text) for text in wanted]
    hint = " or ".join(dict.fromkeys(text for text in named if text != "NoneType"))
    return f"{flag_of(key[1])}: {given[1].strip()!r} is not valid" + (f"; expected {hint}" if hint else "")
