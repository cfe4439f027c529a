"""Captioner's methods as a user of the package calls them: clips, options, types, mistakes."""

import dataclasses
import glob
import http.server
import io
import os
import re
import tempfile
import threading
import typing
from pathlib import Path

import numpy as np
import pytest

from ugc_jax import Caption, Captioner, Clip, ClipSettings, SamplingConfig, UserError
from ugc_jax.generate import inputs as module
from ugc_jax.generate.captioner import CaptionOptions
from ugc_jax.generate.settings import EngineConfig
from ugc_jax.media.clip import probe
from ugc_jax.media.picture import read_frames
from ugc_jax.media.sound import _decode_sound

SMALL = dict(frames=2, min_pixels=28 * 28, max_pixels=4 * 28 * 28, max_new_tokens=3)


@pytest.fixture(params=["caption", "stream"])
def call(request, tiny_captioner):
    """Both methods: they take the same options, and find mistakes at the call."""
    return getattr(tiny_captioner, request.param)


@pytest.mark.parametrize("kind", [str, Path])
def test_a_path_alone_is_one_clip(call, clips, kind):
    (result,) = call(kind(clips / "a.mp4"), **SMALL)
    assert isinstance(result, Caption)
    assert (result.video, result.error) == (str(clips / "a.mp4"), None)
    assert result.new_tokens == 3


@pytest.mark.parametrize("kind", [list, tuple, iter])
def test_any_iterable_of_paths(call, clips, kind):
    paths = [clips / "a.mp4", str(clips / "b.mp4")]
    results = call(kind(paths), batch_size=2, workers=1, **SMALL)
    assert sorted(result.video for result in results) == list(map(str, paths))


@pytest.mark.parametrize("videos", [[], (), iter([])])
def test_no_clips(call, videos):
    assert list(call(videos)) == []


def test_stream_and_caption_give_the_same(tiny_captioner, clips):
    options = SMALL | dict(question="What is heard?", temperature=1.0, seed=5, audio=True)
    paths = (path for path in [clips / "a.mp4", clips / "b.mp4"])
    streamed = {
        result.video: result.token_ids for result in tiny_captioner.stream(paths, **options)
    }
    captions = tiny_captioner.caption(list(streamed), **options)
    assert {result.video: result.token_ids for result in captions} == streamed
    assert len(streamed) == 2


@pytest.mark.parametrize(
    "videos", [3, None, 2.5, {"a.mp4": 1}, print, np.zeros(())], ids=lambda value: repr(value)[:20]
)
def test_videos_of_another_type(call, videos):
    with pytest.raises(TypeError, match="^videos: expected a path, .*, or several, got |0-d"):
        call(videos)


@pytest.mark.parametrize(
    "videos",
    [
        [3],
        [None],
        ["a.mp4", 3],
        [["a.mp4"]],
        np.zeros((2, 2)),
        [io.StringIO("text")],
        ("a.mp4", {}),
    ],
    ids=lambda value: repr(value)[:20],
)  # fmt: skip
def test_clips_with_one_of_another_type(call, videos):
    with pytest.raises(TypeError, match=r"^videos\[[01]\]: (expected a path, .*, got|is open)"):
        call(one for one in videos)


@pytest.mark.parametrize("name", ["warm", "urls"])
def test_flags_are_true_or_false(call, name):
    with pytest.raises(TypeError, match=f"{name}: expected True or False, got 1"):
        call("a.mp4", **{name: 1})
    with pytest.raises(TypeError, match="url_bytes: expected INTEGER, got '1'"):
        call("a.mp4", url_bytes="1")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("fps", "2"),
        ("frames", 2.5),
        ("frames", True),
        ("audio", "no"),
        ("audio", 1),
        ("preset", 3),
        ("question", 7),
        ("question", b"What?"),
        ("max_new_tokens", 1.5),
        ("max_new_tokens", "8"),
        ("temperature", "0.2"),
        ("seed", None),
        ("batch_size", "8"),
        ("batch_size", 2.0),
        ("workers", "all"),
    ],
)
def test_an_option_of_another_type(call, name, value):
    with pytest.raises(TypeError, match=f"{name}: expected .*, got {re.escape(repr(value))}"):
        call("a.mp4", **{name: value})


def test_an_unknown_option(call):
    with pytest.raises(TypeError, match="no option 'max_tokns'; ") as caught:
        call("a.mp4", max_tokns=3)
    message = str(caught.value)
    assert "did you mean max_tokens" in message
    for name in ("question", "fps", "temperature", "max_new_tokens", "batch_size", "workers"):
        assert name in message
    with pytest.raises(TypeError, match="did you mean messages"):
        call("a.mp4", mesages=[])
    with pytest.raises(TypeError):
        call("a.mp4", None, None)  # settings are keywords


def test_the_typed_options_are_the_settings():
    """The options have the names and the types of the fields that they set."""
    hints = typing.get_type_hints(CaptionOptions)
    own = ("messages", "urls", "url_bytes", "warm", "pieces")
    of_a_call = {name: hints.pop(name) for name in own}
    assert of_a_call["pieces"] == float | None
    assert of_a_call["urls"] is of_a_call["warm"] is bool
    question = hints.pop("question")
    fields = {}
    for cls in (ClipSettings, SamplingConfig, EngineConfig):
        own = typing.get_type_hints(cls)
        fields |= {field.name: own[field.name] for field in dataclasses.fields(cls)}
    assert fields.pop("question") == str | None
    assert {str, type(None)} < set(typing.get_args(question))
    assert hints == fields


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(temperature=-1.0), "temperature is -1.0; use 0"),
        (dict(max_new_tokens=0), "max_new_tokens is 0; use 1 to 9216"),
        (dict(batch_size=0), "batch_size is 0"),
        (dict(pieces=1), "pieces is 1; use at least 2 seconds, or 0 for off"),
        (dict(workers=0), "workers is 0"),
        (dict(fps=0), "fps"),
        (dict(fps=2, frames=8), "exclude each other"),
        (dict(preset="omni"), "preset"),
    ],
)
def test_a_value_out_of_range_is_a_users_mistake(call, options, message):
    with pytest.raises(UserError, match=message):
        call("a.mp4", **options)


@pytest.mark.parametrize("options", [dict(dtype=16), dict(attention=None), dict(revision=3)])
def test_a_checkpoint_with_an_option_of_another_type(tiny_checkpoint, options):
    (name,) = options
    with pytest.raises(TypeError, match=f"{name}"):
        Captioner.from_pretrained(tiny_checkpoint, **options)


def test_a_checkpoint_of_another_type():
    for checkpoint in (3, None, b"runs/tiny"):
        with pytest.raises(TypeError, match="checkpoint"):
            Captioner.from_pretrained(checkpoint)


def test_a_checkpoint_with_unknown_options(tiny_checkpoint):
    with pytest.raises(TypeError, match="no option 'dtyp'; .*did you mean dtype"):
        Captioner.from_pretrained(tiny_checkpoint, dtyp="float32")


# ---- clips that are no paths ---------------------------------------------------------------------


def tokens(results) -> list[tuple[int, ...]]:
    assert [result.error for result in results] == [None] * len(results)
    return [result.token_ids for result in results]


def memory_of(path: Path, **changes) -> Clip:
    """All frames and all sound of a file as decoded."""
    source = probe(path)
    frames, _ = read_frames(
        source,
        np.arange(source.frames),
        (source.height, source.width),
        lambda picture, _: picture,
    )
    sound = {}
    if source.has_audio:
        pieces = list(_decode_sound(source))
        sound = dict(waveform=np.concatenate([p.samples for p in pieces]), rate=pieces[0].rate)
    return Clip(**{"frames": frames, "fps": source.fps, **sound, **changes})


def test_a_clip_of_a_files_arrays_has_its_caption(tiny_captioner, clips):
    paths = [clips / "a.mp4", clips / "silent.mp4"]
    options = SMALL | dict(max_new_tokens=8)
    wanted = tiny_captioner.caption(paths, **options)
    found = tiny_captioner.caption([memory_of(path) for path in paths], **options)
    assert tokens(found) == tokens(wanted)
    assert [one.video for one in found] == ["videos[0]", "videos[1]"]
    assert [one.prompt_tokens for one in found] == [one.prompt_tokens for one in wanted]
    for changes in (dict(start=0.4, end=0.8), dict(fps=3, frames=None), dict(audio=False)):
        both = paths[0], memory_of(paths[0], name="x")
        first, second = (tiny_captioner.caption(one, **options | changes)[0] for one in both)
        assert tokens([first]) == tokens([second])
        assert first.notes == second.notes
    sampled = dict(options, temperature=1.0, seed=3)
    names = tiny_captioner.caption([paths[0], memory_of(paths[0], name="a.mp4")], **sampled)
    assert names[0].token_ids == names[1].token_ids
    assert names[1].video == "a.mp4"


def test_frames_alone_and_sound_alone(tiny_captioner, clips, tmp_path):
    clip = memory_of(clips / "a.mp4")
    picture = dataclasses.replace(clip, waveform=None, rate=None)
    wanted = tiny_captioner.caption(clips / "a.mp4", audio=False, **SMALL)
    assert tokens(tiny_captioner.caption(picture, **SMALL)) == tokens(wanted)
    sound = dataclasses.replace(clip, frames=None, fps=None)
    (heard,) = tiny_captioner.caption(sound, **SMALL)
    assert heard.error is None
    with pytest.raises(UserError, match="^frames and waveform are both None"):
        Clip()


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (dict(frames=[[1]]), TypeError, "frames: expected a numpy array, got"),
        (dict(frames=np.zeros((2, 8, 8, 3))), UserError, "frames: has dtype float64; give uint8"),
        (dict(frames=np.zeros((8, 8, 3), np.uint8)), UserError, r"frames: has shape \(8, 8, 3\)"),
        (dict(frames=np.zeros((2, 8, 8, 4), np.uint8)), UserError, "frames: has shape"),
        (dict(frames=np.zeros((0, 8, 8, 3), np.uint8)), UserError, "frames: has shape"),
        (dict(fps=0), UserError, "fps is 0; give 0.001 to 1e[+]06"),
        (dict(fps=float("nan")), UserError, "fps is nan"),
        (dict(fps="10"), TypeError, "fps: expected a number, got '10'"),
        (dict(fps=None), UserError, "fps: is None; frames needs it"),
        (dict(frames=None), UserError, "fps: is of frames, and there is none"),
        (dict(waveform=np.zeros(8)), UserError, "waveform: has dtype float64; give float32"),
        (dict(waveform=np.zeros((2, 8), np.float32)), UserError, "waveform: has shape"),
        (dict(waveform=np.full(8, np.nan, np.float32)), UserError, "waveform: has NaN"),
        (dict(waveform=None), UserError, "rate: is of waveform, and there is none"),
        (dict(rate=16000.0), TypeError, "rate: expected a whole number, got 16000.0"),
        (dict(rate=-1), UserError, "rate is -1"),
        (dict(fps=1e-300), UserError, "fps is 1e-300; give 0.001"),  # times beyond int32
        (dict(fps=True), TypeError, "fps: expected a number, got True"),
        (dict(name=3), TypeError, "name: expected a text, got 3"),
    ],
)
def test_a_clip_that_is_none(changes, error, message):
    fine = dict(
        frames=np.zeros((2, 8, 8, 3), np.uint8), fps=10, waveform=np.zeros(8, np.float32), rate=8000
    )
    with pytest.raises(error, match=f"^{message}"):
        Clip(**fine | changes)


def temporary() -> set[str]:
    return set(glob.glob(os.path.join(tempfile.gettempdir(), "ugc_jax-clips-*")))


def test_bytes_and_open_files(tiny_captioner, clips):
    before = temporary()
    content = (clips / "a.mp4").read_bytes()
    with open(clips / "b.mp4", "rb") as file:
        stream = tiny_captioner.stream(
            [content, file, io.BytesIO(content), memoryview(content), b"no clip"], **SMALL
        )
    assert len(temporary()) == len(before) + 1
    found = {result.video: result for result in stream}  # the file is closed
    names = ["videos[0]", str(clips / "b.mp4"), "videos[2]", "videos[3]", "videos[4]"]
    assert sorted(found) == sorted(names)
    a, b = tokens(tiny_captioner.caption([clips / "a.mp4", clips / "b.mp4"], **SMALL))
    assert tokens([found[name] for name in names[:4]]) == [a, b, a, a]
    assert found["videos[4]"].error.startswith("videos[4]: ")
    assert "/ugc-jax-" not in found["videos[4]"].error
    assert temporary() == before
    unused = tiny_captioner.stream(content, **SMALL)
    del unused
    assert temporary() == before


def test_folders_and_patterns(call, clips):
    results = {result.video: result for result in call(clips, **SMALL)}
    names = ["a.mp4", "b.mp4", "below/c.mp4", "broken.mp4", "silent.mp4"]
    assert sorted(results) == [str(clips / name) for name in names]
    assert [one.video for one in results.values() if one.error] == [str(clips / "broken.mp4")]
    found = call([f"{clips}/[ab].mp4", clips / "below"], **SMALL)
    assert sorted(one.video for one in found) == [str(clips / name) for name in names[:3]]
    with pytest.raises(UserError, match="matches no file"):
        call(f"{clips}/*.mkv")


def test_rates_may_be_numpys(tiny_captioner):
    arrays = dict(
        frames=np.zeros((2, 28, 28, 3), np.uint8), waveform=np.zeros(8000, np.float32), name="x"
    )
    own, numpys = (
        Clip(fps=2, rate=8000, **arrays), Clip(fps=np.float32(2), rate=np.int64(8000), **arrays)
    )  # fmt: skip
    found = tiny_captioner.caption([own, numpys], **SMALL)
    assert [one.error for one in found] == [None, None]
    assert found[0].token_ids == found[1].token_ids


def test_a_closed_file_and_a_url_of_another_kind(tiny_captioner, clips):
    with open(clips / "a.mp4", "rb") as file:
        pass
    with pytest.raises(UserError, match=r"a.mp4: cannot be read or stored \(read of closed file"):
        tiny_captioner.caption(file)
    with pytest.raises(UserError, match="ftp://example.com/a.mp4: is a URL that cannot be read"):
        tiny_captioner.caption("ftp://example.com/a.mp4", urls=True, **SMALL)


def test_a_folder_of_records_has_its_command(call, tmp_path):
    (tmp_path / "extraction.json").write_text("{}")
    with pytest.raises(UserError, match="holds extracted records; caption them by: ugc-jax capti"):
        call(tmp_path)


def test_the_same_clip_twice(tiny_captioner, clips):
    path = clips / "a.mp4"
    results = tiny_captioner.caption([path, clips / "b.mp4", str(path)], **SMALL)
    assert [one.video for one in results] == [str(path), str(clips / "b.mp4"), str(path)]
    assert results[0] is results[2]


# ---- URLs ----------------------------------------------------------------------------------------


@pytest.fixture
def server(clips):
    """Clips behind http; /long announces too much, /cut sends less, /file leads to a file."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            path = self.path.lstrip("/")
            address.asked.append(path)
            content = (clips / path).read_bytes() if path.endswith("mp4") else b"x" * 5000
            if path == "gone.mp4":
                return self.send_error(404)
            if path in ("file", "again"):
                self.send_response(302)
                to = f"file://{clips}/a.mp4" if path == "file" else "/a.mp4"
                self.send_header("Location", to)
                return self.end_headers()
            self.send_response(200)
            if path != "open":
                self.send_header("Content-Length", str(len(content) + 9 * (path == "cut")))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_):
            pass

    class Address(str):
        """asked: paths so far."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as one:
        address = Address(f"http://127.0.0.1:{one.server_port}")
        address.asked = []
        threading.Thread(target=one.serve_forever, args=(0.02,), daemon=True).start()
        yield address
        one.shutdown()


def test_urls(tiny_captioner, clips, server):
    before = temporary()
    with pytest.raises(UserError, match="a.mp4: is a URL; set urls=True"):
        tiny_captioner.caption(f"{server}/a.mp4")
    found = tiny_captioner.caption([f"{server}/a.mp4", f"{server}/again"], urls=True, **SMALL)
    wanted = tokens(tiny_captioner.caption(clips / "a.mp4", **SMALL))
    assert tokens(found) == wanted * 2
    assert [one.video for one in found] == [f"{server}/a.mp4", f"{server}/again"]
    assert temporary() == before


@pytest.mark.parametrize("method", ["caption", "stream"])
def test_a_url_is_fetched_once_also_when_warm(tiny_captioner, server, method):
    before = temporary()
    urls = [f"{server}/a.mp4", f"{server}/b.mp4", f"{server}/missing.mp4"]
    found = list(getattr(tiny_captioner, method)(urls[:2], urls=True, warm=True, **SMALL))
    assert [one.error for one in found] == [None, None]
    assert sorted(server.asked) == ["a.mp4", "b.mp4"]
    (cut,) = tiny_captioner.caption(f"{server}/cut", urls=True, warm=True, **SMALL)
    assert "cut off" in cut.error or "cannot be fetched" in cut.error
    assert temporary() == before


def test_urls_that_are_refused(tiny_captioner, server):
    paths = ["missing", "file", "cut", "open", "long"]
    urls = [f"{server}/{path}" for path in paths] + ["http://127.0.0.1:1/a.mp4"]
    results = tiny_captioner.caption(urls, urls=True, url_bytes=4999, **SMALL)
    errors = [result.error.removeprefix(f"{result.video}: ") for result in results]
    assert errors[0].startswith("has more than 4999 bytes; raise url_bytes")
    assert "file" in errors[1]
    assert all(error.startswith("has more than 4999 bytes") for error in errors[2:5])
    assert re.match("cannot be fetched .*refused", errors[5])
    (cut,) = tiny_captioner.caption(f"{server}/cut", urls=True, **SMALL)
    assert "cut off" in cut.error or "cannot be fetched" in cut.error
    (gone,) = tiny_captioner.caption(f"{server}/open", urls=True, **SMALL)
    assert gone.error.startswith(f"{server}/open: ")  # 5000 times x, and no clip


# ---- questions -----------------------------------------------------------------------------------


def test_questions_of_each_clip(tiny_captioner, clips):
    paths = [str(clips / name) for name in ("a.mp4", "b.mp4", "silent.mp4")]
    asked = ["What is seen?", "What is heard?", "Why is that so, and who is it?"]
    wanted = [
        tiny_captioner.caption(path, question=one, **SMALL)[0]
        for path, one in zip(paths, asked, strict=True)
    ]
    found = tiny_captioner.caption(paths, question=asked, **SMALL)
    assert tokens(found) == tokens(wanted)
    assert [one.prompt_tokens for one in found] == [one.prompt_tokens for one in wanted]
    by_clip = {Path(paths[0]): asked[0], paths[2]: asked[2]}
    found = tiny_captioner.caption(paths, question=by_clip, warm=True, **SMALL)
    plain = tiny_captioner.caption(paths[1], **SMALL)
    assert tokens(found) == tokens([wanted[0], *plain, wanted[2]])
    twice = tiny_captioner.caption([paths[0], paths[0]], question=asked[:2], **SMALL)
    assert twice[0].prompt_tokens == wanted[0].prompt_tokens
    assert twice[0].token_ids == wanted[0].token_ids
    assert twice[1] is not twice[0]


def test_messages_of_each_clip(tiny_captioner, clips):
    path = str(clips / "a.mp4")
    system = {"role": "system", "content": "Be brief."}
    wanted = tiny_captioner.caption(path, system="Be brief.", question="Why?", **SMALL)
    parts = [{"type": "video"}, {"type": "text", "text": "Why?"}]
    forms = [
        [system, {"role": "user", "content": "Why?"}],
        [system, {"role": "user", "content": "<video>Why?"}],
        [system, {"role": "user", "content": parts}],
    ]
    found = tiny_captioner.caption([path] * 3, messages=forms, **SMALL)
    assert tokens(found) == tokens(wanted * 3)
    turns = [
        {"role": "user", "content": [{"type": "text", "text": "Look: "}, {"type": "video"}]},
        {"role": "assistant", "content": "A ball."},
        {"role": "user", "content": "And then?"},
    ]
    (longer,) = tiny_captioner.caption(path, messages={path: turns}, warm=True, **SMALL)
    assert longer.error is None
    assert longer.prompt_tokens > wanted[0].prompt_tokens
    (alone,) = tiny_captioner.caption(
        memory_of(clips / "a.mp4", frames=None, fps=None), messages=[turns], **SMALL
    )
    assert alone.error is None  # the place is taken by whatever the clip is


@pytest.mark.parametrize(
    ("messages", "kind"),
    [
        ([{"role": "user", "content": "Hello"}], "video"),
        ([{"role": "user", "content": "<audio>Hello"}], "audio"),
        ([{"role": "user", "content": "<video>Is <image> a tag?"}], "video"),
        ([{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "x"}]}],
         "image"),
        ([{"role": "user", "content": [{"type": "text", "text": '"type": "image"'},
                                       {"type": "video"}]}], "video"),
        ([{"role": "system", "content": "Never write <image>."},
          {"role": "user", "content": "<video>Hello"}], "video"),
        ([{"role": "user", "content": 3}], "video"),
    ],
)  # fmt: skip
def test_the_kind_of_the_place_in_messages(messages, kind):
    assert module._kind(messages) == kind


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (dict(question=[3]), TypeError, "question: expected a text for a.mp4, got 3"),
        (dict(question={3: "x"}), TypeError, "question: expected names of clips as keys, got 3"),
        (dict(question=["x", "y"]), UserError, "question: there are 2 for 1 clips"),
        (dict(question={"b.mp4": "x"}), UserError, "question: b.mp4 is none of the clips"),
        (dict(messages="x"), TypeError, "messages: expected a dict by clip or a list, got 'x'"),
        (dict(messages=["x"]), TypeError, "messages of a.mp4: expected a list of dicts, got 'x'"),
        (dict(messages=[[{"role": "me", "content": "x"}]]), UserError, "messages of a.mp4: .*'me'"),
        (
            dict(messages=[[{"role": "user", "content": "<video><video>"}]]),
            UserError,
            "messages of a.mp4: messages have more <video>",
        ),
        (
            dict(
                messages=[[{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]]
            ),
            UserError,
            "messages of a.mp4: ends with an answer",
        ),
        (
            dict(messages=[None], question="x"),
            UserError,
            "question and messages are both given",
        ),
    ],
)
def test_questions_that_are_none(call, options, error, message):
    with pytest.raises(error, match=f"^{message}"):
        call("a.mp4", **options)


# ---- tokens as they come -------------------------------------------------------------------------


def test_text_comes_in_pieces(tiny_captioner, clips):
    paths = [str(clips / name) for name in ("a.mp4", "silent.mp4", "broken.mp4")]
    options = SMALL | dict(max_new_tokens=40)
    wanted = {one.video: one for one in tiny_captioner.caption(paths, **options)}
    pieces = list(tiny_captioner.stream_text(paths, **options))
    for path in paths:
        own = [piece for piece in pieces if piece.video == path]
        assert [piece.result is None for piece in own] == [True] * (len(own) - 1) + [False]
        result = own[-1].result
        assert (result.token_ids, result.error) == (wanted[path].token_ids, wanted[path].error)
        assert "".join(piece.text for piece in own) == (wanted[path].caption or "")
    assert len([piece for piece in pieces if piece.video == paths[0]]) > 2
