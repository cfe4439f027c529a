"""Videos of given pictures, with colours, display matrix, size and codec of one's choice."""

from collections.abc import Callable, Iterable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np


def encode(
    path: str | Path,
    pictures: Iterable[np.ndarray | av.VideoFrame],
    codec: str = "libx264",
    *,
    pix_fmt: str = "yuv420p",
    options: dict[str, str] | None = None,
    setup: Callable[[av.VideoStream], None] = lambda stream: None,
    fps: int = 10,
):
    """Write pictures, u8[h, w, 3 or 4] or frames. The ending of `path` chooses the container.

    setup: called with the stream before the first picture, to set its display matrix or colours.
    """
    with av.open(str(path), "w") as container:
        stream = None
        for number, picture in enumerate(pictures):
            if isinstance(picture, np.ndarray):
                form = "rgb24" if picture.shape[2] == 3 else "rgba"
                picture = av.VideoFrame.from_ndarray(picture, format=form).reformat(format=pix_fmt)
            if stream is None:
                stream = container.add_stream(codec, rate=fps)
                stream.width, stream.height = picture.width, picture.height
                stream.pix_fmt = pix_fmt
                stream.codec_context.time_base = Fraction(1, fps)
                stream.options = options or {}
                setup(stream)
            picture.pts, picture.time_base = number, Fraction(1, fps)
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))


def planes(form: str, values: Iterable[np.ndarray]) -> av.VideoFrame:
    """Return a frame of planar integer samples: one array [h, w] a plane, of any dtype."""
    values = list(values)
    height, width = values[0].shape
    frame = av.VideoFrame(width, height, form)
    for plane, sample in zip(frame.planes, values, strict=True):
        kind = np.dtype("<u2" if "10" in form else "u1")
        rows = np.zeros((sample.shape[0], plane.line_size // kind.itemsize), kind)
        rows[:, : sample.shape[1]] = sample.round()
        plane.update(rows.tobytes())
    return frame


def corners(size: tuple[int, int] = (120, 160)) -> np.ndarray:
    """Return u8[h, w, 3], grey, with a red, green, blue and yellow corner (TL, TR, BL, BR)."""
    page, side = np.full((*size, 3), 128, np.uint8), min(size) // 3
    page[:side, :side], page[:side, -side:] = COLOURS["R"], COLOURS["G"]
    page[-side:, :side], page[-side:, -side:] = COLOURS["B"], COLOURS["Y"]
    return page


COLOURS = {"R": (255, 0, 0), "G": (0, 255, 0), "B": (0, 0, 255), "Y": (255, 255, 0)}


def read_corners(picture: np.ndarray) -> str:
    """Return the letters of the corners of a picture: top left, top right, bottom left, right."""
    rows, columns = picture.shape[0] // 12, picture.shape[1] // 12
    places = [(rows, columns), (rows, -columns), (-rows, columns), (-rows, -columns)]
    return "".join(
        min(COLOURS, key=lambda name: np.abs(picture[place].astype(int) - COLOURS[name]).sum())
        for place in places
    )
