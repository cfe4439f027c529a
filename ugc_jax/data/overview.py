"""What the model would see of a clip, as facts and as a table for people (the `inspect` job)."""

import dataclasses

from ugc_jax.data.batching import Buckets, bucket_of
from ugc_jax.data.example import load_example
from ugc_jax.data.prompt import ChatTokenizer
from ugc_jax.errors import UserError
from ugc_jax.media.presets import ClipSettings
from ugc_jax.models.qwen2_5_omni.config import OmniConfig

ITEM_BYTES = {"float32": 4, "bfloat16": 2}


def facts(
    video: str,
    settings: ClipSettings,
    tokenizer: ChatTokenizer,
    config: OmniConfig,
    max_new_tokens: int,
    dtype: str,
) -> dict:
    """The clip as a JSON object: the fields of `ClipInfo`, its bucket, and bytes of its KV cache.

    The cache is that of the bucket's tokens and max_new_tokens, in `dtype`, "float32" or
    "bfloat16". A clip that cannot be read gives {"video", "error"}.
    """
    try:
        example, info = load_example(video, settings, tokenizer, config)
        bucket = bucket_of(example, Buckets(), config, f"{video}: prompt")
    except UserError as error:
        return {"video": video, "error": str(error)}
    seen = dataclasses.asdict(info)
    del seen["path"]
    kv_bytes = (bucket.tokens + max_new_tokens) * _kv_bytes_of_token(config, dtype)
    return {"video": video, **seen, "bucket": bucket._asdict(), "kv_bytes": kv_bytes}


def table(row: dict) -> str:
    """The facts of one clip for a person to read."""
    if "error" in row:
        return f"{row['video']}\n  error    {row['error']}\n"
    lines = []
    if row["grid"]:
        t, h, w = row["grid"]
        rate = f" ({row['sample_fps']:.3f} a second)" if row["sample_fps"] else ""
        grid = f"grid {t} x {h} x {w} patches of 14 x 14 pixels"
        lines.append(("picture", f"{row['frames']} frames{rate}, {grid}"))
    lines.append(("sound", f"{row['audio_seconds']:.2f} s" if row["has_audio"] else "none"))
    kinds = {name: row[f"{name}_tokens"] for name in ("video", "audio", "text")}
    parts = " + ".join(f"{count} {name}" for name, count in kinds.items() if count)
    sizes = ", ".join(f"{size} {name}" for name, size in row["bucket"].items() if size)
    lines += [
        ("prompt", f"{row['prompt_tokens']} tokens = {parts}"),
        ("bucket", sizes),
        ("memory", f"{row['kv_bytes'] / 2**20:.1f} MiB of keys and values"),
        *(("note", note) for note in row["notes"]),
    ]
    rows = (f"  {name:<9}{text}" for name, text in lines)
    return "\n".join([f"{row['video']} ({row['kind']})", *rows, ""])


def _kv_bytes_of_token(config: OmniConfig, dtype: str) -> int:
    text = config.text
    values = 2 * text.num_hidden_layers * text.num_key_value_heads * text.head_dim
    return values * ITEM_BYTES[dtype]
