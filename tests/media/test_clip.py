"""Media files as a whole: which frames at what size, kinds, colours, a clear line for bad files."""

import struct
import wave
import zlib

import av
import numpy as np
import pytest
from clips import write_clip
from PIL import Image

from ugc_jax.errors import UserError
from ugc_jax.media import clip as media
from ugc_jax.media import timeline
from ugc_jax.media.clip import smart_resize
from ugc_jax.media.presets import ClipSettings, resolve
from ugc_jax.models.qwen2_5_omni.config import GEOMETRY

NO_LIMIT = 1 << 30  # tokens


def read_clip(path, settings):
    return media.read_clip(media.probe(path), resolve(settings), NO_LIMIT, GEOMETRY)


def test_bgr_and_upstream(tmp_path):
    write_clip(tmp_path / "clip.mp4", seconds=1)
    plain = read_clip(tmp_path / "clip.mp4", ClipSettings(preset="upstream"))
    swapped = read_clip(tmp_path / "clip.mp4", ClipSettings(preset="upstream", bgr=True))
    assert plain.frames.shape == (32, 280, 392, 3)
    np.testing.assert_array_equal(plain.frames[..., ::-1], swapped.frames)


# ---- which frames --------------------------------------------------------------------------------


def source(frames, fps, width=640, height=360):
    return timeline.Source(
        "clip.mp4", "video", width, height, fps, frames, frames / fps, 0, False, 0.0, None
    )


def plan(source, /, **settings):
    return media.plan_frames(source, resolve(ClipSettings(**settings)), GEOMETRY.vision)


def indices(total, rate, /, **settings):
    return plan(source(total, rate), **settings).indices.tolist()


def test_pictures_of_one_instant():
    """Damaged time stamps may all be equal: the pictures are counted at the header's rate."""
    stamps = np.zeros(60, np.int64)
    index = timeline.Index(stamps, stamps == 0, stamps, stamps.astype(float), True)
    damaged = source(60, 10)._replace(index=index)
    assert plan(damaged, fps=1.0).indices.tolist() == plan(source(60, 10), fps=1.0).indices.tolist()
    assert plan(damaged, start=2.0, end=3.0).indices.tolist()[0] == 20


def test_rounded_linspace_equals_torch():
    torch = pytest.importorskip("torch")
    random = np.random.default_rng(0)
    for _ in range(1000):
        first, total = random.integers(0, 50), random.integers(2, 3000)
        count = int(random.integers(2, min(769, total + 1)))
        last = int(first + total - 1)
        expected = torch.linspace(int(first), last, count).round().long()
        np.testing.assert_array_equal(media._rounded_linspace(int(first), last, count), expected)


@pytest.mark.parametrize(
    ("frames", "fps", "settings", "count"),
    [
        (132, 25, {}, 10),  # 10.56
        (300, 30, {}, 20),
        (300, 29.97, {}, 20),  # 20.02
        (50, 25, {}, 4),
        (25, 25, {}, 4),  # min_frames
        (3, 25, {}, 2),
        (1, 25, {}, 2),  # the reference refuses one frame
        (100_000, 25, {}, 768),
        (300, 30, dict(fps=1.0), 10),
        (300, 30, dict(frames=7), 8),  # 3.5 rounds to 4 pairs
        (300, 30, dict(frames=5), 4),  # 2.5 rounds to 2 pairs
        (5, 30, dict(frames=16), 4),
        (300, 30, dict(max_frames=6), 6),
        (300, 30, dict(min_frames=29, max_frames=40), 30),
        (300, 30, dict(start=2.0, end=4.0), 4),
        (300, 30, dict(preset="upstream"), 32),
        (5, 30, dict(preset="upstream"), 32),
        (300, 30, dict(preset="upstream", fps=2.0), 20),
    ],
)
def test_frame_count(frames, fps, settings, count):
    found = indices(frames, fps, **settings)
    assert len(found) == count
    assert 0 <= min(found) <= max(found) < frames


def test_frame_choice():
    assert indices(6, 1, frames=4) == [0, 2, 3, 5]
    assert indices(6, 1, frames=4, preset="upstream") == [0, 1, 3, 5]
    assert indices(300, 30, start=2.01, end=4.99, frames=2) == [61, 149]
    assert indices(300, 30, start=9.0, end=100.0, frames=2) == [270, 299]
    assert indices(1, 30) == [0, 0]


def test_sample_fps():
    assert plan(source(132, 25)).sample_fps == pytest.approx(10 / 132 * 25)
    assert plan(source(300, 30), start=2, end=4).sample_fps == pytest.approx(4 / 61 * 30)


@pytest.mark.parametrize("settings", [dict(start=10.5), dict(start=2.01, end=2.02)])
def test_empty_range_is_refused(settings):
    with pytest.raises(UserError, match=r"clip.mp4: no frame between start=.* lasts 10.00 s"):
        indices(300, 30, **settings)


@pytest.mark.parametrize(
    ("frames", "size", "settings", "expected"),
    [
        (300, (1280, 720), {}, (560, 1008)),
        (300, (64, 64), {}, (336, 336)),
        (23_040, (1920, 1080), {}, (336, 644)),  # 768 frames share total_pixels
        (300, (1280, 720), dict(max_pixels=50_176), (168, 280)),
        (300, (1280, 720), dict(preset="upstream"), (252, 448)),
        (300, (720, 1280), dict(preset="upstream"), (448, 252)),
    ],
)
def test_frame_size(frames, size, settings, expected):
    found = plan(source(frames, 30, *size), **settings)
    assert (found.height, found.width) == expected


# ---- sizes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "limits", "expected"),
    [
        ((280, 280), (3136, 12_845_056), (280, 280)),
        ((42, 70), (1, 1e9), (56, 56)),  # 1.5 and 2.5 round to even: 2 and 2
        ((720, 1280), (100_352, 602_112), (560, 1008)),
        ((422, 236), (100_352, 602_112), (448, 252)),
        ((5, 8), (3136, 12_845_056), (56, 84)),
        ((10, 900), (1, 5000), (28, 644)),  # never thinner than one cell
    ],
)
def test_smart_resize(size, limits, expected):
    assert smart_resize(*size, *limits, factor=28) == expected


def test_smart_resize_equals_the_reference():
    pytest.importorskip("torch")
    reference = pytest.importorskip(
        "transformers.models.qwen2_vl.image_processing_pil_qwen2_vl"
    ).smart_resize
    random = np.random.default_rng(0)
    for height, width in random.integers(28, 3000, (500, 2)).tolist():
        if max(height, width) < 200 * min(height, width):
            expected = reference(height, width, factor=28, min_pixels=100_352, max_pixels=602_112)
            assert smart_resize(height, width, 100_352, 602_112, 28) == tuple(expected)


def test_extreme_frames_are_refused():
    smart_resize(20, 4000, 1, 1e9, 28)
    with pytest.raises(UserError, match="4001x20.*200:1"):
        smart_resize(20, 4001, 1, 1e9, 28)
    with pytest.raises(UserError, match="0x20.*empty"):
        smart_resize(20, 0, 1, 1e9, 28)


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
