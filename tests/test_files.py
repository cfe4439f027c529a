"""ugc_jax.files: small files are read whole or refused in one line, and written whole or not."""

import json
import os

import pytest
from etils import epath

from ugc_jax import files
from ugc_jax.errors import UserError


def test_text_keeps_its_line_ends_and_loses_its_byte_order_mark(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes("\ufeffä\r\nb\u2028c\n".encode())
    for place in (path, str(path), epath.Path(path)):
        assert files.read_text(place, "give a text") == "ä\r\nb\u2028c\n"


def test_what_cannot_be_read_is_one_line_with_the_remedy(tmp_path):
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "half.json").write_text('{"a": ')
    (tmp_path / "deep.json").write_text("[" * 99_999)
    (tmp_path / "list.json").write_text("[1]")
    for name, fault in {
        "none": "no such file",
        "bytes": r"cannot be read \(not UTF-8 text\)",
        ".": r"cannot be read \(Is a directory\)",
        "half.json": "not readable as JSON",
        "deep.json": "not readable as JSON",
        "list.json": "expected a JSON object, got list",
    }.items():
        with pytest.raises(UserError, match=rf"{fault}.*; give another$") as caught:
            files.read_json(tmp_path / name, "give another")
        assert str(caught.value).startswith(f"{tmp_path / name}: ")
        assert "\n" not in str(caught.value)
    assert files.read_json(tmp_path / "list.json", "", list) == [1]


def test_lines_are_parsed_one_by_one(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": "\u2028"}\n\n{"a": \nnull\n{"a"')
    lines = list(files.read_lines(path, "give another"))
    assert [line.number for line in lines] == [1, 3, 4, 5]
    assert [line.value for line in lines] == [{"a": "\u2028"}, None, None, None]
    assert [line.error is None for line in lines] == [True, False, True, False]
    assert [line.whole for line in lines] == [True, True, True, False]


def test_files_are_written_whole_with_their_folder(tmp_path):
    path = tmp_path / "new" / "report.json"
    files.write_json(path, {"a": "ä\ud83d"})
    assert json.loads(path.read_text("utf-8")) == {"a": "ä\ud83d"}
    files.write_text(path, files.to_lines([{"a": 1}, {"b": "ä"}]))
    assert path.read_text("utf-8") == '{"a": 1}\n{"b": "ä"}\n'
    assert [entry.name for entry in path.parent.iterdir()] == ["report.json"]
    with pytest.raises(UserError, match="new: cannot be written .*; choose another file"):
        files.write_json(path.parent, {}, "choose another file")
    with pytest.raises(ValueError, match="not JSON compliant"):
        files.write_json(path, {"a": float("nan")})
    assert path.read_text("utf-8") == '{"a": 1}\n{"b": "ä"}\n'


def test_a_device_is_written_to_and_never_replaced_or_read():
    """A terminal: no file can be put in its place, as it can in that of /dev/full by root."""
    parent, child = os.openpty()
    try:
        name = os.ttyname(child)
        files.write_text(name, "done\n")
        assert os.read(parent, 100).strip() == b"done"
        with pytest.raises(UserError, match=f"{name}: is a device; name a file"):
            files.read_text(name, "name a file")
    finally:
        os.close(parent)
        os.close(child)


def test_what_can_be_encoded():
    assert files.encodable("ä\ud83d 😀\udc00") == "ä� 😀�"
