"""A file (or a bare question) -> the prompt that the model sees, and what to tell about it.

load_example: path -> read_within (probe, read, fit the budget) -> take (frames, log-mel) ->
prepare (patches) -> build_example (template, layout) -> Example
records.py keeps what `take` gives and goes on from there: a record and its file cannot disagree.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ugc_jax.data.features import HOP, SAMPLE_RATE, audio_tokens, log_mel, patchify
from ugc_jax.data.positions import AUDIO, TEXT, VISION, layout
from ugc_jax.data.prompt import Audio, ChatTokenizer, Image, Medium, Video, pieces
from ugc_jax.data.schema import Example, VisionInput
from ugc_jax.errors import UserError
from ugc_jax.media.clip import Clip, probe, read_clip
from ugc_jax.media.framing import Plan, Source, plan_frames
from ugc_jax.media.presets import ClipSettings, resolve
from ugc_jax.models.qwen2_5_omni.config import OmniConfig, VisionConfig

REFERENCE_FPS = 2.0  # the rate that the reference assumes for every video (spec 7.3)


class Taken(NamedTuple):
    """What a medium gives to a prompt, before it is cut into patches; records hold this.

    kind: "video", "image" or "audio". frames: u8[n, h, w, 3], None for a sound.
    seconds_per_grid: duration of a temporal grid (two frames), 0 unless video.
    mel: f32[frames, 128], None without sound.
    """

    kind: str
    frames: np.ndarray | None
    seconds_per_grid: float
    mel: np.ndarray | None


class Loaded(NamedTuple):
    """A medium ready for a prompt: its facts for the layout and its features.

    piece: its size. vision: patches, None for a sound. mel: f32[frames, 128], None without sound.
    """

    piece: Medium
    vision: VisionInput | None
    mel: np.ndarray | None


@dataclasses.dataclass(frozen=True)
class ClipInfo:
    """What the model sees of a clip; the `inspect` job prints it."""

    path: str | None  # None for a bare question
    kind: str  # "video", "image", "audio" or "text"
    frames: int
    sample_fps: float  # frames taken per second of picture, 0.0 unless video
    grid: tuple[int, int, int] | None  # (temporal grids, rows, columns) of patches
    has_audio: bool  # sound is part of the prompt
    audio_seconds: float  # of sound in the prompt
    prompt_tokens: int  # = video_tokens + audio_tokens + text_tokens
    video_tokens: int  # of a video or an image
    audio_tokens: int
    text_tokens: int  # markers included
    notes: tuple[str, ...]  # what was done to the clip that its user should know; for logs


def load_example(
    path: str | Path | None, settings: ClipSettings, tokenizer: ChatTokenizer, config: OmniConfig
) -> tuple[Example, ClipInfo]:
    """Ask `settings.question` about a video, image or sound file; without a path, ask it alone.

    The prompt is the system message, then the medium (a video interleaved with its sound), then the
    question. It has at most `settings.max_tokens` tokens, and never more than the model has
    positions; lower max_tokens to leave room for the answer. A clip that needs more gets fewer
    pixels, down to min_pixels, then fewer frames, and `notes` tell it. Media tokens are never cut.

    Raises UserError if the file cannot be read or does not fit however small.
    """
    settings = resolve(settings)
    limit = config.text.max_position_embeddings
    budget = min(settings.max_tokens or limit, limit)
    text_tokens = _text_tokens(settings, tokenizer)
    if text_tokens > budget:
        raise UserError(
            f"question: with the system prompt it has {text_tokens} tokens, the budget is "
            f"{budget}; shorten it or raise max_tokens"
        )
    clip, media, notes = None, [], []
    if path is not None:
        clip, notes = read_within(probe(path), settings, budget - text_tokens, config)
        media = [load_medium(clip, settings, config)]
        notes = [*notes, *sound_notes(clip, media[0].mel, settings)]
    messages = _messages(settings, None if clip is None else clip.source.kind)
    example = build_example(messages, media, tokenizer, config)
    return example, _info(example, clip, media, notes)


def build_example(
    messages: Sequence[dict],
    media: Sequence[Loaded],
    tokenizer: ChatTokenizer,
    config: OmniConfig,
    generation_prompt: bool = True,
) -> Example:
    """One prompt from messages and their media in order.

    `prompt.pieces` tells the form of messages and what it raises.
    """
    facts = [medium.piece for medium in media]
    out = layout(pieces(messages, facts, tokenizer, generation_prompt), config)
    return Example(
        **out._asdict(),
        vision=tuple(medium.vision for medium in media if medium.vision is not None),
        mels=tuple(medium.mel for medium in media if medium.mel is not None),
    )


def load_medium(clip: Clip, settings: ClipSettings, config: OmniConfig) -> Loaded:
    """Features and layout facts of a clip. Raises UserError for a sound file without a sample."""
    return prepare(take(clip, settings, config), config.vision)


def take(clip: Clip, settings: ClipSettings, config: OmniConfig) -> Taken:
    """Frames and log-mel of a clip. Raises UserError for a sound file without a sample."""
    kind, waveform = clip.source.kind, clip.waveform
    mel = None if waveform is None or not len(waveform) else log_mel(waveform)
    if kind == "audio" and mel is None:
        raise UserError(f"{clip.source.path}: no sound to caption; check the file, start and end")
    seconds_per_grid = 0.0
    if kind == "video":
        fps = REFERENCE_FPS if settings.reference_fps else clip.sample_fps
        seconds_per_grid = config.vision.temporal_patch_size / fps
    return Taken(kind, clip.frames, seconds_per_grid, None if kind == "image" else mel)


def prepare(taken: Taken, config: VisionConfig) -> Loaded:
    """Cut a medium's frames into patches, and tell its size."""
    frames, mel = taken.frames, taken.mel
    size = (0, 0, 0) if frames is None else frames.shape[:3]
    mel_frames = None if mel is None else len(mel)
    piece = size_of(taken.kind, size, taken.seconds_per_grid, mel_frames, config)
    return Loaded(piece, None if frames is None else patchify(frames, config), mel)


def size_of(
    kind: str,
    size: tuple[int, int, int],
    seconds_per_grid: float,
    mel_frames: int | None,
    config: VisionConfig,
) -> Medium:
    """A medium's facts for the layout, without its pixels. size: (frames, height, width)."""
    frames, height, width = size
    side = config.patch_size
    grid = -(-frames // config.temporal_patch_size), height // side, width // side
    if kind == "image":
        return Image(grid)
    return Video(grid, seconds_per_grid, mel_frames) if kind == "video" else Audio(mel_frames)


def _messages(settings: ClipSettings, kind: str | None) -> list[dict]:
    medium = [] if kind is None else [{"type": kind}]
    return [
        {"role": "system", "content": settings.system},
        {"role": "user", "content": [*medium, {"type": "text", "text": settings.question}]},
    ]


# ---- the token budget ----------------------------------------------------------------------------


def _text_tokens(settings: ClipSettings, tokenizer: ChatTokenizer) -> int:
    """Tokens of the text around a medium, which is tokenized in two parts."""
    (around,) = pieces(_messages(dataclasses.replace(settings, question=""), None), [], tokenizer)
    return len(around.ids) + len(tokenizer.encode(settings.question))


def read_within(
    source: Source, settings: ClipSettings, allowance: int, config: OmniConfig
) -> tuple[Clip, list[str]]:
    """Read a clip so that picture, sound and markers take at most `allowance` tokens.

    settings: resolved. Returns the clip and notes of what was given up. Raises UserError if the
    file cannot be read or does not fit however small.
    """
    allowance -= 4 if source.kind == "video" else 2  # markers
    if source.kind == "audio":
        clip = read_clip(source, settings)
        excess = _sound_tokens(clip) - allowance
        if excess > 0:
            raise UserError(
                f"{source.path}: sound needs {excess} tokens more than the budget has; raise "
                "max_tokens, or lower max_audio_seconds or end"
            )
        return clip, []
    seconds = min(_sound_seconds(source, settings), settings.max_audio_seconds)
    sound = audio_tokens(int(seconds * SAMPLE_RATE / HOP) + 10) if seconds else 0  # rounded up
    while True:
        fitted, notes = _fit(source, settings, allowance - sound, config)
        clip = read_clip(source, fitted)
        sound = _sound_tokens(clip)
        if _cells(*clip.frames.shape[:3], config) + sound <= allowance:
            return clip, notes
        # The packets told of less sound than there is: fit again, now with what was found.


def _sound_tokens(clip: Clip) -> int:
    return 0 if clip.waveform is None else audio_tokens(-(-len(clip.waveform) // HOP))


def _sound_seconds(source: Source, settings: ClipSettings) -> float:
    """Seconds of sound that are asked for and there, by the times of the file's packets."""
    if not (settings.audio and source.has_audio):
        return 0.0
    end = source.audio_seconds if settings.end is None else min(settings.end, source.audio_seconds)
    return max(end - (settings.start or 0.0), 0.0)


def _fit(
    source: Source, settings: ClipSettings, allowance: int, config: OmniConfig
) -> tuple[ClipSettings, list[str]]:
    """Settings with which the picture takes at most `allowance` tokens, and notes of the changes.

    Pixels are given up first, then frames. Raises UserError if that is not enough.
    """
    wanted = plan_frames(source, settings)
    notes = []
    if source.kind == "video" and len(wanted.indices) + 1 < (settings.frames or 0):
        notes.append(f"{settings.frames} frames are asked for, {len(wanted.indices)} are there")
    if _tokens(wanted, config) <= allowance:
        return settings, notes
    prefix = "image_" if source.kind == "image" else ""
    pairs = -(-len(wanted.indices) // config.vision.temporal_patch_size)
    pixels = allowance // pairs * config.vision.cell_pixels**2
    least = getattr(settings, f"{prefix}min_pixels")
    settings = dataclasses.replace(settings, **{f"{prefix}max_pixels": max(pixels, least)})
    plan = plan_frames(source, settings)
    if _tokens(plan, config) > allowance and source.kind == "video":
        per_grid = plan.height * plan.width // config.vision.cell_pixels**2
        frames = max(allowance // per_grid, 1) * config.vision.temporal_patch_size
        settings = dataclasses.replace(settings, fps=None, frames=frames)
        plan = plan_frames(source, settings)
    if _tokens(plan, config) > allowance:
        raise UserError(
            f"{source.path}: picture needs {_tokens(plan, config)} tokens even as {_size(plan)}, "
            f"and {max(allowance, 0)} are left; raise max_tokens, lower {prefix}min_pixels or "
            "max_audio_seconds, or choose start and end"
        )
    need = f"picture needs {_tokens(wanted, config)} tokens, the budget has {allowance} left"
    return settings, [*notes, f"{need}: {_size(wanted)} became {_size(plan)}"]


def _tokens(plan: Plan, config: OmniConfig) -> int:
    return _cells(len(plan.indices), plan.height, plan.width, config)


def _cells(frames: int, height: int, width: int, config: OmniConfig) -> int:
    """Tokens of so many frames: merged cells of the frame pairs."""
    pairs = -(-frames // config.vision.temporal_patch_size)
    return pairs * height * width // config.vision.cell_pixels**2


def _size(plan: Plan) -> str:
    count = len(plan.indices)
    return f"{f'{count} frames of ' if count > 1 else ''}{plan.width}x{plan.height}"


# ---- the report ----------------------------------------------------------------------------------


def sound_notes(clip: Clip, mel: np.ndarray | None, settings: ClipSettings) -> list[str]:
    """What became of a clip's sound, where it is not simply in the prompt."""
    if clip.source.kind == "image":
        return []
    if not clip.source.has_audio:
        return ["no sound in the file"]
    if mel is None:
        return ["no sound between start and end" if settings.audio else "sound left out, as asked"]
    if not audio_tokens(len(mel)):
        return ["the sound is too short to give a token"]
    seconds, limit = _sound_seconds(clip.source, settings), settings.max_audio_seconds
    if seconds > limit + 0.1:  # a codec's padding is no loss
        cut = f"sound of {seconds:.1f} s is cut at {limit:g} s"
        return [f"{cut}; raise max_audio_seconds to keep more"]
    return []


def _info(example: Example, clip: Clip | None, media: list[Loaded], notes: list[str]) -> ClipInfo:
    frames, sample_fps, seconds, grid = 0, 0.0, 0.0, None
    if clip is not None:
        frames = 0 if clip.frames is None else len(clip.frames)
        sample_fps = clip.sample_fps
        seconds = 0.0 if clip.waveform is None else len(clip.waveform) / SAMPLE_RATE
        grid = None if media[0].vision is None else media[0].vision.grid
    video, audio, text = (int((example.source == kind).sum()) for kind in (VISION, AUDIO, TEXT))
    return ClipInfo(
        path=None if clip is None else clip.source.path,
        kind="text" if clip is None else clip.source.kind,
        frames=frames,
        sample_fps=sample_fps,
        grid=grid,
        has_audio=any(medium.mel is not None for medium in media),
        audio_seconds=seconds,
        prompt_tokens=len(example.tokens),
        video_tokens=video,
        audio_tokens=audio,
        text_tokens=text,
        notes=tuple(notes),
    )
