"""ugc_jax.cli: help, exit statuses and messages, as a shell sees them."""

import dataclasses
import gc
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from ugc_jax import cli
from ugc_jax.errors import UserError
from ugc_jax.settings import Schema


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of a job."""

    steps: int = 3


@pytest.fixture
def job(monkeypatch):
    """A stand-in for a job: `job(action)` makes `ugc-jax work ITEM...` call it."""
    monkeypatch.setattr(cli, "set_up_logging", lambda level: None)

    def install(action, arguments="ITEM..."):
        module = SimpleNamespace(SETTINGS=Schema(Config), main=action, __doc__="Do some work.")
        monkeypatch.setitem(cli.JOBS, "work", cli.Job("do some work", arguments))
        monkeypatch.setattr(cli, "load_job", lambda name: module)

    return install


def main(monkeypatch, *words) -> int:
    monkeypatch.setattr(sys, "argv", ["ugc-jax", *words])
    return cli.main()


def fails(*_):
    raise UserError("clip.mp4: broken; copy it again")


@pytest.fixture
def exits(monkeypatch):
    """Let `os._exit` raise SystemExit."""
    monkeypatch.setattr(cli.os, "_exit", sys.exit)


def is_interrupted(*_):
    raise KeyboardInterrupt


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"]])
def test_help_names_every_job(words, capsys):
    assert cli.run(words) == 0
    out = capsys.readouterr().out
    for name, job in cli.JOBS.items():
        assert f"  {name:<11}{job.summary}" in out


@pytest.mark.parametrize("name", list(cli.JOBS))
def test_job_help_names_every_setting(name, capsys):
    assert cli.run([name, "--help"]) == 0
    out = capsys.readouterr().out
    schema = cli.load_job(name).SETTINGS
    names = {full: [full] for full in schema.settings()}
    for short, targets in schema.short.items():
        for full in targets:
            if "." not in short:  # the others are of earlier versions
                names[full].append(short)
    for key, setting in schema.settings().items():
        assert f"\n  --{min(names[key], key=len)}" in out
        assert setting.comment, f"{name}: {key} has no comment"


def test_help_is_quick_and_the_package_is_light():
    heavy = "{'torch', 'transformers', 'tensorflow'}"
    code = f"""
import sys, ugc_jax
from ugc_jax import cli
cli.run(["--help"])
assert "jax" not in sys.modules and "av" not in sys.modules
assert not {heavy} & set(sys.modules)
ugc_jax.Captioner
assert not {heavy} & set(sys.modules), {heavy} & set(sys.modules)
"""
    subprocess.run(
        [sys.executable, "-c", code],
        check=True,
        cwd=Path(__file__).parents[1],
        stdout=subprocess.DEVNULL,
    )


def test_unknown_name_of_the_package():
    import ugc_jax

    with pytest.raises(AttributeError, match="no attribute 'Captionner'"):
        _ = ugc_jax.Captionner


def test_words_reach_the_job(job, monkeypatch):
    seen = []
    job(lambda config, words: seen.append((config, words)) or 1)
    assert main(monkeypatch, "work", "--config.steps=5", "a", "b") == 1
    assert seen == [(Config(steps=5), ["a", "b"])]


def test_a_job_takes_nine_tenths_of_a_gpu_unless_told_otherwise(job, monkeypatch):
    name, seen = "XLA_PYTHON_CLIENT_MEM_FRACTION", []
    job(lambda config, words: seen.append(os.environ[name]) or 0)
    for given in (None, ".5"):
        monkeypatch.setenv(name, given) if given else monkeypatch.delenv(name, raising=False)
        assert main(monkeypatch, "work", "a") == 0
    assert seen == ["0.9", ".5"]


@pytest.fixture
def own_logging():
    """Undo what `set_up_logging` changes."""
    logger = logging.getLogger("ugc_jax")
    before = logger.handlers[:], logger.level, logger.propagate
    yield
    logger.handlers[:], logger.level, logger.propagate = before


@pytest.mark.parametrize("words", [["-v", "work", "a"], ["work", "a", "-v"]])
def test_verbose_shows_where(words, monkeypatch, capsys, own_logging):
    module = SimpleNamespace(SETTINGS=Schema(Config), main=fails, __doc__="")
    monkeypatch.setitem(cli.JOBS, "work", cli.Job("do some work", "ITEM..."))
    monkeypatch.setattr(cli, "load_job", lambda name: module)
    assert main(monkeypatch, *words) == 2
    err = capsys.readouterr().err
    assert "Traceback (most recent call last)" in err
    assert err.endswith("ugc-jax work: clip.mp4: broken; copy it again\n")


@pytest.mark.parametrize("words", [["-q", "work", "a"], ["work", "-q", "a"]])
def test_quiet_shows_warnings_alone(words, monkeypatch, capsys, own_logging):
    def action(*_):
        logging.getLogger("ugc_jax.x").info("a step")
        logging.getLogger("ugc_jax.x").warning("a fault")
        return 0

    module = SimpleNamespace(SETTINGS=Schema(Config), main=action, __doc__="")
    monkeypatch.setitem(cli.JOBS, "work", cli.Job("do some work", "ITEM..."))
    monkeypatch.setattr(cli, "load_job", lambda name: module)
    assert main(monkeypatch, *words) == 0
    assert capsys.readouterr().err[8:] == " W a fault\n"


def test_help_shows_what_a_config_sets(capsys):
    assert cli.run(["sft", "--config", "sft_3b:lora", "--help"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "of the correction B A; 0: no adapter (set to 64)" in out
    assert cli.run(["caption", "--help"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "--preset upstream sets clip.system You are Qwen" in out
    assert "sampling.temperature 0.2, sampling.max_new_tokens 1024" in out


def test_unknown_job_gets_a_suggestion(monkeypatch, capsys):
    assert main(monkeypatch, "captoin", "a.mp4") == 2
    assert capsys.readouterr().err == "ugc-jax: unknown job 'captoin'; did you mean caption?\n"
    assert main(monkeypatch, "zzz") == 2
    assert "jobs are init, inspect, extract" in capsys.readouterr().err


def test_mistake_is_one_line_and_status_2(job, monkeypatch, capsys):
    job(fails)
    assert main(monkeypatch, "work", "a") == 2
    assert capsys.readouterr().err == "ugc-jax work: clip.mp4: broken; copy it again\n"


def test_job_without_its_words(job, monkeypatch, capsys):
    job(fails)
    assert main(monkeypatch, "work") == 2
    assert "nothing to do; usage: ugc-jax work [--KEY VALUE ...] ITEM..." in capsys.readouterr().err


def test_job_that_takes_no_words(job, monkeypatch, capsys):
    job(fails, arguments="")
    assert main(monkeypatch, "work", "steps=5") == 2
    assert "unexpected 'steps=5'; settings are written --KEY VALUE" in capsys.readouterr().err


def test_an_output_at_a_url_is_refused_where_it_would_be_a_local_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    line = "^output: gs://b/a.jsonl is a URL, and caption writes to this machine; give a path"
    with pytest.raises(UserError, match=line):
        cli.run(["caption", "--output", "gs://b/a.jsonl", "a.mp4"])
    assert not [*tmp_path.iterdir()]


@pytest.mark.usefixtures("exits")
def test_interrupt_is_status_130(job, monkeypatch, capsys):
    job(is_interrupted)
    with pytest.raises(SystemExit, match="130"):
        main(monkeypatch, "work", "a")
    assert capsys.readouterr().err.strip() == "ugc-jax work: interrupted"


@pytest.mark.usefixtures("exits")
def test_interrupt_inside_a_garbage_collection_callback_is_not_lost(job, monkeypatch, capsys):
    pending = [True]

    def callback(*_):
        if pending:
            pending.clear()
            raise KeyboardInterrupt

    def works(*_):
        gc.callbacks.append(callback)  # not earlier: any collection would set it off
        gc.collect()  # swallows what its callbacks raise
        for _ in range(100):
            time.sleep(0.01)
        return 0

    job(works)
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)
    # a shell that starts the tests in its background has SIGINT ignored
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(SystemExit, match="130"):
            main(monkeypatch, "work", "a")
    finally:
        signal.signal(signal.SIGINT, before)
        gc.callbacks.remove(callback)
    assert capsys.readouterr().err.strip() == "ugc-jax work: interrupted"


def test_log_lines_are_short_and_on_stderr(capsys):
    logger = logging.getLogger("ugc_jax")
    before = logger.handlers[:], logger.level, logger.propagate
    try:
        cli.set_up_logging()
        cli.set_up_logging()
        logging.getLogger("ugc_jax.media.clip").warning("clip.mp4: no sound in the file")
        out, err = capsys.readouterr()
    finally:
        logger.handlers[:], logger.level, logger.propagate = before
    assert out == ""
    assert err[8:] == " W clip.mp4: no sound in the file\n"
    assert err.count("\n") == 1
