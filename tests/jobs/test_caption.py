"""ugc_jax.jobs.caption: hostile files, records for clips, programs compiled first, kills."""

import json
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import jax
import pytest
from clips import write_clip
from hooks import hooked_workers

from ugc_jax import cli
from ugc_jax.errors import UserError
from ugc_jax.generate.captioner import Captioner

BOXES = (b"moov", b"trak", b"mdia", b"minf", b"stbl")


def boxes(content: bytes, place: int, end: int):
    """Yield (name, place) of the boxes of an mp4 down to the sample tables."""
    while place + 8 <= end:
        size, name = struct.unpack_from(">I4s", content, place)
        yield name, place
        if name in BOXES:
            yield from boxes(content, place + 8, place + size)
        place += size


def announce(path: Path, samples: int):
    """Let the tables of a small mp4 announce so many samples: FFmpeg lists them all at once."""
    content = bytearray(path.read_bytes())
    for name, place in list(boxes(content, 0, len(content))):
        match name:
            case b"stts":
                struct.pack_into(">3I", content, place + 12, 1, samples, 512)
            case b"stsz":
                struct.pack_into(">2I", content, place + 12, 1, samples)
            case b"stsc":
                struct.pack_into(">4I", content, place + 12, 1, 1, samples, 1)
            case b"stss" | b"ctts":
                content[place + 4 : place + 8] = b"free"
    path.write_bytes(content)


def test_all_others_get_their_caption(tiny_checkpoint, clips, tmp_path, monkeypatch):
    folder, out, report = tmp_path / "clips", tmp_path / "out.jsonl", tmp_path / "report.json"
    folder.mkdir()
    for number in range(40):
        shutil.copy(clips / f"{'ab'[number % 2]}.mp4", folder / f"{number:02d}.mp4")
    write_clip(folder / "35.mp4", seconds=1, size=(64, 48), audio=False)
    announce(folder / "35.mp4", 40_000_000)
    actions = {
        "05.mp4": "os.kill(os.getpid(), signal.SIGSEGV)",
        "15.mp4": "signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 32)); time.sleep(600)",
        "25.mp4": "bytearray(2 << 30)",
    }
    monkeypatch.syspath_prepend(hooked_workers(tmp_path / "hook", actions))
    monkeypatch.setattr(cli, "set_up_logging", lambda *_: None)
    words = "--frames 2 --min_pixels 784 --max_pixels 3136 --max_new_tokens 2 --workers 2"
    limits = ["--clip_timeout", "3", "--clip_memory", "1"]
    files = ["--output", str(out), "--report", str(report), str(folder)]
    job = ["caption", "--checkpoint", str(tiny_checkpoint), *words.split(), *limits, *files]
    assert cli.run(job) == 0
    records = [json.loads(line) for line in out.read_text().splitlines()]
    assert sorted(Path(record["video"]).name for record in records) == [
        f"{number:02d}.mp4" for number in range(40)
    ]
    errors = {
        Path(record["video"]).stem: record["error"] for record in records if "error" in record
    }
    assert str(folder / "35.mp4") in errors.pop("35")  # FFmpeg hides that it has no memory
    assert {name: error.partition(": ")[2] for name, error in errors.items()} == {
        "05": "the process that read it died (SIGSEGV); copy or encode it again",
        "15": "not read within 3 s; raise clip_timeout, or encode it again",
        "25": "reading it takes more than 1 GB of memory; raise clip_memory, or encode it again",
    }
    totals = json.loads(report.read_text())
    assert (totals["captioned"], totals["failed"]) == (36, 4)


# ---- records ------------------------------------------------------------------------------------

SIZES = ["--frames", "4", "--min_pixels", "784", "--max_pixels", "12544"]


def lines(path: Path) -> dict[str, dict]:
    """The lines of a file of captions by the names of the clips."""
    found = [json.loads(line) for line in path.read_text().splitlines()]
    assert len({line["video"] for line in found}) == len(found)
    return {Path(line["video"]).name: line for line in found}


def no_time(line: dict) -> dict:
    return {name: value for name, value in line.items() if name != "seconds"}


@pytest.fixture(scope="module")
def records(clips, tmp_path_factory) -> Path:
    """The exact frames and sound of the readable clips, with a question of their own."""
    folder = tmp_path_factory.mktemp("records")
    (folder / "clips").mkdir()
    for name in ("a", "b", "silent"):
        shutil.copy(clips / f"{name}.mp4", folder / "clips")
    words = ["extract", *SIZES, "--question", "Own?", "--format", "png", "--mel", "float32"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cli, "set_up_logging", lambda *_: None)
        assert cli.run([*words, "--output", str(folder / "records"), str(folder / "clips")]) == 0
    return folder


@pytest.fixture
def caption(tiny_checkpoint, tiny_captioner, monkeypatch):
    """Run the job with the captioner that is compiled already."""
    monkeypatch.setattr(Captioner, "from_pretrained", lambda *args, **kwargs: tiny_captioner)
    monkeypatch.setattr(cli, "set_up_logging", lambda *_: None)

    def run(*words) -> int:
        model = ["--checkpoint", str(tiny_checkpoint), "--max_new_tokens", "6"]
        return cli.run(["caption", *model, "--token_ids", *map(str, words)])

    return run


@pytest.mark.parametrize("question", [[], ["--question", "Another?"]], ids=["own", "replaced"])
def test_records_have_the_captions_of_their_clips(caption, records, tmp_path, question):
    ours, theirs = tmp_path / "records.jsonl", tmp_path / "clips.jsonl"
    assert caption("--output", ours, *question, records / "records") == 0
    asked = question or ["--question", "Own?"]
    assert caption("--output", theirs, *SIZES, *asked, records / "clips") == 0
    ours, theirs = lines(ours), lines(theirs)
    assert {name: no_time(line) for name, line in ours.items()} == {
        name: no_time(line) for name, line in theirs.items()
    }
    assert ours["silent.mp4"]["notes"] == ["no sound in the file"]


def test_records_are_continued(caption, records, tmp_path, capsys):
    out = tmp_path / "out.jsonl"
    assert caption("--output", out, records / "records") == 0
    whole = out.read_text().splitlines(keepends=True)
    out.write_text(whole[0] + whole[1][:20])
    assert caption("--output", out, records / "records") == 0
    assert "captioned 2, skipped 1, failed 0" in capsys.readouterr().err
    again = {name: no_time(line) for name, line in lines(out).items()}
    (tmp_path / "whole").write_text("".join(whole))
    assert again == {name: no_time(line) for name, line in lines(tmp_path / "whole").items()}
    with pytest.raises(UserError, match="was made with clip.question None, not 'Else.'"):
        caption("--output", out, "--question", "Else.", records / "records")


def test_a_damaged_record_is_its_own_error(caption, records, tmp_path):
    copy, out = shutil.copytree(records / "records", tmp_path / "copy"), tmp_path / "out.jsonl"
    (shard,) = copy.glob("*.array_record-*")
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 255
    shard.write_bytes(content)
    assert caption("--output", out, copy) == 0
    errors = [line["error"] for line in lines(out).values() if "error" in line]
    assert len(errors) in (1, 2)
    assert all("is damaged; delete this file" in error for error in errors)


def test_what_records_fix_is_refused(caption, records, clips, tmp_path):
    for words, message in (
        (["--fps", 1, records / "records"], r"clip\.fps cannot be set; leave them out"),
        (["--preset", "qwen", "--end", 1, records / "records"], r"clip\.preset, clip\.end cannot"),
        ([records / "records", clips], "holds records; give one folder of records, or clips"),
    ):
        with pytest.raises(UserError, match=message):
            caption(*words)
    (tmp_path / "extraction.json").write_text("{}")
    with pytest.raises(UserError, match="not a complete extraction"):
        caption(tmp_path)


# ---- warm ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["clips", "records"])
def test_warm_leaves_nothing_to_compile(
    kind, tiny_checkpoint, records, tmp_path, monkeypatch, caplog
):
    """Clips of several buckets, the largest first, one of which cannot be read."""
    monkeypatch.setattr(cli, "set_up_logging", lambda *_: None)
    caplog.set_level("INFO", logger="ugc_jax")
    for number, seconds in enumerate((5.1, 2.7, 0.6)):
        size = (64, 128 - 32 * number)
        clip = tmp_path / "clips" / f"{number}.mp4"
        clip.parent.mkdir(exist_ok=True)
        write_clip(clip, seed=number, seconds=seconds, fps=10, size=size, audio=number != 1)
    where, settings = tmp_path / "clips", ["--fps", "2", *SIZES[2:]]
    if kind == "records":
        where = tmp_path / "records"
        assert cli.run(["extract", *settings, "--output", str(where), str(tmp_path / "clips")]) == 0
        settings = []
    else:
        (where / "broken.mp4").write_bytes(b"broken")
    words = ["--warm", "--max_new_tokens", "20", "--output", str(tmp_path / "out.jsonl")]
    model = ["--checkpoint", str(tiny_checkpoint)]
    compiled = []  # for each program, whether that was after the line on how many there were

    def listen(event: str, *_, **__):
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(" sizes of prompts in " in caplog.text)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        assert cli.run(["caption", *model, *words, *settings, str(where)]) == 0
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    assert " programs for 3 sizes of prompts in " in caplog.text
    assert compiled.count(False) > 10
    assert compiled.count(True) == 0
    found = lines(tmp_path / "out.jsonl").values()
    assert ["error" in line for line in found].count(False) == 3


# ---- kill -9 ------------------------------------------------------------------------------------


def test_killed_at_any_moment_it_goes_on(tiny_checkpoint, clips, tmp_path):
    """launch/kill_caption.py, with few kills."""
    (tmp_path / "clips").mkdir()
    for number in range(12):
        shutil.copy(clips / f"{'ab'[number % 2]}.mp4", tmp_path / "clips" / f"{number:02d}.mp4")
    script = Path(__file__).resolve().parents[2] / "launch" / "kill_caption.py"
    settings = [*SIZES, "--max_new_tokens", "16", "--batch_size", "2", "--workers", "1"]
    words = [tiny_checkpoint, tmp_path / "clips", "--kills", "2", "--output", tmp_path / "out"]
    command = list(map(str, [sys.executable, script, *words, *settings]))
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 kills" in done.stdout
    assert len(lines(tmp_path / "out" / "killed.jsonl")) == 12


# ---- pieces and documents ------------------------------------------------------------------------


def test_pieces_and_subtitles(caption, clips, tmp_path, capsys):
    long, out = tmp_path / "long.mp4", tmp_path / "out"
    write_clip(long, seconds=7.0, fps=5, size=(96, 64), audio=False)
    words = [*SIZES, "--pieces", 3, "--format", "vtt", "--output", out]
    assert caption(*words, long, clips / "broken.mp4") == 0
    record = lines(out / "captions.jsonl")["long.mp4"]
    first, second = record["scenes"]
    assert [(scene["start"], scene["end"]) for scene in record["scenes"]] == [(0, 3), (3, 7)]
    assert record["caption"].startswith("[00:00-00:03] ")
    assert "00:00:03.000 --> 00:00:07.000\n" in (out / "long.vtt").read_text()
    assert not (out / "broken.vtt").exists()
    assert caption(*words, long, clips / "broken.mp4") == 0  # nothing is captioned twice
    assert "captioned 0, skipped 1, failed 1" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"was made with pieces 3\.0, not 0"):
        caption(*SIZES, "--format", "vtt", "--output", out, long)


def test_what_pieces_and_subtitles_do_not_take(caption, records, clips):
    for words, message in (
        (["--pieces", 60, records / "records"], "pieces needs clips, and these are records"),
        (
            ["--token_ids=false", "--format", "srt", records / "records"],
            "format srt needs clips, and these are records",
        ),
        (
            ["--pieces", 60, "--evidence", clips / "a.mp4"],
            "evidence is of clips that are captioned",
        ),
        (["--pieces", 1, clips / "a.mp4"], "pieces is 1; use at least 2 seconds, or 0 for off"),
        (["--token_ids=false", "--format", "srt", clips], "one document a clip, and there are"),
        (
            ["--token_ids", "--format", "text", clips / "a.mp4"],
            "token_ids are in JSON Lines, not in format text; leave the format out, or name",
        ),
    ):
        with pytest.raises(UserError, match=message):
            caption(*words)
