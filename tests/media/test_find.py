"""ugc_jax.media.find: what command-line words stand for."""

import os

import pytest

from ugc_jax.errors import UserError
from ugc_jax.media.find import VIDEO_SUFFIXES, find_by_id, find_clips, place


@pytest.fixture
def clips(tmp_path):
    for name in ("b.mp4", "a.MOV", "sub/c.webm", "notes.txt", ".hidden.mp4", "[x].mp4"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


def names(found, folder):
    return [str(file).removeprefix(f"{folder}/") for file in found]


def test_folder_is_searched_below_and_sorted(clips):
    assert names(find_clips([str(clips)]), clips) == ["[x].mp4", "a.MOV", "b.mp4", "sub/c.webm"]


def test_pattern_and_order_of_words(clips):
    assert names(find_clips([f"{clips}/sub/*", f"{clips}/?.mp4"]), clips) == ["sub/c.webm", "b.mp4"]
    assert names(find_clips([f"{clips}/**/*.webm"]), clips) == ["sub/c.webm"]


def test_each_clip_once_as_first_written(clips, monkeypatch):
    monkeypatch.chdir(clips)
    assert find_clips(["b.mp4", str(clips / "b.mp4"), "./sub/../b.mp4"]) == ["b.mp4"]


def test_file_is_taken_as_it_is(clips):
    words = [str(clips / "notes.txt"), str(clips / "[x].mp4"), str(clips / "missing.mp4")]
    assert find_clips(words) == words


def test_nothing_found_is_told(clips):
    (clips / "empty").mkdir()
    with pytest.raises(UserError, match=r"empty: no videos in this folder"):
        find_clips([str(clips / "empty")])
    with pytest.raises(UserError, match=r"\*\.avi: matches no file"):
        find_clips([f"{clips}/*.avi"])
    with pytest.raises(UserError, match="^http://a/b.mp4: is a URL that cannot be read here"):
        find_clips(["http://a/b.mp4"])


def test_names_of_cameras_and_of_the_web(tmp_path):
    expected = sorted(f"a{suffix}" for suffix in VIDEO_SUFFIXES)
    for name in [*expected, "b.MTS", "c.txt", "d.jpg"]:
        (tmp_path / name).touch()
    assert {"a.mts", "a.m2ts", "a.ogv"} < set(expected)
    assert names(find_clips([str(tmp_path)]), tmp_path) == sorted([*expected, "b.MTS"])


def test_a_name_that_is_not_utf8(tmp_path):
    (tmp_path / "caf\udce9.mp4").touch()
    assert names(find_clips([str(tmp_path)]), tmp_path) == ["caf\udce9.mp4"]


def test_links_are_clips_of_their_own(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/clip.mp4").touch()
    (tmp_path / "a_link.mp4").symlink_to("sub/clip.mp4")
    (tmp_path / "folder").symlink_to("sub")
    found = find_clips([str(tmp_path), f"{tmp_path}/folder/clip.mp4"])
    # the link to a folder is not followed, but gets an error of its own
    assert names(found, tmp_path) == ["a_link.mp4", "folder", "sub/clip.mp4"]


def test_broken_entries_are_found(tmp_path):
    """So that each is reported as a clip that cannot be read."""
    (tmp_path / "sub").mkdir()
    (tmp_path / "clip.mp4").touch()
    (tmp_path / "loop.mp4").symlink_to("loop.mp4")
    (tmp_path / "sub/lost.mp4").symlink_to("nowhere.mp4")
    (tmp_path / "ring").symlink_to("ring")
    os.mkfifo(tmp_path / "pipe.mp4")
    broken = ["clip.mp4", "loop.mp4", "pipe.mp4", "sub/lost.mp4"]
    assert names(find_clips([str(tmp_path)]), tmp_path) == broken
    assert names(find_clips([f"{tmp_path}/*.mp4"]), tmp_path) == broken[:3]
    inside = f"{tmp_path}/ring/a.mp4"
    assert find_clips([f"{tmp_path}/loop.mp4", inside]) == [f"{tmp_path}/loop.mp4", inside]


def test_a_folder_that_may_not_be_listed_is_found(clips, monkeypatch):
    scandir = os.scandir

    def refuse(path):
        if str(path).endswith("sub"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    assert names(find_clips([str(clips)]), clips) == ["[x].mp4", "a.MOV", "b.mp4", "sub"]


def test_place(clips, monkeypatch):
    monkeypatch.chdir(clips)
    assert place("b.mp4") == place("./sub/../b.mp4") == place(clips / "b.mp4") == clips / "b.mp4"


def test_clips_by_their_ids(tmp_path):
    for name in ("x.mp4", "y.mov"):
        (tmp_path / name).touch()
    found = find_by_id(str(tmp_path), "explain.videos")
    assert found == {"x": str(tmp_path / "x.mp4"), "y": str(tmp_path / "y.mov")}
    (tmp_path / "x.mov").touch()
    with pytest.raises(UserError, match=r"x\.mp4: has the same id as .*x\.mov; remove one of them"):
        find_by_id(str(tmp_path), "explain.videos")
    with pytest.raises(UserError, match=r"explain\.videos: .*none is not a folder"):
        find_by_id(str(tmp_path / "none"), "explain.videos")
