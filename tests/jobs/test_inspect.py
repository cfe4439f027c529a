"""ugc_jax.jobs.inspect: the facts of a clip, and how a person sees them."""

from ugc_jax.jobs.inspect import clip_facts, clip_table
from ugc_jax.media.presets import ClipSettings, resolve
from ugc_jax.models.qwen2_5_omni.config import tiny

CLIP = resolve(ClipSettings(frames=4, min_pixels=784, max_pixels=12544, question="What is it?"))


def test_kv_bytes(tiny_captioner, clips):
    """Two layers of two key and value heads of 16, for the bucket's tokens and 8 more."""
    path, config = str(clips / "a.mp4"), tiny_captioner.config
    rows = [
        clip_facts(path, CLIP, tiny_captioner.tokenizer, config, 8, dtype)
        for dtype in ("float32", "bfloat16")
    ]
    tokens = rows[0]["bucket"]["tokens"] + 8
    assert [row["kv_bytes"] for row in rows] == [2 * 2 * 2 * 16 * tokens * size for size in (4, 2)]
    assert "path" not in rows[0]


def test_table():
    row = {
        "video": "a.mp4", "kind": "video", "grid": (2, 4, 6), "frames": 4, "sample_fps": 1.5,
        "has_audio": True, "audio_seconds": 2.0, "prompt_tokens": 80, "video_tokens": 12,
        "audio_tokens": 50, "text_tokens": 18, "notes": ("cut",), "kv_bytes": 3 << 20,
        "bucket": {"tokens": 128, "grids": 2, "windows": 1, "chunks": 1},
    }  # fmt: skip
    assert clip_table(row, tiny()).splitlines() == [
        "a.mp4 (video)",
        "  picture  4 frames (1.500 a second), grid 2 x 4 x 6 patches of 14 x 14 pixels",
        "  sound    2.00 s",
        "  prompt   80 tokens = 12 video + 50 audio + 18 text",
        "  bucket   128 tokens, 2 grids, 1 windows, 1 chunks",
        "  memory   3.0 MiB of keys and values",
        "  note     cut",
    ]


def test_unreadable_clip(tiny_captioner):
    row = clip_facts(
        "missing.mp4", CLIP, tiny_captioner.tokenizer, tiny_captioner.config, 8, "float32"
    )
    assert list(row) == ["video", "error"]
    assert clip_table(row, tiny()).splitlines()[1].startswith("  error    missing.mp4: ")
