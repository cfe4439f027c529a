"""ugc_jax.annotate.exports and imports: the released forms, both ways."""

import json

import pytest

from ugc_jax.annotate import exports, imports
from ugc_jax.annotate.answers import Agreed, Answer, Question
from ugc_jax.annotate.imports import Imported
from ugc_jax.annotate.tasks import TASKS
from ugc_jax.data.annotation import Both, Picture, Sound, SoundEvent, Thing, to_json
from ugc_jax.data.manifest import read_manifest
from ugc_jax.errors import UserError
from ugc_jax.evals.tasks import FORMS, load_tasks
from ugc_jax.media.presets import ClipSettings

HEARD = Sound("Narration", "Neutral", True, (SoundEvent("bell", 1.0, 2.5),), "A man speaks.")
SEEN = Picture(("SALE", "50 %\noff"), (Thing("car", 2, "red", "left"),), "It turns dark.", "Cars.")
FULL = Agreed("a", "clips/a.mp4", HEARD, SEEN, Both("A man and two cars."))
SILENT = Agreed(
    "b",
    "clips/b.mp4",
    Sound("None", "Positive", False, (), "Silence."),
    Picture((), (), "", "Black."),
    Both("Nothing happens."),
)


def content(path):
    return json.loads(path.read_text())


def samples(path):
    return {row["video_id"]: row["answer"] for row in content(path)["samples"]}


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


# ---- the released files --------------------------------------------------------------------------


def test_the_released_files_come_out_as_they_came_in(shared_data, tmp_path):
    released = shared_data / "ugc_videocap/qa"
    imported = imports.read(released)
    assert len(imported.agreed) == 1000
    exports.write(tmp_path, imported.agreed)
    for form in FORMS.values():
        assert (tmp_path / "qa" / form.file).read_bytes() == (released / form.file).read_bytes()
    # and once more from the export's own file
    again = imports.read(tmp_path)
    assert again == imported
    exports.write(tmp_path / "again", again.agreed)
    for form in FORMS.values():
        written = tmp_path / "again/qa" / form.file
        assert written.read_bytes() == (released / form.file).read_bytes()


def released(folder, **tasks):
    """Write files in the released form. tasks: name -> {clip: answer}."""
    for name, answers in tasks.items():
        options = list(TASKS[name].options)
        rows = [
            {"video_id": clip, "path": f"video/{clip}.mp4", "answer": answer}
            | ({"options": options} if options else {})
            for clip, answer in answers.items()
        ]
        whole = {"question": f"{name}? ", "valid_count": len(rows), "samples": rows}
        (folder / FORMS[name].file).write_text(json.dumps(whole))


def test_oddities_survive_until_the_field_is_edited(tmp_path):
    odd = "a car,a dog (count: one,one)"
    released(
        tmp_path,
        tone={"a": "neutral", "b": "Positive"},
        objects={"b": odd, "a": " car (count: multiple, color: red, position: left); "},
        background={"b": " It  moves. ", "a": "Dark."},
    )
    a, b = imports.read(tmp_path).agreed
    assert a.sound.tone == "Neutral"
    assert a.picture.objects == (Thing("car", 2, "red", "left"),)
    assert a.both is None
    assert b.picture.objects == ()
    qa = tmp_path / "out/qa"
    # a field beside the odd one is edited
    edited = b._replace(picture=Picture((), (), "It stays.", "New."))
    exports.write(tmp_path / "out", [a, edited])
    assert content(qa / "tone.json") == content(tmp_path / "tone.json")
    assert content(qa / "object.json") == content(tmp_path / "object.json")
    assert samples(qa / "back_ground_change_new.json") == {"b": "It stays.", "a": "Dark."}
    assert samples(qa / "visual_caption_qa.json") == {"b": "New."}
    assert not (qa / "BGM.json").exists()  # the imported files did not ask about music
    # the odd one itself
    edited = b._replace(picture=Picture((), (Thing("dog", 1, "grey", "right"),), "", ""))
    exports.write(tmp_path / "out", [a, edited])
    assert samples(qa / "object.json")["b"] == "dog (count: 1, color: grey, position: right)"
    assert samples(qa / "back_ground_change_new.json") == {"a": "Dark."}
    assert content(qa / "tone.json")["question"] == "tone? "


def test_a_folder_of_a_few_files_and_a_single_one(tmp_path):
    released(tmp_path, tone={"a": "neutral"})
    assert imports.read(tmp_path / "tone.json") == imports.read(tmp_path)
    (tmp_path / "ocr.jsonl").write_text('{"video_id": "c", "ocr": ["X", "y "]}\n')
    a, c = imports.read(tmp_path).agreed
    assert (c.clip, c.picture.text, c.sound) == ("c", ("X", "y"), None)
    exports.write(tmp_path / "out", [a, c])
    assert lines(tmp_path / "out/qa/ocr.jsonl") == [{"video_id": "c", "ocr": ["X", "y "]}]


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("{", r"tone\.json: is not JSON"),
        ('{"question": "q", "samples": []}', r"tone\.json: has no samples"),
        ('{"question": "q", "valid_count": 2, "samples": [{"video_id": "a", "answer": "Neutral", '
         '"options": ["Neutral"]}]}', "valid_count is 2"),
        ('{"question": "q", "samples": [{"video_id": "a", "answer": "Sad", '
         '"options": ["Neutral"]}]}', "sample a: the answer 'Sad' is not an option"),
        ('{"question": "q", "samples": [{"video_id": "a", "answer": "Neutral", "score": 1, '
         '"options": ["Neutral"]}]}', "sample a: score is no field"),
    ],
)  # fmt: skip
def test_a_wrong_released_file_is_said_in_one_line(tmp_path, text, match):
    (tmp_path / "tone.json").write_text(text)
    with pytest.raises(UserError, match=match):
        imports.read(tmp_path)


def test_two_paths_of_one_clip_are_refused(tmp_path):
    released(tmp_path, tone={"a": "neutral"}, bgm={"a": "No"})
    whole = content(tmp_path / "BGM.json")
    whole["samples"][0]["path"] = "other/a.mp4"
    (tmp_path / "BGM.json").write_text(json.dumps(whole))
    with pytest.raises(UserError, match="sample a: its path is 'other/a.mp4', in another file"):
        imports.read(tmp_path)


# ---- own annotations -----------------------------------------------------------------------------


def test_fields_become_a_benchmark_that_evaluate_reads(tmp_path):
    counts = exports.write(tmp_path, [FULL, SILENT])
    tasks = load_tasks(tmp_path / "qa", tuple(FORMS))
    found = {name: {one.id: one.reference for one in task.samples} for name, task in tasks.items()}
    assert found == {
        "voice_source": {"a": "Narration"},  # the other clip has no voice
        "tone": {"a": "Neutral", "b": "Positive"},
        "bgm": {"a": "Yes", "b": "No"},
        "ocr": {"a": ["SALE", "50 %\noff"]},
        "background": {"a": "It turns dark."},
        "objects": {"a": "car (count: 2, color: red, position: left)"},
        "audio_caption": {"a": "A man speaks.", "b": "Silence."},
        "visual_caption": {"a": "Cars.", "b": "Black."},
        "final_caption": {"a": "A man and two cars.", "b": "Nothing happens."},
    }
    assert content(tmp_path / "qa/tone.json")["samples"][0]["path"] == "clips/a.mp4"
    assert counts["qa/tone.json"] == 2
    assert counts["train.jsonl"] == counts["annotations.jsonl"] == 2
    assert "answers.jsonl" not in counts


def test_training_rows_are_read_by_extract(tmp_path):
    exports.write(tmp_path, [FULL, SILENT._replace(both=None)])
    (row,) = read_manifest(tmp_path / "train.jsonl", ClipSettings(), media="/data")
    assert row.media == ["/data/clips/a.mp4"]
    assert row.solution == row.messages[-1]["content"] == "A man and two cars."
    assert row.extra["label"]["sound"] == to_json(HEARD)


def test_only_what_questions_ask(tmp_path):
    asked = (
        Question("a", "sound", TASKS["tone"].question, "Neutral", TASKS["tone"].options, "tone"),
        Question("a", "cross", "Who speaks?", "the driver", source="person"),
    )
    exports.write(tmp_path, [FULL._replace(questions=asked), SILENT])
    qa = tmp_path / "qa"
    assert samples(qa / "tone.json") == {"a": "Neutral", "b": "Positive"}
    assert samples(qa / "BGM.json") == {"b": "No"}  # a was asked about its tone alone
    assert samples(qa / "final_caption_qa.json").keys() == {"a", "b"}  # captions of all
    assert lines(qa / "questions.jsonl") == [
        {"video_id": "a", "path": "clips/a.mp4", "kind": "cross", "question": "Who speaks?",
         "answer": "the driver", "options": [], "source": "person"}
    ]  # fmt: skip


def test_a_corrected_field_corrects_its_question(tmp_path):
    options = TASKS["tone"].options
    template = Question("a", "sound", TASKS["tone"].question, "Negative", options, "tone")
    exports.write(tmp_path, [FULL._replace(questions=(template,))])
    assert samples(tmp_path / "qa/tone.json") == {"a": "Neutral"}
    written = template._replace(source="person")
    exports.write(tmp_path, [FULL._replace(questions=(written,))])
    assert samples(tmp_path / "qa/tone.json") == {"a": "Negative"}


def test_benchmark_and_training_apart(tmp_path):
    exports.write(tmp_path, [FULL, SILENT], benchmark=["b"])
    assert samples(tmp_path / "qa/tone.json") == {"b": "Positive"}
    assert [row["videos"] for row in lines(tmp_path / "train.jsonl")] == [["clips/a.mp4"]]
    assert len(lines(tmp_path / "annotations.jsonl")) == 2


def test_files_of_an_earlier_export_do_not_stay(tmp_path):
    exports.write(tmp_path, [FULL], [Answer("a", "both", "ann", Both("x"), 3.0)])
    exports.write(tmp_path, [SILENT])
    assert not (tmp_path / "qa/ocr.jsonl").exists()
    assert not (tmp_path / "answers.jsonl").exists()


def test_an_export_of_nothing_leaves_the_earlier_one(tmp_path):
    exports.write(tmp_path, [FULL])
    before = {file: file.read_bytes() for file in tmp_path.rglob("*.json*")}
    with pytest.raises(UserError, match="nothing is agreed yet"):
        exports.write(tmp_path, [])
    assert {file: file.read_bytes() for file in tmp_path.rglob("*.json*")} == before


def test_files_of_others_are_not_replaced(tmp_path):
    (tmp_path / "train.jsonl").write_text("labels\n")
    for clips in ([FULL], [FULL._replace(both=None)]):  # with training rows, and without
        with pytest.raises(UserError, match=r"train\.jsonl is not of an earlier export"):
            exports.write(tmp_path, clips)
    assert [file.name for file in tmp_path.iterdir()] == ["train.jsonl"]
    assert (tmp_path / "train.jsonl").read_text() == "labels\n"


def test_a_folder_that_cannot_be(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file/export"):
        exports.write(tmp_path / "file" / "export", [FULL])


def test_two_clips_of_one_id_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"clips/a\.mp4 and more/a\.mov: two clips with the id a"):
        exports.write(tmp_path, [FULL, Agreed("a", "more/a.mov")])


def test_an_export_comes_back_whole(tmp_path):
    asked = Question("a", "cross", " Who? ", "he\u2028", ("he\u2028", "she"), source="person")
    agreed = (FULL._replace(questions=(asked,)), Agreed("c", "c.mp4", SILENT.sound))
    answers = (Answer("a", "sound", "ann", HEARD, 12.5), Answer("a", "both", "ben", Both("x")))
    exports.write(tmp_path, agreed, answers)
    assert imports.read(tmp_path) == Imported(agreed, {}, answers)
    assert imports.read(tmp_path / "annotations.jsonl") == Imported(agreed, {}, answers)


def test_a_labelling_run_gives_drafts(tmp_path):
    label = {"sound": to_json(HEARD), "both": to_json(Both("All."))}
    row = {"videos": ["more/a.mp4"], "messages": [], "solution": "All.", "label": label}
    path = tmp_path / "labels.jsonl"
    path.write_text(json.dumps(row) + "\n")
    found = imports.read(path)
    assert found.agreed == (Agreed("a", "more/a.mp4"),)
    assert found.drafts == {"sound": {"a": HEARD}, "picture": {}, "both": {"a": Both("All.")}}
    # and an export is a labelling run, too
    exports.write(tmp_path, [FULL])
    assert imports.read(tmp_path / "train.jsonl").drafts["picture"] == {"a": SEEN}


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("", "has no rows"),
        ("{", r"labels\.jsonl:1: is not JSON"),
        ('{"videos": ["a.mp4"]}', r"labels\.jsonl:1: has no label"),
        ('{"videos": ["a.mp4", "b.mp4"], "label": {}}', "videos is not a list of one path"),
        ('{"videos": ["a.mp4"], "label": {"sound": {"tone": "Sad"}}}', 
         r"label\.sound: voice_source"),
        ('{"videos": ["a.mp4"], "label": {}}\n{"videos": ["x/a.mov"], "label": {}}',
         "two rows of the clip a"),
    ],
)  # fmt: skip
def test_wrong_labels_are_said_in_one_line(tmp_path, text, match):
    path = tmp_path / "labels.jsonl"
    path.write_text(text)
    with pytest.raises(UserError, match=match):
        imports.read(path)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"clip": 3}, "clip: 3 is not a text"),
        ({"sound": {}}, "sound: voice_source is missing"),
        ({"mood": 1}, "mood is not a field"),
        ({"questions": [{"clip": "a"}]}, "questions: kind: None is not a text"),
        (
            {"questions": [{"clip": "a", "kind": "smell", "question": "", "answer": ""}]},
            "questions: kind: 'smell' is none",
        ),
    ],
)
def test_wrong_annotations_are_said_in_one_line(tmp_path, change, match):
    row = {"clip": "a", "path": "a.mp4"} | change
    (tmp_path / "annotations.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(UserError, match=rf"annotations\.jsonl:1: {match}"):
        imports.read(tmp_path)


def test_a_folder_of_something_else(tmp_path):
    with pytest.raises(UserError, match="has none of these files; give the folder of an export"):
        imports.read(tmp_path)
