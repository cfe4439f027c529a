"""Show what the model would see of each video; needs a checkpoint's config and tokenizer, not its weights.

VIDEO is as for `caption`. kv_bytes is the memory of the clip's keys and values, for its bucket of prompt tokens and
max_new_tokens.
"""

import dataclasses
import json
import os
from concurrent.futures import ThreadPoolExecutor
from typing import Literal

from ugc_jax.config import OmniConfig
from ugc_jax.data.batching import Buckets, bucket_of
from ugc_jax.data.clips import load_example
from ugc_jax.data.find import find_clips
from ugc_jax.data.presets import ClipSettings, resolve
from ugc_jax.data.prompt import ChatTokenizer
from ugc_jax.errors import UserError
from ugc_jax.hf.config import load_config
from ugc_jax.hf.hub import resolve_checkpoint
from ugc_jax.hf.tokenizer import load_tokenizer
from ugc_jax.settings import part


@dataclasses.dataclass(frozen=True, kw_only=True)
class InspectConfig(ClipSettings):
    """Settings of inspect."""

    checkpoint: str  # directory, or hub id such as Qwen/Qwen2.5-Omni-3B
    json: bool = False  # one JSON object a clip instead of a table
    max_new_tokens: int = 512  # room for the caption in kv_bytes
    dtype: Literal["float32", "bfloat16"] = "bfloat16"  # of the keys and values in kv_bytes


CONFIG = InspectConfig


def main(config: InspectConfig, videos: list[str]) -> int:
    """Exit status 0, or 1 when not one clip can be read."""
    clip = resolve(part(ClipSettings, config))
    directory = resolve_checkpoint(config.checkpoint)
    model = load_config(directory)
    tokenizer = ChatTokenizer(load_tokenizer(directory), model.tokens, str(directory))

    def facts(video: str) -> dict:
        try:
            example, info = load_example(video, clip, tokenizer, model)
            bucket = bucket_of(example, Buckets(), model)
        except UserError as error:
            return {"video": video, "error": str(error)}
        kv_bytes = (bucket.tokens + config.max_new_tokens) * _kv_bytes_of_token(model, config.dtype)
        seen = dataclasses.asdict(info)
        del seen["path"]
        return {"video": video, **seen, "bucket": bucket._asdict(), "kv_bytes": kv_bytes}

    worked = False
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for row in pool.map(facts, find_clips(videos)):
            worked |= "error" not in row
            print(json.dumps(row, ensure_ascii=False) if config.json else table(row), flush=True)
    return 0 if worked else 1


def table(row: dict) -> str:
    """The facts of one clip for a person to read."""
    if "error" in row:
        return f"{row['video']}\n  error    {row['error']}\n"
    lines = []
    if row["grid"]:
        t, h, w = row["grid"]
        rate = f" ({row['sample_fps']:.3f} a second)" if row["sample_fps"] else ""
        lines.append(
            (
                "picture",
                f"{row['frames']} frames{rate}, grid {t} x {h} x {w} patches of 14 x 14 pixels",
            )
        )
    lines.append(("sound", f"{row['audio_seconds']:.2f} s" if row["has_audio"] else "none"))
    kinds = {name: row[f"{name}_tokens"] for name in ("video", "audio", "text")}
    parts = " + ".join(f"{count} {name}" for name, count in kinds.items() if count)
    bucket = row["bucket"]
    lines += [
        ("prompt", f"{row['prompt_tokens']} tokens = {parts}"),
        ("bucket", ", ".join(f"{size} {name}" for name, size in bucket.items() if size)),
        ("memory", f"{row['kv_bytes'] / 2**20:.1f} MiB of keys and values"),
        *(("note", note) for note in row["notes"]),
    ]
    return "\n".join(
        [f"{row['video']} ({row['kind']})", *(f"  {name:<9}{text}" for name, text in lines), ""]
    )


def _kv_bytes_of_token(model: OmniConfig, dtype: str) -> int:
    text = model.text
    return (
        2
        * text.num_hidden_layers
        * text.num_key_value_heads
        * text.head_dim
        * {"float32": 4, "bfloat16": 2}[dtype]
    )
