"""A job's settings: `--config=FILE[:ARG]` and `--config.key=value` -> a frozen dataclass, and help.

The dataclass is the only declaration: its field types check the values, its defaults are the
defaults, and the comments beside its fields are the help. A config file is Python with
`get_config(arg=None)` that returns an ml_collections ConfigDict of the fields that it changes;
overrides on the command line come on top of it.
"""

import ast
import dataclasses
import difflib
import inspect
import io
import runpy
import shutil
import textwrap
import tokenize
import traceback
import types
import typing
from collections.abc import Mapping
from pathlib import Path

from ugc_jax.errors import UserError

_TRUE, _FALSE = ("true", "yes", "on", "1"), ("false", "no", "off", "0")
_NAMES = {str: "TEXT", int: "INTEGER", float: "NUMBER", bool: "true|false", type(None): "none"}


def parse(cls: type, argv: list[str]) -> tuple[typing.Any, list[str]]:
    """Command-line words -> (an instance of the dataclass `cls`, the positional words).

    Understands --config=FILE[:ARG], --config.key=value, --config.flag (true), and `--`, after which
    all words are positional. Raises UserError for an unknown or missing key, a value of a wrong
    type, and a config file that cannot be used.
    """
    file, overrides, positional = None, {}, []
    words = iter(argv)
    for word in words:
        flag, equals, value = word.partition("=")
        if word == "--":
            positional.extend(words)
        elif not word.startswith("--"):
            positional.append(word)
        elif flag == "--config":
            if not value:
                raise UserError("--config needs a file: --config=FILE or --config=FILE:ARG")
            file = value
        elif flag.startswith("--config."):
            overrides[flag.removeprefix("--config.")] = value if equals else None
        else:
            key = flag.removeprefix("--").replace("-", "_")
            known = key in _hints(cls)
            raise UserError(
                f"unknown option {flag}; {f'write --config.{key}=...' if known else 'see --help'}"
            )
    values = {}
    if file is not None:
        source, content = _read_file(file)
        values = {
            key: _checked(cls, key, value, f"{source}: {key}") for key, value in content.items()
        }
    for key, text in overrides.items():
        values[key] = _checked(cls, key, _from_text(cls, key, text), f"--config.{key}")
    for field in dataclasses.fields(cls):
        if field.name not in values and _default(field) is dataclasses.MISSING:
            raise UserError(f"--config.{field.name}=... is required: {field_help(cls)[field.name]}")
    return cls(**values), positional


def part(cls: type, config) -> typing.Any:
    """The settings of the dataclass `cls` out of a job's config that inherits them."""
    return cls(**{field.name: getattr(config, field.name) for field in dataclasses.fields(cls)})


def _hints(cls: type) -> dict[str, typing.Any]:
    return {field.name: typing.get_type_hints(cls)[field.name] for field in dataclasses.fields(cls)}


def _default(field: dataclasses.Field):
    if field.default_factory is dataclasses.MISSING:
        return field.default
    return field.default_factory()


def _kinds(hint) -> tuple:
    """The members of a type: (int, NoneType) for `int | None`, (str,) for str."""
    is_union = typing.get_origin(hint) in (types.UnionType, typing.Union)
    return typing.get_args(hint) if is_union else (hint,)


def _name(kind) -> str:
    """How a type is shown to a person."""
    if typing.get_origin(kind) is typing.Literal:
        return "|".join(map(str, typing.get_args(kind)))
    return _NAMES[kind]


def _type_of(cls: type, key: str, label: str):
    """The type of field `key`; UserError with the closest names if there is none.

    label: how messages call it.
    """
    hints = _hints(cls)
    if key not in hints:
        close = " or ".join(difflib.get_close_matches(key, hints, n=3))
        remedy = f"did you mean {close}?" if close else f"known are {', '.join(sorted(hints))}"
        raise UserError(f"{label}: unknown setting; {remedy}")
    return hints[key]


def _from_text(cls: type, key: str, text: str | None):
    """A value typed on the command line as the field's type allows, or left as text.

    text: None where there was no `=`.
    """
    kinds = _kinds(_type_of(cls, key, f"--config.{key}"))
    if text is None and bool not in kinds:
        raise UserError(f"--config.{key} needs a value: --config.{key}=...")
    if text is None:
        return True
    lower = text.lower()
    if lower in ("none", "null") and type(None) in kinds:
        return None
    if bool in kinds and lower in _TRUE + _FALSE:
        return lower in _TRUE
    for number in (int, float):
        if number in kinds:
            try:
                return number(text)
            except ValueError:
                pass
    return text


def _checked(cls: type, key: str, value, label: str):
    """`value` if the field's type allows it (an integer is a number, too); UserError otherwise."""
    hint = _type_of(cls, key, label)
    for kind in _kinds(hint):
        if typing.get_origin(kind) is typing.Literal:
            if value in typing.get_args(kind):
                return value
        elif kind is float and isinstance(value, int) and not isinstance(value, bool):
            return float(value)
        elif isinstance(value, kind) and not (kind is int and isinstance(value, bool)):
            return value
    raise UserError(f"{label}: expected {'|'.join(map(_name, _kinds(hint)))}, got {value!r}")


def _read_file(spec: str) -> tuple[str, Mapping]:
    """FILE or FILE:ARG -> (FILE, what its get_config returned)."""
    path, arg = spec, None
    if not Path(spec).is_file() and ":" in spec:
        path, _, arg = spec.partition(":")
    if not Path(path).is_file():
        raise UserError(
            f"--config={spec}: no such file; "
            "give the path of a Python file with get_config(arg=None)"
        )
    try:
        get_config = runpy.run_path(path).get("get_config")
        if not callable(get_config):
            raise UserError(f"{path}: defines no get_config(arg=None); see configs/ for an example")
        content = get_config() if arg is None else get_config(arg)
    except UserError:
        raise
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        lines = [frame.lineno for frame in frames if frame.filename == path]
        where = f"{path}:{lines[-1]}" if lines else path
        what = f"{type(error).__name__}: {error}"
        raise UserError(f"{where}: {what}; correct the config file") from None
    if not isinstance(content, Mapping) and not hasattr(content, "items"):
        raise UserError(
            f"{path}: get_config returned {type(content).__name__}; expected a ConfigDict"
        )
    return path, content


# ---- help ----------------------------------------------------------------------------------------


def field_help(cls: type) -> dict[str, str]:
    """Field name -> its comment, on its line or on the lines right above it; "" without one."""
    found = {}
    for base in reversed(cls.__mro__):
        if dataclasses.is_dataclass(base):
            found |= _comments(base)
    return {field.name: found.get(field.name, "") for field in dataclasses.fields(cls)}


def _comments(cls: type) -> dict[str, str]:
    source = textwrap.dedent(inspect.getsource(cls))
    comments: dict[int, str] = {}  # by line
    alone: set[int] = set()  # lines that hold nothing but a comment
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT and not token.string.startswith("# fmt:"):
            comments[token.start[0]] = token.string.lstrip("# ")
            if not token.line[: token.start[1]].strip():
                alone.add(token.start[0])
    found = {}
    for node in ast.parse(source).body[0].body:
        if isinstance(node, ast.AnnAssign):
            first = node.lineno
            while first - 1 in alone:
                first -= 1
            lines = (comments.get(i) for i in range(first, node.end_lineno + 1))
            found[node.target.id] = " ".join(filter(None, lines))
    return found


def describe(cls: type) -> str:
    """The settings of a job for its --help, with types and defaults: first its own, then shared."""
    comments, hints = field_help(cls), _hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls)}
    rows, seen = [], set()
    for base in cls.__mro__:
        own = [name for name in base.__dict__.get("__annotations__", {}) if name in fields]
        own = [name for name in own if name not in seen]
        seen |= set(own)
        if own:
            rows += ["", f"{(base.__doc__ or base.__name__).strip().partition('.')[0]}:"]
        for name in own:
            default = _default(fields[name])
            note = "required" if default is dataclasses.MISSING else f"default {_show(default)}"
            note = "" if default is None else f"({note})"
            rows += _row(f"{name}={_metavar(hints[name])}", f"{comments[name]} {note}".strip())
    return "\n".join(rows[1:])


def help_width() -> int:
    """Columns that help text may take: those of the terminal, within reason."""
    return max(60, min(shutil.get_terminal_size().columns, 100))


def _metavar(hint) -> str:
    return "|".join(_name(kind) for kind in _kinds(hint) if kind is not type(None))


def _show(value) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _row(head: str, text: str, indent: int = 30) -> list[str]:
    """`head` on the left, `text` wrapped on the right; it begins a line lower after a long head."""
    lines = textwrap.wrap(text, help_width() - indent) or [""]
    head = f"  {head}"
    if len(head) > indent - 2:
        return [head, *(" " * indent + line for line in lines)]
    return [f"{head:<{indent}}{lines[0]}".rstrip(), *(" " * indent + line for line in lines[1:])]
