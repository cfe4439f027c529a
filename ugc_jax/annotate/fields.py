"""The fields of the stages as forms show them: labels, help, and values of any state of a form."""

import types
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from ugc_jax.data.annotation import (
    NO_VOICE,
    STAGES,
    TONES,
    VOICE_SOURCES,
    SoundEvent,
    Thing,
    fields_of,
)

Kind = Literal["choice", "yes_no", "line", "text", "lines", "sounds", "things"]


class Field(NamedTuple):
    """name: of `annotation`. options: (value, label) of a choice. parts: (name, label) of a row."""

    name: str
    label: str
    kind: Kind
    help: str
    options: tuple[tuple[str, str], ...] = ()
    parts: tuple[tuple[str, str], ...] = ()


_VOICES = {
    "Narration": "Narration, added afterwards",
    "In-Video Voice": "In-Video Voice, of someone who is shown",
    "Out-Video Voice": "Out-Video Voice, of someone beside the camera",
}
_CAPTIONS = {
    "sound": "What is heard, from beginning to end: voices and what they say, music, noises.",
    "picture": "What is seen, from beginning to end: people, things, places, actions, texts.",
    "both": "The whole clip: what is seen and heard, and how they belong together.",
}
_PARTS = {
    SoundEvent: (("what", "Sound"), ("start", "From (s)"), ("end", "To (s)")),
    Thing: (("name", "Name"), ("count", "Count"), ("color", "Colour"), ("position", "Position")),
}


def _caption(stage: str, label: str) -> Field:
    return Field("caption", label, "text", _CAPTIONS[stage])


FORMS: Mapping[str, tuple[Field, ...]] = types.MappingProxyType(
    {
        "sound": (
            Field(
                "voice_source", "Voice", "choice", "Where the voice that speaks comes from.",
                (*((one, _VOICES[one]) for one in VOICE_SOURCES), (NO_VOICE, "No voice")),
            ),
            Field(
                "tone", "Tone", "choice", "The mood of what is heard.",
                tuple((one, one) for one in TONES),
            ),
            Field("music", "Background music", "yes_no", "Whether there is music behind the rest."),
            Field(
                "sounds", "Sounds", "sounds", "Each noise with its time, in the order of time.",
                parts=_PARTS[SoundEvent],
            ),
            _caption("sound", "Audio caption"),
        ),
        "picture": (
            Field("text", "On-screen text", "lines", "Word for word, in the order of appearance."),
            Field(
                "objects", "Objects", "things", "What matters in the picture.",
                parts=_PARTS[Thing],
            ),
            Field(
                "background_change", "Background change", "line",
                "How the background changes; empty if it does not.",
            ),
            _caption("picture", "Visual caption"),
        ),
        "both": (_caption("both", "Final caption"),),
    }
)  # fmt: skip
TITLES = {"sound": "Hear", "picture": "See", "both": "Both"}
assert {stage: tuple(one.name for one in FORMS[stage]) for stage in STAGES} == {
    stage: fields_of(stage) for stage in STAGES
}


def filled(stage: str, value: Mapping[str, Any]) -> dict[str, Any]:
    """Return the value of every field, of the type that its form shows, from any saved state.

    A field that is absent or of another type is empty: "" for a choice that was not made, None for
    yes or no.
    """
    return {field.name: _filled(field, value.get(field.name)) for field in FORMS[stage]}


def _filled(field: Field, value: Any) -> Any:
    if field.kind == "yes_no":
        return value if isinstance(value, bool) else None
    if field.kind in ("choice", "line", "text"):
        return value if isinstance(value, str) else ""
    items = value if isinstance(value, list) else []
    if field.kind == "lines":
        return [one for one in items if isinstance(one, str)]
    return [
        {name: _shown(one.get(name)) for name, _ in field.parts}
        for one in items
        if isinstance(one, dict)
    ]


def _shown(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return ""
    return f"{value:g}" if isinstance(value, float) else str(value)


def in_words(field: Field, value: Any) -> str:
    """Return a field's value as text, to read it beside others."""
    if value is None or value == "" or value == []:
        return "–"
    if field.kind == "yes_no":
        return "Yes" if value else "No"
    if field.kind == "choice":
        return dict(field.options).get(value, value)
    if field.kind == "lines":
        return "\n".join(value)
    if field.kind == "sounds":
        return "\n".join(_sound(one) for one in value)
    if field.kind == "things":
        return "\n".join(_thing(one) for one in value)
    return value


def _sound(one: Mapping[str, Any]) -> str:
    shown = {name: _shown(part) for name, part in one.items()}
    span = " – ".join(filter(None, (shown.get("start"), shown.get("end"))))
    return f"{shown.get('what', '')}{f' ({span} s)' if span else ''}"


def _thing(one: Mapping[str, Any]) -> str:
    facts = [_shown(one.get("color")), _shown(one.get("position"))]
    return ", ".join(filter(None, (f"{_shown(one.get('count'))} × {one.get('name', '')}", *facts)))
