"""ugc_jax.evals.tasks: names as people write them, files as released, faults in words."""

import json

import pytest

from ugc_jax.errors import UserError
from ugc_jax.evals import prompts, tasks
from ugc_jax.evals.tasks import FORMS, TASKS, Sample, load_tasks, task_names
from ugc_jax.toy import task as world

WITH_WORLD = FORMS | world.TASKS


def sample(clip="a", answer="Yes", **columns):
    return {"video_id": clip, "path": f"video/{clip}.mp4", "answer": answer, **columns}


def option(clip="a", answer="Yes", options=("Yes", "No")):
    return sample(clip, answer, options=list(options))


def write(path, *samples, **columns):
    content = {"question": "Well? ", "valid_count": len(samples), "samples": samples, **columns}
    path.write_text(json.dumps(content))
    return path


def write_lines(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("all", TASKS),
        ("ALL", TASKS),
        ("ocr", ("ocr",)),
        ("BGM,tone", ("bgm", "tone")),
        (" Voice-Source , ocr,voice_source,", ("voice_source", "ocr")),
        ("object", ("objects",)),
        ("back_ground_change_new", ("background",)),
        ("background change", ("background",)),
        ("caption", ("final_caption",)),
        ("final_caption_qa,Visual-Caption-QA", ("final_caption", "visual_caption")),
        ("world", ("world",)),
    ],
)
def test_names(text, expected):
    assert task_names(text, WITH_WORLD) == expected


@pytest.mark.parametrize("text", ["", " , ", "tones", "ocr,colour"])
def test_names_of_no_task(text):
    with pytest.raises(UserError, match="final_caption.*or all"):
        task_names(text, WITH_WORLD)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("PI-00.mp4", "PI-00"),
        ("clips/v1.2.MP4", "v1.2"),
        ("C:\\clips\\a.webm", "a"),
        ("v1.2", "v1.2"),
        ("clips/ä b", "ä b"),
        ("clips/caf\udce9.mp4", "caf\udce9"),  # a byte that is not UTF-8
        ("a\ud83d.mp4", "a�"),
    ],
)
def test_ids(path, expected):
    assert tasks.clip_id(path) == expected


def test_released_files(shared_data):
    loaded = load_tasks(shared_data / "ugc_videocap/qa", TASKS)
    counts = {name: len(task.samples) for name, task in loaded.items()}
    assert list(counts) == list(TASKS)
    assert list(counts.values()) == [669, 999, 999, 826, 311, 997, 999, 999, 999]
    assert counts == {name: tasks.FORMS[name].count for name in TASKS}
    assert {sample.reference for sample in loaded["tone"].samples} == {
        "Positive", "Neutral", "Negative",
    }  # fmt: skip
    assert loaded["tone"].question.endswith("options. Options: Positive, Negative, Neutral.")
    assert '{"ocr": [' in loaded["ocr"].question
    assert all(isinstance(sample.reference, list) for sample in loaded["ocr"].samples)
    assert loaded["final_caption"].form.columns == ("visual", "audio", "details")
    assert loaded["final_caption"].question.startswith("You are given a short video")
    assert {task.form.unit for name, task in loaded.items() if name != "ocr"} == {"percent"}
    assert loaded["ocr"].form.unit == "fraction"


def test_judged_tasks_have_questions_for_the_judge():
    judged = {name for name, form in tasks.FORMS.items() if form.score is None}
    assert judged == set(prompts.RUBRICS)
    for name in judged:
        assert tasks.FORMS[name].columns == prompts.RUBRICS[name].columns


def test_answers_are_spelled_as_options(tmp_path):
    file = write(tmp_path / "BGM.json", option(answer="yes"), option("b", "NO "))
    (task,) = load_tasks(file, ("bgm",)).values()
    assert task.samples == (Sample("a", "Yes", ("Yes", "No")), Sample("b", "No", ("Yes", "No")))
    assert task.question == "Well? Options: Yes, No."
    assert (task.name, task.form, task.is_judged) == ("bgm", FORMS["bgm"], False)


def test_options_that_letters_do_not_tell_apart(tmp_path):
    signs = [option("a", "+", ("+", "-")), option("b", "-", ("+", "-"))]
    (task,) = load_tasks(write(tmp_path / "tone.json", *signs), ("tone",)).values()
    assert [sample.reference for sample in task.samples] == ["+", "-"]
    for answer, options in (("*", ("+", "-")), ("a", ("A+", "A-")), ("?", ("+", "Yes"))):
        with pytest.raises(UserError, match="is not an option"):
            load_tasks(write(tmp_path / "tone.json", option("a", answer, options)), ("tone",))


def test_of_all_tasks_those_that_are_there(tmp_path, caplog):
    write(tmp_path / "object.json", sample(answer="cup"))
    write_lines(tmp_path / "ocr.jsonl", {"video_id": "a", "ocr": []})
    assert list(load_tasks(tmp_path, task_names("all"))) == ["ocr", "objects"]
    assert "has no files of voice_source, tone, bgm, background" in caplog.text
    assert list(load_tasks(tmp_path, ("objects",))) == ["objects"]
    with pytest.raises(UserError, match=r"has no tone\.json; give the folder"):
        load_tasks(tmp_path, ("objects", "tone"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"has no voice_source\.json, tone\.json"):
        load_tasks(tmp_path / "empty", TASKS)


def test_the_file_of_one_task(tmp_path):
    file = write(tmp_path / "object.json", sample(answer="cup"))
    assert list(load_tasks(file, TASKS)) == ["objects"]
    own = write(tmp_path / "mine.json", sample(answer="cup"))
    assert list(load_tasks(own, ("objects",))) == ["objects"]
    with pytest.raises(UserError, match=r"mine\.json: is not named after a task"):
        load_tasks(own, TASKS)
    for names in (("tone", "bgm"), ("tone", "objects", "bgm")):
        with pytest.raises(UserError, match="is of the task objects, not of tone, bgm; correct"):
            load_tasks(file, names)
    with pytest.raises(UserError, match="is of the task objects, not of background; correct"):
        load_tasks(file, ("background",))
    with pytest.raises(UserError, match=r"none\.json: no such file; give the folder"):
        load_tasks(tmp_path / "none.json", TASKS)


def test_a_part_of_the_samples_is_told(tmp_path, caplog):
    load_tasks(write(tmp_path / "tone.json", option()), ("tone",))
    assert "tone.json: 1 samples, not the released 999" in caplog.text


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("objects", "{", "is not JSON"),
        ("objects", "[" * 99_999, "is not JSON"),
        ("ocr", "[" * 99_999, "line 1 is not JSON"),
        ("objects", "[]", "is not of the form"),
        ("objects", {"samples": {}}, "is not of the form"),
        ("objects", {"samples": []}, "has no samples"),
        ("objects", {"samples": [3]}, "sample 1: is not an object"),
        (
            "objects",
            {"question": "?", "samples": [{"answer": "cup"}]},
            "sample 1: video_id is None",
        ),
        ("objects", {"question": "?", "samples": [{"video_id": "a"}]}, "sample a: answer is None"),
        ("objects", {"question": "?", "samples": [sample(answer=" ")]}, "sample a: answer is ' '"),
        ("objects", {"samples": [sample()]}, "the file: question is None"),
        (
            "objects",
            {"question": "?", "samples": [sample(), sample()]},
            "sample a: a second sample with this id",
        ),
        (
            "objects",
            {"question": "?", "valid_count": 3, "samples": [sample()]},
            "valid_count is 3, but it has 1 samples",
        ),
        ("tone", {"question": "?", "samples": [sample()]}, "sample a: its options are missing"),
        (
            "tone",
            {"question": "?", "samples": [option(), option("b", options=("No", "Yes"))]},
            "sample b: its options are missing, or not those of the first",
        ),
        (
            "tone",
            {"question": "?", "samples": [option(answer="Maybe")]},
            "sample a: the answer 'Maybe' is not an option",
        ),
        ("ocr", "", "has no samples"),
        ("ocr", '{"video_id": "a", "ocr": []}\n\n{"vid', "line 3 is not JSON"),
        ("ocr", "[]", "line 1 is not an object"),
        ("ocr", {"ocr": []}, "video_id is None"),
        ("ocr", {"video_id": "a", "ocr": "text"}, "sample a: ocr is not a list of texts"),
        ("world", {"attributes": {}}, "row 1: has no videos"),
        ("world", {"attributes": {}, "videos": ["a.mp4"]}, "row 1: its attributes are not shape"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_another_form(tmp_path, name, content, message):
    file = tmp_path / "file.json"
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(UserError, match=message) as caught:
        load_tasks(file, (name,), WITH_WORLD)
    assert str(caught.value).startswith(f"{file}: ")
    assert "\n" not in str(caught.value)


def test_what_is_no_text(tmp_path):
    file = tmp_path / "tone.json"
    file.write_bytes(b"\xff\xfe\x00")
    for place in (file, tmp_path):
        with pytest.raises(
            UserError, match=r"tone\.json: .* \(not UTF-8 text\); give .* qa files as rel"
        ):
            load_tasks(place, ("tone",))
