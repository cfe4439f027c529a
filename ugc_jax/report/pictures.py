"""Clips for a page: a strip of frames and a mel spectrogram as data URIs, and what is played."""

import base64
import functools
import logging
import os
import urllib.parse
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from PIL import Image

from ugc_jax.data.drawing import draw_mel, encode
from ugc_jax.data.features import log_mel
from ugc_jax.data.workers import Pool, allow
from ugc_jax.errors import UserError
from ugc_jax.evals.tasks import clip_id
from ugc_jax.media.clip import probe
from ugc_jax.media.find import find_clips
from ugc_jax.media.sound import read_sound
from ugc_jax.media.streams import middles
from ugc_jax.media.timeline import Source
from ugc_jax.models.qwen2_5_omni.config import SAMPLE_RATE
from ugc_jax.progress import progress
from ugc_jax.report.copies import small_copy

logger = logging.getLogger(__name__)

FRAMES = 6  # in a strip, at the middles of as many equal parts of the clip
SIDE = 120  # pixels of a frame's longer side
GAP = 2  # pixels between frames
MEL_SIZE = (320, 56)  # pixels: (time, pitch)
TONES = 24  # number of colours of the mel; fewer make smaller files
MAX_SOUND = 300.0  # seconds of sound that are displayed
SILENCE = 1e-4  # a track without samples above it is silent


Play = Literal["link", "embed", "none"]


class Picture(NamedTuple):
    """frames: data URI of a JPEG, None without picture. mel: of a PNG, None without sound.

    seconds: of the clip. notes: what is displayed differently from the file, one sentence each.
    kind: "video", "image" or "audio". seen, heard: seconds that frames and mel show. play: address
    of what is played, a data URI or relative to the page; None for nothing.
    """

    frames: str | None
    mel: str | None
    seconds: float
    notes: Sequence[str] = ()
    kind: str = "video"
    seen: float = 0.0
    heard: float = 0.0
    play: str | None = None


class Album(NamedTuple):
    """pictures: by clip id. missing: ids without a file. unreadable: an error line each. left_out:
    ids beyond the limit. linked: ids whose copies did not fit into the page."""

    pictures: dict[str, Picture]
    missing: list[str]
    unreadable: list[str]
    left_out: list[str]
    linked: Sequence[str] = ()


class Playing(NamedTuple):
    """How a page plays clips. page: its file, for relative links. most: bytes of copies."""

    how: Play
    page: Path
    most: float = 0.0


def make_album(
    videos: str, ids: Sequence[str], limit: int, playing: Playing | None = None
) -> Album:
    """Pictures of the clips called `ids` in the folder `videos` and below, of the first `limit`.

    A clip's id is the name of its file without suffix. playing: None for pictures alone; copies
    that exceed its limit are links instead. Raises UserError if `videos` is not a folder or has no
    videos, and if two files there have the same id of `ids`.
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
    pictures, unreadable, linked, copied = {}, [], [], 0
    copies = playing is not None and playing.how == "embed"
    with Pool(functools.partial(draw_clip, copy=copies)) as pool:
        drawn = pool.read([files[name] for name in found[:limit]], ahead=2 * pool.workers)
        drawn = progress(drawn, len(found[:limit]), "clip", "pictures")
        for name, (_, picture, _) in zip(found, drawn, strict=False):
            if isinstance(picture, UserError):
                unreadable.append(str(picture))
                logger.warning("%s", picture)
                continue
            if picture.play is not None and copied + len(picture.play) > playing.most:
                linked.append(name)
                picture = picture._replace(play=None)
            copied += len(picture.play or "")
            if playing is not None and playing.how != "none" and picture.play is None:
                link = _link(files[name], playing.page) if picture.kind != "image" else None
                picture = picture._replace(play=link)
            pictures[name] = picture
    return Album(pictures, missing, unreadable, found[limit:], linked)


def _link(file: str, page: Path) -> str:
    """The address of a file relative to a page's folder, with any characters in its name."""
    relative = os.path.relpath(Path(file).absolute(), page.absolute().parent)
    return urllib.parse.quote(os.fsencode(relative))


def draw_clip(path: str | Path, copy: bool = False) -> Picture:
    """The pictures of one clip, and with `copy` a small one of the clip itself as a data URI.

    Raises UserError with its name if it cannot be read.
    """
    source = probe(path)
    allow(source.length)
    frames, notes, play = None, [], None
    if source.kind != "audio":
        strip, notes = _strip(source)
        frames = _uri("jpeg", strip, quality=68)
    mel, sound_notes, heard = _mel(source)
    mel = None if mel is None else _uri("png", mel, optimize=True)
    if copy and source.kind != "image":
        play = f"data:video/mp4;base64,{base64.b64encode(small_copy(source)).decode()}"
    notes = [*source.notes, *notes, *sound_notes]
    seen = 0.0 if source.kind == "audio" else source.seconds
    return Picture(frames, mel, source.length, notes, source.kind, seen, heard, play)


def _strip(source: Source) -> tuple[Image.Image, list[str]]:
    """Frames of the clip side by side, and notes on how they are shown."""
    shrink = min(1.0, SIDE / max(source.width, source.height))
    width, height = (max(1, round(side * shrink)) for side in (source.width, source.height))
    frames, notes = middles(source, FRAMES, (height, width))
    strip = Image.new("RGB", (FRAMES * (width + GAP) - GAP, height), (128, 128, 128))
    for number, frame in enumerate(frames):
        strip.paste(Image.fromarray(frame), (number * (width + GAP), 0))
    return strip, notes


def _mel(source: Source) -> tuple[Image.Image | None, list[str], float]:
    """The mel spectrogram, time to the right and pitch up, None if silent; notes; its seconds."""
    sound = read_sound(source, 0.0, None, MAX_SOUND)
    if sound.waveform is None or np.abs(sound.waveform).max() < SILENCE:
        return None, sound.notes, 0.0
    drawn = draw_mel(log_mel(sound.waveform))
    small = np.asarray(drawn.resize(MEL_SIZE, Image.Resampling.BOX))
    picture = Image.fromarray((small * (TONES / 256)).astype(np.uint8))
    picture.putpalette(_palette())
    return picture, sound.notes, sound.waveform.size / SAMPLE_RATE


def _palette() -> bytes:
    """RGB bytes of TONES colours, dark to light."""
    import matplotlib

    colours = matplotlib.colormaps["magma"](np.linspace(0, 1, TONES), bytes=True)
    return colours[:, :3].tobytes()


def _uri(kind: str, picture: Image.Image, **options) -> str:
    content = base64.b64encode(encode(picture, kind, **options)).decode()
    return f"data:image/{kind};base64,{content}"
