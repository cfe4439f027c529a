"""launch/fuzz_media.py: whole files are read, mutants harm nobody, and what does harm is found."""

import runpy
from pathlib import Path

import numpy as np
import pytest
from hooks import hooked_workers

from ugc_jax.data.workers import ReadingConfig

FUZZ = runpy.run_path(str(Path(__file__).resolve().parents[1] / "launch" / "fuzz_media.py"))
CONFIG = ReadingConfig(workers=2, clip_timeout=20, clip_memory=2)


def run(count, tmp_path, **options):
    (tmp_path / "files").mkdir()
    return FUZZ["fuzz"](count, 0, tmp_path / "files", tmp_path / "kept", CONFIG, **options)


def test_mutants_are_read_or_refused(tmp_path):
    figures = run(200, tmp_path)
    assert figures.violations == []
    assert [sum(counts.values()) for counts in figures.counts.values()] == [20] * 10
    total = sum(counts["ok"] + counts["refused"] for counts in figures.counts.values())
    assert total + len(figures.kept) == 200
    assert all(counts["ok"] for counts in figures.counts.values())
    assert sum(counts["refused"] for counts in figures.counts.values()) > 20
    assert 50 * 2**20 < figures.memory < 2.5 * 2**30
    assert list((tmp_path / "files").iterdir()) == []
    last = figures.table().splitlines()[-1].split()
    assert sum(map(int, last[1:])) == 200


def test_files_are_whole_before_they_are_changed(tmp_path, monkeypatch):
    monkeypatch.setitem(FUZZ["fuzz"].__globals__, "mutate", lambda content, random: content)
    figures = run(60, tmp_path)
    assert all(counts == {"ok": 6} for counts in figures.counts.values())


def test_a_mutant_follows_from_its_number():
    content = bytes(range(256)) * 8
    first, again, other = (FUZZ["mutate"](content, np.random.default_rng(n)) for n in (1, 1, 2))
    assert first == again
    assert len({content, first, other}) == 3


@pytest.mark.parametrize(
    ("action", "outcome", "message"),
    [
        ("1 / 0", "unexpected", "unexpected ZeroDivisionError: division by zero"),
        ("os.kill(os.getpid(), signal.SIGSEGV)", "died", None),
        ("import nowhere", None, "the library nowhere does not load"),
    ],
)
def test_what_must_not_be_is_found_and_kept(tmp_path, monkeypatch, action, outcome, message):
    name = "ts-0-000005.ts"
    monkeypatch.syspath_prepend(hooked_workers(tmp_path / "hook", {name: action}))
    figures = run(20, tmp_path)
    assert (tmp_path / "kept" / name).stat().st_size > 0
    if message is None:
        assert figures.violations == []  # one clip is lost, as it should be
    else:
        (line,) = figures.violations
        assert message in line
        assert name in line
    if outcome is not None:
        assert figures.counts["ts"][outcome] == 1
        assert len(figures.kept) == 1
        assert sum(sum(counts.values()) for counts in figures.counts.values()) == 20
