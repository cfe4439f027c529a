"""ugc_jax.jobs.inspect: the facts of a clip, and how a person sees them."""

import json
from pathlib import Path

from hooks import hooked_workers

from ugc_jax.data.batching import Buckets
from ugc_jax.data.reading import read_prompts
from ugc_jax.data.workers import ReadingConfig
from ugc_jax.jobs.inspect import InspectConfig, clip_facts, clip_table, main
from ugc_jax.media.presets import ClipSettings, resolve
from ugc_jax.models.qwen2_5_omni.config import tiny

ONE = ReadingConfig(workers=1)
SMALL = ClipSettings(frames=4, min_pixels=784, max_pixels=12544, question="What is it?")
CLIP = resolve(SMALL)


def test_kv_bytes(tiny_captioner, clips):
    """Two layers of two key and value heads of 16, for the bucket's tokens and 8 more."""
    path, config = str(clips / "a.mp4"), tiny_captioner.config
    ((_, prompt),) = read_prompts([path], CLIP, tiny_captioner.tokenizer, config, Buckets(), ONE)
    rows = [clip_facts(path, prompt, CLIP, config, 8, dtype) for dtype in ("float32", "bfloat16")]
    tokens = rows[0]["bucket"]["tokens"] + 8
    assert [row["kv_bytes"] for row in rows] == [2 * 2 * 2 * 16 * tokens * size for size in (4, 2)]
    assert "path" not in rows[0]


def test_table():
    row = {
        "video": "a.mp4", "kind": "video", "grid": (2, 4, 6), "frames": 4, "sample_fps": 1.5,
        "has_audio": True, "audio_seconds": 2.0, "prompt_tokens": 80, "video_tokens": 12,
        "audio_tokens": 50, "text_tokens": 18, "notes": ("cut",), "kv_bytes": 3 << 20,
        "bucket": {"tokens": 128, "grids": 2, "windows": 1, "chunks": 1},
        "instants": (0.0, 0.5, 1.25, 2.0),
    }  # fmt: skip
    assert clip_table(row, tiny()).splitlines() == [
        "a.mp4 (video)",
        "  picture  4 frames (1.500 a second), grid 2 x 4 x 6 patches of 14 x 14 pixels",
        "  times    0.00 0.50 1.25 2.00 s",
        "  sound    2.00 s",
        "  prompt   80 tokens = 12 video + 50 audio + 18 text",
        "  bucket   128 tokens, 2 grids, 1 windows, 1 chunks",
        "  memory   3.0 MiB of keys and values",
        "  note     cut",
    ]
    many = row | {"instants": tuple(k / 2 for k in range(20))}
    times = "0.00 0.50 1.00 1.50 2.00 2.50 3.00 3.50 4.00 4.50 ... 9.50 s"
    assert clip_table(many, tiny()).splitlines()[2] == f"  times    {times}"


def test_unreadable_clip(tiny_captioner):
    path, config = "missing.mp4", tiny_captioner.config
    ((_, error),) = read_prompts([path], CLIP, tiny_captioner.tokenizer, config, Buckets(), ONE)
    row = clip_facts(path, error, CLIP, config, 8, "float32")
    assert list(row) == ["video", "error"]
    assert clip_table(row, tiny()).splitlines()[1].startswith("  error    missing.mp4: ")


def test_names_and_links(tiny_checkpoint, clips, tmp_path, capsys):
    (tmp_path / "caf\udce9.mp4").symlink_to(clips / "silent.mp4")
    (tmp_path / "loop.mp4").symlink_to("loop.mp4")
    config = InspectConfig(checkpoint=str(tiny_checkpoint), json=True, clip=SMALL)
    assert main(config, [str(tmp_path)]) == 0
    name, loop = capsys.readouterr().out.encode().decode().splitlines()
    assert json.loads(name)["video"] == f"{tmp_path}/caf\udce9.mp4"
    assert json.loads(name)["notes"] == ["no sound in the file"]
    assert "a link that leads to no file" in json.loads(loop)["error"]


def test_job_survives_what_the_decoder_does_not(
    tiny_checkpoint, clips, tmp_path, monkeypatch, capsys
):
    actions = {"a.mp4": "os.kill(os.getpid(), signal.SIGSEGV)", "c.mp4": "1 / 0"}
    monkeypatch.syspath_prepend(hooked_workers(tmp_path / "hook", actions))
    config = InspectConfig(checkpoint=str(tiny_checkpoint), json=True, clip=SMALL)
    assert main(config, [str(clips)]) == 0
    rows = {
        Path(row["video"]).name: row
        for row in map(json.loads, capsys.readouterr().out.splitlines())
    }
    assert list(rows) == ["a.mp4", "b.mp4", "c.mp4", "broken.mp4", "silent.mp4"]
    assert [name for name, row in rows.items() if "error" in row] == [
        "a.mp4",
        "c.mp4",
        "broken.mp4",
    ]
    assert rows["a.mp4"]["error"].endswith("died (SIGSEGV); copy or encode it again")
    assert rows["c.mp4"]["error"].endswith("c.mp4: unexpected ZeroDivisionError: division by zero")
    assert rows["b.mp4"]["frames"] == 4
