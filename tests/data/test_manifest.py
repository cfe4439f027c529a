"""Manifests and folders -> rows; what is wrong with a line is told with its number."""

import json

import pytest

from ugc_jax.data.manifest import read_manifest
from ugc_jax.errors import UserError
from ugc_jax.media.presets import QUESTION, UPSTREAM_SYSTEM, ClipSettings

UPSTREAM = ClipSettings(preset="upstream")
ROW = {
    "videos": ["clips/a.mp4"],
    "messages": [
        {"role": "user", "content": "<video>What happens?"},
        {"role": "assistant", "content": "It rains."},
    ],
}


def write(path, *lines):
    text = (
        line if isinstance(line, str) else json.dumps(line, ensure_ascii=False) for line in lines
    )
    path.write_text("".join(f"{line}\n" for line in text), encoding="utf-8")
    return path


def test_released_form(tmp_path):
    (row,) = read_manifest(write(tmp_path / "m.jsonl", ROW | {"mood": [1, {"a": "ü"}]}), UPSTREAM)
    assert row.id == "m.jsonl:1"
    assert row.media == [str(tmp_path / "clips/a.mp4")]
    assert row.messages == [
        {"role": "system", "content": UPSTREAM_SYSTEM},
        {
            "role": "user",
            "content": [
                {"type": "video", "video": "clips/a.mp4"},
                {"type": "text", "text": "What happens?"},
            ],
        },
        {"role": "assistant", "content": "It rains."},
    ]
    assert row.solution is None
    assert row.extra == {"mood": [1, {"a": "ü"}]}


def test_own_system_message_solution_and_media_folder(tmp_path):
    turns = [{"role": "system", "content": "Be brief."}, ROW["messages"][0]]
    path = write(tmp_path / "m.jsonl", ROW | {"messages": turns, "solution": "Rain."})
    (row,) = read_manifest(path, UPSTREAM, tmp_path / "elsewhere")
    assert [message["role"] for message in row.messages] == ["system", "user"]
    assert row.messages[0]["content"] == "Be brief."
    assert row.solution == "Rain."
    assert row.media == [str(tmp_path / "elsewhere/clips/a.mp4")]


def test_placeholders_take_their_files_in_order(tmp_path):
    content = "One <image>, two <video> three <image><audio> and <vide> <b>"
    row = {
        "images": ["1.png", "2.png"], "videos": "v.mp4", "audios": ["/s.wav"],
        "messages": [{"role": "user", "content": content}],
    }  # fmt: skip
    (row,) = read_manifest(write(tmp_path / "m.jsonl", row), ClipSettings())
    parts = row.messages[1]["content"]
    kinds = ["text", "image", "text", "video", "text", "image", "audio", "text"]
    assert [part["type"] for part in parts] == kinds
    assert parts[-1]["text"] == " and <vide> <b>"
    files = [str(tmp_path / name) for name in ("1.png", "v.mp4", "2.png")]
    assert row.media == [*files, "/s.wav"]


def test_an_answer_may_speak_of_placeholders(tmp_path):
    turns = [ROW["messages"][0], {"role": "assistant", "content": "A <video> tag.\u2028So."}]
    first = json.dumps(ROW | {"messages": turns}, ensure_ascii=False)
    rows = read_manifest(write(tmp_path / "m.jsonl", first, "", ROW), UPSTREAM)
    assert rows[0].messages[2]["content"] == "A <video> tag.\u2028So."
    assert [row.id for row in rows] == ["m.jsonl:1", "m.jsonl:3"]  # a blank line counts


@pytest.mark.parametrize("column", ["path", "video"])
def test_captions_in_json_lines(tmp_path, column):
    lines = [{column: "a.mp4", "caption": "Rain.", "tag": 3}, {column: "b.jpg"}, {column: "c.wav"}]
    rows = read_manifest(write(tmp_path / "m.jsonl", *lines), ClipSettings(question="Well?"))
    assert rows[0].messages[1]["content"][1] == {"type": "text", "text": "Well?"}
    assert rows[0].messages[2] == {"role": "assistant", "content": "Rain."}
    assert rows[0].extra == {"tag": 3}
    assert [row.messages[1]["content"][0]["type"] for row in rows] == ["video", "image", "audio"]
    assert len(rows[1].messages) == 2


@pytest.mark.parametrize(("suffix", "comma"), [("csv", ","), ("tsv", "\t")])
def test_captions_in_a_table(tmp_path, suffix, comma):
    path = tmp_path / f"m.{suffix}"
    lines = ["video,caption,tag", 'a.mp4,"Rain,\nand ""sun"".",3', "b.mp4,Snow.,4"]
    text = "\r\n".join(lines).replace(",", comma)
    path.write_bytes(b"\xef\xbb\xbf" + text.encode())  # as a spreadsheet writes it
    first, second = read_manifest(path, UPSTREAM)
    assert first.messages[2]["content"] == f'Rain{comma}\nand "sun".'
    assert first.extra == {"tag": "3"}
    assert second.media == [str(tmp_path / "b.mp4")]
    assert second.id == f"m.{suffix}:4"


def test_folder(tmp_path):
    for name in ("b.mp4", "a.MOV", "note.txt"):
        (tmp_path / name).write_text("x")
    rows = read_manifest(tmp_path, ClipSettings())
    assert [row.media for row in rows] == [[str(tmp_path / "a.MOV")], [str(tmp_path / "b.mp4")]]
    assert rows[0].messages[1]["content"][1]["text"] == QUESTION
    assert [message["role"] for message in rows[0].messages] == ["system", "user"]


def turns(*contents):
    return [
        {"role": "user" if i % 2 == 0 else "assistant", "content": content}
        for i, content in enumerate(contents)
    ]


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ('{"videos": [', "not JSON"),
        ("[1, 2]", "expected a JSON object"),
        ({"clip": "a.mp4"}, "neither messages nor path nor video"),
        ({"path": ""}, "path is ''"),
        ({"path": "a.mp4", "caption": "  "}, "caption is"),
        ({"path": "a.mp4", "caption": None}, "caption is empty"),
        (ROW | {"messages": "hello"}, "messages is not a list"),
        (ROW | {"messages": []}, "no user's turn"),
        (ROW | {"messages": [{"role": "bot", "content": "x"}]}, "role 'bot'"),
        (ROW | {"messages": turns("<video>What?", "")}, "the assistant's content is empty"),
        (
            ROW | {"videos": ["a.mp4", "b.mp4"]},
            "videos lists 1 more files than messages have <video>",
        ),
        (ROW | {"messages": turns("<video><video>?")}, "more <video> than videos lists files"),
        (ROW | {"videos": [3]}, "videos is not a list of paths"),
        (ROW | {"solution": ""}, "solution is empty"),
        (ROW | {"messages": turns("<video>What?", "\ud800")}, "not UTF-8"),
    ],
)
def test_bad_line(tmp_path, line, complaint):
    line = line if isinstance(line, str) else json.dumps(line)
    path = write(tmp_path / "m.jsonl", ROW, line, ROW, "{")
    with pytest.raises(UserError) as error:
        read_manifest(path, UPSTREAM)
    message = str(error.value)
    assert message.startswith(f"{path}:2: ")
    assert complaint in message
    assert message.endswith("correct or remove this line (and 1 more bad line)")
    assert "\n" not in message


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("m.csv", b"path,caption\na.mp4,x\nb.mp4,y,z\n", "m.csv:3: has another number of columns"),
        ("m.csv", b"path,caption\na.mp4\n", "m.csv:2: has another number of columns"),
        ("m.csv", b'path,caption\n"a.mp4"x,y\n', "m.csv:2: "),
        (
            "m.csv",
            b"clip;caption\na.mp4;x\n",
            "m.csv:1: the header has clip;caption; name",
        ),
        ("m.jsonl", b'[{"path": "a.mp4"},\n', "begins as a JSON array, and is not JSON"),
        (
            "m.json",
            b'[{"path": "a.mp4"}, 3]',
            "m.json: item 2: expected a JSON object, got 3; corr",
        ),
        ("m.jsonl", b'{"video": "a.mp4", "video": "b.mp4"}', "has 'video' twice; keep one"),
        ("m.csv", b"path,path\na.mp4,b.mp4\n", "m.csv:1: the header has path twice"),
        ("m.csv", b"", "holds no rows"),
        ("m.jsonl", b"\n", "holds no rows"),
        ("m.jsonl", b"\xff\xfe", "not UTF-8 text"),
        ("none.jsonl", None, "no such file; name a .jsonl or .csv manifest"),
    ],
)
def test_bad_file(tmp_path, name, content, complaint):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=complaint):
        read_manifest(tmp_path / name, UPSTREAM)


def test_the_released_files_are_understood(shared_data):
    train = shared_data / "ugc_videocap" / "train"
    sft = read_manifest(train / "sft_1k.jsonl", UPSTREAM)
    grpo = read_manifest(train / "grpo_1k.jsonl", UPSTREAM)
    assert (len(sft), len(grpo)) == (1000, 1073)
    assert all(row.messages[-1]["role"] == "assistant" and row.solution is None for row in sft)
    assert all(row.messages[-1]["role"] == "user" and row.solution for row in grpo)
    assert not any(row.extra for row in [*sft, *grpo])
