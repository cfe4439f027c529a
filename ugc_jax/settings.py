"""A job's settings: from the command line and a config file to a frozen dataclass.

The dataclass is the only declaration: its field types check the values, its defaults are the
defaults, and the comments beside its fields are the help. A field that is itself a dataclass is a
section; its settings are named section.key. A config file is Python with `get_config(arg=None)`
that returns an ml_collections ConfigDict of the fields that it changes, a nested one for a section.

    --key value, --key=value     a setting; - in a key is the same as _
    --key a,b                    a list; it is given once, so that no value of it is lost
    --flag, --flag=false         a boolean takes a value only with =
    --config NAME[:ARG]          a config of configs/ by its name, or the path of a file
    --config.key=value           the same as --key=value
    --                           all words after it are arguments

A later layer replaces an earlier one: the dataclass, the config file, the command line.
"""

import ast
import contextlib
import dataclasses
import difflib
import functools
import inspect
import io
import math
import os
import re
import runpy
import shutil
import textwrap
import tokenize
import traceback
import types
import typing
from collections import deque
from collections.abc import Iterator, Mapping
from pathlib import Path

from ugc_jax.errors import UserError

# Configs by name: in a wheel beside this file, in a clone beside the package.
_PLACES = [Path(__file__).with_name("configs"), Path(__file__).parents[1] / "configs"]
CONFIGS = next((place for place in _PLACES if place.is_dir()), _PLACES[0])

_TRUE, _FALSE = ("true", "yes", "on", "1"), ("false", "no", "off", "0")
_NAMES = {str: "TEXT", int: "INTEGER", float: "NUMBER", bool: "true|false", type(None): "none"}
_SYNONYMS = {  # of other tools
    "model": "checkpoint",
    "prompt": "question",
    "gradient_accumulation_steps": "accumulate",
    "num_generations": "samples",
}
_MANY = 12  # names that a message lists at most
_OF_THE_CLI = ("help", "version")  # flags that are no settings; cli.py answers them
MISSING = dataclasses.MISSING


class Setting(typing.NamedTuple):
    """One setting. key: its full name. default: MISSING if it is required. heading: its group."""

    key: str
    hint: typing.Any
    default: typing.Any
    comment: str
    heading: str

    @property
    def kinds(self) -> tuple:
        """The types that it allows."""
        return _kinds(self.hint)

    @property
    def choices(self) -> list[str]:
        """The values of a setting that allows only some."""
        members = [typing.get_args(kind) for kind in self.kinds if _is_literal(kind)]
        return [str(member) for values in members for member in values]

    @property
    def value_name(self) -> str:
        """What its value is, for help: NUMBER, auto|float32|bfloat16, ..."""
        return "|".join(_name(kind) for kind in self.kinds if kind is not type(None))


class Schema:
    """The settings of a job: its dataclass, short names, and names that earlier versions had.

    classes: frozen dataclasses; of several, the one that knows most of the given names is used.
    by: (setting, {its value: class}) that names one of several classes.
    short: {name: full name}, as "temperature": "sampling.temperature"; for several classes also
      several full names, of which each class has one.
    moved: {old name: full name} of settings whose old name is refused, with the new one.
    """

    def __init__(
        self,
        *classes: type,
        short: Mapping[str, str | tuple[str, ...]] | None = None,
        moved: Mapping[str, str] | None = None,
        by: tuple[str, Mapping[str, type]] | None = None,
    ):
        self.classes, self.moved, self.by = classes, dict(moved or {}), by
        self.short = {
            name: (full,) if isinstance(full, str) else full for name, full in (short or {}).items()
        }

    def parse(self, argv: list[str]) -> tuple[typing.Any, list[str]]:
        """Return (an instance of the dataclass, the arguments) of a command line.

        Raises UserError for an unknown or missing setting, a value of a wrong type or out of range,
        and a config file that cannot be used.
        """
        cls, values, arguments = self._collect(argv)
        for key, value in values.items():
            if value is MISSING:
                comment = settings_of(cls)[key].comment
                raise UserError(f"--{self._shortest(key)} is required: {comment}")
        return _build(cls, values), arguments

    def from_options(self, options: Mapping[str, typing.Any], config=None) -> typing.Any:
        """Return an instance of the dataclass from the keyword options of a call.

        options: by the names of `flags`; a section also as a whole, optimizer={"learning_rate":
          1e-5} or OptimizerConfig(...), which sets all of it. A path may stand for a text.
        config: what --config takes, or an instance of the dataclass; options replace its values.
        Raises TypeError for an unknown or missing option and for a value of another type, with the
        closest names, and UserError as `parse`.
        """
        (cls,) = self.classes
        settings = settings_of(cls)
        values = {key: setting.default for key, setting in settings.items()}
        if isinstance(config, str | os.PathLike):
            values |= self._of_config(settings, *_read_config(os.fspath(config)))
        elif isinstance(config, cls):
            values |= flatten(config)
        elif config is not None:
            raise TypeError(
                f"config: expected a name, a file or {cls.__name__}, got {config!r:.60}"
            )
        for name, value in flatten(options).items():
            try:
                setting = self._find(settings, name, name)
            except UserError as error:
                raise TypeError(str(error)) from None
            if str in setting.kinds and isinstance(value, os.PathLike):
                value = os.fspath(value)
            values[setting.key] = _option(setting.kinds, value, name)
        for key, value in values.items():
            if value is MISSING:
                name = self._shortest(key)
                raise TypeError(f"option {name} is required: {settings[key].comment}")
        return _build(cls, values)

    def settings(self) -> dict[str, Setting]:
        """Return all settings of all classes by full name, in the order of the help."""
        found: dict[str, Setting] = {}
        for cls in self.classes:
            for key, setting in settings_of(cls).items():
                found.setdefault(key, setting)
        return found

    def flags(self) -> dict[str, Setting]:
        """Return the settings by the names of their flags, short ones included."""
        settings = self.settings()
        return settings | {name: settings[full[0]] for name, full in self.short.items()}

    def help_text(self, argv: list[str] | None = None) -> str:
        """Return the settings for --help, with types, defaults, and the values that `argv` sets."""
        cls, values, _ = self._collect(argv or [])
        settings = settings_of(cls) | {
            key: setting for key, setting in self.settings().items() if key not in values
        }
        groups: dict[tuple[str, str], list[Setting]] = {}
        for setting in settings.values():
            section = setting.key.rpartition(".")[0]
            groups.setdefault((section, setting.heading), []).append(setting)
        rows = []
        for (section, heading), members in groups.items():
            rows += ["", f"{heading} (--{section}.NAME):" if section else f"{heading}:"]
            for setting in members:
                value = values.get(setting.key, setting.default)
                allowed = "[=false]" if bool in setting.kinds else f" {setting.value_name}"
                head = f"--{self._shortest(setting.key)}{allowed}"
                rows += _row(head, f"{setting.comment} {_default_note(setting, value)}".strip())
        return "\n".join(rows[1:])

    def _collect(self, argv: list[str]) -> tuple[type, dict[str, typing.Any], list[str]]:
        """Return (the class, {full name: value}, the arguments); MISSING for values not given."""
        spec, words, arguments = self._split(argv)
        source, content = (None, {}) if spec is None else _read_config(spec)
        cls = self._class_of(content, {name: text for _, name, text in words})
        settings = settings_of(cls)
        values = {key: setting.default for key, setting in settings.items()}
        values |= self._of_config(settings, source, content)
        lists: set[str] = set()
        for label, name, text in words:
            setting = self._find(settings, name, label)
            if any(map(_item_kind, setting.kinds)):
                if setting.key in lists:
                    raise UserError(
                        f"{label} is given twice; give it once, its values separated by commas"
                    )
                lists.add(setting.key)
            values[setting.key] = _checked(setting.kinds, _from_text(setting.kinds, text), label)
        return cls, values, arguments

    def _class_of(self, content: dict[str, typing.Any], words: dict[str, str]) -> type:
        """The class of a config's content and of the command line's words, by their names."""
        if self.by is not None:
            setting, classes = self.by
            value = (content | words).get(setting)
            if value in classes:
                return classes[value]
        names = content or words  # a config decides what is set up
        return max(self.classes, key=lambda one: sum(self._knows(one, name) for name in names))

    def _of_config(
        self, settings: dict[str, Setting], source: str | None, content: dict[str, typing.Any]
    ) -> dict[str, typing.Any]:
        """Return {full name: value} of what `_read_config` returned."""
        values = {}
        sections = {key.partition(".")[0] for key in (*settings, *self.short)}
        for name, value in content.items():
            label, first = f"{source}: {name}", name.partition(".")[0]
            if first != name and first not in sections:
                raise UserError(
                    f"{label}: this job has no section {first}; give a config that is for this job"
                )
            setting = self._find(settings, name, label)
            values[setting.key] = _checked(setting.kinds, value, label)
        return values

    def _split(self, argv: list[str]):
        """Return (--config's value or None, [(flag, name, text)], the arguments) of words."""
        flags, spec, given, arguments, words = self.flags(), None, [], [], deque(argv)
        while words:
            word = words.popleft()
            if word == "--":
                arguments.extend(words)
                break
            if not word.startswith("--"):
                if word[:1] == "-" and word != "-" and not os.path.lexists(word):
                    raise UserError(
                        f"unknown option {word}; write --key value (see --help), or -- before "
                        "arguments that begin with -"
                    )
                arguments.append(word)
                continue
            name, equals, text = word[2:].partition("=")
            name = name.replace("-", "_")
            label, name = f"--{name}", name.removeprefix("config.")
            setting = flags.get(name)
            if name == "config":
                what = "NAME_OR_FILE[:ARG]"
                spec = text if text else _next_word(deque() if equals else words, label, what)
            elif setting is None or equals:  # an error, unless another class knows it
                given.append((label, name, text))
            elif bool in setting.kinds:
                if words and words[0].lower() in _TRUE[:3] + _FALSE[:3]:
                    raise UserError(f"{label} {words[0]}: write {label}={words[0]}")
                given.append((label, name, "true"))
            else:
                given.append((label, name, _next_word(words, label, setting.value_name)))
        return spec, given, arguments

    def _knows(self, cls: type, name: str) -> bool:
        """Whether a class has the setting, or the section that it would be in."""
        firsts = {full.partition(".")[0] for full in self.short.get(name, (name,))}
        return not firsts.isdisjoint(field.name for field in dataclasses.fields(cls))

    def _find(self, settings: dict[str, Setting], name: str, label: str) -> Setting:
        """The setting of a full or short name. label: how messages call it.

        Raises UserError with the closest names if there is none.
        """
        for key in self.short.get(name, (name,)):
            if key in settings:
                return settings[key]
        dashes = "--" if label.startswith("--") else ""
        if name in self.moved:
            raise UserError(f"{label} has another name now; write {dashes}{self.moved[name]}")
        if inside := [key for key in settings if key.startswith(f"{name}.")]:
            raise UserError(f"{label}: is a section; set one of {_listed(inside)}")
        section = [key for key in settings if key.startswith(f"{name.rpartition('.')[0]}.")]
        everywhere = [*settings, *_OF_THE_CLI]
        close = exact_ends(name, section) or exact_ends(name, everywhere)
        close = close or closest(name, section) or closest(name, everywhere)
        if close:
            names = [dashes + self._shortest(key) for key in close]
            remedy = f"did you mean {' or '.join(names)}?"
        else:
            remedy = f"known are {_listed(section or list(settings))}"
        raise UserError(f"{label}: unknown setting; {remedy}")

    def _shortest(self, key: str) -> str:
        """The shortest name of a setting's flag; names with a dot are of earlier versions."""
        short = (name for name, full in self.short.items() if key in full and "." not in name)
        return min([key, *short], key=len)


def short_names(**sections: type) -> dict[str, str]:
    """Return {name: section.name} of all fields of dataclasses, for `Schema`."""
    return {
        field.name: f"{section}.{field.name}"
        for section, cls in sections.items()
        for field in dataclasses.fields(cls)
    }


def exact_ends(name: str, keys) -> list[str]:
    """Return up to three of the dotted `keys` that end like `name`.

    Without one, those of whose last words its letters are the initials (lr: learning_rate).
    """
    last = _last(_SYNONYMS.get(name, name))
    ends = [key for key in keys if _last(key) == last]
    initials = [
        key for key in keys if last == "".join(word[:1] for word in _last(key).split("_"))
    ] * (len(last) > 1)
    return (ends or initials)[:3]


def closest(name: str, keys) -> list[str]:
    """Return up to three of the dotted `keys` that a user may have meant by `name`, best first."""
    keys, last = list(keys), _last(name)
    if found := exact_ends(name, keys):
        return found
    by_last: dict[str, list[str]] = {}
    for key in keys:
        by_last.setdefault(_last(key), []).append(key)
    similar = difflib.get_close_matches(name, keys, n=3, cutoff=0.8)
    similar += [
        key for match in difflib.get_close_matches(last, by_last, n=3) for key in by_last[match]
    ]
    return list(dict.fromkeys(similar))[:3]


def config_names() -> list[str]:
    """Return the names that --config takes."""
    return sorted(path.stem for path in CONFIGS.glob("*.py") if path.stem != "__init__")


def check_config_argument(arg: str | None, *known: str):
    """Raise UserError unless the argument of `--config NAME:ARG` is None or one of `known`."""
    if arg not in (None, *known):
        raise UserError(f"unknown argument {arg!r}; use {' or '.join(known)}, or none")


def from_options(cls: type, options: Mapping[str, typing.Any]) -> typing.Any:
    """Return an instance of the dataclass `cls` from keyword options of a call.

    Raises TypeError for an unknown option and a value of another type; UserError for another value
    than the field's choices, and as the class.
    """
    hints = typing.get_type_hints(cls)
    for name, value in options.items():
        _check_option(hints.get(name), value, name)
    return cls(**options)


def check_types(config):
    """Raise TypeError for a field of a dataclass whose value has another type.

    Raises UserError for another value than the field's choices.
    """
    hints = typing.get_type_hints(type(config))
    for field in dataclasses.fields(config):
        _check_option(hints[field.name], getattr(config, field.name), field.name)


def _check_option(hint, value, name: str):
    """As `check_types` for one field. hint: None for an unknown one, which `cls()` refuses."""
    if hint is not None:
        _option(_kinds(hint), value, name)


def _option(kinds: tuple, value, name: str):
    """`value` as one of the types. Raises as `check_types`."""
    try:
        return _checked(kinds, value, name)
    except UserError as error:
        if any(map(_is_literal, kinds)) and isinstance(value, str):
            raise
        raise TypeError(str(error)) from None


def flatten(config) -> dict[str, typing.Any]:
    """Return {dotted key: value} of a job's config, or of nested mappings and such configs."""
    content = dataclasses.asdict(config) if dataclasses.is_dataclass(config) else config
    flat = {}
    for name, value in content.items():
        if hasattr(value, "items") or dataclasses.is_dataclass(value):
            flat |= {f"{name}.{key}": item for key, item in flatten(value).items()}
        else:
            flat[name] = value
    return flat


def check_minimum(config, **minimum: float):
    """Raise UserError for a field of a job's config below its minimum; None is allowed."""
    for name, limit in minimum.items():
        value = getattr(config, name)
        if value is not None and not limit <= value < math.inf:  # not NaN, either
            raise UserError(f"{name} is {value}; use {limit} or more")


@contextlib.contextmanager
def in_section(section: str) -> Iterator[None]:
    """Put `section`, with its dot, before the setting that a UserError inside the block names."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{section}{error}") from None


def settings_of(cls: type, instance=None, prefix: str = "") -> dict[str, Setting]:
    """Return all settings of a dataclass by dotted key, in the order of the help.

    First those that the class declares, then inherited ones, then sections. instance: has the
    defaults; None or MISSING takes those of the class.
    """
    comments, hints = field_help(cls), typing.get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls)}
    settings, sections = {}, {}
    for name, field in fields.items():
        if dataclasses.is_dataclass(hints[name]):
            sections |= settings_of(hints[name], _default(field, instance), f"{prefix}{name}.")
    for base in cls.__mro__:
        heading = _first_sentence(base.__doc__ or base.__name__)
        for name in base.__dict__.get("__annotations__", {}):
            if name in fields and not dataclasses.is_dataclass(hints[name]):
                default = _default(fields[name], instance)
                setting = Setting(prefix + name, hints[name], default, comments[name], heading)
                settings.setdefault(prefix + name, setting)
    return settings | sections


def _build(cls: type, values: dict[str, typing.Any], prefix: str = "") -> typing.Any:
    """An instance of the dataclass `cls` from values by dotted key; errors name the section."""
    hints = typing.get_type_hints(cls)
    fields = {}
    for field in dataclasses.fields(cls):
        key, hint = prefix + field.name, hints[field.name]
        is_section = dataclasses.is_dataclass(hint)
        fields[field.name] = _build(hint, values, f"{key}.") if is_section else values[key]
    with in_section(prefix):
        return cls(**fields)


def _default(field: dataclasses.Field, instance):
    """The field's value in `instance`; without one its default, MISSING if it has none."""
    if instance not in (None, MISSING):
        return getattr(instance, field.name)
    if field.default_factory is not MISSING:
        return field.default_factory()
    return field.default


def _first_sentence(text: str) -> str:
    """The first sentence, without its full stop, on one line; a file name's dot ends none."""
    return re.split(r"\.(?:\s|$)", " ".join(text.split()), maxsplit=1)[0]


def _last(key: str) -> str:
    return key.rpartition(".")[2]


def _listed(names: list[str]) -> str:
    """Names for a message; the first ones of many."""
    more = f" and {len(names) - _MANY} more: see --help" if len(names) > _MANY else ""
    return ", ".join(names[:_MANY]) + more


def _kinds(hint) -> tuple:
    """The members of a type: (int, NoneType) for `int | None`, (str,) for str."""
    is_union = typing.get_origin(hint) in (types.UnionType, typing.Union)
    return typing.get_args(hint) if is_union else (hint,)


def _is_literal(kind) -> bool:
    return typing.get_origin(kind) is typing.Literal


def _item_kind(kind):
    """str for tuple[str, ...]; None for a type that is not a tuple."""
    return typing.get_args(kind)[0] if typing.get_origin(kind) is tuple else None


def _name(kind) -> str:
    """A type's name in help and messages."""
    if _is_literal(kind):
        return "|".join(map(str, typing.get_args(kind)))
    if item := _item_kind(kind):
        return f"{_name(item)},..."
    return _NAMES[kind]


def _next_word(words: deque[str], label: str, value_name: str) -> str:
    """Take a flag's value from the words after it. UserError if there is none."""
    if words and not words[0].startswith("--"):
        return words.popleft()
    begins = f", or {label}=VALUE for one that begins with --" if words else ""
    raise UserError(f"{label} needs a value: {label} {value_name}{begins}")


def _from_text(kinds: tuple, text: str):
    """A value from the command line as one of the types, or left as text."""
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
    elif _is_literal(kind):
        if value in typing.get_args(kind):
            return value
    elif kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    elif isinstance(value, kind) and not (kind is int and isinstance(value, bool)):
        return value
    raise TypeError


def _read_config(spec: str) -> tuple[str, dict[str, typing.Any]]:
    """Return (file, {dotted key: value} of its get_config) for NAME, FILE, NAME:ARG or FILE:ARG."""
    path, arg = spec, None
    if not Path(spec).is_file() and ":" in spec:
        path, _, arg = spec.partition(":")
    if not Path(path).is_file():
        named = CONFIGS / f"{path}.py"
        if path not in config_names():
            close = difflib.get_close_matches(Path(path).stem, config_names(), n=1)
            hint = f"names are {', '.join(config_names())}; or"
            if close:
                hint = f"did you mean {close[0]}? Or"
            raise UserError(
                f"--config {spec}: no such file or name; {hint} give the path of a Python file "
                "with get_config(arg=None)"
            )
        path = str(named)
    with in_section(f"--config {spec}: ") if arg else contextlib.nullcontext(), user_code(path):
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


@functools.cache  # parsing the source is slow, and a command line needs it several times
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


def help_width() -> int:
    """Return the columns of help text: those of the terminal, but 60 to 100."""
    return max(60, min(shutil.get_terminal_size().columns, 100))


def _default_note(setting: Setting, value) -> str:
    default = setting.default
    if value is MISSING:
        return "(required)"
    if value == default:
        return "" if default in (None, ()) else f"(default {_show(default)})"
    return f"(set to {_show(value)})"


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
