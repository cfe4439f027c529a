"""How a stored picture is turned and mirrored for display: the display matrix of a video's frame.

Containers (ISO/IEC 14496-12, 8.3.2, "matrix"; Matroska's projection) and the display orientation
messages of H.264 and HEVC (ITU-T H.264, D.1.27) all reach a decoded frame as this matrix.
"""

import math
import struct
from typing import NamedTuple

import av
import numpy as np


class Orientation(NamedTuple):
    """The turn that shows a stored picture upright, then the mirror: all eight are possible.

    rotation: degrees counter-clockwise: 0, 90, 180, 270. mirrored: left and right change places
    after that. remainder: degrees counter-clockwise by which the matrix turns further.
    """

    rotation: int = 0
    mirrored: bool = False
    remainder: float = 0.0

    def apply(self, picture: np.ndarray) -> np.ndarray:
        """Return the upright picture of a stored one [h, w, ...], as a view."""
        upright = np.rot90(picture, self.rotation // 90)
        return upright[:, ::-1] if self.mirrored else upright


def orientation(frame: av.VideoFrame) -> Orientation:
    """Return the orientation of a frame, by the rule of the program ffmpeg.

    A matrix that turns by other than right angles is taken for the nearest one.
    """
    try:
        matrix = frame.side_data["DISPLAYMATRIX"]
    except KeyError:
        return Orientation()
    # a stored point (x, y), y downwards, is displayed at (a x + c y, b x + d y)
    a, b, _, c, d, *_ = struct.unpack("=9i", bytes(matrix))
    mirrored = a * d - b * c < 0
    width, height = math.hypot(a, c), math.hypot(b, d)
    if not width or not height:
        return Orientation()
    angle = -math.degrees(math.atan2(b / height, (-a if mirrored else a) / width))
    quarters = round(angle / 90)
    return Orientation(quarters % 4 * 90, mirrored, angle - 90 * quarters)
