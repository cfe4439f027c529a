"""Print what the model sees of each video; needs only the config and tokenizer of a checkpoint.

VIDEO is as for `caption`. kv_bytes is the memory of the clip's keys and values, for its bucket of
prompt tokens and max_new_tokens.
"""

import dataclasses
import functools
import json
import os
from concurrent.futures import ThreadPoolExecutor
from typing import Literal

from ugc_jax.data.batching import Buckets, bucket_of
from ugc_jax.data.example import load_example
from ugc_jax.data.prompt import ChatTokenizer
from ugc_jax.errors import UserError
from ugc_jax.generate.captioner import leave_room
from ugc_jax.hf.config import load_config
from ugc_jax.hf.hub import resolve_checkpoint
from ugc_jax.hf.tokenizer import load_chat_tokenizer
from ugc_jax.media.find import find_clips
from ugc_jax.media.presets import ClipSettings, resolve
from ugc_jax.models.qwen2_5_omni.config import OmniConfig
from ugc_jax.settings import part

ITEM_BYTES = {"float32": 4, "bfloat16": 2}


@dataclasses.dataclass(frozen=True, kw_only=True)
class InspectConfig(ClipSettings):
    """Settings of inspect."""

    checkpoint: str  # directory, or hub id such as Qwen/Qwen2.5-Omni-3B
    revision: str | None = None  # branch, tag or commit of a hub id
    json: bool = False  # one JSON object a clip instead of a table
    max_new_tokens: int = 512  # of the caption, in the model's positions and in kv_bytes
    dtype: Literal["float32", "bfloat16"] = "bfloat16"  # of the keys and values in kv_bytes


CONFIG = InspectConfig


def main(config: InspectConfig, videos: list[str]) -> int:
    """Exit status 0, or 1 when no clip can be read."""
    clip = resolve(part(ClipSettings, config))
    clips = find_clips(videos)
    directory = resolve_checkpoint(config.checkpoint, config.revision, weights=False)
    model = load_config(directory)
    inspect = functools.partial(
        clip_facts,
        settings=leave_room(clip, config.max_new_tokens, model),
        tokenizer=load_chat_tokenizer(directory, model.tokens),
        config=model,
        max_new_tokens=config.max_new_tokens,
        dtype=config.dtype,
    )
    readable = False
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for row in pool.map(inspect, clips):
            readable |= "error" not in row
            text = json.dumps(row, ensure_ascii=False) if config.json else clip_table(row, model)
            print(text, flush=True)
    return 0 if readable else 1


def clip_facts(
    video: str,
    settings: ClipSettings,
    tokenizer: ChatTokenizer,
    config: OmniConfig,
    max_new_tokens: int,
    dtype: str,
) -> dict:
    """Return the fields of `ClipInfo`, the bucket, and the bytes of the KV cache, for JSON.

    The cache holds the bucket's tokens and max_new_tokens, in `dtype`, "float32" or "bfloat16".
    Returns {"video", "error"} for a clip that cannot be read.
    """
    try:
        example, info = load_example(video, settings, tokenizer, config)
        bucket = bucket_of(example, Buckets(), config, f"{video}: prompt")
    except UserError as error:
        return {"video": video, "error": str(error)}
    facts = dataclasses.asdict(info)
    del facts["path"]
    text = config.text
    values = 2 * text.num_hidden_layers * text.num_key_value_heads * text.head_dim  # of a token
    kv_bytes = (bucket.tokens + max_new_tokens) * values * ITEM_BYTES[dtype]
    return {"video": video, **facts, "bucket": bucket._asdict(), "kv_bytes": kv_bytes}


def clip_table(row: dict, config: OmniConfig) -> str:
    """Describe the facts of one clip in a few lines."""
    if "error" in row:
        return f"{row['video']}\n  error    {row['error']}\n"
    lines = []
    if row["grid"]:
        (t, h, w), side = row["grid"], config.vision.patch_size
        rate = f" ({row['sample_fps']:.3f} a second)" if row["sample_fps"] else ""
        grid = f"grid {t} x {h} x {w} patches of {side} x {side} pixels"
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
