"""A file (or a bare question) -> the prompt that the model sees, and what there is to tell about it.

load_example: path -> media.read_clip -> load_medium (patches, log-mel) -> build_example (template, layout) -> Example
"""

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ugc_jax.config import OmniConfig
from ugc_jax.data.features import HOP, SAMPLE_RATE, audio_tokens, log_mel, patchify
from ugc_jax.data.media import Clip, Plan, Source, plan_frames, probe, read_clip
from ugc_jax.data.positions import AUDIO, TEXT, VISION, layout
from ugc_jax.data.presets import ClipSettings, resolve
from ugc_jax.data.prompt import Audio, ChatTokenizer, Image, Medium, Video, pieces
from ugc_jax.data.schema import Example, VisionInput
from ugc_jax.errors import UserError

log = logging.getLogger(__name__)

REFERENCE_FPS = 2.0  # the rate that the reference assumes for every video (spec 7.3)


class Loaded(NamedTuple):
    """A medium ready for a prompt: its facts for the layout and its features.

    piece: its size. vision: patches, None for a sound. mel: f32[frames, 128] log-mel, None without sound.
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
    notes: tuple[str, ...]  # what was done to the clip that its user should know


def load_example(
    source: str | Path | None, settings: ClipSettings, tokenizer: ChatTokenizer, config: OmniConfig
) -> tuple[Example, ClipInfo]:
    """Read a video, image or sound file and ask `settings.question` about it; source None asks the question alone.

    The prompt is the system message, then the medium (a video interleaved with its sound), then the question. It has
    at most `settings.max_tokens` tokens, and never more than the model's max_position_embeddings: a clip that needs
    more gets fewer pixels, down to min_pixels, then fewer frames, which the log and `notes` tell. Media tokens are
    never cut. Raises UserError if the file cannot be read or does not fit however small.
    """
    settings = resolve(settings)
    budget = min(
        settings.max_tokens or config.text.max_position_embeddings,
        config.text.max_position_embeddings,
    )
    clip, media, notes = None, [], []
    if source is not None:
        text_tokens = len(build_example(_messages(settings, None), [], tokenizer, config).tokens)
        clip, notes = _read_within(source, settings, budget - text_tokens, config)
        media = [load_medium(clip, settings, config)]
        notes += _sound_notes(clip, media[0], settings)
    example = build_example(_messages(settings, clip), media, tokenizer, config)
    if len(example.tokens) > budget:
        raise UserError(
            f"question: the prompt has {len(example.tokens)} tokens, the budget is {budget}; shorten it"
        )
    return example, _info(example, clip, media, notes)


def build_example(
    messages: Sequence[dict],
    media: Sequence[Loaded],
    tokenizer: ChatTokenizer,
    config: OmniConfig,
    generation_prompt: bool = True,
) -> Example:
    """One prompt from messages and their media in order; `prompt.pieces` tells the form of messages and the errors."""
    out = layout(
        pieces(messages, [medium.piece for medium in media], tokenizer, generation_prompt), config
    )
    return Example(
        **out._asdict(),
        vision=tuple(medium.vision for medium in media if medium.vision is not None),
        mels=tuple(medium.mel for medium in media if medium.mel is not None),
    )


def load_medium(clip: Clip, settings: ClipSettings, config: OmniConfig) -> Loaded:
    """Features and layout facts of a clip. Raises UserError for a sound file without a sample."""
    vision = None if clip.frames is None else patchify(clip.frames, config.vision)
    mel = None if clip.waveform is None or not len(clip.waveform) else log_mel(clip.waveform)
    sound = None if mel is None else len(mel)
    if clip.kind == "image":
        return Loaded(Image(vision.grid), vision, None)
    if clip.kind == "video":
        fps = REFERENCE_FPS if settings.reference_fps else clip.sample_fps
        return Loaded(
            Video(vision.grid, config.vision.temporal_patch_size / fps, sound), vision, mel
        )
    if mel is None:
        raise UserError(f"{clip.path}: no sound to caption; check the file, start and end")
    return Loaded(Audio(sound), None, mel)


def _messages(settings: ClipSettings, clip: Clip | None) -> list[dict]:
    medium = [] if clip is None else [{"type": clip.kind}]
    return [
        {"role": "system", "content": settings.system},
        {"role": "user", "content": [*medium, {"type": "text", "text": settings.question}]},
    ]


# ---- the token budget ----------------------------------------------------------------------------


def _read_within(
    path: str | Path, settings: ClipSettings, allowance: int, config: OmniConfig
) -> tuple[Clip, list[str]]:
    """Read a clip of which picture, sound and markers take at most `allowance` tokens, and tell what was given up."""
    source = probe(path)
    sound = _expected_audio_tokens(source, settings)
    allowance -= 4 if source.kind == "video" else 2  # markers
    while True:
        fitted, notes = _fit(source, settings, allowance - sound, config)
        clip = read_clip(path, fitted)
        picture = 0 if clip.frames is None else _cells(*clip.frames.shape[:3], config)
        sound = 0 if clip.waveform is None else audio_tokens(-(-len(clip.waveform) // HOP))
        if picture + sound <= allowance:
            return clip, notes
        # The header told of less sound than there is: fit again, now with what was found.


def _expected_audio_tokens(source: Source, settings: ClipSettings) -> int:
    """Tokens of the sound by the file's header, rounded up."""
    if not (settings.audio and source.has_audio):
        return 0
    end = source.audio_seconds if settings.end is None else min(settings.end, source.audio_seconds)
    seconds = min(max(end - (settings.start or 0.0), 0.0), settings.max_audio_seconds)
    return audio_tokens(int(seconds * SAMPLE_RATE / HOP) + 10)


def _fit(
    source: Source, settings: ClipSettings, allowance: int, config: OmniConfig
) -> tuple[ClipSettings, list[str]]:
    """Settings by which the picture takes at most `allowance` tokens: fewer pixels first, then fewer frames."""
    if source.kind == "audio":
        if allowance < 0:
            raise UserError(
                f"{source.path}: sound needs {-allowance} tokens more than the budget has; raise max_tokens, or lower "
                "max_audio_seconds or end"
            )
        return settings, []
    prefix = "image_" if source.kind == "image" else ""
    wanted = plan_frames(source, settings)
    if _tokens(wanted, config) <= allowance:
        return settings, []
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
            f"{source.path}: picture needs {_tokens(plan, config)} tokens even with {len(plan.indices)} frames of "
            f"{plan.width}x{plan.height}, and {max(allowance, 0)} are left; raise max_tokens, lower "
            f"{prefix}min_pixels or max_audio_seconds, or choose start and end"
        )
    note = (
        f"picture of {_tokens(wanted, config)} tokens, {allowance} are left in the budget: {len(wanted.indices)} "
        f"frames of {wanted.width}x{wanted.height} became {len(plan.indices)} of {plan.width}x{plan.height}"
    )
    log.warning("%s: %s", source.path, note)
    return settings, [note]


def _tokens(plan: Plan, config: OmniConfig) -> int:
    return _cells(len(plan.indices), plan.height, plan.width, config)


def _cells(frames: int, height: int, width: int, config: OmniConfig) -> int:
    """Tokens of so many frames: merged cells of the frame pairs."""
    pairs = -(-frames // config.vision.temporal_patch_size)
    return pairs * height * width // config.vision.cell_pixels**2


# ---- the report ----------------------------------------------------------------------------------


def _sound_notes(clip: Clip, medium: Loaded, settings: ClipSettings) -> list[str]:
    """Why a clip is silent in the prompt, if it is."""
    if clip.kind == "image":
        return []
    if medium.mel is None and not clip.source.has_audio:
        return ["no sound in the file"]
    if medium.mel is None:
        return ["no sound between start and end" if settings.audio else "sound left out, as asked"]
    return [] if audio_tokens(len(medium.mel)) else ["the sound is too short to give a token"]


def _info(example: Example, clip: Clip | None, media: list[Loaded], notes: list[str]) -> ClipInfo:
    frames, sample_fps, seconds, grid = 0, 0.0, 0.0, None
    if clip is not None:
        frames, sample_fps = 0 if clip.frames is None else len(clip.frames), clip.sample_fps
        seconds = 0.0 if clip.waveform is None else len(clip.waveform) / SAMPLE_RATE
        grid = None if media[0].vision is None else media[0].vision.grid
    video, audio, text = (int((example.source == kind).sum()) for kind in (VISION, AUDIO, TEXT))
    return ClipInfo(
        path=None if clip is None else clip.path,
        kind="text" if clip is None else clip.kind,
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
