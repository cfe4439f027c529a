"""ugc_jax.generate.outputs: documents; subtitles are valid by their grammars."""

import html
import json
import re
from pathlib import Path

import pytest

from ugc_jax.errors import UserError
from ugc_jax.generate.outputs import document, names_of, open_results, srt, vtt
from ugc_jax.generate.pieces import Scene
from ugc_jax.media.find import place

SCENES = [
    Scene(0.0, 60.0, "A dog <b>barks</b> & runs --> home.\n\n\r\nThen\x00 it sleeps.\u2028 "),
    Scene(60.0, 3661.0004, "2\n00:00:01,000 --> 00:00:02,000\nNOTE it rains"),
]


def milliseconds(stamp: str, point: str) -> int:
    match = re.fullmatch(rf"(\d\d+):([0-5]\d):([0-5]\d){point}(\d{{3}})", stamp)
    assert match, stamp
    hours, minutes, seconds, rest = map(int, match.groups())
    return ((hours * 60 + minutes) * 60 + seconds) * 1000 + rest


def read_blocks(text: str) -> list[list[str]]:
    """Blocks between single empty lines; the last one ends with a line break."""
    assert text.endswith("\n")
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f\x85\u2028\u2029\ufeff]", text)
    blocks = text[:-1].split("\n\n")
    assert all(block and not block.startswith("\n") for block in blocks)
    return [block.split("\n") for block in blocks]


def read_cues(blocks: list[list[str]], point: str) -> list[tuple[int, int, str]]:
    cues = []
    for times, *lines in blocks:
        start, end = times.split(" --> ")
        cues.append((milliseconds(start, point), milliseconds(end, point), "\n".join(lines)))
        assert lines
        assert all(line.strip() == line != "" for line in lines)
        assert cues[-1][0] < cues[-1][1]
        assert len(cues) == 1 or cues[-2][1] <= cues[-1][0]
    return cues


def read_srt(text: str) -> list[tuple[int, int, str]]:
    """The cues of SubRip: number, times, text without an arrow, one empty line between them."""
    blocks = read_blocks(text)
    assert [block.pop(0) for block in blocks] == [str(n) for n in range(1, len(blocks) + 1)]
    cues = read_cues(blocks, ",")
    assert not any("-->" in text for _, _, text in cues)
    return cues


def read_vtt(text: str) -> list[tuple[int, int, str]]:
    """The cues of WebVTT (W3C, 4): a signature, then times and text of escapes and characters."""
    signature, *blocks = read_blocks(text)
    assert signature == ["WEBVTT"]
    cues = read_cues(blocks, "\\.")
    for _, _, text in cues:
        assert not re.search("[<>]", text)
        assert re.findall("&(?!amp;|lt;|gt;)", text) == []
    return [(start, end, html.unescape(text)) for start, end, text in cues]


def test_subtitles_are_valid_whatever_the_text():
    first = "A dog <b>barks</b> & runs {} home.\nThen  it sleeps."
    second = "2\n00:00:01{}000 {} 00:00:02{}000\nNOTE it rains"
    assert read_vtt(vtt(SCENES)) == [
        (0, 60_000, first.format("-->")),
        (60_000, 3_661_000, second.format(",", "-->", ",")),
    ]
    assert read_srt(srt(SCENES)) == [
        (0, 60_000, first.format("→")),
        (60_000, 3_661_000, second.format(",", "→", ",")),
    ]
    assert "\n01:01:01,000" not in srt(SCENES)
    assert "00:01:00,000 --> 01:01:01,000\n" in srt(SCENES)


@pytest.mark.parametrize(
    ("times", "expected"),
    [
        ([(0, 10), (5, 20)], [(0, 5000), (5000, 20_000)]),  # the next one cuts it short
        ([(5, 20), (0, 5)], [(0, 5000), (5000, 20_000)]),
        ([(0, 10), (0, 10)], [(0, 10_000), (10_000, 10_001)]),
        ([(3, 3)], [(3000, 3001)]),  # an image
        ([(0, 100 * 3600)], [(0, 360_000_000)]),
    ],
)
def test_times_go_forward(times, expected):
    scenes = [Scene(*pair, "x") for pair in times]
    for cues in (read_srt(srt(scenes)), read_vtt(vtt(scenes))):
        assert [cue[:2] for cue in cues] == expected


def test_a_scene_without_text_has_no_cue():
    scenes = [Scene(0, 1, " \n\x00 "), Scene(1, 2, "x")]
    assert read_srt(srt(scenes)) == [(1000, 2000, "x")]
    assert (srt([]), vtt([])) == ("", "WEBVTT\n")


RECORD = {
    "video": "clips/my_film.mp4",
    "caption": "[00:00-01:00] A dog.\n\n[01:00-01:37.5] A cat.",
    "scenes": [
        {"start": 0.0, "end": 60.0, "text": "A dog."},
        {"start": 60.0, "end": 97.5, "text": "A cat."},
    ],
}


def test_documents():
    assert document(RECORD, "text") == f"{RECORD['caption']}\n"
    assert document(RECORD, "md") == (
        "# my\\_film.mp4\n\n## 00:00 to 01:00\n\nA dog.\n\n## 01:00 to 01:37.5\n\nA cat.\n"
    )
    one = {"video": "a.mp4", "caption": "A dog."}
    assert document(one, "md") == "# a.mp4\n\nA dog.\n"
    assert read_srt(document(RECORD, "srt")) == [(0, 60_000, "A dog."), (60_000, 97_500, "A cat.")]


def test_names_tell_clips_apart():
    clips = ["x/1/a.mp4", "x/2/a.mp4", "x/b.mp4", "x/b.mov", "c.tar.mp4"]
    assert [names_of(clips)[place(clip)] for clip in clips] == [
        "1_a.mp4", "2_a.mp4", "b.mp4", "b.mov", "c.tar",
    ]  # fmt: skip


def line(video: Path, **facts) -> dict:
    facts = facts or dict(caption="A dog.", scenes=[{"start": 0.0, "end": 2.0, "text": "A dog."}])
    return {"video": str(video)} | facts


def test_a_folder_is_continued(tmp_path):
    clips = [str(tmp_path / name) for name in ("a.mp4", "b.mp4")]
    out, how = tmp_path / "out", {"weights": "0123", "pieces": 0}
    with open_results(str(out), clips, how, "srt") as results:
        assert results.missing(clips) == clips
        results.write(line(clips[0]))
        results.write(line(clips[1], error="b.mp4: broken"))
    assert sorted(path.name for path in out.iterdir()) == [
        "a.srt", "captions.jsonl", "captions.jsonl.settings.json",
    ]  # fmt: skip
    assert read_srt((out / "a.srt").read_text()) == [(0, 2000, "A dog.")]
    # another form, and what a kill between the line and the document left out
    with open_results(str(out), clips, how, "vtt") as results:
        assert results.missing(clips) == clips[1:]
    assert read_vtt((out / "a.vtt").read_text()) == [(0, 2000, "A dog.")]
    with pytest.raises(UserError, match="was made with pieces 0, not 60"):
        open_results(str(out), clips, how | {"pieces": 60}, "vtt")


def test_captions_without_scenes_make_no_subtitles(tmp_path):
    (tmp_path / "captions.jsonl").write_text(json.dumps(line("a.mp4", caption="A dog.")) + "\n")
    with pytest.raises(UserError, match=r"captions\.jsonl:1: has no scenes for format srt; choose"):
        open_results(str(tmp_path), ["a.mp4"], None, "srt")


@pytest.mark.parametrize("form", ["srt", "vtt", "md", "text"])
@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"scenes": "y"}, "scenes is 'y', not a list"),
        ({"scenes": None}, "scenes is None, not a list"),
        ({"scenes": [{"from": 0, "to": 1, "text": "x"}]}, "scene 1 of scenes is {'from': 0, "),
        ({"scenes": [{"start": 0, "end": 1, "text": "x", "a": 1}]}, "scene 1 of scenes is {'start"),
        ({"scenes": [{"start": 0, "end": float("nan"), "text": "x"}]}, "scene 1 of scenes is"),
        ({"scenes": [{"start": "0", "end": 1, "text": "x"}]}, "scene 1 of scenes is"),
        ({"scenes": ["x"]}, "scene 1 of scenes is 'x', not an object of start, end"),
        ({"caption": 3}, "caption is 3, not a text"),
    ],
)
def test_lines_of_which_no_document_can_be_made(tmp_path, form, facts, message):
    written = line("a.mp4", **{"caption": "A dog."} | facts)
    (tmp_path / "captions.jsonl").write_text(json.dumps(written) + "\n")
    with pytest.raises(UserError) as caught:
        open_results(str(tmp_path), ["a.mp4"], None, form)
    told = str(caught.value)
    assert told.startswith(f"{tmp_path / 'captions.jsonl'}:1: {message}")
    assert told.endswith("; remove the line, or choose another output")
    assert "\n" not in told


def test_mistakes_of_users(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is a file; format md needs a folder as output"):
        open_results(str(tmp_path / "file"), ["a.mp4"], None, "md")
    with pytest.raises(UserError, match="there are 2 clips; name a folder with output"):
        open_results(None, ["a.mp4", "b.mp4"], None, "srt")
    with pytest.raises(UserError, match="output is empty"):
        open_results("", ["a.mp4"], None, "md")


def test_documents_on_stdout(capsys):
    with open_results(None, ["a.mp4"], None, "vtt") as results:
        results.write(line("a.mp4", error="a.mp4: broken"))
        results.write(line("a.mp4"))
    assert read_vtt(capsys.readouterr().out) == [(0, 2000, "A dog.")]
    with open_results(None, ["a.mp4", "b.mp4"], None, "text") as results:
        results.write(line("a.mp4"))
        results.write(line("b.mp4"))
    assert capsys.readouterr().out == "a.mp4\nA dog.\n\nb.mp4\nA dog.\n\n"
    with open_results(None, ["a.mp4"], None, "json") as results:
        results.write(line("a.mp4", caption="A dog."))
        assert not results.is_terminal
    assert json.loads(capsys.readouterr().out) == {"video": "a.mp4", "caption": "A dog."}


def explained() -> dict:
    words = [
        {"start": 0, "end": 1, "verdict": "text", "content": False},
        {"start": 2, "end": 5, "verdict": "heard", "content": True},
        {"start": 6, "end": 13, "verdict": "unsupported", "content": True},
    ]
    told = {"words": words, "shares": {"heard": 0.5, "seen": 0.0, "unsupported": 0.5}}
    return line("a.mp4", caption="A dog b_a_rks.") | {
        "evidence": told | {"unsupported": ["b_a_rks"]}
    }


def test_evidence_on_stdout(capsys, monkeypatch):
    shares = "(heard 50%, unsupported 50%) unsupported: "
    for form, expected in (
        ("text", f"A dog b_a_rks.\n\n{shares}b_a_rks\n"),
        ("md", f"# a.mp4\n\nA dog b_a_rks.\n\n{shares}b\\_a\\_rks\n"),
    ):
        with open_results(None, ["a.mp4"], None, form) as results:
            results.write(explained())
        assert capsys.readouterr().out == expected
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.delenv("NO_COLOR", raising=False)
    with open_results(None, ["a.mp4"], None, "text") as results:
        results.write(explained())
    told = capsys.readouterr().out
    assert told.startswith("A \x1b[34mdog\x1b[0m \x1b[97;41mb_a_rks\x1b[0m.\n\n(")
    assert re.sub(r"\x1b\[[\d;]*m", "", told) == f"A dog b_a_rks.\n\n{shares}b_a_rks\n"
