"""ugc_jax.evals.benchmarks.columns: rows by mapped columns; what is unknown is refused by name."""

import json

import pytest

from ugc_jax.errors import UserError
from ugc_jax.evals.benchmarks.columns import find_file, parse_mapping, read_rows

FIELDS = ("video", "events")


def written(path, rows):
    path.write_text(rows if isinstance(rows, str) else json.dumps(rows))
    return path


def test_a_mapping():
    assert parse_mapping(["video=id", " events = a = b "], FIELDS, "X") == {
        "video": "id", "events": "a = b",
    }  # fmt: skip
    assert parse_mapping([], FIELDS, "X") == {}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["Video=id"], r"^map: X has no field 'Video'; its fields: video, events"),
        (["video"], r"^map: 'video' is not of the form FIELD=COLUMN"),
        (["video="], r"^map: 'video=' is not of the form"),
        (["video=a", "video=b"], r"^map: video is mapped twice"),
        (["video=a", "events=a"], r"^map: the column 'a' is mapped twice"),
    ],
)
def test_wrong_mappings(words, message):
    with pytest.raises(UserError, match=message):
        parse_mapping(words, FIELDS, "X")


def test_rows(tmp_path, caplog):
    caplog.set_level("INFO")
    rows = [{"id": "a", "list": ["x"], "Type": 1}, {"list": [], "id": "b"}]
    columns, expected = {"video": "id", "events": "list"}, [("a", ["x"]), ("b", [])]
    lines = "\n".join(map(json.dumps, rows)) + "\n\n"
    for text in (json.dumps(rows), lines):
        found = read_rows(written(tmp_path / "b.json", text), columns, "X")
        assert [tuple(row.values()) for row in found] == expected
        assert list(found[0]) == ["video", "events"]
    assert "b.json: columns that are not read: Type" in caplog.text
    twice = '[{"id": "a", "list": [], "Type": 1, "Type": 2}]'  # a column that is not read
    assert read_rows(written(tmp_path / "b.json", twice), columns, "X")[0]["video"] == "a"
    one = read_rows(written(tmp_path / "b.json", rows[0]), columns, "X")  # JSON Lines of one line
    assert one == [{"video": "a", "events": ["x"]}]


@pytest.mark.parametrize(
    ("rows", "columns", "message"),
    [
        (
            [{"id": 1, "x": 2}], {"video": "id", "events": None},
            r"column of events is not published for X; give --map events=COLUMN .*columns: id, x\)",
        ),
        (
            [{"id": 1, "x": 2}], {"video": "id", "events": "Events"},
            r"b\.json: has no column 'Events', which events is read from; .*columns: id, x\)",
        ),
        ([{"id": 1}, {}], {"video": "id"}, r"b\.json: row 2 has no 'id' \(video\)"),
        ([{"id": 1}, 7], {"video": "id"}, r"b\.json: row 2 is not an object"),
        (
            '[{"id": 1}, {"id": 1, "id": 2}]', {"video": "id"},
            r"b\.json: row 2 has 'id' \(video\) twice; keep one of them",
        ),
        (
            '{"id": 1, "id": 1}\n{"id": 2}', {"video": "id"},
            r"b\.json: row 1 has 'id' \(video\) twice; keep one of them",
        ),
        ([], {"video": "id"}, r"b\.json: has no rows"),
        ("", {"video": "id"}, r"b\.json: has no rows"),
        ('{"id": 1}\n{"id"', {"video": "id"}, r"b\.json:2: not JSON"),
    ],
)  # fmt: skip
def test_wrong_files(tmp_path, rows, columns, message):
    with pytest.raises(UserError, match=message):
        read_rows(written(tmp_path / "b.json", rows), columns, "X")


def test_the_file_of_a_folder(tmp_path):
    qa, other = tmp_path / "qa.json", tmp_path / "other.jsonl"
    with pytest.raises(UserError, match=r"has no qa\.json, the file of X"):
        find_file(tmp_path, "qa.json", "X")
    with pytest.raises(UserError, match="one .json or .jsonl file, of X, but has none"):
        find_file(tmp_path, None, "X")
    qa.touch()
    assert find_file(tmp_path, "qa.json", "X") == find_file(tmp_path, None, "X") == qa
    other.touch()
    with pytest.raises(UserError, match=r"but has other\.jsonl, qa\.json; give the file itself"):
        find_file(tmp_path, None, "X")
    assert find_file(other, None, "X") == other
