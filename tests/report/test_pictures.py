"""ugc_jax.report.pictures: strips of frames and mel pictures of clips, and what has none."""

import base64
import io
import shutil

import numpy as np
import pytest
from clips import write_clip
from hooks import hooked_workers
from PIL import Image

from ugc_jax.errors import UserError
from ugc_jax.report import pictures
from ugc_jax.toy.synthetic import BACKGROUNDS, Scene


def opened(uri: str) -> Image.Image:
    head, _, body = uri.partition(",")
    picture = Image.open(io.BytesIO(base64.b64decode(body)))
    assert head == f"data:image/{picture.format.lower()};base64"
    return picture


def test_strip_of_frames(tmp_path):
    """Six frames from the beginning to the end; the background turns in the middle."""
    scene = Scene("purple", (), None, 0, turns=("teal", 0.6))
    write_clip(tmp_path / "a.mp4", seconds=1.2, fps=10, size=(320, 180), scene=scene)
    strip = opened(pictures.draw_clip(tmp_path / "a.mp4").frames)
    width, height = pictures.SIDE, round(pictures.SIDE * 180 / 320)
    assert strip.format == "JPEG"
    assert strip.size == (6 * width + 5 * pictures.GAP, height)
    pixels = np.asarray(strip).astype(int)
    middles = [pixels[height // 4, i * (width + pictures.GAP) + width // 2] for i in range(6)]
    near = [
        min(BACKGROUNDS, key=lambda name, m=middle: np.abs(m - BACKGROUNDS[name]).sum())
        for middle in middles
    ]
    assert near == ["purple"] * 3 + ["teal"] * 3


def test_mel(clips):
    picture = pictures.draw_clip(clips / "a.mp4")
    mel = opened(picture.mel)
    assert mel.format == "PNG"
    assert mel.size == pictures.MEL_SIZE
    assert len(mel.getcolors()) > 5
    assert picture.seconds == pytest.approx(1.2, abs=0.1)


def test_nothing_to_hear(clips, tmp_path):
    """Neither without a sound track nor with one that is silent."""
    write_clip(
        tmp_path / "mute.mp4", seconds=1.2, fps=10, size=(96, 64), scene=Scene("grey", (), None, 0)
    )
    for path in (clips / "silent.mp4", tmp_path / "mute.mp4"):
        picture = pictures.draw_clip(path)
        assert picture.mel is None
        assert picture.frames


def test_album(clips, caplog):
    ids = ["c", "broken", "elsewhere", "a", "silent", "b"]
    album = pictures.make_album(str(clips), ids, limit=4)
    assert list(album.pictures) == ["c", "a", "silent"]
    assert album.missing == ["elsewhere"]
    assert album.left_out == ["b"]
    assert len(album.unreadable) == 1
    assert "broken.mp4" in album.unreadable[0]


def test_a_clip_that_kills_its_decoder_is_left_out(clips, tmp_path, monkeypatch):
    kill = {"a.mp4": "os.kill(os.getpid(), signal.SIGSEGV)"}
    monkeypatch.syspath_prepend(hooked_workers(tmp_path / "hook", kill))
    album = pictures.make_album(str(clips), ["a", "b"], limit=2)
    assert list(album.pictures) == ["b"]
    assert album.unreadable == [
        f"{clips / 'a.mp4'}: the process that read it died (SIGSEGV); copy or encode it again"
    ]


def test_folders_that_cannot_be_used(clips, tmp_path):
    with pytest.raises(UserError, match="is not a folder"):
        pictures.make_album(str(clips / "a.mp4"), ["a"], 1)
    shutil.copytree(clips, tmp_path / "x")
    shutil.copytree(clips, tmp_path / "y")
    with pytest.raises(UserError, match="have the same id a; give a subfolder"):
        pictures.make_album(str(tmp_path), ["a"], 1)
    album = pictures.make_album(str(tmp_path), ["nowhere"], 1)
    assert album.missing == ["nowhere"]


def test_what_plays_a_clip(tmp_path):
    """Links are relative to the page, copies are in it as far as they fit."""
    clips = tmp_path / "the clips"
    clips.mkdir()
    for name in ("a#1", "b"):
        write_clip(clips / f"{name}.mp4", seconds=0.5, fps=10, size=(32, 32))
    ids, page = ["a#1", "b"], tmp_path / "pages/report.html"

    def plays(*playing) -> list:
        album = pictures.make_album(str(clips), ids, 10, pictures.Playing(*playing))
        return [album.pictures[name].play for name in ids], list(album.linked)

    links = ["../the%20clips/a%231.mp4", "../the%20clips/b.mp4"]
    assert plays("none", page) == ([None] * 2, [])
    assert plays("link", page) == (links, [])
    (first, _), linked = plays("embed", page, 1e6)
    assert first.startswith("data:video/mp4;base64,")
    assert linked == []
    assert plays("embed", page, len(first) + 10) == ([first, links[1]], ["b"])
