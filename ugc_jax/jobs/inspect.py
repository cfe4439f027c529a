"""Show what the model would see of each video; needs a checkpoint's config and tokenizer only.

VIDEO is as for `caption`. kv_bytes is the memory of the clip's keys and values, for its bucket of
prompt tokens and max_new_tokens.
"""

import dataclasses
import functools
import json
import os
from concurrent.futures import ThreadPoolExecutor
from typing import Literal

from ugc_jax.data.overview import facts, table
from ugc_jax.generate.captioner import leave_room
from ugc_jax.hf.config import load_config
from ugc_jax.hf.hub import resolve_checkpoint
from ugc_jax.hf.tokenizer import load_chat_tokenizer
from ugc_jax.media.find import find_clips
from ugc_jax.media.presets import ClipSettings, resolve
from ugc_jax.settings import part


@dataclasses.dataclass(frozen=True, kw_only=True)
class InspectConfig(ClipSettings):
    """Settings of inspect."""

    checkpoint: str  # directory, or hub id such as Qwen/Qwen2.5-Omni-3B
    revision: str | None = None  # branch, tag or commit of a hub id
    json: bool = False  # one JSON object a clip instead of a table
    max_new_tokens: int = 512  # room for the caption, in the model's positions and in kv_bytes
    dtype: Literal["float32", "bfloat16"] = "bfloat16"  # of the keys and values in kv_bytes


CONFIG = InspectConfig


def main(config: InspectConfig, videos: list[str]) -> int:
    """Exit status 0, or 1 when not one clip can be read."""
    clip = resolve(part(ClipSettings, config))
    clips = find_clips(videos)
    directory = resolve_checkpoint(config.checkpoint, config.revision, weights=False)
    model = load_config(directory)
    look = functools.partial(
        facts,
        settings=leave_room(clip, config.max_new_tokens, model),
        tokenizer=load_chat_tokenizer(directory, model.tokens),
        config=model,
        max_new_tokens=config.max_new_tokens,
        dtype=config.dtype,
    )
    worked = False
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for row in pool.map(look, clips):
            worked |= "error" not in row
            print(json.dumps(row, ensure_ascii=False) if config.json else table(row), flush=True)
    return 0 if worked else 1
