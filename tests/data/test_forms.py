"""Rows in the forms of other tools: read as a whole, or refused in a line with the remedy."""

import json
import math
import re
from collections import Counter
from random import Random

import pytest

from ugc_jax.data.forms import KNOWN, read_columns
from ugc_jax.data.manifest import read_manifest
from ugc_jax.media.presets import ClipSettings

V = {"type": "video", "video": "a.mp4"}
SYSTEM = {"role": "system", "content": "S"}
USER = {"role": "user", "content": "<video>Q"}
BARE = {"role": "user", "content": "Q"}
ANSWER = {"role": "assistant", "content": "A"}
PARTS = [{"type": "text", "text": "Q"}, {"type": "video", "video": "a.mp4"}]


def read(row):
    return read_columns(row, "Default?", "S", conversations=True)


def user(*parts):
    parts = [{"type": "text", "text": part} if isinstance(part, str) else part for part in parts]
    return {"role": "user", "content": parts}


def content(*parts):
    return {"messages": [{"role": "user", "content": list(parts)}, ANSWER]}


CLIP = [SYSTEM, user(V, "Q"), ANSWER]  # what most forms say
HUMAN, GPT = {"from": "human", "value": "<video>Q"}, {"from": "gpt", "value": "A"}
NULLS = {"images": None, "audios": None, "solution": None, "mood": None, "objects": None}


@pytest.mark.parametrize(
    "row",
    [
        {"videos": ["a.mp4"], "messages": [USER, ANSWER]},
        {"videos": "a.mp4", "messages": [USER, ANSWER], **NULLS, "tools": [], "system": ""},
        {"videos": ["a.mp4"], "messages": [USER, ANSWER], "images": math.nan},
        {"video": "a.mp4", "messages": [BARE, ANSWER]},
        {"path": "a.mp4", "messages": [BARE, ANSWER]},
        {"videos": ["a.mp4"], "messages": [BARE, ANSWER]},
        {"videos": ["a.mp4"], "messages": json.dumps([USER, ANSWER])},
        {"videos": '["a.mp4"]', "messages": [USER, ANSWER]},
        {"videos": [{"path": "a.mp4", "bytes": None}], "messages": [USER, ANSWER]},
        {"video": {"path": "a.mp4", "bytes": None}, "messages": [USER, ANSWER]},
        {
            "videos": ["a.mp4"],
            "messages": [USER | {"loss": None, "tool_calls": []}, ANSWER | {"loss": None}],
        },
        {"videos": ["a.mp4"], "messages": [USER | {"loss": 0}, ANSWER | {"loss": 1.0}]},
        {"video": "a.mp4", "conversations": [HUMAN, GPT]},
        {"video": "a.mp4", "conversations": [HUMAN, GPT], "system": "S"},
        {"video": "a.mp4", "conversations": [{"from": "system", "value": "S"}, HUMAN, GPT]},
        {"videos": ["a.mp4"], "conversations": [USER, ANSWER], "tools": ""},
        {"videos": ["a.mp4"], "query": "<video>Q", "response": "A", "history": []},
        {"videos": ["a.mp4"], "query": "Q", "response": "A", "system": None, "history": None},
        {"videos": ["a.mp4"], "instruction": "<video>Q", "input": "", "output": "A"},
        {"video": "a.mp4", "question": "Q", "answer": "A"},
        {"videos": ["a.mp4"], "prompt": [USER], "completion": [ANSWER]},
        {"video": "a.mp4", "prompt": "Q", "completion": "A"},
        {"video": "a.mp4", "question": "Q", "caption": "A"},
        content(V, {"type": "text", "text": "Q"}),
        content({"type": "video_url", "video_url": {"url": "file:///a.mp4"}}, "Q"),
        content({"type": "video", "path": "a.mp4"}, {"text": "Q", "video": None}),
        content({"type": "video", "video": "a.mp4", "text": None}, {"type": "text", "text": "Q"}),
        content({"type": "video"}, {"type": "text", "text": "Q"}) | {"videos": ["a.mp4"]},
        content(V, {"type": "text", "text": "Q"}) | {"videos": ["a.mp4"]},
        {"messages": [user(V, "Q"), {"role": "assistant", "content": [{"text": "A"}]}]},
        {"videos": ["a.mp4"], "messages": [USER, ANSWER], "response": "A"},
    ],
)  # fmt: skip
def test_one_clip_a_question_and_an_answer(row):
    found = read(row)
    expected = json.loads(json.dumps(CLIP).replace("a.mp4", found.media[0]))
    assert found.messages == expected
    assert found.media in (["a.mp4"], ["/a.mp4"])
    assert found.solution is None


def test_the_newline_after_a_tag_stays():
    row = {"video": "a.mp4", "conversations": [HUMAN | {"value": "<video>\nQ"}, GPT]}
    assert read(row).messages[1] == user(V, "\nQ")


def test_several_turns_and_files():
    row = {
        "images": ["1.png"],
        "videos": ["a.mp4"],
        "conversations": [
            HUMAN,
            GPT,
            HUMAN | {"value": "And <image>?"},
            GPT,
            HUMAN | {"value": "Q"},
        ],
    }
    found = read(row)
    assert found.media == ["a.mp4", "1.png"]
    assert found.messages[3] == user("And ", {"type": "image", "image": "1.png"}, "?")
    assert found.messages[-1] == user("Q")  # a last question without an answer


def test_history_and_instruction_with_input():
    row = {
        "video": "a.mp4",
        "history": [["Q", "A"]],
        "instruction": "I",
        "input": "C",
        "output": "O",
    }
    turns = [user(V, "Q"), ANSWER, user("I\nC"), {"role": "assistant", "content": "O"}]
    assert read(row).messages == [SYSTEM, *turns]


def test_files_without_a_tag_come_first_as_in_ms_swift():
    row = {"videos": ["a.mp4", "b.mp4"], "messages": [BARE, ANSWER, BARE]}
    found = read(row)
    assert found.media == ["a.mp4", "b.mp4"]
    assert found.messages[1:4:2] == [user(V, V | {"video": "b.mp4"}, "Q"), user("Q")]


@pytest.mark.parametrize("name", ["loss", "loss_scale", "weight", "train", "training"])
@pytest.mark.parametrize("flag", [False, 0, 0.0, "false", "0"])
def test_loss_flags(name, flag):
    row = {"videos": ["a.mp4"], "messages": [USER, ANSWER | {name: flag}, BARE, ANSWER]}
    assert [turn.get("loss", True) for turn in read(row).messages] == [1, 1, False, 1, 1]


def test_a_null_answer_is_none():
    found = read({"path": "a.mp4", "caption": None, "solution": "X", "tag": None})
    assert found.messages == [SYSTEM, user(V, "Default?")]
    assert (found.solution, found.extra) == ("X", {"tag": None})


@pytest.mark.parametrize(
    "extra",
    [
        {"video_id": "a", "clip_score": 3, "image_size": [3, 4], "media": "news", "frames": 8},
        {"video_path": "/data/a.mp4", "video_url": "https://x.org/1", "source": "x/y.z"},
        {"question": "Who?", "questions": [{"question": "Q"}], "dialogue": [{"text": "T"}]},
        {"answer": "B", "caption": "C", "options": ["A", "B"], "text": ""},
        {"speech": "He says yes and/or no, e.g. twice.", "clip": "a"},
        {"rejected_response": None, "objects": {}, "audio": None, "audios": []},
    ],
)
def test_other_columns_stay(extra):
    """They are no part of what the model sees, and rewards may use them."""
    found = read({"videos": ["a.mp4"], "messages": [USER, ANSWER], **extra})
    assert found.messages == CLIP
    assert found.extra == {k: v for k, v in extra.items() if k not in ("audio", "audios")}


def row(*messages, **columns):
    return {"videos": ["a.mp4"], "messages": list(messages) or [USER, ANSWER], **columns}


def clip(path, column="video"):
    return {column: path, "caption": "A"}


REFUSED = [
    # a setting of the training of turns or rows
    (row(mask_history=True), "mask_history says which turns are learned"),
    (row(train_on_inputs=False), "write loss into the turns"),
    (row(sample_weight=0.0), "sample_weight weighs the row"),
    # a clip without a place, or that would not be shown
    (row(audio="a.wav"), "audio lists 1 more files than messages have <audio>"),
    ({"video": "a.mp4", "audio": "a.wav", "caption": "A"}, "list files without a tag"),
    ({"video": "a.mp4", "image": "thumb.jpg", "caption": "A"}, "list files without a tag"),
    (row(BARE, ANSWER, images=["a.png"]), "images and videos list files without a tag"),
    (row(video="b.mp4"), "has both videos and video"),
    ({"path": "a.mp4", "video": "b.mp4", "caption": "A"}, "has both video and path"),
    (row(video_path="b.mp4"), "video_path names a file that is not read; name this column video"),
    (row(clip=["x/b.mp4"]), "clip names a file"),
    ({"messages": [BARE, ANSWER], "video_url": "https://x.org/a.mp4"}, "video_url names a file"),
    ({"messages": [USER, ANSWER], "file_name": "a.mp4"}, "file_name names a file"),
    ({"messages": [BARE, ANSWER], "about": "x/a.webm"}, "about names a file that is not read"),
    ({"messages": [BARE, ANSWER], "media": {"video": "a.mp4"}}, "media names a file"),
    (content(V) | {"media": [{"type": "video", "path": "b.mp4"}]}, "media names a file"),
    ({"path": "a.mp4", "caption": None}, "caption is empty, and there is nothing else to learn"),
    (row(SYSTEM | {"content": "<video>"}, BARE, ANSWER), "the text has <video>; write <video> in"),
    (row(BARE, ANSWER | {"content": "<video>"}), "the text has <video>"),
    (row(user("<|VIDEO|>Q")), r"the text has <|VIDEO|>; write <video>"),
    (row(BARE | {"content": "<Video>Q"}), "the text has <Video>"),
    (row(BARE | {"content": "<image_1>Q"}), "the text has <image_1>"),
    (content(V) | {"videos": ["b.mp4"]}, "videos lists 1 more files"),
    ({"messages": [USER, ANSWER]}, "more <video> than videos lists files"),
    (row(USER | {"videos": ["b.mp4"]}, ANSWER), "the user's turn has videos"),
    (row(videos=[["1.jpg", "2.jpg"]]), "videos is not a list of paths"),
    (row(videos=["a.mp4", None]), "videos lists null"),
    (row(videos=[{"path": "a.mp4", "bytes": "AAAA"}]), "has a file's bytes; save them"),
    (row(videos=[{"path": "a.mp4", "fps": 2}]), "is an object of path, fps"),
    (content({"type": "video", "video": "a.mp4", "video_start": 2}), "has video_start, a setting"),
    (content({"type": "image_url", "image_url": {"url": "a.png", "detail": "high"}}), "detail"),
    (content({"type": "input_audio", "input_audio": {"data": "AA"}}), "input_audio has the sound"),
    (content({"type": "file", "file": "x"}), "is none of text, image, audio, video"),
    ({"messages": [USER | {"content": "Q"}, {"role": "assistant", "content": [V]}]}, "only a user"),
    # an answer or a turn that would be lost
    (row(USER), None),
    (row(USER, response="A"), "response stands beside the dialogue and is not read; append it"),
    (row(USER, answer="A"), "answer stands beside the dialogue"),
    (row(USER, text="A"), "text stands beside the dialogue"),
    (row(response="B"), "response stands beside the dialogue and is not read; keep the answer"),
    (row(query="Other"), "query stands beside the dialogue"),
    (row(conversations=[HUMAN, GPT]), "has both messages and conversations"),
    (row(chat=[{"role": "user", "content": "X"}]), "chat is a dialogue beside the one"),
    ({"video": "a.mp4", "text": "A"}, "text stands beside the dialogue and is not read; name it"),
    ({"video": "a.mp4", "Caption": "A"}, "'Caption' is no column that is read; name it caption"),
    ({"video": "a.mp4", "response": "A"}, "response answers no question"),
    ({"video": "a.mp4", "query": "Q", "output": "A", "response": "B"}, "has both response and out"),
    ({"video": "a.mp4", "query": "Q", "instruction": "A"}, "has both query and instruction"),
    ({"video": "a.mp4", "input": "Q", "output": "A"}, "answers no question"),
    ({"video": "a.mp4", "question": "Q", "options": ["x"], "answer": "A"}, "options are not in"),
    ({"video": "a.mp4", "query": "Q", "history": [["a"]]}, "history is not a list of"),
    (row(USER, ANSWER, ANSWER), "two assistant's turns in a row"),
    (row(ANSWER, USER), "begins with an assistant's turn"),
    (row(USER, ANSWER, SYSTEM), "has a system's turn after others"),
    (row(USER, ANSWER | {"content": None}), "the assistant's content is empty"),
    (row(USER, ANSWER | {"content": []}), "the assistant's content is empty"),
    (row(SYSTEM, USER, ANSWER, system="Other"), "system differs from the system's turn"),
    (row(rejected_response="B"), "rejected_response is of a preference pair"),
    (row(objects={"ref": ["x"], "bbox": [[1, 2, 3, 4]]}), "objects has boxes"),
    (row(tools='[{"name": "f"}]'), "tools has tools"),
    (row(USER, ANSWER | {"tool_calls": [{"id": 1}]}), "the assistant's turn has tool_calls"),
    (row(USER, ANSWER | {"reasoning_content": "Hm"}), "has reasoning_content"),
    (row(USER, {"role": "tool", "content": "3"}), "role 'tool' is none of system"),
    ({"video": "a.mp4", "conversations": [HUMAN, {"from": "observation", "value": "x"}]}, "'obs"),
    ({"video": "a.mp4", "conversations": [{"human": "Q"}]}, "role None is none of"),
    (row(messages="[{'role': 'user'}]"), "messages is not JSON: "),
    (row(label=False), "label is false: the answer is a bad one"),
    (row(loss=False), "loss is of a turn; write it into the turn"),
    # a loss flag that is not one
    (row(USER, ANSWER | {"loss": 0.5}), "loss 0.5 of the assistant's turn"),
    (row(USER, ANSWER | {"loss": True, "weight": 0}), "loss True, weight 0"),
    (row(USER | {"loss": True}, ANSWER), "loss is true of the user's turn"),
    # what is no path here
    (clip("nope://b/a.mp4", "path"), "path is a URL that is not read (nope:"),
    (clip("https://youtu.be/dQw4w9WgXcQ"), "is a URL that is not read"),
    (clip("data:video/mp4;base64,AAAA"), "is a URL"),
    (clip("youtu.be/dQw4w9WgXcQ"), "is a URL"),
    (clip("www.youtube.com/watch?v=dQw4w9WgXcQ"), "is a URL"),
    (clip({"url": "https://www.youtube.com/watch?v=dQw4w9WgXcQ"}), "is a URL"),
    (clip(" https://x.org/a.mp4"), "is a URL"),
    (clip("http:/x.org/a.mp4"), "is a URL"),
    (clip("blob:https://x.org/1"), "is a URL"),
    (clip("magnet:?xt=urn"), "is a URL"),
    ({"url": "https://x.org/a.mp4", "caption": "A"}, "if url is where the clip is, name this col"),
    (content({"type": "video_url", "video_url": {"url": "https://m.youtube.com/watch?v=a"}}),
     "is a URL"),
    (clip(r"C:\clips\a.mp4"), "is a path of Windows"),
    (clip("D:/clips/a.mp4"), "is a path of Windows"),
    (clip("file://server/a.mp4"), "of another machine"),
    (clip("a\0.mp4"), "not a path"),
    (clip("a\ud800.mp4"), "not a path"),
]  # fmt: skip


@pytest.mark.parametrize(("columns", "complaint"), REFUSED)
def test_what_would_be_lost_is_refused_by_name(columns, complaint):
    if complaint is None:  # a question alone is a prompt of GRPO
        assert read(columns).messages == CLIP[:2]
        return
    with pytest.raises(ValueError, match=re.escape(complaint)) as caught:
        read(columns)
    assert "\n" not in str(caught.value)


def manifest(path, text):
    path.write_bytes(text.encode("utf-8-sig"))
    return read_manifest(path, ClipSettings(system="S"), conversations=True)


@pytest.mark.parametrize("name", ["conversations", "conversation"])
def test_llava_is_read_if_asked_for(name):
    """A question and an answer are never replaced by the default question alone."""
    row = {"video": "a.mp4", name: [HUMAN, GPT]}
    with pytest.raises(ValueError, match=f"^{name} is the form of LLaVA .*--conversations=true"):
        read_columns(row, "Default?", "S")
    assert read(row).messages == CLIP


def test_a_json_array_a_mark_of_byte_order_and_one_object(tmp_path):
    row = {"video": "a.mp4", "conversations": [HUMAN, GPT]}
    rows = manifest(tmp_path / "m.json", json.dumps([row, row], indent=1))
    assert [row.id for row in rows] == ["m.json:1", "m.json:2"]
    assert rows[0].messages == rows[1].messages == CLIP
    (one,) = manifest(tmp_path / "m.json", json.dumps(row, indent=1))
    assert one.media == [str(tmp_path / "a.mp4")]


def test_messages_in_a_table(tmp_path):
    cells = [json.dumps([USER, ANSWER]), '["a.mp4"]', "", "", "3"]
    cells = ['"{}"'.format(cell.replace('"', '""')) for cell in cells]
    text = f" messages,videos,images,solution,tag\n{','.join(cells)}\n"
    (row,) = manifest(tmp_path / "m.csv", text)
    assert (row.messages, row.solution, row.extra) == (CLIP, None, {"tag": "3"})
    long = text.replace("A", "A" * 200_000)
    assert len(manifest(tmp_path / "m.csv", long)[0].messages[2]["content"]) == 200_000
    (row,) = manifest(tmp_path / "m.csv", ",path,caption\n0,a.mp4,A\n")  # with pandas' index
    assert row.messages[1:] == [user(V, row.messages[1]["content"][1]["text"]), ANSWER]


def test_paths(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / r"b\c.mp4").touch()
    paths = ["~/a.mp4", "/x/a.mp4", "file:///x/a%20b.mp4", "x/../a.mp4", r"b\c.mp4", "[1] a.mp4"]
    lines = [json.dumps({"path": path, "caption": "A"}) for path in paths]
    rows = manifest(tmp_path / "m.jsonl", "\n".join(lines))
    media = [path for row in rows for path in row.media]
    assert media[:3] == [str(tmp_path / "a.mp4"), "/x/a.mp4", "/x/a b.mp4"]
    assert media[4:] == [str(tmp_path / r"b\c.mp4"), str(tmp_path / "[1] a.mp4")]
    with pytest.raises(ValueError, match="is no file, and has .*; write / in"):
        manifest(tmp_path / "m.jsonl", json.dumps({"path": r"clips\a.mp4"}))


def test_any_row_is_read_whole_or_refused_in_one_line():
    """Of rows of all columns with values of all types; nothing that names the clip is lost."""
    random = Random(0)
    atoms = [None, True, 0, 2.5, math.nan, "", "x", "a.mp4", "<video>", "[", "[]", '["b.mp4"]', {}]
    atoms += ["[{'a'}]", "\ud800", "https://a/b", [], "file://", "~/x", "\0"]
    keys = ["role", "content", "from", "value", "loss", "type", "text", "video", "path", "bytes"]
    columns = [*sorted(KNOWN), "clip", "options", "text", "label", "Video", "objects", "tools"]
    contents = ["<video>Q", "Q", [{"type": "video"}, "Q"], [V]]

    def value(depth=0):
        kind = 0 if depth > 3 else random.random()
        if kind < 0.5:
            return random.choice(atoms)
        if kind < 0.75:
            return [value(depth + 1) for _ in range(random.randint(0, 3))]
        return {random.choice(keys): value(depth + 1) for _ in range(random.randint(0, 3))}

    counts, reasons = Counter(), set()
    for _ in range(20_000):
        row = {random.choice(columns): value() for _ in range(random.randint(0, 3))}
        if random.random() < 0.7:
            row["messages"] = [{"role": "user", "content": random.choice(contents)}, ANSWER]
        try:
            found = read(row)
        except ValueError as error:
            reasons.add(str(error))
            counts["refused"] += 1
            continue
        counts["read"] += 1
        users = [turn["content"] for turn in found.messages if turn["role"] == "user"]
        parts = [part for content in users for part in content if part["type"] != "text"]
        assert [part[part["type"]] for part in parts] == found.media
        assert ("a.mp4" in json.dumps(row)) <= ("a.mp4" in json.dumps(found)), row
    assert min(counts["read"], counts["refused"]) > 1000
    assert not any("\n" in reason for reason in reasons)


@pytest.mark.parametrize(
    "url",
    [
        "https://x.org/a.mp4",
        "s3://b/a.mp4",
        "gs://b/a.mp4",
        "hf://datasets/x/y/a.mp4",
        "http://x/a",
    ],
)
@pytest.mark.parametrize("form", [lambda url: url, lambda url: {"url": url}])
def test_urls_that_fsspec_knows_are_files(url, form):
    row = read({"video": form(url), "caption": "A"})
    assert row.media == [url]
    assert row.messages[1]["content"][0] == {"type": "video", "video": url}
