"""A media file as the model will see it: frames of a video or an image, and 16 kHz sound."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from ugc_jax.data import features, streams
from ugc_jax.data.framing import Plan, Source, first_size, plan_frames
from ugc_jax.data.presets import ClipSettings, resolve
from ugc_jax.errors import UserError

__all__ = ["Clip", "Plan", "Source", "plan_frames", "probe", "read_clip"]

STILL_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")  # JPEG includes MPO


class Clip(NamedTuple):
    """A file as the model will see it."""

    source: Source
    path: str
    kind: str  # "video", "image" or "audio"
    frames: (
        np.ndarray | None
    )  # u8[n, h, w, 3] RGB (BGR if asked for), resized; n = 1 for an image; None for audio
    sample_fps: float  # frames taken per second of picture; 0 unless video
    times: np.ndarray  # f64[n] seconds of each frame since the file's first picture
    waveform: np.ndarray | None  # f32[samples], mono, 16 kHz; None: no sound


def probe(path: str | Path) -> Source:
    """Facts about a video, image or sound file. Raises UserError if it is missing, unreadable or cut off."""
    return _scan(path)[0]


def read_clip(path: str | Path, settings: ClipSettings) -> Clip:
    """Read a file's frames and sound as `settings` (resolved or not) ask.

    A silent clip is normal and has waveform None. A video of one frame is taken as two equal frames (the reference
    refuses it). Raises UserError naming the file if it is missing, unreadable, cut off, or empty in [start, end].
    """
    settings = resolve(settings)
    source, index = _scan(path)
    frames, waveform, times, sample_fps = None, None, np.zeros(0), 0.0
    if source.kind != "audio":
        plan = plan_frames(source, settings)
        size, sample_fps = (plan.height, plan.width), plan.sample_fps

        def prepare(picture: np.ndarray) -> np.ndarray:
            for height, width in (*first_size(source, settings), size):
                picture = features.resize(picture, height, width)
            return picture

        if source.kind == "image":
            frames, times = prepare(_read_image(source.path))[None], np.zeros(1)
        else:
            frames = streams.read_frames(source, index, plan.indices, size, prepare)
            times = (index.times - index.times[0])[plan.indices]
        if settings.bgr:
            frames = np.ascontiguousarray(frames[..., ::-1])
    if settings.audio and source.has_audio:
        start, picture_start = settings.start or 0.0, float(index.times[0]) if index else None
        waveform = streams.read_sound(
            source.path, start, settings.end, settings.max_audio_seconds, picture_start
        )
    if frames is None and waveform is None:
        raise UserError(
            f"{source.path}: holds no picture and no sound that is asked for; check start, end and audio"
        )
    return Clip(source, source.path, source.kind, frames, sample_fps, times, waveform)


def _scan(path: str | Path) -> tuple[Source, streams.Index | None]:
    """First pass over a file. The index is None unless it is a video."""
    path = Path(path)
    if not path.exists():
        raise UserError(f"{path}: no such file")
    if not path.is_file():
        raise UserError(f"{path}: not a file; name a video, image or sound file")
    if path.stat().st_size == 0:
        raise UserError(f"{path}: the file is empty; copy it again")
    image = _probe_image(path)
    return (image, None) if image else streams.scan_streams(path)


def _probe_image(path: Path) -> Source | None:
    """Facts about a still image, or None if the file is something else (an animation is a video)."""
    Image.init()  # PIL knows the rarer formats only after this
    try:
        with Image.open(path, formats=STILL_FORMATS) as image:
            if getattr(image, "is_animated", False) and image.format != "MPO":
                return None
            width, height = image.size
            streams.check_size(path, width, height)
            turned = image.getexif().get(0x0112, 1) >= 5  # EXIF orientations 5 to 8 swap the sides
    except UnidentifiedImageError:
        return None
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"{path}: the image does not decode ({error}); copy it again") from None
    size = (height, width) if turned else (width, height)
    return Source(str(path), "image", *size, 0.0, 1, 0.0, 0, False, 0.0)


def _read_image(path: str) -> np.ndarray:
    """u8[h, w, 3] RGB, upright; transparent pixels are put on white."""
    try:
        with Image.open(path, formats=STILL_FORMATS) as image:
            image = ImageOps.exif_transpose(image)
            if image.has_transparency_data:
                image = image.convert("RGBA")
                page = Image.new("RGB", image.size, "white")
                page.paste(image, mask=image)
                image = page
            return np.asarray(image.convert("RGB"))
    except (OSError, SyntaxError, ValueError) as error:
        raise UserError(f"{path}: the image does not decode ({error}); copy it again") from None
