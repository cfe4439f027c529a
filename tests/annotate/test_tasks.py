"""ugc_jax.annotate.tasks: fields as answers of the released tasks, and back."""

import json

import pytest

from ugc_jax.annotate.tasks import TASKS, imported_value, read_objects, write_objects
from ugc_jax.data.annotation import STAGES, Thing, fields_of
from ugc_jax.evals.tasks import FORMS


def test_the_tasks_are_those_of_evaluate():
    assert TASKS.keys() == FORMS.keys()
    covered = {(task.stage, task.field) for task in TASKS.values()}
    every = {(stage, name) for stage in STAGES for name in fields_of(stage)}
    assert every - covered == {("sound", "sounds")}  # of which nothing was released


def test_objects_both_ways():
    things = (Thing("car", 2, "red and white", "on the left"), Thing("dog", 1, "", ""))
    text = (
        "car (count: 2, color: red and white, position: on the left); "
        "dog (count: 1, color: , position: )"
    )
    assert write_objects(things) == text
    assert read_objects(text) == things


@pytest.mark.parametrize(
    ("text", "things"),
    [
        ("Wall (count: 1, color: brown, position: On the ground);",
         [Thing("Wall", 1, "brown", "On the ground")]),
        ("a (count: multiple, color: x, position: y);  b (count: two, color: z, position: w )",
         [Thing("a", 2, "x", "y"), Thing("b", 2, "z", "w")]),
        ("Stairs (count: 1, color: brown, white, position: On the (old) floor)",
         [Thing("Stairs", 1, "brown, white", "On the (old) floor")]),
    ],
)  # fmt: skip
def test_objects_as_people_wrote_them(text, things):
    assert read_objects(text) == tuple(things)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a car and a dog",
        "car (count: miltiple, color: red, position: left)",
        "car (count: 0, color: red, position: left)",
        "car (count: 1, color: red); dog (count: 1, color: x, position: y)",
        "car (count: 1, color: red, position: left); and a dog",
        "(count: 1, color: red, position: left)",
    ],
)
def test_free_text_is_no_list_of_objects(text):
    with pytest.raises(ValueError, match="is not of the form|is not a number|names no object"):
        read_objects(text)
    assert imported_value("objects", text) == ()


def test_options_take_their_spelling():
    assert imported_value("tone", "neutral") == "Neutral"
    assert imported_value("bgm", "No") is False
    assert imported_value("voice_source", None) == "None"
    assert TASKS["voice_source"].write("None") == ""  # without a voice there is nothing to ask


def test_the_released_questions(shared_data):
    for name, form in FORMS.items():
        if name != "ocr":
            content = json.loads((shared_data / "ugc_videocap/qa" / form.file).read_text())
            assert content["question"] == TASKS[name].question
            options = content["samples"][0].get("options", [])
            assert tuple(options) == TASKS[name].options


def test_most_released_objects_are_read(shared_data):
    content = json.loads((shared_data / "ugc_videocap/qa/object.json").read_text())
    read = [imported_value("objects", sample["answer"]) for sample in content["samples"]]
    assert sum(map(bool, read)) == 858  # of 997; the others are free text
