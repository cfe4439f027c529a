"""A media file as the model will see it: frames of a video or an image, and 16 kHz sound."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from ugc_jax.data import features
from ugc_jax.errors import UserError
from ugc_jax.media import streams
from ugc_jax.media.framing import Source, first_size, plan_frames
from ugc_jax.media.presets import ClipSettings, resolve

STILL_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")  # JPEG includes MPO


class Clip(NamedTuple):
    """What is taken of a file.

    frames: u8[n, h, w, 3] RGB (BGR if asked for), resized; n = 1 for an image; None for a sound.
    times: f64[n], seconds of each frame on the file's clock; empty unless video.
    sample_fps: frames taken per second of picture; 0 unless video.
    waveform: f32[samples], mono, 16 kHz; None without sound.
    """

    source: Source
    frames: np.ndarray | None
    times: np.ndarray
    sample_fps: float
    waveform: np.ndarray | None


def probe(path: str | Path) -> Source:
    """Facts about a video, image or sound file.

    Raises UserError naming the file if it is missing, unreadable or cut off.
    """
    path = Path(path)
    try:
        if not path.exists():
            raise UserError(f"{path}: no such file; check its name and folder")
        if not path.is_file():
            raise UserError(f"{path}: not a file; name a video, image or sound file")
        with path.open("rb") as file:
            if not file.read(1):
                raise UserError(f"{path}: the file is empty; copy it again")
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; name a file that may be read") from None
    return _probe_image(path) or streams.scan(path)


def read_clip(source: Source, settings: ClipSettings) -> Clip:
    """Read the frames and the sound of a probed file as `settings` (resolved or not) ask.

    A silent clip is normal and has waveform None. A video of one frame is taken as two equal
    frames (the reference refuses it). Raises UserError naming the file if it does not decode or is
    empty between start and end.
    """
    settings = resolve(settings)
    frames, waveform, times, sample_fps = None, None, np.zeros(0), 0.0
    if source.kind != "audio":
        plan = plan_frames(source, settings)
        size, sample_fps = (plan.height, plan.width), plan.sample_fps

        def prepare(picture: np.ndarray) -> np.ndarray:
            for height, width in (*first_size(source, settings), size):
                picture = features.resize(picture, height, width)
            return picture[..., ::-1] if settings.bgr else picture

        if source.kind == "image":
            frames = prepare(_read_image(source.path))[None]
        else:
            frames = streams.read_frames(source, plan.indices, size, prepare)
            times = source.index.times[plan.indices]
    if settings.audio and source.has_audio:
        waveform = streams.read_sound(
            source, settings.start or 0.0, settings.end, settings.max_audio_seconds
        )
    if frames is None and waveform is None:
        asked = f"start={settings.start}, end={settings.end}, audio={settings.audio}"
        raise UserError(f"{source.path}: holds no sound within {asked}; change these settings")
    return Clip(source, frames, times, sample_fps, waveform)


def _probe_image(path: Path) -> Source | None:
    """Facts about a still image; None for anything else (an animation is a video)."""
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
    return Source(str(path), "image", *size, 0.0, 1, 0.0, 0, False, 0.0, None)


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
