"""ugc_jax.media.find: what command-line words stand for."""

import pytest

from ugc_jax.errors import UserError
from ugc_jax.media.find import find_clips


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
