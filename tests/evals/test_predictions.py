"""ugc_jax.evals.predictions: all forms of files; what is wrong with them is counted and said."""

import json

import pytest

from ugc_jax.errors import UserError
from ugc_jax.evals import tasks
from ugc_jax.evals.predictions import Failure, find_predictions, read_predictions

KNOWN = {"a", "b", "c"}


def lines(path, *rows):
    text = "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    "content",
    [
        '{"video_id": "a", "caption": "x"}\n{"video_id": "b", "caption": "y"}\n',
        '{"video": "clips/a.mp4", "caption": "x", "new_tokens": 3}\n'
        '{"video": "b.mov", "caption": "y"}',
        '{"video_id": "a", "ocr": ["z"], "predict_ocr": "x"}\n'
        '{"video_id": "b", "ocr": [], "predict_ocr": "y"}',
        '{"question": "?", "samples": [{"video_id": "a", "path": "video/z.mp4", "answer": "z",'
        ' "predict": "x"}, {"path": "video/b.mp4", "answer": "z", "predict": "y"}]}',
        '[{"video_id": "a", "answer": "z", "prediction": "x"}, {"video_id": "b", "response": "y"}]',
        '{"a": "x", "b": "y"}',
        '{"a.mp4": "x",\n "videos/b.mp4": "y"}',
        '{"a": {"caption": "x", "seconds": 3}, "b.mp4": {"video_id": "z", "predict": "y"}}',
        '\ufeff{"video_id": "a", "caption": "x"}\r\n\r\n \n{"video_id": "b", "caption": "y"}\r\n',
        '{"videos": ["test/a.mp4"], "caption": "x"}\n{"videos": ["test/b.mp4"], "caption": "y"}\n',
    ],
)
def test_forms(tmp_path, content):
    file = tmp_path / "file.jsonl"
    file.write_bytes(content.encode())
    found = read_predictions(file, KNOWN)
    assert found.texts == {"a": "x", "b": "y"}
    assert not found.failures
    assert not found.faults()


def test_one_line(tmp_path):
    file = lines(tmp_path / "file.jsonl", {"video_id": 7, "caption": "line\u2028separator"})
    assert read_predictions(file, {"7"}).texts == {"7": "line\u2028separator"}


def test_released_files(shared_data):
    released = shared_data / "ugc_videocap"
    loaded = tasks.load_tasks(released / "qa", tasks.TASKS)

    def found(task, name):
        one = loaded[task]
        path = released / "results" / name
        return read_predictions(path, set(one.ids), takes_json=one.form.takes_json)

    background = found("background", "background/omni3b_output.json")
    assert (len(background.texts), background.faults()) == (310, [])
    assert list(background.failures.values()) == [Failure("null", "predict is null")]
    assert len(found("objects", "object/omni3b_object.json").texts) == 997
    ocr = found("ocr", "ocr/ocr_omni3b.jsonl")
    assert len(ocr.texts) == 826
    assert any(text.startswith('{"ocr": ["') for text in ocr.texts.values())  # were objects
    captions = found("final_caption", "caption/1k_sft_inference.jsonl")
    assert len(captions.texts) == 998
    (line,) = captions.faults()  # the one clip without ground truth
    assert line.startswith("1k_sft_inference.jsonl:44: the task has no clip 'PI-0abb79ae")


def test_faults_are_counted_and_the_rest_is_used(tmp_path):
    file = lines(
        tmp_path / "file.jsonl",
        {"video_id": "a", "caption": "first"},
        '{"video_id": "b", "capt',
        {"caption": "of whom?"},
        {"video_id": "zz", "caption": "y"},
        {"video_id": "b", "answer": "the truth", "ocr": ["the truth"]},
        {"video_id": "a", "caption": "second"},
        '"text"',
        {"video_id": "c", "caption": ""},
        {"video_id": True, "caption": "x"},
        '[{"video_id": "b"}]',
    )
    found = read_predictions(file, KNOWN)
    assert found.texts == {"a": "second", "c": ""}
    assert found.faults() == [
        'file.jsonl:2: not a JSON object: {"video_id": "b", "capt',
        "file.jsonl:3: no id (looked for video_id, video, path, videos)",
        "file.jsonl:5: no text of b (looked for predict, predict_ocr, prediction, caption, "
        "response)",
        "file.jsonl:7: not a JSON object: text",
        "file.jsonl:9: no id (looked for video_id, video, path, videos)",
        "file.jsonl:10: not a JSON object: [{'video_id': 'b'}]",
        "file.jsonl:4: the task has no clip 'zz'",
        "file.jsonl:6: a again, with another text, which counts",
    ]
    assert found.counts() == {"broken": 6, "unknown": 1, "conflicting": 1, "duplicate": 0}


def test_faults_in_a_line(tmp_path):
    file = lines(
        tmp_path / "file.jsonl",
        {"video_id": "a", "caption": "x"},
        {"video_id": "zz", "caption": "x"},
        "oops",
        {"video_id": "a", "caption": "y"},
        "oops",
    )
    assert read_predictions(file, KNOWN).summary() == (
        "2 broken, 1 unknown, 1 conflicting rows (first: file.jsonl:3: not a JSON object: oops)"
    )
    lines(file, {"video_id": "a", "caption": "x"}, {"video_id": "a", "caption": "x"})
    assert (
        read_predictions(file, KNOWN).summary() == "1 duplicate row (first: file.jsonl:2: a again)"
    )
    lines(file, {"video_id": "a", "caption": "x"})
    assert read_predictions(file, KNOWN).summary() is None


def test_text_that_cannot_be_encoded(tmp_path):
    rows = [
        {"video_id": "a\ud83d", "caption": "x\ud83d 😀"},
        {"video_id": "b", "error": "y\udc00"},
        {"video_id": "c", "predict_ocr": ["\ud83d"]},
    ]
    file = lines(tmp_path / "file.jsonl", *rows)
    found = read_predictions(file, {"a�", "b", "c"}, takes_json=True)
    assert found.texts == {"a�": "x� 😀", "c": '["�"]'}
    assert found.failures == {"b": Failure("error", "y�")}


def test_name_that_is_not_utf8(tmp_path):
    row = {"video": "clips/caf\udce9.mp4", "caption": "x"}  # as `caption` writes it
    found = read_predictions(lines(tmp_path / "file.jsonl", row), {"caf\udce9"})
    assert found.texts == {"caf\udce9": "x"}


def test_faults_hold_no_control_characters(tmp_path):
    escape = {"video_id": "a\x1b[2J"}
    rows = [escape | {"caption": "x"}, escape | {"caption": "y"}, escape, "\x1b[31mred"]
    found = read_predictions(lines(tmp_path / "file.jsonl", *rows), {"a\x1b[2J"})
    assert found.faults()[0].startswith("file.jsonl:3: no text of a [2J (looked")
    assert found.faults()[1:] == [
        "file.jsonl:4: not a JSON object: [31mred",
        "file.jsonl:2: a [2J again, with another text, which counts",
    ]


def test_faults_in_one_json_text(tmp_path):
    rows = [{"video_id": "a", "predict": "x"}, "text", {"video_id": "d", "predict": "y"}]
    file = tmp_path / "file.json"
    file.write_text(json.dumps({"samples": rows}, indent=1))
    found = read_predictions(file, KNOWN)
    assert found.texts == {"a": "x"}
    assert found.faults() == [
        "file.json:sample 2: not a JSON object: text",
        "file.json:sample 3: the task has no clip 'd'",
    ]


def test_a_text_beats_an_error_and_a_blank_one(tmp_path):
    file = lines(
        tmp_path / "file.jsonl",
        {"video": "a.mp4", "caption": "good"},
        {"video": "a.mp4", "error": "no such file"},
        {"video": "b.mp4", "error": "moov atom\nnot found"},
        {"video": "c.mp4", "caption": "good"},
        {"video": "c.mp4", "caption": " "},
        {"video": "d.mp4", "error": "x"},
        {"video": "d.mp4", "caption": "late", "error": None},
        {"video": "e.mp4", "predict": None, "caption": "beside null"},
        {"video": "f.mp4", "caption": None},
    )
    found = read_predictions(file, set("abcdef"))
    assert found.texts == {"a": "good", "c": "good", "d": "late", "e": "beside null"}
    assert found.failures == {
        "b": Failure("error", "moov atom not found"),
        "f": Failure("null", "caption is null"),
    }
    assert len(found.duplicate) == len(found.faults()) == 3


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        ("NaN", "NaN"),
        ("-Infinity", "infinity"),
        ("1e999", "infinity"),
        ("null", "null"),
        ("false", "boolean"),
        ("true", "boolean"),
        ("0", "number"),
        ("4.5", "number"),
        ('["a caption"]', "list"),
        ('{"text": "a caption"}', "object"),
    ],
)
def test_what_is_no_text_is_a_failure_of_its_kind(tmp_path, value, kind):
    line, whole = tmp_path / "line.jsonl", tmp_path / "whole.json"
    line.write_text(f'{{"video_id": "a", "caption": {value}}}\n{{"video_id": "b", "caption": "x"}}')
    whole.write_text(f'{{"a": {value}, "b": "x"}}')
    for file in (line, whole):
        found = read_predictions(file, KNOWN)
        assert found.texts == {"b": "x"}
        assert found.failures["a"].kind == kind
        assert found.failures["a"].note.split(" is ")[0] in ("caption", "predict")


def test_json_is_kept_for_a_task_that_asks_for_it(tmp_path):
    file = lines(
        tmp_path / "file.jsonl",
        {"video_id": "a", "predict_ocr": {"ocr": ["ä"]}},
        {"video_id": "b", "predict_ocr": ["x", 1]},
        {"video_id": "c", "predict_ocr": 5},
        '{"video_id": "d", "predict_ocr": {"ocr": ["x"], "ocr": ["y"]}}',
    )
    found = read_predictions(file, set("abcd"), takes_json=True)
    assert found.texts == {"a": '{"ocr": ["ä"]}', "b": '["x", 1]'}
    assert {one: failure.kind for one, failure in found.failures.items()} == {
        "c": "number",
        "d": "key twice",
    }


def test_a_key_twice_is_no_choice_of_the_last(tmp_path):
    file = lines(
        tmp_path / "file.jsonl",
        '{"video_id": "a", "caption": "x", "caption": "y"}',
        '{"video_id": "b", "video_id": "c", "caption": "x"}',
        '{"video_id": "c", "caption": "z", "seconds": 1, "seconds": 2}',
    )
    found = read_predictions(file, KNOWN)
    assert found.texts == {"c": "z"}
    assert found.failures == {"a": Failure("key twice", "the key caption stands twice")}
    assert found.faults() == [
        "file.jsonl:2: the key video_id stands twice",
        "file.jsonl:3: has seconds twice",
    ]
    file.write_text('{"a": "x", "a": "y", "b": "z", "b": "z"}')  # as two rows of a clip
    found = read_predictions(file, KNOWN)
    assert found.texts == {"a": "y", "b": "z"}
    assert found.faults() == [
        "file.jsonl:sample 2: a again, with another text, which counts",
        "file.jsonl:sample 4: b again",
    ]
    file.write_text('{"a": {"caption": "x", "caption": "y"}, "b": "z"}')
    assert read_predictions(file, KNOWN).failures["a"].kind == "key twice"
    file.write_text('{"samples": [], "samples": [{"video_id": "a", "predict": "x"}]}')
    with pytest.raises(UserError, match="has 'samples' twice"):
        read_predictions(file, KNOWN)


@pytest.mark.parametrize("blank", ["", " \n", None, float("nan"), False])
def test_a_blank_field_hides_no_text(tmp_path, blank):
    row = {"video_id": "a", "prediction": blank, "caption": "x", "response": "x "}
    found = read_predictions(lines(tmp_path / "file.jsonl", row), KNOWN)
    assert (found.texts, found.failures) == ({"a": "x"}, {})


def test_two_texts_in_a_row_are_refused(tmp_path):
    rows = [{"video_id": "b", "caption": "x"}]
    rows += [{"video_id": "a", "prediction": "x", "caption": "y"}]
    file = lines(tmp_path / "file.jsonl", *rows)
    with pytest.raises(UserError, match=r"jsonl:2: prediction and caption have.*field=prediction"):
        read_predictions(file, KNOWN)
    assert read_predictions(file, KNOWN, field="caption").texts == {"a": "y", "b": "x"}


def test_a_text_beside_an_error_is_not_scored(tmp_path):
    rows = [{"video_id": "a", "caption": "The vid", "error": "connection lost"}]
    rows += [{"video_id": "b", "caption": "x", "error": ""}]
    rows += [{"video_id": "c", "caption": "x", "error": float("nan")}]
    found = read_predictions(lines(tmp_path / "file.jsonl", *rows), KNOWN)
    assert found.texts == {"b": "x", "c": "x"}
    assert found.failures == {"a": Failure("error", "connection lost")}


def test_ids_that_are_nearly_known(tmp_path):
    rows = [{"video_id": one, "caption": "x"} for one in ("A.MP4", "b.json", "c.mp4")]
    found = read_predictions(lines(tmp_path / "file.jsonl", *rows), KNOWN)
    assert found.texts == {"c": "x"}
    assert found.unknown == [
        "file.jsonl:1: the task has no clip 'A' (but 'a'; ids are compared as they are written)",
        "file.jsonl:2: the task has no clip 'b.json' (but 'b'; ids are compared as they are "
        "written)",
    ]


def test_texts_that_end_at_the_limit(tmp_path):
    rows = [{"video": "a.mp4", "caption": "x", "finish_reason": "length"}]
    rows += [{"video": "b.mp4", "caption": "x", "finish_reason": "stop"}]
    assert read_predictions(lines(tmp_path / "file.jsonl", *rows), KNOWN).cut == {"a"}


def test_a_field_of_ones_own(tmp_path):
    file = lines(tmp_path / "file.jsonl", {"video_id": "a", "caption": "x", "answer": "y"})
    assert read_predictions(file, KNOWN, field="answer").texts == {"a": "y"}
    with pytest.raises(UserError, match=r"no text of a \(looked for text\)"):
        read_predictions(file, KNOWN, field="text")
    file.write_text('{"a": {"caption": "x", "answer": "y"}, "b": {"caption": "x"}, "c": "z"}')
    found = read_predictions(file, KNOWN, field="answer")
    assert found.texts == {"a": "y", "c": "z"}
    assert found.broken == ["file.jsonl:sample 2: no text of b (looked for answer)"]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le"])
def test_encodings(tmp_path, encoding):
    file = tmp_path / "file.jsonl"
    file.write_text('{"video_id": "a", "caption": "猫"}\n', encoding=encoding)
    assert read_predictions(file, KNOWN).texts == {"a": "猫"}


def test_bytes_that_are_no_text_are_told(tmp_path, caplog):
    file = tmp_path / "file.jsonl"
    file.write_bytes(b'{"video_id": "a", "caption": "x\xff"}\n{"video_id": "b", "caption": "y"}\n')
    assert read_predictions(file, KNOWN).texts == {"a": "x�", "b": "y"}
    assert "byte 31 is not utf-8" in caplog.text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "it is empty"),
        ("\n \n", "it is empty"),
        ("[]", "it is empty"),
        ("{}", "it is empty"),
        ("3", "not a JSON object: 3"),
        ("A caption.", "file.json:1: not a JSON object: A caption."),
        ('{"video_id": "zz", "caption": "x"}', "the task has no clip 'zz'"),
        ('{"evaluations": {"a": {"visual_score": 4}}}', "has scores.*give it as scores=FILE"),
        ("[" * 100_000, "not a JSON object"),
    ],
)
def test_nothing_to_use(tmp_path, content, message):
    file = tmp_path / "file.json"
    file.write_text(content)
    with pytest.raises(UserError, match=message) as caught:
        read_predictions(file, KNOWN)
    assert str(caught.value).startswith(f"{file}: ")
    assert len(str(caught.value).replace(str(file), "")) < 200


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(UserError, match=r"cannot be read \(Is a directory\)"):
        read_predictions(tmp_path, KNOWN)
    with pytest.raises(UserError, match=r"cannot be read \(No such file"):
        find_predictions(tmp_path / "none", tasks.TASKS)


def test_the_files_of_a_folder(tmp_path):
    for name in ("Voice-Source.json", "object.jsonl", "notes.json", "tone.txt", ".ocr.jsonl"):
        (tmp_path / name).touch()
    for name in ("background_change/any.json", "background_change/log.txt", "caption_score/a.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "tone").mkdir()
    files, unmatched = find_predictions(tmp_path, tasks.TASKS)
    assert files == {
        "voice_source": tmp_path / "Voice-Source.json",
        "background": tmp_path / "background_change/any.json",
        "objects": tmp_path / "object.jsonl",
    }
    assert unmatched == [tmp_path / "caption_score/a.json", tmp_path / "notes.json"]
    assert find_predictions(tmp_path, ("tone", "objects"))[0] == {
        "objects": tmp_path / "object.jsonl"
    }


def test_several_files_of_a_task(tmp_path):
    for name in ("bgm.json", "BGM.jsonl"):
        (tmp_path / name).touch()
    with pytest.raises(UserError, match=r"several files of bgm \(BGM\.jsonl, bgm\.json\)"):
        find_predictions(tmp_path, tasks.TASKS)
    assert find_predictions(tmp_path, ("tone",)) == ({}, [])


def test_a_mark_of_a_missing_value_hides_no_text(tmp_path):
    file = lines(tmp_path / "file.jsonl", {"video_id": "a", "prediction": "nan", "caption": "x"})
    assert read_predictions(file, KNOWN).texts == {"a": "x"}
    lines(file, {"video_id": "a", "prediction": "nan", "caption": ""})
    assert read_predictions(file, KNOWN).texts == {"a": "nan"}  # a failure, when it is scored
