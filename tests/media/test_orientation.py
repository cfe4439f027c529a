"""All eight orientations, from containers and from messages in the stream; ffmpeg's rule."""

import math
import struct

import av
import numpy as np
import pytest
from encode import corners, encode, read_corners

from ugc_jax.media import clip as media
from ugc_jax.media.orientation import Orientation
from ugc_jax.media.presets import ClipSettings, resolve
from ugc_jax.models.qwen2_5_omni.config import GEOMETRY

# name -> a, b, c, d of the matrix; the corners as ffmpeg shows them (TL TR BL BR)
MATRICES = {
    "plain": ((1, 0, 0, 1), "RGBY"),
    "clockwise": ((0, 1, -1, 0), "BRYG"),
    "half": ((-1, 0, 0, -1), "YBGR"),
    "counterclockwise": ((0, -1, 1, 0), "GYRB"),
    "hflip": ((-1, 0, 0, 1), "GRYB"),
    "vflip": ((1, 0, 0, -1), "BYRG"),
    "transpose": ((0, 1, 1, 0), "RBGY"),
    "transverse": ((0, -1, -1, 0), "YGBR"),
}


def read_clip(path):
    return media.read_clip(media.probe(path), resolve(ClipSettings()), 1 << 30, GEOMETRY)


def write(path, a, b, c, d):
    def turn(stream):
        one = 1 << 16
        matrix = a * one, b * one, 0, c * one, d * one, 0, 0, 0, 1 << 30
        stream.set_display_matrix([round(value) for value in matrix])

    encode(path, [corners()] * 4, setup=turn)


@pytest.mark.parametrize("suffix", ["mp4", "mov"])
@pytest.mark.parametrize("name", MATRICES)
def test_display_matrix(tmp_path, name, suffix):
    matrix, expected = MATRICES[name]
    write(tmp_path / f"a.{suffix}", *matrix)
    clip = read_clip(tmp_path / f"a.{suffix}")
    assert read_corners(clip.frames[0]) == expected
    swapped = matrix[0] == 0
    assert (clip.source.width, clip.source.height) == ((120, 160) if swapped else (160, 120))
    assert clip.notes == ["no sound in the file"]


def test_scaled_matrix_and_one_without_extent(tmp_path):
    write(tmp_path / "scaled.mp4", 0, 2, 0.5, 0)
    assert read_corners(read_clip(tmp_path / "scaled.mp4").frames[0]) == "RBGY"
    write(tmp_path / "empty.mp4", 0, 0, 0, 0)
    assert read_corners(read_clip(tmp_path / "empty.mp4").frames[0]) == "RGBY"


@pytest.mark.parametrize(("degrees", "expected", "rest"), [(80, "BRYG", 10), (10, "RGBY", 10)])
def test_other_angles_are_rounded_with_a_note(tmp_path, degrees, expected, rest):
    cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    write(tmp_path / "a.mp4", cosine, sine, -sine, cosine)
    clip = read_clip(tmp_path / "a.mp4")
    assert read_corners(clip.frames[0]) == expected
    assert f"the picture is turned to the nearest right angle, {rest} degrees off" in clip.notes


def nal(mirrored: bool, quarters: int) -> bytes:
    """An SEI NAL unit of H.264 with a display orientation message (D.1.27)."""
    bits = f"0{mirrored:d}0{quarters << 14:016b}" + "010" + "0"  # repetition 1, no extension
    bits += "1" + "0" * (-(len(bits) + 1) % 8)
    payload = int(bits, 2).to_bytes(len(bits) // 8, "big")
    message = b"\x06\x2f" + bytes([len(payload)]) + payload + b"\x80"
    escaped = bytearray()
    for byte in message:
        if escaped[-2:] == b"\0\0" and byte <= 3:
            escaped.append(3)
        escaped.append(byte)
    return b"\0\0\0\1" + bytes(escaped)


@pytest.mark.parametrize(
    ("mirrored", "quarters", "expected"),
    [(0, 1, "GYRB"), (1, 0, "GRYB"), (0, 2, "YBGR"), (0, 3, "BRYG")],
)
def test_display_orientation_message(tmp_path, mirrored, quarters, expected):
    encode(tmp_path / "plain.h264", [corners()] * 4, options={"x264-params": "aud=1:keyint=1"})
    content = (tmp_path / "plain.h264").read_bytes()
    delimiter = b"\0\0\0\1\x09"
    parts = content.split(delimiter)
    assert len(parts) == 5
    # each delimiter has one more byte and is followed by the message
    marked = [delimiter + part[:1] + nal(mirrored, quarters) + part[1:] for part in parts[1:]]
    (tmp_path / "a.h264").write_bytes(b"".join(marked))
    frame = next(av.open(str(tmp_path / "a.h264")).decode(video=0))
    assert struct.unpack("=9i", bytes(frame.side_data["DISPLAYMATRIX"]))[0] != 1 << 16
    assert read_corners(read_clip(tmp_path / "a.h264").frames[0]) == expected


def test_apply_returns_a_view():
    picture = np.arange(24).reshape(2, 4, 3)
    shown = Orientation(90, True).apply(picture)
    assert np.shares_memory(shown, picture)
    np.testing.assert_array_equal(shown, np.rot90(picture)[:, ::-1])
