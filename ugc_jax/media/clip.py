"""A media file -> frames and 16 kHz sound that fit a budget of tokens.

    probe: the file's facts -> plan_clip: sound, fit_frames -> decode_clip: pictures

The sound is read first, so that its tokens are counted, not estimated; the picture gets the rest of
the budget. Which frames are taken and at what size (spec 4.1, 4.2) follows from the file's facts
alone. So a file is probed once, fitted once and read once.
"""

import dataclasses
import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from ugc_jax.errors import UnreadableFile, UserError, environment_failure
from ugc_jax.media import still
from ugc_jax.media.memory import Clip
from ugc_jax.media.picture import Prepare, read_frames
from ugc_jax.media.presets import ClipSettings
from ugc_jax.media.sound import Sound, read_sound
from ugc_jax.media.timeline import Index, Source, scan, shown
from ugc_jax.models.qwen2_5_omni.config import HOP, OmniConfig, VisionConfig

MAX_ASPECT_RATIO = 200
NOISE = 1e-8  # frames by which rounding may put a second after the frame that begins with it
# The published captioner shrinks frames to this area before the model's own resize.
UPSTREAM_PIXELS = 100_176


class DecodedClip(NamedTuple):
    """Frames and sound of a file.

    frames: u8[n, h, w, 3] RGB (BGR with settings.bgr), resized; n = 1 for an image; None for sound.
    times: f64[n], seconds of each frame on the file's clock; empty unless video.
    sample_fps: frames taken per second of picture; 0 unless video.
    waveform: f32[samples], at least one, mono, 16 kHz; None without sound.
    notes: what was reduced or is missing, one line each, for the user.
    """

    source: Source
    frames: np.ndarray | None
    times: np.ndarray
    sample_fps: float
    waveform: np.ndarray | None
    notes: list[str]


class FramePlan(NamedTuple):
    """Which frames are taken and at what size, from the file's facts, without decoding."""

    indices: np.ndarray  # i64[n], frame numbers, ascending
    height: int  # pixels, multiples of a token's cell
    width: int
    sample_fps: float  # n / frames in the range * fps; 0 for an image

    def tokens(self, config: VisionConfig) -> int:
        """Return the number of tokens; an odd last frame, or an image, counts as a pair."""
        pairs = -(-len(self.indices) // config.temporal_patch_size)
        return pairs * self.height * self.width // config.cell_pixels**2

    def __str__(self) -> str:
        count = len(self.indices)
        return f"{f'{count} frames of ' if count > 1 else ''}{self.width}x{self.height}"


class ClipPlan(NamedTuple):
    """What is read of a file. frames: None for sound. waveform: as of DecodedClip.

    notes, sound_notes: of DecodedClip, those on the frames' number and size, and on the sound.
    """

    frames: FramePlan | None
    waveform: np.ndarray | None
    notes: list[str]
    sound_notes: list[str]


# ---- probing and reading -------------------------------------------------------------------------


def probe(path: str | Path | Clip) -> Source:
    """Return the facts of a video, image or sound file, or of a Clip.

    Raises UserError naming the file if it is broken or cut off, UnreadableFile (a UserError) if it
    is missing or may not be read.
    """
    if isinstance(path, Clip):
        return _facts(path)
    path = Path(path)
    try:
        if path.is_symlink() and not path.exists():
            raise UnreadableFile(f"{path}: a link that leads to no file; copy the file there")
        if not path.exists():
            raise UnreadableFile(f"{path}: no such file; check its name and folder")
        if not path.is_file():
            raise UnreadableFile(f"{path}: not a file; name a video, image or sound file")
        with path.open("rb") as file:
            if not file.read(1):
                raise UserError(f"{path}: the file is empty; copy it again")
    except OSError as error:
        fault = f"{path}: {error.strerror}; name a file that may be read"
        raise environment_failure(error) or UnreadableFile(fault) from None
    if (image := still.probe(path)) is not None:
        return image
    try:
        return scan(path)
    except UserError:
        if (name := still.other_format(path)) is not None:
            raise UserError(f"{path}: {name} is not read; {still.REMEDY}") from None
        raise


def _facts(clip: Clip) -> Source:
    """Return the facts of a clip in memory, as of a file that begins at second 0."""
    frames, size, fps, index = 0, (0, 0), 0.0, None
    if clip.frames is not None:
        frames, size, fps = len(clip.frames), clip.frames.shape[1:3], float(clip.fps)
        numbers = np.arange(frames)
        index = Index(numbers, np.ones(frames, bool), numbers, numbers / fps, timed=True)
    heard = 0.0 if clip.waveform is None else len(clip.waveform) / clip.rate
    return Source(
        path=clip.name or "the clip",
        kind="audio" if index is None else "video",
        width=size[1],
        height=size[0],
        fps=fps,
        frames=frames,
        seconds=heard if index is None else frames / fps,
        rotation=0,
        has_audio=heard > 0,
        audio_seconds=heard,
        index=index,
        clip=clip,
    )


def read_clip(
    source: Source, settings: ClipSettings, allowance: int, config: OmniConfig
) -> DecodedClip:
    """Read sound and frames of a probed file: at most `allowance` tokens, markers included.

    settings: resolved. The sound takes its tokens first; a picture that needs more than the rest
    gets fewer pixels, then fewer frames. A clip without sound has waveform None. A video of one
    frame becomes two equal frames (the reference refuses it).

    Raises UserError naming the file if it does not decode, is empty between start and end, or does
    not fit at its smallest.
    """
    return decode_clip(source, settings, plan_clip(source, settings, allowance, config))


def plan_clip(
    source: Source,
    settings: ClipSettings,
    allowance: int,
    config: OmniConfig,
    sound: Sound | None = None,
) -> ClipPlan:
    """Do what `read_clip` does before the pictures are decoded; arguments and errors as there.

    sound: of `hear`, if it is at hand.
    """
    sound = sound or hear(source, settings)
    allowance -= _markers(source)
    sound_tokens = _sound_tokens(sound, config)
    sound_notes = [*source.notes, *_sound_notes(source, settings, sound, sound_tokens)]
    if source.kind == "audio":
        if sound.waveform is None:
            limits = f"start={settings.start}, end={settings.end}, audio={settings.audio}"
            raise UserError(f"{source.path}: holds no sound within {limits}; change these settings")
        if sound_tokens > allowance:
            raise UserError(
                f"{source.path}: sound needs {sound_tokens - allowance} tokens more than the "
                "budget has; raise max_tokens, or lower max_audio_seconds or end"
            )
        return ClipPlan(None, sound.waveform, [], sound_notes)
    frames, notes = fit_frames(source, settings, allowance - sound_tokens, config.vision)
    return ClipPlan(frames, sound.waveform, notes, sound_notes)


def tokens_beside_picture(source: Source, sound: Sound, config: OmniConfig) -> int:
    """Return the tokens of a plan's allowance that its picture does not get.

    sound: of `hear`.
    """
    return _markers(source) + _sound_tokens(sound, config)


def _markers(source: Source) -> int:
    return 4 if source.kind == "video" else 2


def _sound_tokens(sound: Sound, config: OmniConfig) -> int:
    if sound.waveform is None:
        return 0
    return config.audio.tokens(-(-len(sound.waveform) // HOP))


def hear(source: Source, settings: ClipSettings) -> Sound:
    """Read the sound of a probed file, if it is asked for. settings, errors: as of `read_clip`."""
    sound = Sound(None, [])
    if settings.audio:
        sound = read_sound(source, settings.start or 0.0, settings.end, settings.max_audio_seconds)
    if sound.fault and (settings.require_sound or source.kind == "audio"):
        raise UserError(f"{source.path}: {sound.fault}; encode it again")
    return sound


def decode_clip(source: Source, settings: ClipSettings, plan: ClipPlan) -> DecodedClip:
    """Decode the pictures of a plan."""
    if plan.frames is None:
        return DecodedClip(source, None, np.zeros(0), 0.0, plan.waveform, plan.sound_notes)
    frames, picture_notes = _read_frames(source, settings, plan.frames)
    notes = [*plan.notes, *picture_notes, *plan.sound_notes]
    is_video = source.kind == "video"
    times = source.index.times[plan.frames.indices] if is_video else np.zeros(0)
    return DecodedClip(source, frames, times, plan.frames.sample_fps, plan.waveform, notes)


def _sound_notes(source: Source, settings: ClipSettings, sound: Sound, tokens: int) -> list[str]:
    """Return notes on a clip's sound where it is missing or cut."""
    if source.kind == "image":
        return []
    if not source.has_audio and not source.sound_codec:
        return ["no sound in the file"]
    if not settings.audio:
        return ["the sound is left out (audio=false)"]
    if sound.waveform is None:
        return sound.notes or ["no sound between start and end"]
    if not tokens:
        return [*sound.notes, "the sound is too short to give a token"]
    end = source.audio_seconds if settings.end is None else min(settings.end, source.audio_seconds)
    seconds, limit = end - (settings.start or 0.0), settings.max_audio_seconds
    if seconds > limit + 0.1:  # less is a codec's padding
        cut = f"sound of {seconds:.1f} s is cut at {limit:g} s"
        return [*sound.notes, f"{cut}; raise max_audio_seconds to keep more"]
    return sound.notes


def _read_frames(
    source: Source, settings: ClipSettings, plan: FramePlan
) -> tuple[np.ndarray, list[str]]:
    """Read the planned frames at their size: u8[n, h, w, 3], and notes on how they are shown."""
    size = plan.height, plan.width

    def prepare(picture: np.ndarray, inner: tuple[int, int]) -> np.ndarray:
        first = _first_size(source, settings) if inner == size else []
        for height, width in (*first, inner):
            picture = resize(picture, height, width)
        return picture[..., ::-1] if settings.bgr else picture

    return read_pictures(source, plan.indices, size, prepare, settings.untagged_bt709)


def read_pictures(
    source: Source,
    indices: np.ndarray,
    size: tuple[int, int],
    prepare: Prepare,
    untagged_bt709: bool = False,
) -> tuple[np.ndarray, list[str]]:
    """Read pictures of a video or an image: u8[n, *size, 3] RGB, and notes on how they are shown.

    Arguments and errors: as of `picture.read_frames`.
    """
    if source.clip is not None:
        return np.stack([prepare(source.clip.frames[number], size) for number in indices]), []
    if source.kind == "image":
        return prepare(still.read(source.path), size)[None], []
    if source.animation:
        return still.read_frames(source, indices, size, prepare), []
    return read_frames(source, indices, size, prepare, untagged_bt709)


# ---- which frames, at what size ------------------------------------------------------------------


def fit_frames(
    source: Source, settings: ClipSettings, allowance: int, config: VisionConfig
) -> tuple[FramePlan, list[str]]:
    """Plan frames that take at most `allowance` tokens, and note what was reduced.

    settings: resolved. Pixels are reduced first, down to min_pixels, then frames. Raises UserError
    if that is not enough, and as `plan_frames`.
    """
    plan = full = plan_frames(source, settings, config)
    notes = []
    if source.kind == "video" and len(full.indices) + 1 < (settings.frames or 0):
        notes.append(f"{settings.frames} frames are requested, the clip has {len(full.indices)}")
    need = full.tokens(config)
    if need <= allowance:
        return full, notes
    prefix = "image_" if source.kind == "image" else ""
    pairs = -(-len(full.indices) // config.temporal_patch_size)
    pixels = max(
        allowance // pairs * config.cell_pixels**2, getattr(settings, f"{prefix}min_pixels")
    )
    settings = dataclasses.replace(settings, **{f"{prefix}max_pixels": pixels})
    plan = plan_frames(source, settings, config)
    if plan.tokens(config) > allowance and source.kind == "video":
        per_pair = plan.height * plan.width // config.cell_pixels**2
        frames = max(allowance // per_pair, 1) * config.temporal_patch_size
        settings = dataclasses.replace(settings, fps=None, frames=frames)
        plan = plan_frames(source, settings, config)
    if plan.tokens(config) > allowance:
        raise UserError(
            f"{source.path}: picture needs {plan.tokens(config)} tokens even as {plan}, and "
            f"{max(allowance, 0)} are left; raise max_tokens, lower {prefix}min_pixels or "
            "max_audio_seconds, or choose start and end"
        )
    change = f"reduced from {full} to {plan}"
    return plan, [*notes, f"picture needs {need} tokens, the budget has {allowance} left: {change}"]


def plan_frames(source: Source, settings: ClipSettings, config: VisionConfig) -> FramePlan:
    """Select frames (spec 4.1) and their size (spec 4.2) of a probed video or image.

    settings: resolved. Raises UserError if [start, end] lies outside the clip or the picture is
    longer than 200:1.
    """
    if source.kind == "image":
        indices, sample_fps = np.zeros(1, np.int64), 0.0
        limits = settings.image_min_pixels, settings.image_max_pixels
    else:
        indices, sample_fps = _select(source, settings)
        count = len(indices)
        allowance = max(settings.total_pixels / count * 2, int(1.05 * settings.min_pixels))
        limits = settings.min_pixels, min(settings.max_pixels, allowance)
    try:
        size = [(source.height, source.width), *_first_size(source, settings)][-1]
        height, width = smart_resize(*size, *limits, factor=config.cell_pixels)
    except UserError as error:
        raise UserError(f"{source.path}: {error}") from None
    return FramePlan(indices, height, width, sample_fps)


def _first_size(source: Source, settings: ClipSettings) -> list[tuple[int, int]]:
    """Return the size of the published captioner's own resize: [(height, width)], or []."""
    if settings.preset != "upstream" or source.kind != "video":
        return []
    area = source.height * source.width
    shrink = min(1.0, (UPSTREAM_PIXELS / area) ** 0.5) if area else 1.0
    step = round if shrink == 1.0 else int
    return [tuple(max(2, step(side * shrink / 2) * 2) for side in (source.height, source.width))]


def _select(source: Source, settings: ClipSettings) -> tuple[np.ndarray, float]:
    """Return the frame numbers to take, and how many a second.

    By number, as in the reference, from a picture of constant rate; else by time, so that the k-th
    frame is the one that a player shows k / sample_fps seconds after the first.
    """
    if source.by_time:
        return _select_by_time(source, settings)
    first, last = _frame_range(source, settings)
    total = last - first + 1
    count = _frame_count(total, total / source.fps, settings)
    before = first if source.is_cut else 0  # as if the piece began with it: rounding tells
    if settings.preset == "upstream":
        indices = np.linspace(first - before, last - before, count).astype(np.int64)
    else:
        indices = _rounded_linspace(first - before, last - before, count)
    return before + indices, count / total * source.fps


def _select_by_time(source: Source, settings: ClipSettings) -> tuple[np.ndarray, float]:
    """Select frames by the times at which a player shows them."""
    start = settings.start or 0.0
    end = source.seconds if settings.end is None else min(settings.end, source.seconds)
    if start > end or start >= source.seconds:
        raise _no_frame(source, settings)
    seconds = max(end - start, 1 / source.fps)
    if source.is_cut:
        seconds = round(seconds, 6)  # its end is cut a little before
    steps = np.diff(source.index.times)
    # as many as if the picture had the constant rate of its shortest step
    total = max(1, round(seconds / min([1 / source.fps, *steps[steps > 0]])))
    count = _frame_count(total, seconds, settings)
    return shown(source, start + np.arange(count) * (seconds / count)), count / seconds


def _no_frame(source: Source, settings: ClipSettings) -> UserError:
    return UserError(
        f"{source.path}: no frame between start={settings.start} and end={settings.end}; the "
        f"picture lasts {source.seconds:.2f} s"
    )


def _frame_range(source: Source, settings: ClipSettings) -> tuple[int, int]:
    """Return the first and the last frame number within [start, end] seconds.

    After the last frame's time, while a player still shows it, it is that one.
    """
    rate, last = source.fps, source.frames - 1
    if source.index is not None:
        span = float(source.index.times[-1] - source.index.times[0])
        # a header's rate may lead to other pictures
        if span > 0 and abs(span - last / rate) > 1.01 / rate:
            rate = last / span
    first = 0 if settings.start is None else int(np.ceil(settings.start * rate - NOISE))
    if settings.end is not None:
        last = min(int(np.floor(settings.end * rate)), last)
    if first > last:
        if not source.frames - 1 < (settings.start or 0.0) * rate < source.seconds * rate:
            raise _no_frame(source, settings)
        first = last = source.frames - 1
    return first, last


def _frame_count(total: int, seconds: float, settings: ClipSettings) -> int:
    """Return the even number of frames to take of `total` in `seconds` (spec 4.1)."""
    if settings.preset == "upstream" and settings.frames:
        return settings.frames + settings.frames % 2  # short clips repeat frames
    if settings.frames:
        return max(min(round(settings.frames / 2) * 2, total) // 2 * 2, 2)
    low = settings.min_frames + settings.min_frames % 2
    high = min(settings.max_frames, total) // 2 * 2
    return max(int(min(max(seconds * settings.fps, low), high, total)) // 2 * 2, 2)


def _rounded_linspace(first: int, last: int, count: int) -> np.ndarray:
    """Return `count` frame numbers from `first` to `last`, rounded half to even.

    Computed in float32 from both ends inwards, as in the reference: float64 selects another frame
    in one clip of forty.
    """
    step = np.float32(last - first) / np.float32(count - 1)
    place = np.arange(count, dtype=np.float32)
    rising, falling = np.float32(first) + step * place, np.float32(last) - step * place[::-1]
    return np.rint(np.where(place < count // 2, rising, falling)).astype(np.int64)


def smart_resize(
    height: int, width: int, min_pixels: float, max_pixels: float, factor: int
) -> tuple[int, int]:
    """Return the nearest size with sides divisible by `factor` and an area within the limits.

    Spec 4.2. Returns (height, width), each at least `factor`. Raises UserError on an empty frame
    and on one longer than 200:1.
    """
    if min(height, width) < 1:
        raise UserError(f"a frame of {width}x{height} pixels is empty; encode the clip again")
    if max(height, width) > MAX_ASPECT_RATIO * min(height, width):
        raise UserError(
            f"a frame of {width}x{height} pixels is longer than {MAX_ASPECT_RATIO}:1; crop the clip"
        )
    sides = (height, width)
    rounded = [max(factor, round(side / factor) * factor) for side in sides]
    if math.prod(rounded) > max_pixels:
        shrink = math.sqrt(height * width / max_pixels)
        rounded = [max(factor, math.floor(side / shrink / factor) * factor) for side in sides]
    elif math.prod(rounded) < min_pixels:
        grow = math.sqrt(min_pixels / (height * width))
        rounded = [math.ceil(side * grow / factor) * factor for side in sides]
    return rounded[0], rounded[1]


def resize(frame: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize u8[h, w, 3] to u8[height, width, 3] by PIL's antialiased bicubic filter."""
    if frame.shape[:2] == (height, width):
        return frame
    return np.asarray(Image.fromarray(frame).resize((width, height), Image.Resampling.BICUBIC))
