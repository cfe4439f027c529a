"""A file (or a question alone) -> the prompt that the model sees, and the facts about it.

load_example: path -> media.clip (probe, read_clip: frames and sound within the budget) ->
raw_medium (frames, log-mel) -> medium_input (patches) -> build_example (template, layout) ->
Example. records.py stores what `raw_medium` returns and continues with `medium_input`, so that a
record gives the same Example as its file.

Everything is numpy. Everything that depends on a clip (the window of a patch, the feature row and
the position of a token) is decided here on the host, so that the device only runs dense programs of
a few shapes.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ugc_jax.data.features import VisionInput, log_mel, mel_length, patchify
from ugc_jax.data.prompt import AUDIO, TEXT, VISION, ChatTokenizer, Medium, layout, pieces
from ugc_jax.data.workers import allow
from ugc_jax.errors import UserError
from ugc_jax.media.clip import (
    ClipPlan,
    DecodedClip,
    decode_clip,
    hear,
    plan_clip,
    probe,
    read_clip,
    tokens_beside_picture,
)
from ugc_jax.media.inputs import Input
from ugc_jax.media.presets import ClipSettings, resolve
from ugc_jax.media.timeline import Source
from ugc_jax.models.qwen2_5_omni.config import SAMPLE_RATE, OmniConfig, VisionConfig

_UNLIMITED = 1 << 40  # tokens, to ask what a medium needs
REFERENCE_FPS = 2.0  # the rate that the reference assumes for every video (spec 7.3)


class Example(NamedTuple):
    """One prompt (or one prompt with its answer), unpadded.

    tokens: i32[T].
    positions: i32[3, T], (time, height, width) rotary positions.
    next_position: of the first token generated after the prompt, on all three axes.
    source: i8[T], 0 for a text token, 1 for one that takes a row of the vision encoder's output,
      2 for one that takes a row of the audio encoder's.
    row: i32[T, 2], the place of that row: (temporal grid, cell of the grid in window order) for
      source 1, (chunk, token of the chunk) for source 2, 0 for text. Grids are numbered through all
      vision inputs, chunks through all sounds.
    vision: the images and videos in prompt order.
    mels: f32[frames, 128], the log-mel of each sound in prompt order.
    target: bool[T], the tokens to train on: an assistant's text and its end of turn. All False in a
      prompt without an answer.
    """

    tokens: np.ndarray
    positions: np.ndarray
    next_position: int
    source: np.ndarray
    row: np.ndarray
    vision: tuple[VisionInput, ...]
    mels: tuple[np.ndarray, ...]
    target: np.ndarray


class RawMedium(NamedTuple):
    """A medium before its frames are cut into patches, as records store it.

    kind: "video", "image" or "audio". frames: u8[n, h, w, 3], None for a sound.
    seconds_per_grid: duration of a temporal grid (two frames), 0 unless video.
    mel: f32[frames, 128], None without sound.
    """

    kind: str
    frames: np.ndarray | None
    seconds_per_grid: float
    mel: np.ndarray | None


class MediumInput(NamedTuple):
    """A medium ready for a prompt.

    piece: its size, for the layout. vision: patches, None for sound alone. mel: f32[frames, 128],
    None without sound.
    """

    piece: Medium
    vision: VisionInput | None
    mel: np.ndarray | None


@dataclasses.dataclass(frozen=True)
class ClipInfo:
    """What the model sees of a clip; the `inspect` job prints it."""

    path: str | None  # None for a question alone
    kind: str  # "video", "image", "audio" or "text"
    frames: int
    sample_fps: float  # frames taken per second of picture, 0.0 unless video
    instants: tuple[float, ...]  # seconds of the frames as start counts them; empty unless video
    grid: tuple[int, int, int] | None  # (temporal grids, rows, columns) of patches
    has_audio: bool  # sound is part of the prompt
    audio_seconds: float  # of sound in the prompt
    prompt_tokens: int  # = video_tokens + audio_tokens + text_tokens
    video_tokens: int  # of a video or an image
    audio_tokens: int
    text_tokens: int  # markers included
    notes: tuple[str, ...]  # what was reduced or is missing, for logs


def load_example(
    path: str | Path | None, settings: ClipSettings, tokenizer: ChatTokenizer, config: OmniConfig
) -> tuple[Example, ClipInfo]:
    """Build the prompt of `settings.question` about a video, image or sound file.

    The prompt is the system message, then the medium (a video interleaved with its sound; nothing
    without a path), then the question. It has at most `settings.max_tokens` tokens, and at most as
    many as the model has positions; a lower max_tokens leaves room for the answer. A clip that
    needs more gets fewer pixels, down to min_pixels, then fewer frames; `notes` say so. Media
    tokens are never cut.

    Raises UserError if the file cannot be read or does not fit at its smallest.
    """
    settings = resolve(settings)
    read = read_media(path, settings, text_tokens(settings, tokenizer), config)
    return complete_example(*read, settings, tokenizer, config)


def read_media(
    path: str | Path | None, settings: ClipSettings, text_tokens: int, config: OmniConfig
) -> tuple[list[MediumInput], ClipInfo]:
    """Read the media of a prompt, one or (without a path) none, and their facts.

    It is the part of `load_example` that needs no tokenizer, so that processes that read clips
    start fast. settings: resolved. text_tokens: of the text around the medium. The token counts of
    the facts are 0. Raises UserError as `load_example`.
    """
    allowance = _allowance(settings, text_tokens, config)
    if path is None:
        return [], _info(None, [])
    source = probe(path)
    allow(source.length)
    clip = read_clip(source, settings, allowance, config)
    media = [medium_input(raw_medium(clip, settings, config.vision), config.vision)]
    return media, _info(clip, media)


def read_media_once(
    item: tuple[Input, Sequence[int]], settings: ClipSettings, config: OmniConfig
) -> list[tuple[list[MediumInput], ClipInfo] | UserError]:
    """Do as `read_media` for several prompts about one clip; its sound and pictures are read once.

    item: the clip, and the tokens of text of each prompt. Where prompts leave room for different
    pictures, these are decoded for each; else the results share their arrays. The UserError of one
    prompt is its result. Raises UserError for a clip that cannot be read.
    """
    given, texts = item
    settings = given.own_settings(settings)
    with given.opened() as source:
        decoded, results = {}, []
        for plan in _plans(given, source, texts, settings, config):
            if isinstance(plan, UserError):
                results.append(plan)
                continue
            frames = plan.frames and (plan.frames.indices.tobytes(), *plan.frames[1:])
            if frames not in decoded:
                clip = decode_clip(source, settings, plan)
                medium = medium_input(raw_medium(clip, settings, config.vision), config.vision)
                decoded[frames] = clip, clip.notes[len(plan.notes) :], [medium]
            clip, notes, media = decoded[frames]
            results.append((media, _info(clip._replace(notes=[*plan.notes, *notes]), media)))
    return results


class MediaRequest(NamedTuple):
    """The media of a prompt of several. paths: of the files, in the order of the prompt.

    settings: resolved. text_tokens: of the text around the media. picture: false for the sound of
    videos alone.
    """

    paths: Sequence[str]
    settings: ClipSettings
    text_tokens: int
    picture: bool = True


def read_several(
    request: MediaRequest, config: OmniConfig
) -> Iterator[tuple[RawMedium, MediumInput, ClipInfo]]:
    """Read the media of a prompt, any number of them, as `read_media` reads one.

    Sounds take their tokens first. If the pictures do not fit into the rest, it is divided: what
    needs less than an equal part gets what it needs. Raises UserError as `read_media`.
    """
    settings = request.settings
    allowance = _allowance(settings, request.text_tokens, config)
    sources = [probe(path) for path in request.paths]
    allow(sum(source.length for source in sources))
    if not request.picture:
        heard = lambda one: one._replace(kind="audio") if one.kind == "video" else one  # noqa: E731
        sources = [heard(source) for source in sources]
    sounds, fixed, pictures = [], [], []
    for source in sources:
        sounds.append(sound := hear(source, settings))
        plan = plan_clip(source, settings, _UNLIMITED, config, sound)
        fixed.append(tokens_beside_picture(source, sound, config))
        pictures.append(0 if plan.frames is None else plan.frames.tokens(config.vision))
    parts = shares(pictures, allowance - sum(fixed))
    for source, sound, own, part in zip(sources, sounds, fixed, parts, strict=True):
        plan = plan_clip(source, settings, own + part, config, sound)
        clip = decode_clip(source, settings, plan)
        raw = raw_medium(clip, settings, config.vision)
        medium = medium_input(raw, config.vision)
        yield raw, medium, _info(clip, [medium])


def shares(needs: Sequence[int], budget: int) -> list[int]:
    """Divide a budget: what needs less than an equal part gets what it needs, the rest the rest."""
    parts, left = [0] * len(needs), max(budget, 0)
    for rank, place in enumerate(sorted(range(len(needs)), key=needs.__getitem__)):
        parts[place] = min(needs[place], left // (len(needs) - rank))
        left -= parts[place]
    return parts


def measure_medium(
    item: tuple[Input, Sequence[int]], settings: ClipSettings, config: OmniConfig
) -> list[Medium | UserError]:
    """Return the sizes of a clip's medium as `read_media_once` reads it; no picture is decoded.

    Arguments and errors: as there.
    """
    given, texts = item
    settings = given.own_settings(settings)
    with given.opened() as source:
        sizes = []
        for plan in _plans(given, source, texts, settings, config):
            if isinstance(plan, UserError):
                sizes.append(plan)
                continue
            frames, size, seconds_per_grid = plan.frames, (0, 0, 0), 0.0
            if frames is not None:
                size = len(frames.indices), frames.height, frames.width
                rate = frames.sample_fps
                seconds_per_grid = _seconds_per_grid(source.kind, rate, settings, config.vision)
            mel_frames = None if plan.waveform is None else mel_length(len(plan.waveform))
            sizes.append(
                medium_size(source.kind, size, seconds_per_grid, mel_frames, config.vision)
            )
    return sizes


def _plans(
    given: Input, source: Source, texts: Sequence[int], settings: ClipSettings, config: OmniConfig
) -> Iterator[ClipPlan | UserError]:
    """Yield what to read of a clip for each of its prompts, or why nothing; its sound is read once.

    texts: tokens of text of each prompt.
    """
    allow(source.length)
    sound = hear(source, settings)
    for text_tokens in texts:
        try:
            allowance = _allowance(settings, text_tokens, config)
            plan = plan_clip(source, settings, allowance, config, sound)
        except UserError as error:
            plan = given.renamed(error)
        yield plan


def _allowance(settings: ClipSettings, text_tokens: int, config: OmniConfig) -> int:
    """Return the most tokens of a medium beside so many of text. UserError if there are none."""
    limit = config.text.max_position_embeddings
    budget = min(settings.max_tokens or limit, limit)
    if text_tokens > budget:
        raise UserError(
            f"question: with the system prompt it has {text_tokens} tokens, the budget is "
            f"{budget}; shorten it or raise max_tokens"
        )
    return min(budget - text_tokens, settings.media_tokens or budget)


def complete_example(
    media: list[MediumInput],
    info: ClipInfo,
    settings: ClipSettings,
    tokenizer: ChatTokenizer,
    config: OmniConfig,
    messages: Sequence[dict] | None = None,
) -> tuple[Example, ClipInfo]:
    """Return what `load_example` does, from what `read_media` returned.

    messages: with one medium, of any kind, instead of the question of the settings.
    """
    if messages is not None:
        messages = about_kind(messages, info.kind)
    else:
        messages = clip_messages(settings, None if info.path is None else info.kind)
    example = build_example(messages, media, tokenizer, config)
    video, audio, text = (int((example.source == kind).sum()) for kind in (VISION, AUDIO, TEXT))
    counts = dict(video_tokens=video, audio_tokens=audio, text_tokens=text)
    return example, dataclasses.replace(info, prompt_tokens=len(example.tokens), **counts)


def build_example(
    messages: Sequence[dict],
    media: Sequence[MediumInput],
    tokenizer: ChatTokenizer,
    config: OmniConfig,
    generation_prompt: bool = True,
) -> Example:
    """Build the Example of messages and their media in order.

    messages, generation_prompt and errors: as of `prompt.pieces`.
    """
    facts = [medium.piece for medium in media]
    out = layout(pieces(messages, facts, tokenizer, generation_prompt), config)
    return Example(
        **out._asdict(),
        vision=tuple(medium.vision for medium in media if medium.vision is not None),
        mels=tuple(medium.mel for medium in media if medium.mel is not None),
    )


def raw_medium(clip: DecodedClip, settings: ClipSettings, config: VisionConfig) -> RawMedium:
    """Return the frames and the log-mel of a clip."""
    kind = clip.source.kind
    seconds_per_grid = _seconds_per_grid(kind, clip.sample_fps, settings, config)
    mel = None if clip.waveform is None else log_mel(clip.waveform)
    return RawMedium(kind, clip.frames, seconds_per_grid, mel)


def _seconds_per_grid(
    kind: str, sample_fps: float, settings: ClipSettings, config: VisionConfig
) -> float:
    if kind != "video":
        return 0.0
    return config.temporal_patch_size / (REFERENCE_FPS if settings.reference_fps else sample_fps)


def medium_input(raw: RawMedium, config: VisionConfig) -> MediumInput:
    """Cut a medium's frames into patches."""
    frames, mel = raw.frames, raw.mel
    size = (0, 0, 0) if frames is None else frames.shape[:3]
    mel_frames = None if mel is None else len(mel)
    piece = medium_size(raw.kind, size, raw.seconds_per_grid, mel_frames, config)
    return MediumInput(piece, None if frames is None else patchify(frames, config), mel)


def medium_size(
    kind: str,
    size: tuple[int, int, int],
    seconds_per_grid: float,
    mel_frames: int | None,
    config: VisionConfig,
) -> Medium:
    """Return a medium's size in a prompt. size: (frames, height, width) of its pixels."""
    frames, height, width = size
    side = config.patch_size
    grid = -(-frames // config.temporal_patch_size), height // side, width // side
    return Medium(kind, grid, seconds_per_grid, mel_frames)


def clip_messages(settings: ClipSettings, kind: str | None) -> list[dict]:
    """Return the messages of a question about a medium of a kind, or (None) alone."""
    medium = [] if kind is None else [{"type": kind}]
    return [
        {"role": "system", "content": settings.system},
        {"role": "user", "content": [*medium, {"type": "text", "text": settings.question}]},
    ]


def about_kind(messages: Sequence[dict], kind: str) -> list[dict]:
    """Return messages whose media are of a kind, in their places."""
    return [
        message
        if isinstance(message["content"], str)
        else message
        | {
            "content": [
                part if part.get("type") == "text" else {"type": kind}
                for part in message["content"]
            ]
        }
        for message in messages
    ]


def text_tokens(settings: ClipSettings, tokenizer: ChatTokenizer) -> int:
    """Return the number of tokens of the text around a medium, which is tokenized in two parts."""
    messages = clip_messages(dataclasses.replace(settings, question=""), None)
    (around,) = pieces(messages, [], tokenizer)
    return len(around.ids) + len(tokenizer.encode(settings.question))


def _info(clip: DecodedClip | None, media: list[MediumInput]) -> ClipInfo:
    """Return the facts of a clip, without its tokens."""
    frames, sample_fps, seconds, grid = 0, 0.0, 0.0, None
    if clip is not None:
        frames = 0 if clip.frames is None else len(clip.frames)
        sample_fps = clip.sample_fps
        seconds = 0.0 if clip.waveform is None else len(clip.waveform) / SAMPLE_RATE
        grid = None if media[0].vision is None else media[0].vision.grid
    return ClipInfo(
        path=None if clip is None else clip.source.path,
        kind="text" if clip is None else clip.source.kind,
        frames=frames,
        sample_fps=sample_fps,
        instants=()
        if clip is None
        else tuple(round(time - clip.source.origin, 3) for time in clip.times.tolist()),
        grid=grid,
        has_audio=any(medium.mel is not None for medium in media),
        audio_seconds=seconds,
        prompt_tokens=0,
        video_tokens=0,
        audio_tokens=0,
        text_tokens=0,
        notes=() if clip is None else tuple(clip.notes),
    )
