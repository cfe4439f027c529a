"""A job's settings: from `--config=FILE[:ARG]` and `--config.key=value` to a frozen dataclass.

The dataclass is the only declaration: its field types check the values, its defaults are the
defaults, and the comments beside its fields are the help. A field that is itself a dataclass is a
section; its settings are written `--config.section.key=value`. A config file is Python with
`get_config(arg=None)` that returns an ml_collections ConfigDict of the fields that it changes, a
nested one for a section; overrides on the command line come on top of it.
"""

import ast
import contextlib
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
from collections.abc import Iterator
from pathlib import Path

from ugc_jax.errors import UserError

_TRUE, _FALSE = ("true", "yes", "on", "1"), ("false", "no", "off", "0")
_NAMES = {str: "TEXT", int: "INTEGER", float: "NUMBER", bool: "true|false", type(None): "none"}


class _Setting(typing.NamedTuple):
    """One setting. default: MISSING if it is required. heading: of its group in the help."""

    hint: typing.Any
    default: typing.Any
    comment: str
    heading: str


def parse(cls: type | tuple[type, ...], argv: list[str]) -> tuple[typing.Any, list[str]]:
    """Return (an instance of the dataclass `cls`, the positional words) of a command line.

    Of several dataclasses, the one with the most of the given fields and sections is chosen.
    Understands --config=FILE[:ARG], --config.key=value, --config.flag (true), and `--`, after which
    all words are positional. Values of a tuple are separated by commas. Raises UserError for an
    unknown or missing key, a value of a wrong type, and a config file that cannot be used.
    """
    classes = cls if isinstance(cls, tuple) else (cls,)
    settings = {key: value for one in classes for key, value in _settings(one).items()}
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
            name = flag.removeprefix("--").replace("-", "_")
            known = [key for key in settings if name in (key, key.rpartition(".")[2])]
            remedy = f"write --config.{known[0]}=..." if len(known) == 1 else "see --help"
            raise UserError(f"unknown option {flag}; {remedy}")
    source, content = (None, {}) if file is None else _read_file(file)
    given = {key.partition(".")[0] for key in (*content, *overrides)}
    cls = max(
        classes, key=lambda one: len(given & {field.name for field in dataclasses.fields(one)})
    )
    settings = _settings(cls)
    values = {key: setting.default for key, setting in settings.items()}
    for key, value in content.items():
        label = f"{source}: {key}"
        values[key] = _checked(_kinds_of(settings, key, label), value, label)
    for key, text in overrides.items():
        label = f"--config.{key}"
        kinds = _kinds_of(settings, key, label)
        values[key] = _checked(kinds, _from_text(kinds, text, label), label)
    for key, value in values.items():
        if value is dataclasses.MISSING:
            raise UserError(f"--config.{key}=... is required: {settings[key].comment}")
    return _build(cls, values), positional


def part(cls: type, config) -> typing.Any:
    """Return the settings of the dataclass `cls` from a job's config that inherits them."""
    return cls(**{field.name: getattr(config, field.name) for field in dataclasses.fields(cls)})


def flatten(config) -> dict[str, typing.Any]:
    """Return {dotted key: value} of a job's config, or of its `dataclasses.asdict`."""
    content = dataclasses.asdict(config) if dataclasses.is_dataclass(config) else config
    flat = {}
    for name, value in content.items():
        if hasattr(value, "items"):
            flat |= {f"{name}.{key}": item for key, item in flatten(value).items()}
        else:
            flat[name] = value
    return flat


def check_minimum(config, section: str = "", /, **minimum: float):
    """Raise UserError for a field of a job's config below its minimum; None is allowed.

    section: with its dot, the prefix of the fields in messages, as "data.".
    """
    for name, limit in minimum.items():
        value = getattr(config, name)
        if value is not None and value < limit:
            raise UserError(f"{section}{name} is {value}; use {limit} or more")


@contextlib.contextmanager
def in_section(section: str) -> Iterator[None]:
    """Put `section`, with its dot, before the setting that a UserError inside the block names."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{section}{error}") from None


def _settings(cls: type, instance=None, prefix: str = "") -> dict[str, _Setting]:
    """All settings of a dataclass by dotted key, in the order of the help.

    First those that the class declares, then inherited ones, then sections. instance: has the
    defaults; None or MISSING takes those of the class.
    """
    comments, hints = field_help(cls), typing.get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls)}
    settings, sections = {}, {}
    for name, field in fields.items():
        if dataclasses.is_dataclass(hints[name]):
            sections |= _settings(hints[name], _default(field, instance), f"{prefix}{name}.")
    for base in cls.__mro__:
        heading = (base.__doc__ or base.__name__).strip().partition(".")[0]
        for name in base.__dict__.get("__annotations__", {}):
            if name in fields and not dataclasses.is_dataclass(hints[name]):
                default = _default(fields[name], instance)
                setting = _Setting(hints[name], default, comments[name], heading)
                settings.setdefault(prefix + name, setting)
    return settings | sections


def _build(cls: type, values: dict[str, typing.Any], prefix: str = "") -> typing.Any:
    """An instance of the dataclass `cls` from values by dotted key."""
    hints = typing.get_type_hints(cls)
    fields = {}
    for field in dataclasses.fields(cls):
        key, hint = prefix + field.name, hints[field.name]
        is_section = dataclasses.is_dataclass(hint)
        fields[field.name] = _build(hint, values, f"{key}.") if is_section else values[key]
    return cls(**fields)


def _in_section(key: str, settings: dict) -> list[str]:
    """The settings of the section `key`; none if there is no such section."""
    return [known for known in settings if known.startswith(f"{key}.")]


def _default(field: dataclasses.Field, instance):
    """The field's value in `instance`; without one its default, MISSING if it has none."""
    if instance not in (None, dataclasses.MISSING):
        return getattr(instance, field.name)
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def _kinds(hint) -> tuple:
    """The members of a type: (int, NoneType) for `int | None`, (str,) for str."""
    is_union = typing.get_origin(hint) in (types.UnionType, typing.Union)
    return typing.get_args(hint) if is_union else (hint,)


def _item_kind(kind):
    """str for tuple[str, ...]; None for a type that is not a tuple."""
    return typing.get_args(kind)[0] if typing.get_origin(kind) is tuple else None


def _name(kind) -> str:
    """A type's name in help and messages."""
    if typing.get_origin(kind) is typing.Literal:
        return "|".join(map(str, typing.get_args(kind)))
    if item := _item_kind(kind):
        return f"{_name(item)},..."
    return _NAMES[kind]


def _kinds_of(settings: dict[str, _Setting], key: str, label: str) -> tuple:
    """The types that setting `key` allows; UserError with the closest names if there is none.

    label: how messages call it.
    """
    if key in settings:
        return _kinds(settings[key].hint)
    if inside := _in_section(key, settings):
        raise UserError(f"{label}: is a section; set one of {', '.join(inside)}")
    section, _, name = key.rpartition(".")
    near = _in_section(section, settings) or list(settings)
    names = {known: known.rpartition(".")[2] for known in near}
    matches = difflib.get_close_matches(name, dict.fromkeys(names.values()), n=3)
    close = [known for match in matches for known in near if names[known] == match]
    remedy = (
        f"did you mean {' or '.join(close)}?" if close else f"known are {', '.join(sorted(near))}"
    )
    raise UserError(f"{label}: unknown setting; {remedy}")


def _from_text(kinds: tuple, text: str | None, label: str):
    """A value from the command line as one of the types, or left as text.

    text: None where there was no `=`.
    """
    if text is None:
        if bool not in kinds:
            raise UserError(f"{label} needs a value: {label}=...")
        return True
    if text.lower() in ("none", "null") and type(None) in kinds:
        return None
    for item in filter(None, map(_item_kind, kinds)):
        return tuple(_scalar((item,), word.strip()) for word in text.split(",") if word.strip())
    return _scalar(kinds, text)


def _scalar(kinds: tuple, text: str):
    lower = text.lower()
    if bool in kinds and lower in _TRUE + _FALSE:
        return lower in _TRUE
    for number in (int, float):
        if number in kinds:
            with contextlib.suppress(ValueError):
                return number(text)
    return text


def _checked(kinds: tuple, value, label: str):
    """`value` if one of the types allows it; UserError otherwise."""
    for kind in kinds:
        with contextlib.suppress(TypeError):
            return _as(kind, value)
    raise UserError(f"{label}: expected {'|'.join(map(_name, kinds))}, got {value!r}")


def _as(kind, value):
    """`value` if it is a `kind`; an integer is a number, too. TypeError otherwise."""
    if item := _item_kind(kind):
        if isinstance(value, list | tuple):
            return tuple(_as(item, member) for member in value)
    elif typing.get_origin(kind) is typing.Literal:
        if value in typing.get_args(kind):
            return value
    elif kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    elif isinstance(value, kind) and not (kind is int and isinstance(value, bool)):
        return value
    raise TypeError


def _read_file(spec: str) -> tuple[str, dict[str, typing.Any]]:
    """Return (FILE, {dotted key: value} of its get_config) for FILE or FILE:ARG."""
    path, arg = spec, None
    if not Path(spec).is_file() and ":" in spec:
        path, _, arg = spec.partition(":")
    if not Path(path).is_file():
        raise UserError(
            f"--config={spec}: no such file; "
            "give the path of a Python file with get_config(arg=None)"
        )
    with user_code(path):
        get_config = runpy.run_path(path).get("get_config")
        if not callable(get_config):
            raise UserError(f"{path}: defines no get_config(arg=None); see configs/ for an example")
        content = get_config() if arg is None else get_config(arg)
    if not hasattr(content, "items"):
        raise UserError(
            f"{path}: get_config returned {type(content).__name__}; expected a ConfigDict"
        )
    return path, flatten(content)


@contextlib.contextmanager
def user_code(path: str) -> Iterator[None]:
    """Turn what a user's Python file raises inside the block into a UserError with its line."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        lines = [frame.lineno for frame in frames if frame.filename == path]
        where = f"{path}:{lines[-1]}" if lines else path
        what = f"{type(error).__name__}: {error}"
        raise UserError(f"{where}: {what}; correct this file") from None


# ---- help ----------------------------------------------------------------------------------------


def field_help(cls: type) -> dict[str, str]:
    """Return {field: its comment on its line or on the lines right above it, "" without one}."""
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


def help_text(cls: type | tuple[type, ...]) -> str:
    """Return the settings of a job for its --help, with types and defaults.

    Of several dataclasses, those of the first and the sections that only others have.
    """
    first, *others = cls if isinstance(cls, tuple) else (cls,)
    settings, known = _settings(first), {field.name for field in dataclasses.fields(first)}
    for other in others:
        for key, setting in _settings(other).items():
            if "." in key and key.partition(".")[0] not in known:
                settings.setdefault(key, setting)
    rows, last = [], None
    for key, (hint, default, comment, heading) in settings.items():
        if (group := (key.rpartition(".")[0], heading)) != last:
            rows += ["", f"{heading}:"]
            last = group
        note = "required" if default is dataclasses.MISSING else f"default {_show(default)}"
        note = "" if default in (None, ()) else f"({note})"
        allowed = "|".join(_name(kind) for kind in _kinds(hint) if kind is not type(None))
        rows += _row(f"{key}={allowed}", f"{comment} {note}".strip())
    return "\n".join(rows[1:])


def help_width() -> int:
    """Return the columns of help text: those of the terminal, but 60 to 100."""
    return max(60, min(shutil.get_terminal_size().columns, 100))


def _show(value) -> str:
    if isinstance(value, tuple):
        return ",".join(map(_show, value))
    return str(value).lower() if isinstance(value, bool) else str(value)


def _row(head: str, text: str, indent: int = 30) -> list[str]:
    """`head` on the left, `text` wrapped on the right, beginning a line lower after a long head."""
    lines = textwrap.wrap(text, help_width() - indent)
    left = f"  {head}"
    if lines and len(left) <= indent - 2:
        left = f"{left:<{indent}}{lines.pop(0)}"
    return [left, *(" " * indent + line for line in lines)]
