"""The form of a clip's three stages: reading, writing, schema."""

import json

import pytest

from ugc_jax.data import annotation

SOUND = {
    "voice_source": "Narration", "tone": "Positive", "music": True,
    "sounds": [{"what": "a dog barks", "start": 1.5, "end": None}], "caption": "A woman speaks.",
}  # fmt: skip
PICTURE = {
    "text": ["SALE"],
    "objects": [{"name": "car", "count": 2, "color": "red", "position": "left"}],
    "background_change": "", "caption": "Two cars.",
}  # fmt: skip
STAGES = {"sound": SOUND, "picture": PICTURE, "both": {"caption": "Two cars and a voice."}}


@pytest.mark.parametrize("stage", annotation.STAGES)
def test_what_is_written_is_read(stage):
    read = annotation.read(stage, json.loads(json.dumps(STAGES[stage])))
    assert annotation.to_json(read) == STAGES[stage]
    assert annotation.fields_of(stage) == tuple(STAGES[stage])


@pytest.mark.parametrize(
    ("stage", "change", "fault"),
    [
        ("sound", {"tone": "neutral "}, None),
        ("sound", {"tone": "glad"}, "tone: 'glad' is none of Positive, Negative, Neutral"),
        ("sound", {"music": "yes"}, "music: a text instead of true or false"),
        ("sound", {"sounds": [{"start": 1}]}, "sounds[0].what is missing"),
        ("sound", {"sounds": [{"what": "x", "start": -1}]}, "sounds[0].start: -1 is not a time"),
        ("sound", {"sounds": [{"what": "x", "at": 1}]}, "sounds[0].at is not a field"),
        ("picture", {"text": "SALE"}, "text: a text instead of a list"),
        ("picture", {"objects": [{"name": "car", "count": 0}]}, "objects[0].count: 0 is not a"),
        ("picture", {"objects": [{"name": "car", "count": True}]}, "objects[0].count: True is"),
        ("both", {"caption": None}, "caption: null instead of a text"),
        ("both", {"title": "x"}, "title is not a field; there are caption"),
    ],
)
def test_a_fault_names_its_field(stage, change, fault):
    value = STAGES[stage] | change
    if fault is None:
        assert annotation.read(stage, value).tone == "Neutral"
        return
    with pytest.raises(ValueError, match=".") as error:
        annotation.read(stage, value)
    assert str(error.value).startswith(fault)


def test_missing_fields_and_other_values():
    with pytest.raises(ValueError, match="caption is missing"):
        annotation.read("both", {})
    with pytest.raises(ValueError, match="the answer: a list instead of an object"):
        annotation.read("both", [])


def test_the_schema_has_each_field():
    schema = annotation.schema("sound")
    assert schema["required"] == list(SOUND)
    assert schema["properties"]["tone"]["enum"] == list(annotation.TONES)
    item = schema["properties"]["sounds"]["items"]
    assert item["properties"]["start"] == {
        "anyOf": [{"type": "number", "minimum": 0}, {"type": "null"}]
    }
    assert not schema["additionalProperties"]
