"""ugc_jax.generate.pieces: a piece is captioned as a file of it, and its times are the clip's."""

import dataclasses
import json
import math

import numpy as np
import pytest
from clips import random_scene, write_clip

from ugc_jax import Clip
from ugc_jax.data.example import read_media_once
from ugc_jax.errors import UserError
from ugc_jax.generate.captioner import Caption
from ugc_jax.generate.pieces import (
    Scene,
    Span,
    clock,
    merge,
    read_script,
    shift,
    spans_of,
)
from ugc_jax.generate.settings import piece_seconds
from ugc_jax.media.inputs import Input
from ugc_jax.media.presets import ClipSettings, resolve
from ugc_jax.models.qwen2_5_omni.config import tiny
from ugc_jax.toy.synthetic import draw_scene, sound

# the sizes of test_captioner.py, whose programs are compiled already
SMALL = dict(
    frames=4, min_pixels=784, max_pixels=16 * 784, question="What is it?", max_new_tokens=8
)


def parts(kind="video", length=150.0, seconds=60.0, **settings):
    return [span.part for span in spans_of(kind, length, ClipSettings(**settings), seconds)]


def test_spans():
    assert parts(length=300.0) == [(0, 60), (60, 120), (120, 180), (180, 240), (240, None)]
    assert parts() == [(0, 60), (60, 120), (120, None)]
    assert parts(length=121.9) == [(0, 60), (60, None)]  # a rest too short is of the piece before
    assert parts(length=122.0) == [(0, 60), (60, 120), (120, None)]
    assert parts(length=61.0) == parts(length=3.0) == parts("image", 0.0) == [None]
    assert parts(seconds=math.inf) == [None]
    assert parts(start=20.0, end=100.0) == [(20, 80), (80, 100.0)]
    assert parts(start=200.0) == [None]  # reading it says what is wrong
    spans = spans_of("video", 150.5, ClipSettings(), 60.0)
    assert [str(span) for span in spans] == ["00:00-01:00", "01:00-02:00", "02:00-02:30.5"]


def test_settings_of_pieces():
    qwen, timechat = (resolve(ClipSettings(preset=name)) for name in ("qwen", "timechat"))
    assert piece_seconds(None, qwen) is None
    assert piece_seconds(None, timechat) == 60
    assert piece_seconds(0, timechat) is None
    for wrong in (1.0, -60, math.inf, math.nan):
        with pytest.raises(UserError, match="use at least 2 seconds, or 0 for off"):
            piece_seconds(wrong, qwen)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "00:00"), (59.9996, "01:00"), (61.25, "01:01.25"), (3661, "61:01"), (10, "00:10")],
)
def test_clock(seconds, text):
    assert clock(seconds) == text


# ---- what a piece is made of ---------------------------------------------------------------------


def clip_of(seconds: float, fps: float, rate: int = 8000, size=(48, 36)) -> Clip:
    """Another scene each minute."""
    scenes, count = [random_scene(3 + k) for k in range(5)], round(seconds * fps)
    frames = np.stack([draw_scene(scenes[int(k / fps) // 60], k / fps, size) for k in range(count)])
    heard = [sound(scene, min(60.0, seconds), rate) for scene in scenes]
    return Clip(frames, fps, np.concatenate(heard)[: round(seconds * rate)], rate, "film")


def cut(clip: Clip, start: float, end: float) -> Clip:
    """The frames and samples from `start` up to `end`, as a clip of their own."""
    frames = slice(*(math.ceil(round(second * clip.fps, 6)) for second in (start, end)))
    samples = slice(*(round(second * clip.rate) for second in (start, end)))
    return dataclasses.replace(clip, frames=clip.frames[frames], waveform=clip.waveform[samples])


@pytest.mark.parametrize(
    ("fps", "rate", "seconds", "settings"),
    [
        (10.0, 8000, 4.0, dict(fps=2.0)),
        (10.0, 44_100, 3.7, dict(fps=3.0)),  # pieces begin between two frames
        (30_000 / 1001, 16_000, 5.0, dict(fps=2.0)),
        (7.0, 8000, 2.5, dict(preset="upstream", frames=6)),
    ],
)
def test_a_piece_has_the_frames_and_sound_of_a_file_of_it(fps, rate, seconds, settings):
    whole, config = clip_of(12.0, fps, rate), tiny()
    clip = resolve(ClipSettings(**settings, min_pixels=784, max_pixels=4 * 784))
    spans = spans_of("video", 12.0, clip, seconds)
    assert len(spans) >= 3
    for span in spans:
        given = Input("film", whole, span.part)
        ((media, info),) = read_media_once((given, [10]), clip, config)
        alone = Input("film", cut(whole, span.start, span.end))
        ((expected, expected_info),) = read_media_once((alone, [10]), clip, config)
        for ours, theirs in zip(media, expected, strict=True):
            np.testing.assert_equal(ours._asdict(), theirs._asdict())
        assert info.sample_fps == pytest.approx(expected_info.sample_fps)
        # the times of its frames are those of the clip, within a frame
        first = info.instants[0]
        assert span.start - 1e-3 < first < span.start + 1 / fps + 1e-3
        later = np.array(info.instants) - first
        np.testing.assert_allclose(later, np.array(expected_info.instants), atol=2e-3)


def test_pieces_of_a_picture_of_varying_rate(tmp_path):
    """Frames are chosen by time: in each piece as many as its seconds take, from its own start."""
    times = np.concatenate([np.arange(0, 4, 0.1), np.arange(4, 6, 0.25), np.arange(6, 12, 0.1)])
    path = tmp_path / "varying.mkv"
    write_clip(path, times=times.tolist(), fps=10, size=(64, 48), audio=False)
    clip = resolve(ClipSettings(fps=2.0, min_pixels=784, max_pixels=784))
    for span in spans_of("video", 12.0, clip, 4.0):
        ((_, info),) = read_media_once((Input("x", str(path), span.part), [10]), clip, tiny())
        assert info.frames == 8
        expected = span.start + np.arange(8) / 2
        np.testing.assert_allclose(info.instants, expected, atol=0.251)
        assert span.start - 1e-3 <= info.instants[0] < info.instants[-1] < span.end


@pytest.mark.slow
def test_a_long_clip_has_the_captions_of_its_pieces(tiny_captioner):
    """Five minutes, sound to the end: none of it is cut."""
    whole = clip_of(300.0, 1.0)
    options = SMALL | dict(temperature=1.0, seed=1)
    (result,) = tiny_captioner.caption(whole, pieces=60, **options)
    starts = [60.0 * k for k in range(5)]
    pieces = [cut(whole, start, start + 60) for start in starts]
    alone = tiny_captioner.caption(pieces, **options)
    assert result.error is None
    assert [scene.start for scene in result.scenes] == starts
    assert [scene.end for scene in result.scenes] == [60.0, 120.0, 180.0, 240.0, 300.0]
    assert [scene.text for scene in result.scenes] == [one.caption for one in alone]
    assert len(set(one.token_ids for one in alone)) > 1
    assert result.token_ids == sum((one.token_ids for one in alone), ())
    assert result.prompt_tokens == sum(one.prompt_tokens for one in alone)
    assert result.caption.split("\n\n")[1] == f"[01:00-02:00] {alone[1].caption}"
    assert not any("cut at" in note for note in result.notes)


def test_clips_of_many_lengths(tiny_captioner, clips, tmp_path):
    write_clip(tmp_path / "long.mp4", seconds=7.0, fps=5, size=(96, 64), audio=False)
    names = [clips / "broken.mp4", tmp_path / "long.mp4", clips / "silent.mp4"]
    broken, long, short = tiny_captioner.caption(names, pieces=3, **SMALL)
    assert "broken.mp4" in broken.error
    assert broken.scenes == ()
    assert [(scene.start, scene.end) for scene in long.scenes] == [(0.0, 3.0), (3.0, 7.0)]
    plain = tiny_captioner.caption(names[2], **SMALL)[0]
    assert (short.caption, short.token_ids) == (plain.caption, plain.token_ids)
    assert short.scenes == (Scene(0.0, 1.2, plain.caption),)
    with pytest.raises(TypeError, match="is an option of caption and stream"):
        tiny_captioner.stream_text(names[2], pieces=3)
    with pytest.raises(TypeError, match="expected a number of seconds"):
        tiny_captioner.caption(names[2], pieces="60")


# ---- one caption of many -------------------------------------------------------------------------

SPANS = [Span(0.0, 60.0, (0.0, 60.0)), Span(60.0, 97.5, (60.0, None))]


def caption(text, **facts):
    facts = dict(prompt_tokens=10, new_tokens=2, finish_reason="stop", token_ids=(1, 2)) | facts
    return Caption("c.mp4", text, **facts)


def test_merged_facts():
    one = caption("A dog.", seconds=1.0, notes=("no sound in the file", "reduced"))
    two = caption("A cat.", seconds=0.5, notes=("no sound in the file",), finish_reason="length")
    whole = merge(SPANS, [one, two])
    assert whole.caption == "[00:00-01:00] A dog.\n\n[01:00-01:37.5] A cat."
    assert whole.scenes == (Scene(0.0, 60.0, "A dog."), Scene(60.0, 97.5, "A cat."))
    assert (whole.prompt_tokens, whole.new_tokens, whole.seconds) == (20, 4, 1.5)
    assert (whole.finish_reason, whole.token_ids) == ("length", (1, 2, 1, 2))
    assert whole.notes == ("no sound in the file", "00:00-01:00: reduced")
    assert whole.record()["scenes"][1] == {"start": 60.0, "end": 97.5, "text": "A cat."}


def test_a_failed_piece_keeps_the_others():
    failed = Caption("c.mp4", error="c.mp4: picture does not decode; encode it again")
    assert merge(SPANS, [caption("A dog."), failed]).record() == {
        "video": "c.mp4",
        "error": "c.mp4: 1 of 2 pieces failed: 01:00-01:37.5: picture does not decode; encode it "
        "again",
        "scenes": [{"start": 0.0, "end": 60.0, "text": "A dog."}],
    }
    alone = merge([Span(0.0, 3.0, None)], [failed])
    assert alone.record() == {"video": "c.mp4", "error": failed.error}


LINES = """**Scene 1** (00:00 - 00:12): A man sits
by a lake. The clock says 10:30.
**Scene 2** (00:12 - 00:37): He sings."""


def test_times_of_a_script_are_the_clips():
    whole = merge(SPANS, [caption(LINES), caption(LINES)])
    later = LINES.replace("00:00 - 00:12", "01:00 - 01:12")
    later = later.replace("00:12 - 00:37", "01:12 - 01:37")
    assert whole.caption == f"{LINES}\n\n{later}"
    assert whole.scenes[0] == Scene(0.0, 12.0, "A man sits\nby a lake. The clock says 10:30.")
    assert whole.scenes[2:] == (
        Scene(60.0, 72.0, "A man sits\nby a lake. The clock says 10:30."),
        Scene(72.0, 97.0, "He sings."),
    )


def test_json_scripts_become_one():
    text = json.dumps(
        [
            {"time": "00:00-00:20", "event": "A dog", "sound": ["bark", "bark"]},
            {"time": "00:20-00:38", "event": "Ende é"},
        ]
    )
    whole = merge(SPANS, [caption(text), caption(f"```json\n{text}\n```")])
    assert [scene["time"] for scene in json.loads(whole.caption)] == [
        "00:00-00:20", "00:20-00:38", "01:00-01:20", "01:20-01:38",
    ]  # fmt: skip
    assert whole.scenes[0].text == 'event: A dog\nsound: ["bark", "bark"]'
    assert whole.scenes[3] == Scene(80.0, 97.5, "event: Ende é")  # within the clip


@pytest.mark.parametrize("after", [": ", " : ", ":\n", "; ", ". ", " "])
def test_what_follows_the_range_of_a_line(after):
    text = f"00:00 - 00:10{after}A dog.\n00:10 - 00:25{after}A cat."
    later = text.replace("00:10 - 00:25", "01:10 - 01:25").replace("00:00 - 00:10", "01:00 - 01:10")
    whole = merge(SPANS, [caption(text), caption(text)])
    assert whole.caption == f"{text}\n\n{later}"
    assert whole.scenes == (
        Scene(0.0, 10.0, "A dog."), Scene(10.0, 25.0, "A cat."),
        Scene(60.0, 70.0, "A dog."), Scene(70.0, 85.0, "A cat."),
    )  # fmt: skip


def test_a_third_number_is_no_range_of_minutes():
    assert read_script("00:00 - 00:10:05 A dog.", 60.0) is None


def test_subtitles_are_a_script():
    text = (
        "1\n00:00:02,000 --> 00:00:04,500\nA dog.\nIt barks.\n\n"
        "2\n00:00:04,500 --> 00:00:09,250\nA cat."
    )
    whole = merge(SPANS, [caption(text), caption(text)])
    assert whole.caption.split("\n\n")[2:] == [
        "1\n00:01:02,000 --> 00:01:04,500\nA dog.\nIt barks.",
        "2\n00:01:04,500 --> 00:01:09,250\nA cat.",
    ]
    assert whole.scenes == (
        Scene(2.0, 4.5, "A dog.\nIt barks."), Scene(4.5, 9.25, "A cat."),
        Scene(62.0, 64.5, "A dog.\nIt barks."), Scene(64.5, 69.25, "A cat."),
    )  # fmt: skip


@pytest.mark.parametrize("names", [("start", "end"), ("start_time", "end_time"), ("from", "to")])
def test_json_scripts_with_starts_and_ends(names):
    first, last = names
    text = json.dumps(
        [
            {first: "00:05", last: "00:09", "text": "A dog"},
            {"text": "A cat", first: "00:09", last: "00:12"},
        ]
    )
    whole = merge(SPANS, [caption(text), caption(text)])
    times = [(scene[first], scene[last]) for scene in json.loads(whole.caption)]
    assert times == [
        ("00:05", "00:09"), ("00:09", "00:12"), ("01:05", "01:09"), ("01:09", "01:12"),
    ]  # fmt: skip
    assert whole.scenes[2:] == (Scene(65.0, 69.0, "text: A dog"), Scene(69.0, 72.0, "text: A cat"))


@pytest.mark.parametrize(
    "text",
    [
        '[{"start": 5, "end": 9, "text": "seconds as numbers"}]',
        '[{"open": "00:10", "closed": "00:20"}]',
        "A shop that is open 10:00-18:30 every day.",
        "09:00-17:00 is written on the door.",  # a range, but not of a piece of a minute
        "The score is 00:10 - 00:12 at the end of it.",
        "12:45",
        "00:30-00:10 backwards",
        "00:20-00:30 one\n00:00-00:10 before it",
        '[{"event": "no time"}, {"time": "00:00-00:10"}]',
        "[not JSON",
        "Open 00:10-00:30 am",
        "",
    ],
)
def test_what_is_no_script_stays(text):
    assert read_script(text, 60.0) is None
    assert merge(SPANS[1:], [caption(text)]).caption == text


@pytest.mark.parametrize(
    ("text", "offset", "expected"),
    [
        ("00:05 to 00:10", 120.0, "02:05 to 02:10"),
        ('["00:05", "00:10"]', 60.0, '["01:05", "01:10"]'),
        ("00:05–00:10", 3600.0, "60:05–60:10"),  # noqa: RUF001
        ("0:00:05-0:00:10", 3600.0, "1:00:05-1:00:10"),
        ("00:05.5 --> 00:10", 7.25, "00:12.75 --> 00:17.25"),
        ("00:05-00:10, 00:50-01:30", 60.0, "01:05-01:10, 00:50-01:30"),
        ("00:05-00:10", 0.0, "00:05-00:10"),
        ("00:05-00:10:", 60.0, "01:05-01:10:"),
        ("00:05-00:10,5000 people", 60.0, "01:05-01:10,5000 people"),
        ("00:05,040 --> 00:10", 60.0, "01:05,040 --> 01:10"),
    ],
)
def test_shift(text, offset, expected):
    assert shift(text, offset, 60.0) == expected
