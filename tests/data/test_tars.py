"""Tar files of clips: rows of their members, clips read at their places, one line for a bad one."""

import io
import json
import logging
import tarfile

import pytest
from fake_bucket import bucket  # noqa: F401 (fixture)

from ugc_jax.data import tars
from ugc_jax.data.manifest import Columns, read_manifest
from ugc_jax.errors import UnreadableFile, UserError
from ugc_jax.media.presets import ClipSettings

CLIP = ClipSettings(question="What?")
TURNS = [{"role": "user", "content": "<video>Q"}, {"role": "assistant", "content": "A"}]


def write_tar(path, members):
    """Write {name: bytes, text or a value for JSON} as a tar file; returns its bytes."""
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w") as archive:
        for name, content in members if isinstance(members, list) else members.items():
            if not isinstance(content, bytes):
                content = content if isinstance(content, str) else json.dumps(content)
                content = content.encode()
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    if path is not None:
        path.write_bytes(raw.getvalue())
    return raw.getvalue()


@pytest.fixture(autouse=True)
def no_cache():
    tars._members.cache_clear()


def test_members_with_a_key_are_a_row(tmp_path):
    tar = tmp_path / "shard-000.tar"
    write_tar(tar, {
        "./001.mp4": b"one", "./001.json": {"caption": "Rain.", "n": 1},
        "002.mp4": b"two", "002.json": {"messages": TURNS},
        "b/003.mp4": b"three", "b/003.txt": "Snow.\n",
        "004.mp4": b"four",
        "005.wav": b"five", "005.json": {"audio": "005.wav", "question": "Q", "answer": "A"},
        "006.mp4": b"six", "006.json": {"videos": ["006.mp4"], "messages": TURNS, "mood": "low"},
        "._001.mp4": b"of a system",
    })  # fmt: skip
    rows = read_manifest(tar, CLIP)
    assert [row.id for row in rows] == [f"shard-000.tar/{k}" for k in
        ("001", "002", "b/003", "004", "005", "006")]  # fmt: skip
    names = ("001.mp4", "002.mp4", "b/003.mp4", "004.mp4", "005.wav", "006.mp4")
    assert [row.media for row in rows] == [[f"{tar}/{name}"] for name in names]
    answers = ["Rain.", "A", "Snow.", None, "A", "A"]
    for row, answer in zip(rows, answers, strict=True):
        last = row.messages[-1]
        assert (last["content"] if last["role"] == "assistant" else None) == answer
    assert rows[0].extra == {"n": 1}
    assert rows[3].messages[1]["content"][1]["text"] == "What?"
    assert rows[4].messages[1]["content"][0] == {"type": "audio", "audio": "005.wav"}
    assert rows[5].extra == {"mood": "low"}
    for row, content in zip(
        rows, (b"one", b"two", b"three", b"four", b"five", b"six"), strict=True
    ):
        tars.copy(tars.locate(row.media[0]), str(tmp_path / "out"))
        assert (tmp_path / "out").read_bytes() == content


def test_bad_members_get_a_line_and_the_others_are_read(tmp_path, caplog):
    tar = tmp_path / "a.tar"
    write_tar(tar, [
        ("1.mp4", b"1"), ("1.json", "{nonsense"), ("2.mp4", b"2"), ("2.json", {"caption": "Good."}),
        ("3.json", {"caption": "C"}), ("4.mp4", b"4"), ("4.json", [1]), ("5.mp4", b"5"),
        ("5.json", {"caption": ""}), ("6.mp4", b"6"), ("6.json", {"video": "x/7.mp4"}),
        ("7.mp4", b"7"), ("7.mp4", b"8"), ("8.mp4", b"9"), ("8.txt", b"\xff\xfe\x00"),
        ("9.mp4", b"9"), ("9.wav", b"9"),
    ])  # fmt: skip
    with caplog.at_level(logging.WARNING):
        (row,) = read_manifest(tar, CLIP)
    assert row.messages[-1]["content"] == "Good."
    lines = [line.message for line in caplog.records]
    for key, part in {
        "1": "1.json: not JSON (", "3": "there is no clip with 3.json", "4": "expected a JSON",
        "5": "caption is empty", "6": "video names no clip of this key (6.mp4); correct it",
        "7": "7.mp4 is there twice", "8": "8.txt is not UTF-8 text",
        "9": "has 9.mp4 and 9.wav; list them in its .json",
    }.items():  # fmt: skip
        (line,) = (one for one in lines if one.startswith(f"{tar}/{key}: "))
        assert part in line
    assert lines[-1] == f"{tar}: 8 of 9 members are left out for these reasons"
    assert len(lines) == 9


def test_a_tar_file_that_was_cut_off(tmp_path, caplog):
    tar = tmp_path / "a.tar"
    content = write_tar(None, {"1.mp4": b"1" * 600, "2.mp4": b"2" * 6000})
    tar.write_bytes(content[:4000])
    (row,) = read_manifest(tar, CLIP)
    assert row.media == [f"{tar}/1.mp4"]
    assert f"{tar}: cannot be read behind 1.mp4 (unexpected end of data); copy it" in caplog.text
    with pytest.raises(UserError, match=r"a.tar has no member of this name; check the name"):
        tars.locate(f"{tar}/2.mp4")
    tar.write_bytes(b"no tar file at all" * 100)
    with pytest.raises(UserError, match="a.tar: is no tar file"):
        read_manifest(tar, CLIP)


def test_names_of_several_files(tmp_path):
    for number in (0, 1, 10):
        write_tar(tmp_path / f"s-{number:03d}.tar", {f"{number}.mp4": b"x"})
    three = [f"s-{number:03d}.tar/{number}" for number in (0, 1, 10)]
    ids = lambda path: [row.id for row in read_manifest(path, CLIP)]  # noqa: E731
    assert ids(f"{tmp_path}/*.tar") == three
    assert ids(f"{tmp_path}/s-{{000..001}}.tar") == three[:2]
    assert ids(tmp_path) == three
    with pytest.raises(UnreadableFile, match="s-002.tar: no such file"):
        ids(f"{tmp_path}/s-{{000..002}}.tar")
    with pytest.raises(UserError, match=r"x\*.tar: matches no file"):
        ids(f"{tmp_path}/x*.tar")
    with pytest.raises(UserError, match="a.tar.gz: is packed, .*; unpack it to .tar"):
        ids(tmp_path / "a.tar.gz")
    (tmp_path / "b.mp4").write_bytes(b"x")
    with pytest.raises(UserError, match=r"has clips and tar files \(s-000.tar, ...\); give"):
        ids(tmp_path)


def test_columns_of_members_are_renamed(tmp_path):
    tar = tmp_path / "a.tar"
    write_tar(tar, {"1.mp4": b"1", "1.json": {"blip": "Long.", "caption": "Short.", "url": "x"}})
    (row,) = read_manifest(tar, CLIP, columns=Columns(caption="blip", drop=("url",)))
    assert row.messages[-1]["content"] == "Long."
    assert row.extra == {"source_caption": "Short."}
    line = "columns.video: .*a.tar has no column clip; its columns are blip, caption, url"
    with pytest.raises(UserError, match=line):
        read_manifest(tar, CLIP, columns=Columns(video="clip"))


def test_a_manifest_may_name_members(tmp_path):
    write_tar(tmp_path / "a.tar", {"d/1.mp4": b"content"})
    (tmp_path / "m.jsonl").write_text('{"video": "a.tar/d/1.mp4", "caption": "A"}\n')
    (row,) = read_manifest(tmp_path / "m.jsonl", CLIP)
    tars.copy(tars.locate(row.media[0]), str(tmp_path / "out"))
    assert (tmp_path / "out").read_bytes() == b"content"
    (tmp_path / "folder.tar").mkdir()  # a folder of that name is a folder
    assert tars.locate(f"{tmp_path}/folder.tar/1.mp4") is None


def test_tar_files_of_a_bucket(bucket, tmp_path):  # noqa: F811
    for number in range(2):
        content = {f"{number}.mp4": bytes([number]) * 5000, f"{number}.json": {"caption": "A"}}
        bucket.pipe_file(f"s3://b/shards/{number}.tar", write_tar(None, content))
    bucket.faults["1.tar"] = [ConnectionResetError("reset")] * 2
    rows = read_manifest("s3://b/shards/*.tar", CLIP)
    assert [row.media for row in rows] == [[f"s3://b/shards/{n}.tar/{n}.mp4"] for n in range(2)]
    bucket.faults["1.tar"] = [ConnectionResetError("reset")]
    tars.copy(tars.locate(rows[1].media[0]), str(tmp_path / "out"))
    assert (tmp_path / "out").read_bytes() == bytes([1]) * 5000
