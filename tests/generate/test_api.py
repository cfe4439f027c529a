"""Captioner.caption and .stream as a user of the package calls them: types, options, mistakes."""

import re
from pathlib import Path

import pytest

from ugc_jax import Caption, Captioner, UserError

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
    "videos",
    [
        3, None, 2.5, b"x.mp4", {"a.mp4": 1}, print, [3], [None], [b"x.mp4"], ["a.mp4", 3],
        [["a.mp4"]],
    ],
    ids=repr,
)  # fmt: skip
def test_videos_of_another_type(call, videos):
    with pytest.raises(TypeError, match="^videos: expected paths of clips, got "):
        call(videos)


def test_paths_with_one_of_another_type(call):
    with pytest.raises(TypeError, match="^videos: expected paths of clips, got 3 among them"):
        call(video for video in (Path("a.mp4"), 3))


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
    with pytest.raises(TypeError):
        call("a.mp4", None, None)  # settings are keywords


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(temperature=-1.0), "temperature is -1.0; use 0"),
        (dict(max_new_tokens=0), "max_new_tokens is 0; use 1 to 4096"),
        (dict(batch_size=0), "batch_size is 0"),
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
