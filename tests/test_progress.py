"""ugc_jax.progress: counts, rates and remaining time, on a terminal and in a log."""

import logging

import pytest

from ugc_jax import progress as module
from ugc_jax.progress import Progress, duration, progress


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (89, "89 s"), (90, "2 min"), (7100, "118 min"), (12000, "3 h 20 min")],
)
def test_duration(seconds, text):
    assert duration(seconds) == text


def test_line_counts_the_rate_of_this_run_after_its_first_item(monkeypatch):
    clock = iter((0.0, 50.0, 70.0))
    monkeypatch.setattr(module.time, "monotonic", lambda: next(clock))
    bar = Progress(1000, "clip", "extracting", initial=399)
    bar.update()  # after 50 seconds, in which programs were compiled
    assert bar.line(50.0) == "extracting: 400 of 1000 clips"
    bar.done = 500
    assert bar.line(70.0) == "extracting: 500 of 1000 clips, 5 clips/s, 2 min left"
    assert bar.line(70.0, "80 tokens/s").endswith("5 clips/s, 80 tokens/s, 2 min left")


def test_log_has_a_line_now_and_then(caplog, monkeypatch):
    caplog.set_level(logging.INFO, "ugc_jax")
    clock = iter(range(0, 10_000, 10))
    monkeypatch.setattr(module.time, "monotonic", lambda: float(next(clock)))
    assert list(progress(iter("abcdefgh"), 8, "clip", "reading", lambda: "a note")) == list(
        "abcdefgh"
    )
    lines = [record.getMessage() for record in caplog.records]
    assert 1 <= len(lines) < 8
    assert lines[0].startswith("reading: 3 of 8 clips, ")
    assert ", a note, " in lines[0]


def test_quiet_runs_are_silent(caplog, monkeypatch):
    monkeypatch.setattr(module.sys.stderr, "isatty", lambda: True, raising=False)
    logger = logging.getLogger("ugc_jax.progress")
    logger.setLevel(logging.WARNING)
    try:
        assert list(progress([1, 2], 2, "clip", "reading")) == [1, 2]
        assert Progress(2, "clip", "reading")._bar is None
    finally:
        logger.setLevel(logging.NOTSET)
    assert not caplog.records


def test_a_terminal_has_a_bar(capsys, monkeypatch):
    logger = logging.getLogger("ugc_jax.progress")
    logger.setLevel(logging.INFO)
    monkeypatch.setattr(module.sys.stderr, "isatty", lambda: True, raising=False)
    try:
        assert list(progress([1, 2], 2, "clip", "reading", lambda: "80 tokens/s")) == [1, 2]
    finally:
        logger.setLevel(logging.NOTSET)
    err = capsys.readouterr().err
    assert "reading: 100%" in err
    assert "80 tokens/s" in err


def test_lines_are_shown_unless_logging_is_set_up(capsys, monkeypatch):
    package, root = logging.getLogger("ugc_jax"), logging.getLogger()
    monkeypatch.setattr(package, "handlers", [])
    package.setLevel(logging.NOTSET)

    def shown() -> str:
        with module.shown():
            logging.getLogger("ugc_jax.any").info("one line")
        assert (package.handlers, package.level, package.propagate) == ([], logging.NOTSET, True)
        return capsys.readouterr().err

    monkeypatch.setattr(root, "level", logging.WARNING)
    assert shown().endswith(" I one line\n")
    monkeypatch.setattr(root, "level", logging.ERROR)
    assert shown() == ""
