"""Media files as a whole: kinds, colours, and a clear line for every kind of bad file."""

import struct
import wave
import zlib

import av
import numpy as np
import pytest
from PIL import Image

from ugc_jax.errors import UserError
from ugc_jax.media import clip as media
from ugc_jax.media.presets import ClipSettings
from ugc_jax.toy.synthetic import write_clip


def read_clip(path, settings):
    return media.read_clip(media.probe(path), settings)


def test_bgr_and_upstream(tmp_path):
    write_clip(tmp_path / "clip.mp4", seconds=1)
    plain = read_clip(tmp_path / "clip.mp4", ClipSettings(preset="upstream"))
    swapped = read_clip(tmp_path / "clip.mp4", ClipSettings(preset="upstream", bgr=True))
    assert plain.frames.shape == (32, 280, 392, 3)
    np.testing.assert_array_equal(plain.frames[..., ::-1], swapped.frames)


# ---- images --------------------------------------------------------------------------------------


def test_image(tmp_path):
    picture = np.random.default_rng(0).integers(0, 256, (84, 140, 3), np.uint8)
    Image.fromarray(picture).save(tmp_path / "a.png")
    clip = read_clip(tmp_path / "a.png", ClipSettings())
    assert (clip.source.kind, clip.sample_fps, clip.waveform) == ("image", 0.0, None)
    assert clip.source[2:6] == (140, 84, 0.0, 1)
    np.testing.assert_array_equal(clip.frames, picture[None])


def test_transparency_becomes_white(tmp_path):
    Image.new("RGBA", (56, 56), (255, 0, 0, 0)).save(tmp_path / "a.png")
    assert (read_clip(tmp_path / "a.png", ClipSettings()).frames == 255).all()


def test_exif_orientation(tmp_path):
    image = Image.new("RGB", (112, 56))
    image.paste((255, 0, 0), (0, 0, 56, 56))  # left half red
    exif = image.getexif()
    exif[0x0112] = 6  # shown turned clockwise: red on top
    image.save(tmp_path / "a.jpg", exif=exif)
    clip = read_clip(tmp_path / "a.jpg", ClipSettings())
    assert (clip.source.width, clip.source.height) == (56, 112)
    assert clip.frames.shape == (1, 112, 56, 3)
    assert clip.frames[0, :50, :, 0].min() > 200 > 50 > clip.frames[0, 62:, :, 0].max()


# ---- bad files -----------------------------------------------------------------------------------


def refused(path, pattern, settings=ClipSettings()):  # noqa: B008 (frozen)
    with pytest.raises(UserError, match=pattern) as error:
        read_clip(path, settings)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_not_there(tmp_path):
    refused(tmp_path / "a.mp4", "no such file")
    refused(tmp_path, "not a file")
    (tmp_path / "a.mp4").touch()
    refused(tmp_path / "a.mp4", "empty")


@pytest.mark.parametrize("name", ["a.mp4", "a.txt", "a.m3u8", "a.png"])
@pytest.mark.parametrize(
    "content", [b"These are not pictures.\n" * 99, b"#EXTM3U\n#EXTINF:1,\nb.mp4\n", bytes(5000)]
)
def test_not_media(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    refused(tmp_path / name, "not readable as video, image or sound")


@pytest.mark.parametrize("part", [0.5, 0.9])
@pytest.mark.parametrize("kind", ["index last", "index first", "mkv"])
def test_cut_off(tmp_path, part, kind):
    path = tmp_path / ("a.mkv" if kind == "mkv" else "a.mp4")
    write_clip(path, faststart=kind == "index first")
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * part)])
    refused(
        path,
        "not readable as video"
        if kind == "index last"
        else r"cut off, only [\d.]+ of its [\d.]+ (bytes|seconds) are in the file",
    )


def test_sound_file_that_is_cut_off(tmp_path):
    path = tmp_path / "a.m4a"
    with av.open(str(path), "w", format="mp4", options={"movflags": "faststart"}) as container:
        stream = container.add_stream("aac", rate=16_000, layout="mono")
        noise = np.random.default_rng(0).uniform(-1, 1, (1, 32_000)).astype(np.float32)
        frame = av.AudioFrame.from_ndarray(noise, format="fltp", layout="mono")
        frame.sample_rate = 16_000
        container.mux([*stream.encode(frame), *stream.encode(None)])
    assert read_clip(path, ClipSettings()).waveform.shape == pytest.approx((32_000,), abs=2048)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 3 // 4])
    refused(path, "cut off")


def test_header_that_claims_gigabytes(tmp_path):
    path = tmp_path / "a.mp4"
    write_clip(path, seconds=1, faststart=True)
    content = path.read_bytes()
    box = content.index(b"mdat") - 4
    path.write_bytes(content[:box] + struct.pack(">I", 0xFFFF_FFF0) + content[box + 4 :])
    refused(path, "cut off")
    path.write_bytes(struct.pack(">I", 0xFFFF_FFF0) + b"moov" + content[box:])
    refused(path, "cut off")
    sizes = content.index(b"stsz") + 8
    path.write_bytes(content[:sizes] + struct.pack(">II", 4, 0xFFFF_FFF0) + content[sizes + 8 :])
    refused(path, "0 pictures is readable|cut off")


def test_picture_that_claims_gigabytes(tmp_path):
    chunk = b"IHDR" + struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    header = struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))
    (tmp_path / "a.png").write_bytes(
        b"\x89PNG\r\n\x1a\n" + header + struct.pack(">I", 99) + b"IDAT"
    )
    refused(tmp_path / "a.png", "does not decode.*3600000000 pixels")


def test_truncated_image(tmp_path):
    Image.effect_noise((200, 200), 50).save(tmp_path / "a.png")
    content = (tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").write_bytes(content[: len(content) // 2])
    refused(tmp_path / "a.png", "does not decode")


def test_too_long_a_strip(tmp_path):
    write_clip(tmp_path / "a.mp4", size=(4224, 16), seconds=0.2)
    refused(tmp_path / "a.mp4", "4224x16 pixels is longer than 200:1")
    Image.new("RGB", (1, 201)).save(tmp_path / "a.png")
    refused(tmp_path / "a.png", "1x201 pixels is longer than 200:1")


def test_sound_file_without_sound(tmp_path):
    for name, seconds in (("a.wav", 0), ("b.wav", 1)):
        with wave.open(str(tmp_path / name), "wb") as file:
            file.setparams((1, 2, 16_000, 0, "NONE", ""))
            file.writeframes(bytes(2 * 16_000 * seconds))
    refused(tmp_path / "a.wav", "neither picture nor sound")
    refused(
        tmp_path / "b.wav",
        "holds no sound within start=None, end=None, audio=False",
        ClipSettings(audio=False),
    )
