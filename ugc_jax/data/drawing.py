"""Frames and log-mel as pictures that people look at, in pages and answers."""

import io

import numpy as np
from PIL import Image


def draw_mel(mel: np.ndarray) -> Image.Image:
    """Return a log-mel f32[frames, bins] as grey levels: time to the right, pitch up.

    The darkest is its lowest value, the brightest its highest.
    """
    low, high = mel.min(), mel.max()
    levels = (mel.T[::-1] - low) / max(high - low, 1e-6) * 255
    return Image.fromarray(np.ascontiguousarray(levels.astype(np.uint8)))


def encode(picture: Image.Image, kind: str, **options) -> bytes:
    """Return a picture as a file of a kind: "jpeg", "png". options: of `PIL.Image.Image.save`."""
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()
