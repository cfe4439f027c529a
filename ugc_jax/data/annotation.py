"""What is known of a clip after its three stages: sound alone, picture alone, both.

One form for a teacher's answers (a labelling run), people's answers (an annotation project) and
what is exported from either; spec: the fields of UGC-VideoCap (arXiv 2507.11336, section 3).

    stage      fields
    sound      voice_source, tone, music, sounds, caption
    picture    text, objects, background_change, caption
    both       caption

Each stage is read from JSON by `read` and checked there; `schema` is the JSON schema of a stage,
for a model that is asked for it.
"""

import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from ugc_jax.files import encodable

STAGES = ("sound", "picture", "both")
VOICE_SOURCES = ("Narration", "In-Video Voice", "Out-Video Voice")
_LONGEST = 1e9  # seconds; no time in a clip is later
NO_VOICE = "None"
TONES = ("Positive", "Negative", "Neutral")


class SoundEvent(NamedTuple):
    """A sound. start, end: seconds in the clip; None: not known."""

    what: str
    start: float | None = None
    end: float | None = None


class Thing(NamedTuple):
    """A kind of object in the picture. count: how many there are, at least 1."""

    name: str
    count: int = 1
    color: str = ""
    position: str = ""


@dataclasses.dataclass(frozen=True)
class Sound:
    """voice_source: one of `VOICE_SOURCES`, or `NO_VOICE`. tone: one of `TONES`.

    music: whether there is background music. sounds: in the order of time.
    """

    voice_source: Literal["Narration", "In-Video Voice", "Out-Video Voice", "None"]
    tone: Literal["Positive", "Negative", "Neutral"]
    music: bool
    sounds: tuple[SoundEvent, ...]
    caption: str


@dataclasses.dataclass(frozen=True)
class Picture:
    """text: on-screen texts word for word, in the order of their appearance.

    background_change: how the background changes; "" if it does not.
    """

    text: tuple[str, ...]
    objects: tuple[Thing, ...]
    background_change: str
    caption: str


@dataclasses.dataclass(frozen=True)
class Both:
    """caption: of the whole clip."""

    caption: str


Stage = Sound | Picture | Both
STAGE_TYPES: Mapping[str, type] = types.MappingProxyType(
    {"sound": Sound, "picture": Picture, "both": Both}
)


def fields_of(stage: str) -> tuple[str, ...]:
    """Return the names of a stage's fields, in order."""
    return tuple(field.name for field in dataclasses.fields(STAGE_TYPES[stage]))


def read(stage: str, value: Any) -> Stage:
    """Return the stage that a JSON value says; texts are stripped.

    Raises ValueError, which names the field, for a missing, unknown or wrong one.
    """
    return _read_object(STAGE_TYPES[stage], value, "")


def to_json(stage: Stage) -> dict[str, Any]:
    """Return the JSON value that `read` takes."""
    return _to_json(stage)


def schema(stage: str) -> dict[str, Any]:
    """Return the JSON schema of a stage: every field is required and no other is allowed."""
    return _schema(STAGE_TYPES[stage])


def _hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def _required(cls: type) -> tuple[str, ...]:
    """Names of the fields that have no default."""
    if dataclasses.is_dataclass(cls):
        return tuple(_hints(cls))
    return tuple(name for name in cls._fields if name not in cls._field_defaults)


def _read_object(cls: type, value: Any, place: str):
    if not isinstance(value, dict):
        raise ValueError(f"{place or 'the answer'}: {_kind(value)} instead of an object")
    hints = _hints(cls)
    at = f"{place}." if place else ""
    if missing := [name for name in _required(cls) if name not in value]:
        raise ValueError(f"{at}{missing[0]} is missing")
    if unknown := [name for name in value if name not in hints]:
        raise ValueError(f"{at}{unknown[0]} is not a field; there are {', '.join(hints)}")
    return cls(**{name: _read(hints[name], one, f"{at}{name}") for name, one in value.items()})


def _read(hint: Any, value: Any, place: str):
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise ValueError(f"{place}: {_kind(value)} instead of a list")
        return tuple(
            _read(arguments[0], one, f"{place}[{number}]") for number, one in enumerate(value)
        )
    if origin is Literal:
        found = [one for one in arguments if isinstance(value, str) and _same(one, value)]
        if not found:
            raise ValueError(f"{place}: {value!r} is none of {', '.join(arguments)}")
        return found[0]
    if origin in (types.UnionType, typing.Union):
        return None if value is None else _read(arguments[0], value, place)
    if hint is str:
        if not isinstance(value, str):
            raise ValueError(f"{place}: {_kind(value)} instead of a text")
        return encodable(value).strip()
    if hint is bool:
        if not isinstance(value, bool):
            raise ValueError(f"{place}: {_kind(value)} instead of true or false")
        return value
    if hint is int:
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{place}: {value!r} is not a count of at least 1")
        return value
    if hint is float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(f"{place}: {_kind(value)} instead of seconds")
        if not 0 <= value < _LONGEST:  # NaN, too
            raise ValueError(f"{place}: {value!r} is not a time in seconds")
        return float(value)
    return _read_object(hint, value, place)


def _same(option: str, said: str) -> bool:
    return said.strip().casefold() == option.casefold()


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a text", bool: "true or false"}
    names |= {int: "a number", float: "a number", type(None): "null"}
    return names.get(type(value), type(value).__name__)


def _to_json(value: Any):
    if dataclasses.is_dataclass(value):
        return {one.name: _to_json(getattr(value, one.name)) for one in dataclasses.fields(value)}
    if hasattr(value, "_asdict"):
        return {name: _to_json(one) for name, one in value._asdict().items()}
    return [_to_json(one) for one in value] if isinstance(value, tuple) else value


def _schema(hint: Any) -> dict[str, Any]:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is tuple:
        return {"type": "array", "items": _schema(arguments[0])}
    if origin is Literal:
        return {"type": "string", "enum": list(arguments)}
    if origin in (types.UnionType, typing.Union):
        return {"anyOf": [_schema(arguments[0]), {"type": "null"}]}
    if hint in _PLAIN:
        return dict(_PLAIN[hint])
    hints = _hints(hint)
    return {
        "type": "object",
        "properties": {name: _schema(one) for name, one in hints.items()},
        "required": list(hints),
        "additionalProperties": False,
    }


_PLAIN = {
    str: {"type": "string"},
    bool: {"type": "boolean"},
    int: {"type": "integer", "minimum": 1},
    float: {"type": "number", "minimum": 0},
}
