"""Small pictures of clips for a page: a strip of frames and a mel spectrogram, as data URIs."""

import base64
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from ugc_jax.data.drawing import draw_mel, encode
from ugc_jax.data.features import log_mel
from ugc_jax.data.workers import Pool, allow
from ugc_jax.errors import UserError
from ugc_jax.evals.tasks import clip_id
from ugc_jax.media.clip import probe, read_pictures, resize
from ugc_jax.media.find import find_clips
from ugc_jax.media.sound import read_sound
from ugc_jax.media.timeline import Source, shown
from ugc_jax.progress import progress

logger = logging.getLogger(__name__)

FRAMES = 6  # in a strip, at the middles of as many equal parts of the clip
SIDE = 120  # pixels of a frame's longer side
GAP = 2  # pixels between frames
MEL_SIZE = (320, 56)  # pixels: (time, pitch)
TONES = 24  # number of colours of the mel; fewer make smaller files
MAX_SOUND = 300.0  # seconds of sound that are displayed
SILENCE = 1e-4  # a track without samples above it is silent


class Picture(NamedTuple):
    """frames: data URI of a JPEG, None without picture. mel: of a PNG, None without sound.

    notes: what is displayed differently from the file, one sentence each.
    """

    frames: str | None
    mel: str | None
    seconds: float
    notes: Sequence[str] = ()


class Album(NamedTuple):
    """pictures: by clip id. missing: ids without a file. unreadable: an error line each. left_out:
    ids beyond the limit."""

    pictures: dict[str, Picture]
    missing: list[str]
    unreadable: list[str]
    left_out: list[str]


def make_album(videos: str, ids: Sequence[str], limit: int) -> Album:
    """Pictures of the clips called `ids` in the folder `videos` and below, of the first `limit`.

    A clip's id is the name of its file without suffix. Raises UserError if `videos` is not a folder
    or has no videos, and if two files there have the same id of `ids`.
    """
    if not Path(videos).is_dir():
        raise UserError(f"videos: {videos} is not a folder; give the folder of the clips")
    files: dict[str, str] = {}
    required = set(ids)
    for path in find_clips([videos]):
        name = clip_id(path)
        if name in required and files.setdefault(name, path) != path:
            raise UserError(
                f"videos: {files[name]} and {path} have the same id {name}; give a subfolder that "
                "contains only one of them"
            )
    found = [name for name in ids if name in files]
    missing = [name for name in ids if name not in files]
    pictures, unreadable = {}, []
    with Pool(draw_clip) as pool:
        drawn = pool.read([files[name] for name in found[:limit]], ahead=2 * pool.workers)
        drawn = progress(drawn, len(found[:limit]), "clip", "pictures")
        for name, (_, picture, _) in zip(found, drawn, strict=False):
            if isinstance(picture, UserError):
                unreadable.append(str(picture))
                logger.warning("%s", picture)
            else:
                pictures[name] = picture
    return Album(pictures, missing, unreadable, found[limit:])


def draw_clip(path: str | Path) -> Picture:
    """The pictures of one clip. Raises UserError with its name if it cannot be read."""
    source = probe(path)
    allow(source.length)
    frames, notes = None, []
    if source.kind != "audio":
        strip, notes = _strip(source)
        frames = _uri("jpeg", strip, quality=68)
    mel, sound_notes = _mel(source)
    mel = None if mel is None else _uri("png", mel, optimize=True)
    return Picture(frames, mel, source.length, [*source.notes, *notes, *sound_notes])


def _strip(source: Source) -> tuple[Image.Image, list[str]]:
    """Frames of the clip side by side, and notes on how they are shown."""
    shrink = min(1.0, SIDE / max(source.width, source.height))
    width, height = (max(1, round(side * shrink)) for side in (source.width, source.height))
    parts = (np.arange(FRAMES) + 0.5) / FRAMES
    places = (parts * source.frames).astype(int)
    if source.by_time:
        places = shown(source, parts * source.seconds)
    frames, notes = read_pictures(
        source, places, (height, width), lambda frame, size: resize(frame, *size)
    )
    strip = Image.new("RGB", (FRAMES * (width + GAP) - GAP, height), (128, 128, 128))
    for number, frame in enumerate(frames):
        strip.paste(Image.fromarray(frame), (number * (width + GAP), 0))
    return strip, notes


def _mel(source: Source) -> tuple[Image.Image | None, list[str]]:
    """The mel spectrogram, time to the right and pitch up, None if silent; notes on the sound."""
    sound = read_sound(source, 0.0, None, MAX_SOUND)
    if sound.waveform is None or np.abs(sound.waveform).max() < SILENCE:
        return None, sound.notes
    drawn = draw_mel(log_mel(sound.waveform))
    small = np.asarray(drawn.resize(MEL_SIZE, Image.Resampling.BOX))
    picture = Image.fromarray((small * (TONES / 256)).astype(np.uint8))
    picture.putpalette(_palette())
    return picture, sound.notes


def _palette() -> bytes:
    """RGB bytes of TONES colours, dark to light."""
    import matplotlib

    colours = matplotlib.colormaps["magma"](np.linspace(0, 1, TONES), bytes=True)
    return colours[:, :3].tobytes()


def _uri(kind: str, picture: Image.Image, **options) -> str:
    content = base64.b64encode(encode(picture, kind, **options)).decode()
    return f"data:image/{kind};base64,{content}"
