"""The extract job: what it writes, what it says, and that a rerun goes on."""

import errno
import functools
import json
import math
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
import time
import uuid
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from clips import write_clip
from etils import epath
from fake_bucket import bucket  # noqa: F401 (fixture)
from hooks import hooked_workers

from ugc_jax import cli
from ugc_jax.data import extract
from ugc_jax.data.extract import Extraction, run_beam, run_local, write_shards
from ugc_jax.data.manifest import read_manifest
from ugc_jax.data.records import RecordSource, Storage, shard_name
from ugc_jax.data.workers import Outcome, ReadingConfig, ReadingFailure, attempt
from ugc_jax.errors import EnvironmentFailure, UserError
from ugc_jax.media.presets import ClipSettings, resolve
from ugc_jax.models.qwen2_5_omni.config import GEOMETRY

CLIP = ClipSettings(frames=2, min_pixels=784, max_pixels=4 * 784)
WORDS = ["--config.frames=2", "--config.min_pixels=784", "--config.max_pixels=3136"]


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    """Seven rows over four clips; one file is missing and one is cut off."""
    folder = tmp_path_factory.mktemp("media")
    names = ["0", "1", "2", "3", "missing", "cut", "0"]
    for seed in range(4):
        write_clip(folder / f"{seed}.mp4", seconds=0.5, fps=8, size=(64, 64), seed=seed)
    (folder / "cut.mp4").write_bytes((folder / "1.mp4").read_bytes()[:900])
    path = folder / "train.jsonl"
    with path.open("w") as file:
        for number, name in enumerate(names):
            turns = [
                {"role": "user", "content": "<video>What?"},
                {"role": "assistant", "content": f"Caption {number}."},
            ]
            row = {"videos": [f"{name}.mp4"], "messages": turns, "attributes": {"n": number}}
            file.write(json.dumps(row) + "\n")
    return path


@pytest.fixture
def run(monkeypatch):
    """`run(output, manifest, *settings)` -> exit status."""
    monkeypatch.setattr(cli, "set_up_logging", lambda *_: None)
    return lambda output, path, *words: cli.run(
        ["extract", f"--config.output={output}", *WORDS, *words, str(path)]
    )


def prepared(output, manifest, shard_clips=2):
    clip = resolve(CLIP)
    return Extraction(
        epath.Path(output), read_manifest(manifest, clip), clip, Storage(), shard_clips
    )


def in_this_process(shards):
    """Write shards as `run_local` does, reading in this process; returns the failures."""
    if not shards:
        return []
    read = functools.partial(extract._read_task, clip=shards[0].clip, storage=shards[0].storage)

    def outcomes(tasks):
        for task in tasks:
            kind, value = attempt(read, task)
            if kind == "raised":
                raise value
            if kind == "unexpected":
                value = ReadingFailure(kind, f"{task.row.id}: {value}")
            yield Outcome(task, value, 0.0)

    return [reason for reason in write_shards(shards, outcomes) if reason]


def stamps(folder):
    return {file.name: file.stat().st_mtime_ns for file in folder.glob("clips-*")}


class TestJob:
    def test_all_there_is_to_say(self, run, manifest, tmp_path, capsys, caplog):
        words = ["--config.shard_clips=2", "--config.workers=2", "--config.max_failures=0.3"]
        out = tmp_path / "out"
        assert run(out, manifest, *words) == 0
        assert "5 records" in (told := capsys.readouterr().err)
        assert "2 clips failed, 0 kept" in told
        entries = RecordSource(out).entries
        assert [entry.extra["attributes"]["n"] for entry in entries] == [0, 1, 2, 3, 6]
        assert [entry.id for entry in entries] == [f"train.jsonl:{n}" for n in (1, 2, 3, 4, 7)]
        assert entries[4].messages[2]["content"] == "Caption 6."
        failures = [json.loads(line) for line in (out / "failures.jsonl").read_text().splitlines()]
        assert [failure["id"] for failure in failures] == ["train.jsonl:5", "train.jsonl:6"]
        assert failures[0]["error"].startswith(f"{manifest.parent / 'missing.mp4'}: no such file")
        assert failures[1]["media"] == [str(manifest.parent / "cut.mp4")]
        assert {line.message for line in caplog.records} == {f["error"] for f in failures}
        assert sorted(file.name for file in out.iterdir()) == [
            "README.md",
            *(f"clips-train.array_record-0000{number}-of-00004" for number in range(4)),
            "dataset_info.json", "extraction.json", "failures.jsonl", "features.json",
            "index.jsonl", "shards", "shards.json",
        ]  # fmt: skip

        before = stamps(out)
        assert run(out, manifest, *words) == 0  # again: only the missing file is tried
        told = capsys.readouterr().err
        assert told.startswith(f"{out}: 5 records (")
        assert "; 2 clips failed, 5 kept from before, 1 failed clips tried again\n" in told
        assert stamps(out) == before

        assert run(out, manifest, *words[:2], "--config.max_failures=0.2") == 1
        last = capsys.readouterr().err.splitlines()[-1]
        assert "2 of 7 clips failed, more than max_failures 0.2 allows" in last
        assert len(RecordSource(out)) == 5

    @pytest.mark.parametrize(
        ("words", "complaint"),
        [
            (["--config.frames=4"], "other settings (frames was 2 and is now 4); choose another"),
            (["--config.quality=90"], "quality was 95 and is now 90"),
            (["--config.shard_clips=3"], "shard_clips was 2 and is now 3"),
            (["--config.question=Who?"], "question was"),
        ],
    )
    def test_other_settings_are_refused(self, run, manifest, tmp_path, words, complaint):
        prepared(tmp_path, manifest).prepare()
        words = ["--config.shard_clips=2", *words]
        with pytest.raises(UserError) as error:
            run(tmp_path, manifest, *words)
        assert str(error.value).startswith(f"{tmp_path}: ")
        assert complaint in str(error.value)

    def test_wrong_words(self, run, manifest, tmp_path):
        with pytest.raises(UserError, match="2 manifests are given"):
            run(tmp_path / "out", manifest, "a.jsonl")
        with pytest.raises(UserError, match="max_failures is -1; use a share"):
            run(tmp_path / "out", manifest, "--config.max_failures=-1")
        with pytest.raises(UserError, match="is a file; choose another output"):
            run(manifest, manifest)
        with pytest.raises(UserError, match="workers is 0"):
            run(tmp_path / "out", manifest, "--config.workers=0")
        with pytest.raises(UserError, match="holds something else"):
            run(manifest.parent, manifest)

    def test_removal(self, run, manifest, tmp_path, capsys, caplog, monkeypatch):
        """Gone, with the runs that had it; not brought back by the same command; in the card."""
        monkeypatch.chdir(tmp_path)
        words = ["--config.shard_clips=2", "--config.workers=2", "--config.max_failures=0.3"]
        assert run("rec", manifest, *words, "--license", "cc-by-4.0") == 0
        assert "| cc-by-4.0 | 5 |" in (tmp_path / "rec/README.md").read_text()
        config = tmp_path / "runs/a/checkpoints/7/config"
        config.mkdir(parents=True)
        (config / "metadata").write_text('{"data": {"train": "rec"}}')
        (tmp_path / "runs/a/samples.jsonl").write_text('{"clip": "train.jsonl:1"}\n')
        capsys.readouterr()
        assert cli.run(["extract", "--remove", "train.jsonl:1,train.jsonl:3", "rec"]) == 0
        told = capsys.readouterr()
        assert told.err == (
            "rec: 2 removed (train.jsonl:1, train.jsonl:3); 3 records left, 2 files written again\n"
        )
        assert told.out.splitlines() == [
            "runs below runs whose data held them: 1 of 1",
            "runs/a: data.train, step 7",
            "runs/a/samples.jsonl: has texts of them",
        ]
        (line,) = [line.message for line in caplog.records if "same clip" in line.message]
        path = manifest.parent / "0.mp4"
        assert line.startswith("rec: train.jsonl:7 hold the same clip; to remove them, too: ")
        assert line.endswith(f"ugc-jax extract --remove {path} rec")
        assert cli.run(["extract", "--remove", str(path), "rec"]) == 0
        card = (tmp_path / "rec/README.md").read_text()
        assert "| removals | 3 (`removed.jsonl`) |" in card
        assert "| cc-by-4.0 | 2 |" in card
        capsys.readouterr()
        assert run("rec", manifest, *words) == 0
        told = capsys.readouterr().err
        assert "rec: 2 records (" in told
        left_out = "train.jsonl:1, train.jsonl:3, train.jsonl:7"
        assert f"rec: 3 rows are left out, as they were removed ({left_out}); removed" in told
        assert len(RecordSource("rec")) == 2
        assert (tmp_path / "rec/README.md").read_text() == card

    def test_wrong_words_of_a_removal(self, run, manifest, tmp_path):
        with pytest.raises(UserError, match="--output is required: folder of the records"):
            cli.run(["extract", str(manifest)])
        with pytest.raises(UserError, match="remove takes the folders of records as arguments"):
            run(tmp_path / "out", manifest, "--remove", "a")
        with pytest.raises(UserError, match="runs is of a removal"):
            run(tmp_path / "out", manifest, "--runs", "a")
        with pytest.raises(UserError, match="extraction.json: no such file; name a folder that"):
            cli.run(["extract", "--remove", "a", str(tmp_path / "out")])


class TestRestart:
    def test_another_manifest_is_refused_and_overwrite_removes_only_records(
        self, manifest, tmp_path
    ):
        extraction = prepared(tmp_path, manifest)
        in_this_process(extraction.prepare())
        extraction.finish()
        (tmp_path / "notes.txt").write_text("mine")
        other = manifest.with_name("other.jsonl")
        other.write_text(manifest.read_text().replace("What?", "Who?"))
        with pytest.raises(UserError, match="the manifest has changed since"):
            prepared(tmp_path, other).prepare()
        assert len(RecordSource(tmp_path)) == 5
        changed = prepared(tmp_path, other, shard_clips=7)
        in_this_process(changed.prepare(overwrite=True))
        changed.finish()
        assert RecordSource(tmp_path).entries[0].messages[1]["content"][1]["text"] == "Who?"
        assert len(stamps(tmp_path)) == 1
        assert (tmp_path / "notes.txt").read_text() == "mine"

    def test_only_harmed_and_unfinished_shards_are_made_again(self, manifest, tmp_path):
        extraction = prepared(tmp_path, manifest)
        shards = extraction.prepare()
        in_this_process(shards[:3])
        (tmp_path / "clips-train.array_record-00003-of-00004.abc.part").write_bytes(b"half")
        before = stamps(tmp_path)
        with pytest.raises(UserError, match="not a complete extraction"):
            RecordSource(tmp_path)
        names = sorted(before)
        first = tmp_path / names[0]
        first.write_bytes(first.read_bytes()[:-5])
        todo = prepared(tmp_path, manifest).prepare()
        assert [shard.number for shard in todo] == [0, 2, 3]  # in 2 a file is missing
        assert [shard.todo for shard in todo] == [1, 1, 2]
        in_this_process(todo)
        extraction.finish()
        after = stamps(tmp_path)
        assert len(after) == 4
        assert [after[name] == before[name] for name in names[1:3]] == [True, True]
        assert len(RecordSource(tmp_path)) == 5

    def test_retry_takes_up_shards_with_failures(self, manifest, tmp_path):
        extraction = prepared(tmp_path, manifest)
        in_this_process(extraction.prepare())
        extraction.finish()
        assert [shard.number for shard in extraction.prepare(retry=True)] == [2, 3]
        assert [shard.number for shard in extraction.prepare()] == [2]
        RecordSource(tmp_path)  # what was finished can be read until a shard is written again

    def test_kill_at_any_moment_then_go_on(self, manifest, tmp_path):
        out = tmp_path / "out"
        words = [*WORDS, "--config.shard_clips=1", "--config.workers=1", "--config.max_failures=1"]
        command = [sys.executable, "-m", "ugc_jax.cli", "extract", *words, str(manifest)]
        process = subprocess.Popen([*command, f"--config.output={out}"], stderr=subprocess.DEVNULL)
        try:
            deadline = time.monotonic() + 60
            while not list(out.glob("shards/*.json")):
                assert time.monotonic() < deadline
                assert process.poll() is None
                time.sleep(0.01)
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()
        before = stamps(out)
        finished = {path.name for path in out.glob("shards/*.json")}
        extraction = prepared(out, manifest, shard_clips=1)
        todo = extraction.prepare()
        assert len(todo) == 7 - len(finished - {"00004-of-00007.json"})  # its file is missing
        in_this_process(todo)
        extraction.finish()
        after = stamps(out)
        kept = [name for name in before if f"{name[-14:]}.json" in finished]
        assert kept
        assert all(after[name] == before[name] for name in kept)
        assert len(RecordSource(out)) == 5
        assert not list(out.glob("*.part"))


def names_of(path, names):
    """A manifest in the order of the names; returns its path."""
    path.write_text("path,caption\n" + "".join(f"{name},Caption of {name}\n" for name in names))
    return path


@pytest.fixture
def clips(manifest, tmp_path):
    """A folder with 0.mp4 to 3.mp4, broken.mp4, and m.csv, which names missing.mp4, too."""
    folder = tmp_path / "clips"
    folder.mkdir()
    for number in range(4):
        shutil.copy(manifest.parent / f"{number}.mp4", folder)
    shutil.copy(manifest.parent / "cut.mp4", folder / "broken.mp4")
    names_of(folder / "m.csv", ["0.mp4", "broken.mp4", "1.mp4", "missing.mp4", "2.mp4", "3.mp4"])
    return folder


@pytest.fixture
def read(monkeypatch):
    """The names of the files that were read, in order."""
    names, probe = [], extract.probe

    def note(path):
        names.append(os.path.basename(path))
        return probe(path)

    monkeypatch.setattr(extract, "probe", note)
    return names


def extracted(output, manifest, **options):
    """Extract what is to do, in this process; returns the totals."""
    extraction = prepared(output, manifest, shard_clips=6)
    shards = extraction.prepare(**options)
    in_this_process(shards)
    return extraction.finish(shards)


def same(one, other):
    for name in ("index.jsonl", "shards.json", *stamps(one)):
        assert (one / name).read_bytes() == (other / name).read_bytes(), name
    return True


class TestAgain:
    def test_a_broken_clip_is_not_read_again_and_a_missing_one_is(self, clips, tmp_path, read):
        out = tmp_path / "out"
        assert extracted(out, clips / "m.csv")[:2] == (4, 2)
        assert len(read) == 6
        before, failures = stamps(out), (out / "failures.jsonl").read_text()
        rows = [json.loads(line) for line in failures.splitlines()]
        stat = (clips / "broken.mp4").stat()
        assert [row["broken"] for row in rows] == [[[stat.st_size, stat.st_mtime_ns]], None]
        read.clear()
        totals = extracted(out, clips / "m.csv")
        assert read == ["missing.mp4"]
        assert totals[:2] == (4, 2)
        assert totals[3:] == (4, 1)
        assert stamps(out) == before  # no record is new
        assert (out / "failures.jsonl").read_text() == failures
        assert len(RecordSource(out)) == 4
        read.clear()
        assert extracted(out, clips / "m.csv", retry=True)[3:] == (4, 2)
        assert read == ["broken.mp4", "missing.mp4"]

    def test_records_are_taken_over(self, clips, tmp_path, read):
        out = tmp_path / "out"
        extracted(out, clips / "m.csv")
        shutil.copy(clips / "3.mp4", clips / "missing.mp4")
        read.clear()
        assert extracted(out, clips / "m.csv")[:2] == (5, 1)
        assert read == ["missing.mp4"]
        extracted(tmp_path / "undisturbed", clips / "m.csv")
        assert same(out, tmp_path / "undisturbed")
        ids = [entry.id for entry in RecordSource(out).entries]
        assert ids == [f"m.csv:{line}" for line in (2, 4, 5, 6, 7)]

    def test_a_replaced_clip_is_read(self, clips, tmp_path, read):
        out = tmp_path / "out"
        extracted(out, clips / "m.csv")
        shutil.copy(clips / "3.mp4", clips / "broken.mp4")
        read.clear()
        totals = extracted(out, clips / "m.csv")
        assert read == ["broken.mp4", "missing.mp4"]
        assert (totals.records, totals.failures, totals.kept, totals.again) == (5, 1, 4, 2)
        assert totals.summary(out).endswith(
            "each); 1 clips failed, 4 kept from before, 2 failed clips tried again"
        )
        extracted(tmp_path / "undisturbed", clips / "m.csv")
        assert same(out, tmp_path / "undisturbed")

    def test_failures_of_earlier_versions_are_tried_again(self, clips, tmp_path, read):
        out = tmp_path / "out"
        extracted(out, clips / "m.csv")
        (path,) = out.glob("shards/*.json")
        report = json.loads(path.read_text())
        for failure in report["failures"]:
            del failure["broken"]
        path.write_text(json.dumps(report))
        read.clear()
        assert extracted(out, clips / "m.csv").again == 2
        assert read == ["broken.mp4", "missing.mp4"]
        read.clear()
        extracted(out, clips / "m.csv")
        assert read == ["missing.mp4"]  # now the other is known to be broken

    def test_a_damaged_record_is_not_taken_over(self, clips, tmp_path):
        out = tmp_path / "out"
        extracted(out, clips / "m.csv")
        (path,) = out.glob("shards/*.json")
        report = json.loads(path.read_text())
        report["lines"][1]["crc32"] += 1
        path.write_text(json.dumps(report))
        before = stamps(out)
        shutil.copy(clips / "3.mp4", clips / "missing.mp4")
        with pytest.raises(UserError, match="record 1 is damaged; delete this file and run"):
            extracted(out, clips / "m.csv")
        assert stamps(out) == before
        (out / next(iter(before))).unlink()
        assert extracted(out, clips / "m.csv")[:2] == (5, 1)


class TestEnvironment:
    """Its failures stop the job, are recorded of no clip, and leave nothing to repair."""

    def healthy(self, out, clips, tmp_path):
        """A run after the failure ends as an undisturbed one."""
        assert not list(out.glob("shards/*"))
        assert not list(out.glob("clips-*"))
        assert not (out / "failures.jsonl").exists()
        totals = extracted(out, clips / "m.csv")
        assert (totals.records, totals.failures, totals.kept) == (4, 2, 0)
        extracted(tmp_path / "undisturbed", clips / "m.csv")
        return same(out, tmp_path / "undisturbed")

    def test_a_missing_library(self, clips, tmp_path, monkeypatch):
        """In the processes that read the clips; these get their path from this one."""
        stub = "raise ModuleNotFoundError(\"No module named 'soxr'\", name='soxr')"
        (tmp_path / "stub").mkdir()
        (tmp_path / "stub/soxr.py").write_text(stub)
        out = tmp_path / "out"
        with monkeypatch.context() as patch:
            patch.syspath_prepend(tmp_path / "stub")
            shards = prepared(out, clips / "m.csv", shard_clips=6).prepare()
            line = r"^the library soxr does not load \(No module named 'soxr'\); install it, or"
            with pytest.raises(EnvironmentFailure, match=line):
                list(run_local(shards, ReadingConfig(workers=2)))
        assert self.healthy(out, clips, tmp_path)

    @pytest.mark.parametrize(
        ("error", "line"),
        [
            (MemoryError(), "out of memory; free memory or lower workers"),
            (OSError(errno.ENOSPC, "x", "/tmp/a"), "/tmp/a: the disk is full; free disk space"),
            (RuntimeError("can't start new thread"), "no thread or process can be started; "),
        ],
        ids=["memory", "disk", "thread"],
    )
    def test_an_error_while_a_clip_is_read(self, clips, tmp_path, monkeypatch, error, line):
        def raw_medium(*_):
            raise error

        out = tmp_path / "out"
        with monkeypatch.context() as patch:
            patch.setattr(extract, "raw_medium", raw_medium)
            with pytest.raises(EnvironmentFailure, match=line):
                extracted(out, clips / "m.csv")
        assert self.healthy(out, clips, tmp_path)

    def test_no_handles(self, clips, tmp_path, no_handles):
        out = tmp_path / "out"
        (shard,) = prepared(out, clips / "m.csv", shard_clips=6).prepare()
        with no_handles(), pytest.raises(EnvironmentFailure, match="^too many open files; raise"):
            in_this_process([shard])
        with no_handles(), pytest.raises(EnvironmentFailure, match="too many open files; raise"):
            list(run_local([shard], ReadingConfig(workers=1)))
        assert self.healthy(out, clips, tmp_path)

    def test_a_full_disk(self, clips, tmp_path, monkeypatch):
        out = tmp_path / "out"
        (shard,) = prepared(out, clips / "m.csv", shard_clips=6).prepare()
        name = f"{shard_name(0, 1)}.{'0' * 8}.part"
        (out / name).symlink_to("/dev/full")
        with monkeypatch.context() as patch:
            patch.setattr(extract.uuid, "uuid4", lambda: uuid.UUID(int=0))
            with pytest.raises(EnvironmentFailure) as caught:
                in_this_process([shard])
        assert str(caught.value) == (
            f"{out / shard_name(0, 1)}: the disk is full; free disk space, then run again to resume"
        )
        assert self.healthy(out, clips, tmp_path)

    def test_finished_shards_and_records_stay(self, clips, tmp_path, monkeypatch, read):
        out = tmp_path / "out"
        extracted(out, clips / "m.csv")
        shutil.copy(clips / "3.mp4", clips / "missing.mp4")
        before = stamps(out)

        def raw_medium(*_):
            raise MemoryError

        with monkeypatch.context() as patch:
            patch.setattr(extract, "raw_medium", raw_medium)
            with pytest.raises(EnvironmentFailure):
                extracted(out, clips / "m.csv")
        assert stamps(out) == before
        read.clear()
        totals = extracted(out, clips / "m.csv")
        assert (totals.records, totals.kept, totals.again) == (5, 4, 1)
        assert read == ["missing.mp4"]


class TestMisfortune:
    def test_not_one_clip_can_be_read(self, run, tmp_path):
        (tmp_path / "m.csv").write_text("path,caption\na.mp4,A\nb.mp4,B\n")
        words = ["--config.shard_clips=1", "--config.workers=1"]
        assert run(tmp_path / "out", tmp_path / "m.csv", *words) == 1
        assert len(RecordSource(tmp_path / "out")) == 0

    def test_an_unreadable_plan_and_an_impossible_folder(self, manifest, tmp_path):
        prepared(tmp_path / "out", manifest).prepare()
        (tmp_path / "out/extraction.json").write_text("{")
        with pytest.raises(UserError, match="json: not readable as JSON .*; --overwrite"):
            prepared(tmp_path / "out", manifest).prepare()
        assert len(prepared(tmp_path / "out", manifest).prepare(overwrite=True)) == 4
        (tmp_path / "file").write_text("")
        with pytest.raises(UserError, match="file/out: cannot be made"):
            prepared(tmp_path / "file/out", manifest).prepare()

    def test_a_clip_that_kills_its_process_fails_alone(self, manifest, tmp_path, monkeypatch):
        kill = {"1.mp4": "os.kill(os.getpid(), signal.SIGKILL)"}
        monkeypatch.syspath_prepend(hooked_workers(tmp_path / "hook", kill))
        extraction = prepared(tmp_path / "out", manifest)
        results = list(run_local(extraction.prepare(), ReadingConfig(workers=1)))
        assert len(results) == 7
        died = "train.jsonl:2: the process that read it died (SIGKILL)"
        assert f"{died}; run again with fewer workers if memory is short" in results
        assert extraction.finish()[:2] == (4, 3)
        todo = extraction.prepare()  # what killed the process is not known
        assert [shard.again for shard in todo] == [{"train.jsonl:2"}, {"train.jsonl:5"}]
        monkeypatch.undo()
        assert "" in list(run_local(todo, ReadingConfig(workers=1)))
        assert extraction.finish()[:2] == (5, 2)

    def test_a_process_that_dies_at_its_start_stops_the_job(self, manifest, tmp_path, monkeypatch):
        (tmp_path / "hook").mkdir()
        (tmp_path / "hook/sitecustomize.py").write_text("import os; os._exit(9)")
        monkeypatch.syspath_prepend(tmp_path / "hook")
        extraction = prepared(tmp_path / "out", manifest)
        line = r"^a process that reads clips died at its start \(exit status 9\); free memory"
        with pytest.raises(EnvironmentFailure, match=line):
            list(run_local(extraction.prepare(), ReadingConfig(workers=1)))
        assert not list((tmp_path / "out").glob("shards/*"))

    def test_an_unforeseen_error_is_one_clips(self, manifest, tmp_path, monkeypatch):
        def probe(path):
            raise ZeroDivisionError("oh")

        monkeypatch.setattr(extract, "probe", probe)
        shards = prepared(tmp_path, manifest).prepare()
        assert in_this_process(shards[1:2]) == [
            f"train.jsonl:{n}: unexpected ZeroDivisionError: oh" for n in (2, 3)
        ]

    def test_a_kind_that_the_manifest_did_not_say(self, tmp_path):
        (tmp_path / "clips").mkdir()
        write_clip(tmp_path / "clips/a.mp4", seconds=0.5, fps=8, size=(64, 64))
        os.rename(tmp_path / "clips/a.mp4", tmp_path / "clips/a.png")
        (tmp_path / "m.jsonl").write_text('{"path": "clips/a.png"}\n')
        shards = prepared(tmp_path / "out", tmp_path / "m.jsonl").prepare()
        (reason,) = in_this_process(shards)
        assert "is of kind video, and the manifest calls it image" in reason

    def test_full_disk(self, manifest, tmp_path):
        extraction = prepared(tmp_path, manifest, shard_clips=7)
        (shard,) = extraction.prepare()
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
        try:
            with pytest.raises(UserError) as error:
                in_this_process([shard])
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert "cannot be written" in str(error.value)
        assert "free disk space, then run again to resume" in str(error.value)
        assert "\n" not in str(error.value)
        assert not stamps(tmp_path)
        assert [todo.number for todo in extraction.prepare()] == [0]


def test_the_token_budget_shrinks_a_clip_and_the_index_says_so(manifest, tmp_path):
    clip = resolve(ClipSettings(frames=4, media_tokens=24, min_pixels=784))
    rows = read_manifest(manifest, clip)[:1]
    extraction = Extraction(epath.Path(tmp_path), rows, clip, Storage(), 1)
    assert in_this_process(extraction.prepare()) == []
    extraction.finish()
    line = json.loads((tmp_path / "index.jsonl").read_text())
    assert "the budget has" in line["media"][0]["notes"][0]
    (medium,) = RecordSource(tmp_path).entries[0].media
    assert math.prod(medium.grid) // 4 + GEOMETRY.audio.tokens(medium.mel_frames) + 4 <= 24


def test_workers_make_the_same_folder(manifest, tmp_path):
    """As this process, to the byte, whatever their number."""
    here = prepared(tmp_path / "here", manifest)
    in_this_process(here.prepare())
    totals = here.finish()
    for workers in (1, 3):
        extraction = prepared(tmp_path / str(workers), manifest)
        list(run_local(extraction.prepare(), ReadingConfig(workers=workers)))
        assert extraction.finish() == totals
        assert same(tmp_path / "here", tmp_path / str(workers))


def test_beam_makes_the_same_folder(manifest, tmp_path):
    pytest.importorskip("apache_beam")
    local, fleet = prepared(tmp_path / "a", manifest), prepared(tmp_path / "b", manifest)
    in_this_process(local.prepare())
    run_beam(fleet.prepare(), "DirectRunner", "--direct_num_workers=1", ReadingConfig())
    assert local.finish() == fleet.finish()
    for name in ("index.jsonl", "failures.jsonl", "shards.json"):
        assert (tmp_path / "a" / name).read_text() == (tmp_path / "b" / name).read_text()
    for name in stamps(tmp_path / "a"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert len(RecordSource(tmp_path / "b")) == 5
    with pytest.raises(UserError, match="runner WarpRunner: "):
        run_beam(local.shards(), "WarpRunner", "", ReadingConfig())


def test_without_beam_a_runner_is_refused(manifest, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "apache_beam", None)
    with pytest.raises(UserError, match=r"pip install 'ugc_jax\[beam\]'"):
        run_beam(prepared(tmp_path, manifest).prepare(), "DirectRunner", "", ReadingConfig())


def test_workers_start_no_jax():
    code = (
        "import sys; from ugc_jax.data import extract, reading, workers, records;"
        "assert not {'jax', 'torch', 'tensorflow', 'grain'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# ---- many processes, buckets and tar files -------------------------------------------------------


def parts_of(manifest, output, rank, count):
    """Prepare the share of a process, and its shards."""
    one = prepared(output, manifest)
    share = extract.Share(rank, count)
    return one, share, one.prepare(share=share)


def test_shares_of_processes_make_the_folder_of_one(manifest, tmp_path):
    alone = prepared(tmp_path / "alone", manifest)
    in_this_process(alone.prepare())
    alone.finish()
    together, written = tmp_path / "together", []
    started = [parts_of(manifest, together, rank, 3) for rank in range(3)]  # all before any writes
    for one, share, shards in started:
        assert one.finish_together() is None
        written += [shard.number for shard in shards]
        in_this_process(shards)
        assert one.progress(share)[2:] == {0: (1, 3), 1: (0, 2), 2: (1, 2)}[share.rank]
    assert sorted(written) == [0, 1, 2, 3]
    assert started[0][0].finish_together(started[0][2]).records == 5
    names = {file.name for file in (tmp_path / "alone").iterdir() if file.is_file()}
    assert names == {file.name for file in together.iterdir() if file.is_file()}
    for name in names - {"dataset_info.json"}:  # it has the folder's name
        assert (together / name).read_bytes() == (tmp_path / "alone" / name).read_bytes(), name


def test_another_process_keeps_its_partial_file(manifest, tmp_path):
    parts_of(manifest, tmp_path / "out", 0, 2)
    mine, other = (tmp_path / "out" / f"{shard_name(number, 4)}.abc.part" for number in (0, 1))
    mine.write_bytes(b"of a killed run")
    other.write_bytes(b"of a process that writes")
    parts_of(manifest, tmp_path / "out", 0, 2)
    assert not mine.exists()
    assert other.exists()
    prepared(tmp_path / "out", manifest).prepare()
    assert not other.exists()


def test_a_killed_share_is_finished_by_another_number_of_processes(manifest, tmp_path):
    out = tmp_path / "out"
    one, _, shards = parts_of(manifest, out, 0, 2)
    in_this_process(shards[:1])  # killed after the first of two
    before = stamps(out)
    done = []
    for rank in range(4):
        one, _, shards = parts_of(manifest, out, rank, 4)
        in_this_process(shards)
        done += [shard.number for shard in shards]
    assert sorted(done) == [1, 2, 3]
    assert one.finish_together().records == 5
    assert before.items() <= stamps(out).items()
    RecordSource(out)


def test_the_index_is_that_of_the_last_report(manifest, tmp_path, monkeypatch):
    """A report that changes while the index is written is in the index all the same."""
    one, _, shards = parts_of(manifest, tmp_path / "out", 0, 1)
    in_this_process(shards)
    first = one.shards()[0]
    finish, calls = Extraction.finish, []

    def slow(self, written, reports):
        totals = finish(self, written, reports)
        if not calls:  # another process replaces a report
            report = extract.read_report(first)
            lines = [line | {"solution": "new"} for line in report.lines]
            extract._write_report(extract._report_path(first), report._replace(lines=lines))
        calls.append(totals)
        return totals

    monkeypatch.setattr(Extraction, "finish", slow)
    one.finish_together(shards)
    assert len(calls) == 2
    assert [e.solution for e in RecordSource(tmp_path / "out").entries] == ["new", *[None] * 4]


@pytest.mark.parametrize(
    ("text", "environment", "expected"),
    [
        (None, {"SLURM_PROCID": "1", "SLURM_NTASKS": "4"}, (0, 1)),
        ("2/8", {}, (2, 8)),
        ("auto", {"SLURM_PROCID": "1", "SLURM_NTASKS": "4"}, (1, 4)),
        ("auto", {"JAX_PROCESS_ID": "0", "JAX_NUM_PROCESSES": "2"}, (0, 2)),
        ("8/8", {}, "shard is 8/8; give RANK/COUNT, of 8 processes 0/8 to 7/8, or auto"),
        ("2", {}, "shard is 2; give RANK/COUNT"),
        ("auto", {"SLURM_PROCID": "1"}, "neither SLURM_PROCID and SLURM_NTASKS, or JAX_PROCESS_ID"),
        ("auto", {"JAX_PROCESS_ID": "2", "JAX_NUM_PROCESSES": "2"}, "shard is 2/2 (JAX_PROCESS"),
    ],
)  # fmt: skip
def test_whose_share_it_is(text, environment, expected):
    if isinstance(expected, tuple):
        assert extract.parse_share(text, environment) == expected
        return
    with pytest.raises(UserError) as error:
        extract.parse_share(text, environment)
    assert expected in str(error.value)


def test_processes_that_are_killed_lose_nothing(manifest, tmp_path):
    """Two real processes, one killed at its first file; then both again."""
    out = tmp_path / "out"
    words = ["extract", "--output", str(out), "--frames", "2", "--min_pixels", "784"]
    words += ["--max_pixels", "3136", "--shard_clips", "1", "--workers", "1", str(manifest)]
    start = lambda rank: subprocess.Popen(  # noqa: E731
        [sys.executable, "-m", "ugc_jax.cli", *words, "--max_failures=1", "--shard=auto"],
        env=os.environ | {"SLURM_PROCID": str(rank), "SLURM_NTASKS": "2"},
        stderr=subprocess.PIPE,
        text=True,
    )
    first = start(0)
    end = time.monotonic() + 60
    while not list((out / "shards").glob("*.json")) and time.monotonic() < end:
        time.sleep(0.02)
    first.kill()
    first.communicate()
    before = {name: time for name, time in stamps(out).items() if not name.endswith(".part")}
    both = [start(rank) for rank in range(2)]
    told = [one.communicate(timeout=100)[1] for one in both]
    assert [one.returncode for one in both] == [0, 0], told
    assert any(f"{out}: 5 records (" in text for text in told)
    assert before
    assert before.items() <= stamps(out).items()
    assert [entry.id for entry in RecordSource(out).entries] == [
        f"train.jsonl:{number}" for number in (1, 2, 3, 4, 7)
    ]


def test_words_that_do_not_go_together(run, manifest, tmp_path):
    with pytest.raises(UserError, match="overwrite would delete what other shares write"):
        run(tmp_path, manifest, "--shard=0/2", "--overwrite")
    with pytest.raises(UserError, match="shard and runner both divide the work"):
        run(tmp_path, manifest, "--shard=0/2", "--runner=DirectRunner")


@pytest.fixture
def web(manifest):
    """A server of the clips that fails at first: url, and the paths asked for."""
    folder, asked = manifest.parent, []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            asked.append((self.command, self.path))
            file = folder / self.path.lstrip("/")
            status = 404 if not file.exists() else 503 if len(asked) < 3 else 200
            body = file.read_bytes() if status == 200 else b""
            asks = re.match(r"bytes=(\d+)-(\d+)", self.headers["Range"] or "")
            if status == 200 and asks:
                first, last = map(int, asks.groups())
                status, body = 206, body[first : last + 1]
            self.send_response(status)
            self.send_header("Accept-Ranges", "bytes")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        do_HEAD = do_GET

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()
    server.server_close()


def test_clips_of_a_server_and_of_a_tar_file_are_those_of_files(web, run, manifest, tmp_path):
    url, asked = web
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        archive.add(manifest.parent / "2.mp4", "2.mp4")
        archive.add(manifest.parent / "cut.mp4", "cut.mp4")
    rows = [f"{url}/1.mp4", f"{url}/none.mp4", "a.tar/2.mp4", "a.tar/cut.mp4", "a.tar/none.mp4"]
    rows += [str(manifest.parent / f"{number}.mp4") for number in (1, 2)]
    path = tmp_path / "m.csv"
    path.write_text("\n".join(["video,caption", *(f"{row},A" for row in rows)]) + "\n")
    out = tmp_path / "out"
    assert run(out, path, "--workers=1", "--max_failures=0.5") == 0
    source = RecordSource(out)
    assert [entry.id for entry in source.entries] == [f"m.csv:{n}" for n in (2, 4, 7, 8)]
    for fetched, local in ((0, 2), (1, 3)):
        (a,), (b,) = source[fetched][1], source[local][1]
        assert (a.vision.patches == b.vision.patches).all()
        assert (a.mel == b.mel).all()
    lines = [json.loads(line) for line in (out / "failures.jsonl").read_text().splitlines()]
    assert [line["id"] for line in lines] == ["m.csv:3", "m.csv:5", "m.csv:6"]
    assert lines[0]["error"] == f"{url}/none.mp4: no such file; check its name and bucket"
    assert lines[1]["error"].startswith(f"{tmp_path}/a.tar/cut.mp4: ")
    assert "/ugc-jax-" not in lines[1]["error"]
    assert lines[1]["broken"] == [[900, (tmp_path / "a.tar").stat().st_mtime_ns]]
    assert "a.tar has no member of this name" in lines[2]["error"]
    assert len(asked) > 3  # it failed twice, and was asked again


def test_a_bucket_that_refuses_stops_the_job_in_one_line(bucket, tmp_path, run):  # noqa: F811
    path = tmp_path / "m.csv"
    path.write_text("video\ns3://mine/a.mp4\ns3://mine/b.mp4\n")
    bucket.faults["info:mine"] = [PermissionError("Access Denied")] * 9
    with pytest.raises(EnvironmentFailure, match=r"s3://mine/a.mp4: access is refused \(Access"):
        run(tmp_path / "out", path)
    bucket.faults["info:mine"] = [type("NoCredentialsError", (Exception,), {})("no account")]
    with pytest.raises(EnvironmentFailure, match="no valid credentials for s3://"):
        run(tmp_path / "out", path)


def test_many_hosts_may_begin_at_once(manifest, tmp_path, monkeypatch):
    """A process that finds the folder half made by another goes on; other files are refused."""
    one = prepared(tmp_path / "out", manifest)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "extraction.json.7-ab.new").write_text("of another process")
    assert len(one.prepare(share=extract.Share(0, 2))) == 2
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("x")
    other = prepared(tmp_path / "other", manifest)
    with pytest.raises(UserError, match="holds something else; choose another output"):
        other.prepare(share=extract.Share(0, 2))
    content = (tmp_path / "out" / "extraction.json").read_text()
    iterdir = type(other.directory).iterdir

    def listed(path):
        (tmp_path / "other" / "extraction.json").write_text(content)  # while this one looks
        return iterdir(path)

    monkeypatch.setattr(type(other.directory), "iterdir", listed)
    assert len(other.prepare(share=extract.Share(1, 2))) == 2
