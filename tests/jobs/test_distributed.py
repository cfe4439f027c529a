"""caption and evaluate --distributed: processes that share the clips, of which some are killed."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hooks import hooked_workers

from ugc_jax import cli
from ugc_jax.errors import UserError
from ugc_jax.evals.results import read_result
from ugc_jax.generate import asking, shares
from ugc_jax.generate.captioner import Captioner
from ugc_jax.generate.results import Results
from ugc_jax.generate.shares import Parts, Share

SIZES = ["--frames", "4", "--min_pixels", "784", "--max_pixels", "12544", "--max_new_tokens", "6"]


SETTINGS = {"weights": "digest", "dtype": "float32"}


def launcher(number: int, count: int) -> dict[str, str]:
    """What SLURM tells a process."""
    return {
        "SLURM_JOB_ID": "1", "SLURM_STEP_NODELIST": "localhost", "SLURM_LOCALID": "0",
        "SLURM_NTASKS": str(count), "SLURM_PROCID": str(number),
    }  # fmt: skip


def records(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def tokens(path: Path) -> dict[str, object]:
    """The tokens or the error of each clip, in the order of the file; each has one line."""
    found = {one["video"]: one.get("token_ids", one.get("error")) for one in records(path)}
    assert len(found) == len(records(path))
    return found


@pytest.fixture
def folder(clips, tmp_path, monkeypatch) -> Path:
    """Eight clips, of which one cannot be read; by a relative path, on which the shares depend."""
    monkeypatch.chdir(tmp_path)
    folder = Path("clips")
    folder.mkdir()
    for number in range(7):
        shutil.copy(clips / f"{'ab'[number % 2]}.mp4", folder / f"{number}.mp4")
    shutil.copy(clips / "broken.mp4", folder / "7.mp4")
    return folder


@pytest.fixture
def job(tiny_checkpoint, tiny_captioner, folder, monkeypatch, caplog):
    """Run caption as one of several processes, with the captioner that is compiled already.

    job.made: the clips that it captions.
    """
    run = tiny_captioner.run
    made = []

    def listen(videos, *args, **options):
        made.extend(videos)
        return run(videos, *args, **options)

    monkeypatch.setattr(tiny_captioner, "run", listen)
    monkeypatch.setattr(Captioner, "from_pretrained", lambda *args, **kwargs: tiny_captioner)
    monkeypatch.setattr(cli, "set_up_logging", lambda *_: None)
    caplog.set_level("INFO", logger="ugc_jax")

    def job(output: Path, number: int = 0, count: int = 0, *words) -> int:
        made.clear()
        if count:
            words = ["--distributed", *words]
            for name, value in launcher(number, count).items():
                monkeypatch.setenv(name, value)
        model = ["--checkpoint", tiny_checkpoint, "--token_ids", *SIZES, "--output", output]
        return cli.run(["caption", *map(str, [*model, *words, folder])])

    job.made = made
    return job


def test_shares_are_of_all_clips_and_of_each_once():
    clips = [f"clips/{number}.mp4" for number in range(400)]
    for count in (1, 2, 3, 7):
        owned = [Share(number, count).of(clips) for number in range(count)]
        assert sorted(sum(owned, [])) == sorted(clips)
        assert min(map(len, owned)) > 400 / count / 1.5
    evens = [f"clips/{number}.mp4" for number in (0, 1, 3, 4, 5)]  # in any version
    assert Share(0, 2).of(clips[:6]) == evens


def test_a_process_without_a_launcher(monkeypatch, folder, tmp_path):
    for name in launcher(0, 1):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(UserError, match="distributed: the other processes are not found"):
        shares.find_share()
    monkeypatch.setenv("UGC_JAX_PROCESSES", "4")
    for number in ("", "4", "-1"):
        monkeypatch.setenv("UGC_JAX_PROCESS", number)
        with pytest.raises(UserError, match="UGC_JAX_PROCESS is not a number below UGC_JAX_PROC"):
            shares.find_share()
    monkeypatch.setenv("UGC_JAX_PROCESS", "3")
    assert shares.find_share() == Share(3, 4)
    schema = cli.load_job("caption").SETTINGS
    with pytest.raises(UserError, match="distributed needs output"):
        schema.parse(["--distributed", str(folder)])
    with pytest.raises(UserError, match="distributed needs ask.checkpoint"):
        cli.load_job("evaluate").SETTINGS.parse(["--distributed", "--output", "o.json"])


def test_the_parts_come_together_as_of_one_process(job, folder, tmp_path, capsys, caplog):
    alone, shared = tmp_path / "alone.jsonl", tmp_path / "shared.jsonl"
    assert job(alone) == 0
    mine = Share(1, 2).of(map(str, sorted(folder.iterdir())))
    assert 0 < len(mine) < 8
    report = tmp_path / "report.json"
    assert job(shared, 1, 2, "--report", report) == 0
    assert sorted(job.made) == mine
    assert f"{8 - len(mine)} of 8 clips are still the other processes'" in caplog.text
    assert json.loads((tmp_path / "report.1-of-2.json").read_text())["failed"] in (0, 1)
    assert job(shared, 0, 2) == 0
    assert sorted(job.made + mine) == sorted(map(str, folder.iterdir()))
    assert "complete, 7 of 8 clips have a caption" in caplog.text
    whole = tokens(shared)
    assert whole == tokens(alone)
    assert list(whole) == sorted(whole)  # the order of the clips
    assert not Path(f"{shared}.parts").exists()
    # A further run, with any number of processes, tries the clip that failed again.
    for number in range(3):
        assert job(shared, number, 3) == 0
        assert [Path(clip).name for clip in job.made] in ([], ["7.mp4"])
    assert tokens(shared) == whole
    assert job(shared) == 0
    assert "captioned 0, skipped 7, failed 1" in capsys.readouterr().err
    with pytest.raises(UserError, match="was made with clip.frames 4, not 6"):
        job(shared, 0, 2, "--frames", "6")


@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_what_a_killed_process_has_done_is_taken_over(job, folder, tmp_path, count, caplog):
    """By a run with any number of processes, also by one that is not distributed (0)."""
    alone, shared = tmp_path / "alone.jsonl", tmp_path / "shared.jsonl"
    job(alone)
    clips = list(map(str, sorted(folder.iterdir())))
    assert job(shared, 1, 2) == 0
    done = Share(0, 2).of(clips)[:2]  # by the other one, before it was killed
    part = Path(f"{shared}.parts") / "shared.jsonl.0-of-2"
    part.parent.mkdir()
    lines = {one["video"]: json.dumps(one) for one in records(alone)}
    again = Share(0, 2).of(clips)[2:]
    part.write_text(f"{lines[done[0]]}\n{lines[done[1]]}\n{lines[again[0]][:30]}")
    made = []
    for number in range(max(count, 1)):
        assert job(shared, number, count) == 0
        made += [clip for clip in job.made if not clip.endswith("7.mp4")]
    assert sorted(made) == again == ["clips/3.mp4", "clips/4.mp4", "clips/5.mp4"]
    assert tokens(shared) == tokens(alone)
    assert not part.parent.exists()
    assert "removed a half-written last line" in caplog.text


def test_a_process_that_lives_keeps_its_part(tmp_path):
    """It is neither merged nor written by another process, and other settings are refused."""
    out, clips = tmp_path / "out.jsonl", ["a.mp4", "b.mp4"]
    folder = tmp_path / "out.jsonl.parts"
    first = Results(out, clips, SETTINGS, Parts(folder, Share(0, 2)))
    with first:
        for share, message in (
            (Share(0, 2), "another process writes it"),
            (Share(0, 3), "another process writes it"),
            (None, "another process writes it"),
            (Share(1, 2), "was made with dtype 'float32', not 'bfloat16'"),
        ):
            with pytest.raises(UserError, match=message):
                Results(out, clips, SETTINGS | {"dtype": "bfloat16"}, Parts(folder, share))
        first.write({"video": "a.mp4", "caption": "A"})
        with Results(out, clips, SETTINGS, Parts(folder, Share(1, 2))) as second:
            assert second.missing(clips) == ["b.mp4"]
            second.write({"video": "b.mp4", "caption": "B"})
        assert (second.waiting, second.captions) == (1, 1)
        assert [one["video"] for one in records(out)] == ["b.mp4"]
    assert (first.waiting, first.captions) == (0, 2)
    assert [one["video"] for one in records(out)] == clips
    assert not folder.exists()


def test_a_caption_is_not_replaced_by_an_error(tmp_path):
    out, clips, folder = tmp_path / "out.jsonl", ["a.mp4", "b.mp4"], tmp_path / "parts"
    lines = [
        {"video": "x.mp4", "caption": "of another run"},
        {"video": "a.mp4", "caption": "A"},
        {"video": "b.mp4", "error": "broken"},
    ]
    out.write_text("".join(json.dumps(line) + "\n" for line in reversed(lines)))
    with Results(out, clips, parts=Parts(folder, Share(0, 1))) as results:
        results.write({"video": "a.mp4", "error": "broken"})
        results.write({"video": "b.mp4", "caption": "B"})
    lines[2] = {"video": "b.mp4", "caption": "B"}
    assert records(out) == lines


def test_a_lock_that_is_kept_is_no_hang(tmp_path, monkeypatch):
    monkeypatch.setattr(shares, "LOCK_SECONDS", 0.2)
    parts = [Parts(tmp_path / "parts", Share(number, 2)) for number in range(2)]
    with (
        parts[0].locked(),
        pytest.raises(UserError, match="another process has kept it locked for 0 s"),
        parts[1].locked(),
    ):
        pass
    with parts[1].locked():
        pass
    assert not (tmp_path / "parts").exists()


def test_the_last_process_scores(tiny_checkpoint, tiny_captioner, clips, tmp_path, monkeypatch):
    qa, videos = tmp_path / "qa", tmp_path / "videos"
    qa.mkdir()
    videos.mkdir()
    monkeypatch.chdir(tmp_path)
    names = [f"c{number}" for number in range(4)]
    for name in names:
        shutil.copy(clips / "a.mp4", videos / f"{name}.mp4")
    tones = ["Positive", "Negative", "Neutral"]
    rows = [
        {"video_id": name, "path": f"{name}.mp4", "answer": "Neutral", "options": tones}
        for name in names
    ]
    content = {"question": "Which tone?", "valid_count": len(rows), "samples": rows}
    (qa / "tone.json").write_text(json.dumps(content))
    monkeypatch.setattr(Captioner, "from_pretrained", lambda *args, **kwargs: tiny_captioner)
    monkeypatch.setattr(cli, "set_up_logging", lambda *_: None)

    def evaluate(output: Path, number: int = 0, count: int = 0) -> int:
        asks = ["--ask.checkpoint", tiny_checkpoint, "--ask.videos", "videos", *SIZES]
        words = ["--qa", qa, "--task", "tone", "--output", output, *asks]
        if count:
            words.append("--distributed")
            for name, value in launcher(number, count).items():
                monkeypatch.setenv(name, value)
        return cli.run(["evaluate", *map(str, words)])

    alone, shared = tmp_path / "alone.json", tmp_path / "shared.json"
    evaluate(alone)
    assert evaluate(shared, 1, 2) == 0
    assert not shared.exists()
    evaluate(shared, 0, 2)
    one, both = read_result(alone), read_result(shared)
    for result in (one, both):
        del result["created"]
    assert both == one
    assert not list(tmp_path.glob("*.lock"))
    assert not (tmp_path / "shared.answers" / asking.PARTS).exists()
    # Again, nothing is left to ask: process 0 scores.
    shared.unlink()
    assert evaluate(shared, 1, 3) == 0
    assert not shared.exists()
    evaluate(shared, 0, 3)
    assert read_result(shared)["tasks"] == one["tasks"]


# ---- processes, killed --------------------------------------------------------------------------


class Run:
    """Processes of caption that share the clips of a folder."""

    def __init__(self, checkpoint: Path, folder: Path, output: Path, count: int, path: str = ""):
        """path: folder for PYTHONPATH."""
        self.output, self.count = output, count
        words = ["--checkpoint", checkpoint, "--token_ids", "--workers", "1", "--output", output]
        command = [sys.executable, "-m", "ugc_jax.cli", "caption", "--distributed", *words, *SIZES]
        paths = os.pathsep.join([*filter(None, [path]), *sys.path])
        self.processes = [
            subprocess.Popen(
                list(map(str, [*command, folder])), stderr=subprocess.PIPE, text=True,
                env=os.environ | launcher(number, count) | {"PYTHONPATH": paths},
            )
            for number in range(count)
        ]  # fmt: skip

    def kill(self, number: int, lines: int):
        """Kill a process as soon as so many lines of it are in its part."""
        name = f"{self.output.name}.{number}-of-{self.count}"
        part, deadline = Path(f"{self.output}.parts") / name, time.monotonic() + 120
        while not part.exists() or part.read_bytes().count(b"\n") < lines:
            assert self.processes[number].poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
        self.processes[number].send_signal(signal.SIGKILL)

    def finish(self, killed: tuple[int, ...] = ()):
        """Wait for all; those that are not killed end well."""
        for number, process in enumerate(self.processes):
            _, errors = process.communicate(timeout=120)
            assert process.returncode == (-signal.SIGKILL if number in killed else 0), errors


@pytest.mark.parametrize(
    ("count", "killed", "then"),
    [(2, (1,), 1), pytest.param(4, (0, 3), 3, marks=pytest.mark.slow)],
)
def test_killed_processes_stop_no_other_and_lose_nothing(
    tiny_checkpoint, folder, tmp_path, job, count, killed, then
):
    """They are killed while a clip of theirs hangs, after another one was captioned."""
    alone, shared = tmp_path / "alone.jsonl", tmp_path / "shared.jsonl"
    for number in range(20, 28):
        shutil.copy(folder / "0.mp4", folder / f"{number}.mp4")
    assert job(alone) == 0
    clips = list(map(str, sorted(folder.iterdir())))
    last = [Share(number, count).of(clips)[-1] for number in killed]
    hangs = {Path(clip).name: "time.sleep(600)" for clip in last}
    hooked = hooked_workers(tmp_path / "hook", hangs)
    first = Run(tiny_checkpoint, folder, shared, count, str(hooked))
    for number in killed:
        first.kill(number, 1)
    first.finish(killed)
    before = tokens(shared)
    parts = list(Path(f"{shared}.parts").glob("shared*"))
    assert len(parts) == len(killed)
    assert {one["video"] for part in parts for one in records(part)}.isdisjoint(before)
    if then == 1:
        job(shared, 0, 1)
    else:
        Run(tiny_checkpoint, folder, shared, then).finish()
    assert tokens(shared) == tokens(alone)
    assert not Path(f"{shared}.parts").exists()
