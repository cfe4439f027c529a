"""Print what the model sees of each video; needs only the config and tokenizer of a checkpoint.

VIDEO, clip and sampling are as for `caption`, whose settings this prints first. kv_bytes is the
memory of the clip's keys and values, for its bucket of prompt tokens and max_new_tokens. A prompt
of more than 8000 tokens has a note that says what to lower.
"""

import contextlib
import dataclasses
import textwrap
from typing import Literal

from ugc_jax import files
from ugc_jax.data.batching import Buckets
from ugc_jax.data.example import ClipInfo
from ugc_jax.data.reading import Prompt, read_prompts
from ugc_jax.data.workers import ReadingConfig
from ugc_jax.errors import UserError
from ugc_jax.generate.defaults import PUBLISHED, Defaults
from ugc_jax.generate.settings import MOVED, SamplingConfig, leave_room
from ugc_jax.hf.config import load_config
from ugc_jax.hf.hub import resolve_checkpoint
from ugc_jax.hf.tokenizer import load_chat_tokenizer
from ugc_jax.media.find import find_clips
from ugc_jax.media.presets import ClipSettings
from ugc_jax.models.qwen2_5_omni.config import OmniConfig
from ugc_jax.settings import Schema, help_width, short_names

ITEM_BYTES = {"float32": 4, "bfloat16": 2}
MANY_TOKENS = 8000  # of a prompt
MANY_TIMES = 12  # in a line of the table


@dataclasses.dataclass(frozen=True, kw_only=True)
class InspectConfig(ReadingConfig):
    """Settings of inspect."""

    checkpoint: str = PUBLISHED  # directory, or hub id such as Qwen/Qwen2.5-Omni-3B
    revision: str | None = None  # branch, tag or commit of a hub id
    json: bool = False  # one JSON object a clip instead of a table
    dtype: Literal["float32", "bfloat16"] = "bfloat16"  # of the keys and values in kv_bytes
    clip: ClipSettings = ClipSettings()
    sampling: SamplingConfig = SamplingConfig()


SHORT = short_names(clip=ClipSettings, sampling=SamplingConfig)
del SHORT["max_tokens"]
SETTINGS = Schema(InspectConfig, short=SHORT, moved=MOVED)


def main(config: InspectConfig, videos: list[str]) -> int:
    """Exit status 0, or 1 when no clip can be read."""
    clips = find_clips(videos)
    directory = resolve_checkpoint(config.checkpoint, config.revision, weights=False)
    model, defaults = load_config(directory), Defaults.of(config.checkpoint, directory)
    clip, sampling = defaults.apply(config.clip, config.sampling)
    defaults.report(config.clip, config.sampling)
    if not config.json:
        print(settings_table(clip, sampling))
    clip = leave_room(clip, sampling.max_new_tokens, model)
    tokenizer, readable = load_chat_tokenizer(directory, model.tokens), False
    prompts = read_prompts(clips, clip, tokenizer, model, Buckets(), config)
    with contextlib.closing(prompts):
        for video, prompt in prompts:
            row = clip_facts(video, prompt, clip, model, sampling.max_new_tokens, config.dtype)
            readable |= "error" not in row
            text = files.to_json(row) if config.json else clip_table(row, model)
            print(text, flush=True)
    return 0 if readable else 1


def clip_facts(
    video: str,
    prompt: Prompt | UserError,
    settings: ClipSettings,
    config: OmniConfig,
    max_new_tokens: int,
    dtype: str,
) -> dict:
    """Return the fields of `ClipInfo`, the bucket, and the bytes of the KV cache, for JSON.

    The cache holds the bucket's tokens and max_new_tokens, in `dtype`, "float32" or "bfloat16".
    Returns {"video", "error"} for a clip that cannot be read.
    """
    if isinstance(prompt, UserError):
        return {"video": video, "error": str(prompt)}
    info, bucket = prompt.info, prompt.bucket
    facts = dataclasses.asdict(info)
    if info.prompt_tokens > MANY_TOKENS:
        facts["notes"] = [*info.notes, _to_lower(info, settings)]
    del facts["path"]
    text = config.text
    values = 2 * text.num_hidden_layers * text.num_key_value_heads * text.head_dim  # of a token
    kv_bytes = (bucket.tokens + max_new_tokens) * values * ITEM_BYTES[dtype]
    return {"video": video, **facts, "bucket": bucket._asdict(), "kv_bytes": kv_bytes}


def _to_lower(info: ClipInfo, settings: ClipSettings) -> str:
    """The note of a long prompt: which setting to lower."""
    video, audio, text = info.video_tokens, info.audio_tokens, info.text_tokens
    count = "fps" if settings.frames is None else "frames"
    number = f"{count} ({getattr(settings, count):g})"
    if text > max(video, audio):
        remedy = "the length of question or system"
    elif audio > video:
        remedy = f"max_audio_seconds ({settings.max_audio_seconds:g}), or start and end"
    elif info.kind == "image":
        remedy = f"image_max_pixels ({settings.image_max_pixels})"
    elif settings.preset == "upstream":  # its own resize leaves few pixels
        remedy = number
    else:
        remedy = f"max_pixels ({settings.max_pixels}) or {number}"
    return f"{info.prompt_tokens} tokens are many (over {MANY_TOKENS}): lower {remedy}"


def settings_table(clip: ClipSettings, sampling: SamplingConfig) -> str:
    """Describe the settings in use: those of the clip that are set, and the sampling."""
    lines = [
        f"{name}={textwrap.shorten(str(value), 60, placeholder=' ...')}"
        for name, value in vars(clip).items()
        if value is not None
    ]
    rows = textwrap.wrap(", ".join(lines), help_width() - 11)
    own = ", ".join(f"{name}={value}" for name, value in vars(sampling).items())
    return "\n".join(
        ["settings", f"  {'clip':<9}{rows[0]}", *(" " * 11 + row for row in rows[1:]),
         f"  {'sampling':<9}{own}", ""]
    )  # fmt: skip


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
    if row["instants"]:
        times = [f"{time:.2f}" for time in row["instants"]]
        shown = times if len(times) <= MANY_TIMES else [*times[: MANY_TIMES - 2], "...", times[-1]]
        lines.append(("times", f"{' '.join(shown)} s"))
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
