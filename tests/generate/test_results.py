"""ugc_jax.generate.results: a file of captions survives kills, and a later run goes on with it."""

import dataclasses
import json
from types import SimpleNamespace

import pytest

from ugc_jax.errors import UserError
from ugc_jax.generate import results as module
from ugc_jax.generate.results import Results, Totals, results_settings
from ugc_jax.generate.settings import SamplingConfig
from ugc_jax.media.presets import ClipSettings, resolve
from ugc_jax.models.compute import Compute

A, B, C = ({"video": f"{name}.mp4", "caption": f"größer {name}"} for name in "abc")
FAILED_B = {"video": "b.mp4", "error": "b.mp4: broken"}


def write(path, *records, tail=""):
    path.write_text(
        "".join(json.dumps(record) + "\n" for record in records) + tail, encoding="utf-8"
    )


def read(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path / "new folder" / "out.jsonl"


def test_new_file_and_going_on(path):
    with Results(path, ["a.mp4", "b.mp4"]) as results:
        assert results.missing(["a.mp4", "b.mp4"]) == ["a.mp4", "b.mp4"]
        results.write(A)
        assert read(path) == [A]  # at once, not when closed
    with Results(path, ["./a.mp4", "b.mp4"]) as results:
        assert results.missing(["./a.mp4", "b.mp4"]) == ["b.mp4"]
        results.write(B)
    assert read(path) == [A, B]


def test_half_written_last_line_is_cut_off(path):
    path.parent.mkdir()
    write(path, A, tail=json.dumps(B)[:-5])
    with Results(path, ["a.mp4", "b.mp4"]) as results:
        assert results.missing(["a.mp4", "b.mp4"]) == ["b.mp4"]
        results.write(B)
    assert read(path) == [A, B]


def test_last_line_cut_inside_a_character(path):
    path.parent.mkdir()
    whole = json.dumps(B, ensure_ascii=False).encode()
    path.write_bytes(json.dumps(A).encode() + b"\n" + whole[: whole.index("ö".encode()) + 1])
    with Results(path, []) as results:
        assert results.missing(["b.mp4"]) == ["b.mp4"]
    assert read(path) == [A]


def test_whole_last_line_without_line_end_is_kept(path):
    path.parent.mkdir()
    write(path, A, tail=json.dumps(B))
    with Results(path, ["c.mp4"]) as results:
        assert results.missing(["a.mp4", "b.mp4", "c.mp4"]) == ["c.mp4"]
        results.write(C)
    assert read(path) == [A, B, C]


def test_errors_are_tried_again_only_when_asked_for(path):
    path.parent.mkdir()
    write(path, A, FAILED_B)
    with Results(path, ["a.mp4"]):
        pass
    assert read(path) == [A, FAILED_B]
    with Results(path, ["a.mp4", "b.mp4"]) as results:
        assert results.missing(["a.mp4", "b.mp4"]) == ["b.mp4"]
        results.write(B)
    assert read(path) == [A, B]


def test_untouched_file_is_not_rewritten(path):
    path.parent.mkdir()
    write(path, A)
    inode = path.stat().st_ino
    with Results(path, ["a.mp4"]):
        pass
    assert path.stat().st_ino == inode


@pytest.mark.parametrize(
    "content", ["no json\n{}\n", '{"caption": "no video"}\n', "[1]\n", '"text"\n']
)
def test_other_files_are_refused_and_left_alone(path, content):
    path.parent.mkdir()
    path.write_text(content)
    with pytest.raises(UserError, match=r"out\.jsonl:1: not a caption"):
        Results(path, ["a.mp4"])
    assert path.read_text() == content


def test_unwritable_place_is_told(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="choose another output"):
        Results(tmp_path / "file" / "out.jsonl", [])
    with pytest.raises(UserError, match="choose another output"):
        Results(tmp_path, [])


def test_without_a_path_lines_go_to_stdout(capsys):
    with Results(None, ["a.mp4"]) as results:
        assert results.missing(["a.mp4"]) == ["a.mp4"]
        results.write(A)
    assert json.loads(capsys.readouterr().out) == A


def test_full_disk_is_told(tmp_path, monkeypatch):
    def refuses(*_):
        raise OSError(28, "No space left on device")

    with Results(tmp_path / "out.jsonl", []) as results:
        monkeypatch.setattr(results, "_file", SimpleNamespace(write=refuses, close=lambda: None))
        with pytest.raises(UserError, match=r"out\.jsonl: cannot be written .*; free disk space"):
            results.write(A)


# ---- names ---------------------------------------------------------------------------------------

LATIN = {"video": "caf\udce9.mp4", "caption": "größer"}  # a name with the byte E9


def test_a_name_that_is_not_utf8(path, capsys):
    with Results(path, [LATIN["video"]]) as results:
        results.write(LATIN)
    assert read(path) == [LATIN]  # valid UTF-8
    assert "caf\\udce9.mp4" in path.read_text(encoding="utf-8")
    assert "größer" in path.read_text(encoding="utf-8")
    with Results(path, [LATIN["video"]]) as results:
        assert results.missing([LATIN["video"]]) == []
    with Results(None, [LATIN["video"]]) as results:
        results.write(LATIN)
    assert json.loads(capsys.readouterr().out) == LATIN


def test_raw_bytes_of_earlier_versions_become_escapes(path):
    path.parent.mkdir()
    raw = json.dumps(LATIN, ensure_ascii=False).encode(errors="surrogateescape")
    path.write_bytes(raw + b"\n")
    with Results(path, [LATIN["video"], "a.mp4"]) as results:
        assert results.missing([LATIN["video"], "a.mp4"]) == ["a.mp4"]
        results.write(A)
    assert read(path) == [LATIN, A]


def test_two_names_of_a_file_have_a_line_each(path):
    path.parent.mkdir()
    (path.parent / "clip.mp4").touch()
    (path.parent / "link.mp4").symlink_to("clip.mp4")
    (path.parent / "loop.mp4").symlink_to("loop.mp4")
    clips = [str(path.parent / f"{name}.mp4") for name in ("link", "clip", "loop")]
    with Results(path, clips) as results:
        results.write(A | {"video": clips[0]})
    with Results(path, clips) as results:
        assert results.missing(clips) == clips[1:]


def test_totals():
    totals = Totals(skipped=2)
    totals.count({"video": "a.mp4", "caption": "A cat.", "new_tokens": 3})
    totals.count(FAILED_B)
    record = totals.record()
    assert list(record)[:5] == ["captioned", "skipped", "failed", "new_tokens", "programs"]
    assert list(record.values())[:5] == [1, 2, 1, 3, 0]
    assert str(totals).startswith("captioned 1, skipped 2, failed 1; compiled 0 programs; 3 tokens")


# ---- the settings beside a file ------------------------------------------------------------------

HOW = {"checkpoint": "tiny", "weights": "0", "clip": {"fps": 2.0, "question": "What?"}}


def test_captions_of_other_settings_are_refused(path):
    with Results(path, ["a.mp4"], HOW) as results:
        results.write(A)
    with Results(path, ["a.mp4", "b.mp4"], HOW) as results:
        assert results.missing(["a.mp4", "b.mp4"]) == ["b.mp4"]
    before = path.read_text()
    for other, what in (
        (HOW | {"checkpoint": "mid", "weights": "1"}, "checkpoint 'tiny', not 'mid'"),
        (HOW | {"weights": "1"}, "weights '0', not '1'"),
        (HOW | {"clip": {"fps": 1.0, "question": "What?"}}, "clip.fps 2.0, not 1.0"),
    ):
        with pytest.raises(UserError) as caught:
            Results(path, ["b.mp4"], other)
        assert str(caught.value) == (
            f"{path}: was made with {what} (out.jsonl.settings.json); choose another output, or "
            f"delete {path}"
        )
    assert path.read_text() == before


def test_a_file_without_captions_binds_nobody(path):
    with Results(path, ["b.mp4"], HOW) as results:
        results.write(FAILED_B)
    other = HOW | {"checkpoint": "mid", "weights": "1"}
    with Results(path, ["b.mp4"], other) as results:
        assert results.missing(["b.mp4"]) == ["b.mp4"]
    assert json.loads(path.with_name("out.jsonl.settings.json").read_text()) == other


def test_captions_of_earlier_versions_are_continued_with_a_warning(path, caplog):
    path.parent.mkdir()
    write(path, A)
    with Results(path, ["a.mp4", "b.mp4"], HOW) as results:
        assert results.missing(["a.mp4", "b.mp4"]) == ["b.mp4"]
    assert "the settings of its captions are not recorded; if they differ" in caplog.text
    with pytest.raises(UserError, match="was made with clip.fps 2.0, not 1.0"):
        Results(path, ["b.mp4"], HOW | {"clip": {"fps": 1.0, "question": "What?"}})


def test_another_name_of_the_same_weights_is_the_same_model(path):
    with Results(path, ["a.mp4"], HOW) as results:
        results.write(A)
    with Results(path, ["a.mp4"], HOW | {"checkpoint": "./tiny"}) as results:
        assert results.missing(["a.mp4"]) == []


def test_settings_that_have_no_effect_do_not_count():
    how = dict(checkpoint="c", revision=None, weights="0", compute=Compute())
    sampling = SamplingConfig(seed=1).resolve()
    greedy = results_settings(**how, clip=resolve(ClipSettings()), sampling=sampling)
    assert greedy["sampling"]["seed"] == 0
    sampling = dataclasses.replace(sampling, temperature=1.0)
    warm = results_settings(**how, clip=resolve(ClipSettings()), sampling=sampling)
    assert (warm["sampling"]["seed"], warm["dtype"], warm["attention"]) == (1, "float32", "xla")


def test_a_terminal_gets_readable_text(monkeypatch, capsys):
    monkeypatch.setattr(module.sys.stdout, "isatty", lambda: True, raising=False)
    with Results(None, ["a.mp4", "b.mp4"]) as results:
        results.write(A | {"caption": "A cat. " * 30, "token_ids": (5, 6)})
        results.write(FAILED_B)
    out = capsys.readouterr().out.split("\n\n")
    assert out[0].startswith("a.mp4\n  A cat. A cat.")
    assert out[0].endswith("[5, 6]")
    assert max(map(len, out[0].splitlines())) <= 100
    assert out[1].strip() == "b.mp4\n  error: b.mp4: broken"
