"""ugc_jax.jobs.caption: a folder whose every tenth file kills, hangs or bloats its decoder."""

import json
import shutil
import struct
from pathlib import Path

from clips import write_clip
from hooks import hooked_workers

from ugc_jax import cli

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
