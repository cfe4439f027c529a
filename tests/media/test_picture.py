"""Selected pictures: the right ones, upright; nothing decoded in vain."""

from fractions import Fraction
from types import SimpleNamespace

import av
import numpy as np
import pytest
from clips import write_clip
from encode import encode
from PIL import Image
from timed import UNKNOWN_LENGTH

from ugc_jax.media import clip as media
from ugc_jax.media import picture, timeline
from ugc_jax.media.clip import plan_frames, resize
from ugc_jax.media.presets import ClipSettings, resolve
from ugc_jax.models.qwen2_5_omni.config import GEOMETRY
from ugc_jax.toy.synthetic import Beeps, Scene, Shape, draw_scene

NO_LIMIT = 1 << 30  # tokens
SMALL = ClipSettings(min_pixels=1, max_pixels=100_000)


def read_clip(path, settings):
    return media.read_clip(media.probe(path), resolve(settings), NO_LIMIT, GEOMETRY)


def all_frames(path):
    """Every picture of a file, decoded from the first to the last."""
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


@pytest.mark.parametrize("key_every", [1, 7, 50])
@pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts", "avi", "h264"])
@pytest.mark.parametrize(
    "settings", [dict(frames=2), dict(frames=6), dict(fps=25.0), dict(start=2.0, end=3.0)]
)
def test_frames_equal_sequential_decoding(tmp_path, key_every, suffix, settings):
    path = tmp_path / f"clip.{suffix}"
    write_clip(path, size=(112, 112), key_every=key_every, audio=suffix != "h264")
    settings = ClipSettings(min_pixels=1, max_pixels=112 * 112, **settings)
    clip = read_clip(path, settings)
    plan = plan_frames(clip.source, resolve(settings), GEOMETRY.vision)
    everything = all_frames(path)
    assert len(everything) == clip.source.frames == 100
    np.testing.assert_array_equal(clip.frames, [everything[index] for index in plan.indices])
    times = clip.source.index.times
    coarse = suffix == "avi"  # it stores no presentation times
    np.testing.assert_allclose(times - times[0], np.arange(100) / 25, atol=0.04 if coarse else 1e-3)
    assert (clip.frames.dtype, times.dtype) == (np.uint8, np.float64)


def test_pixel_aspect_ratio():
    frame = av.VideoFrame(720, 576, "yuv420p")
    assert timeline.display_size(frame, None, 0) == (720, 576)
    assert timeline.display_size(frame, Fraction(64, 45), 0) == (1024, 576)
    assert timeline.display_size(frame, Fraction(64, 45), 90) == (576, 1024)
    assert timeline.display_size(frame, Fraction(1215, 1216), 0) == (720, 576)


def test_name_that_looks_like_an_address(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_clip(tmp_path / "plain.mp4", seconds=0.2)
    (tmp_path / "plain.mp4").rename("http:%d.mp4")
    assert read_clip("http:%d.mp4", SMALL).source.frames == 5


def test_only_the_needed_packets_are_decoded(tmp_path, monkeypatch):
    write_clip(tmp_path / "clip.mp4", seconds=12, key_every=25, size=(112, 112), audio=False)
    decoded = []
    decode = picture.decode
    monkeypatch.setattr(
        picture, "decode", lambda stream, packet: decoded.append(packet) or decode(stream, packet)
    )
    read_clip(tmp_path / "clip.mp4", ClipSettings(frames=2))
    assert len(decoded) < 80  # of 300


def test_variable_rate(tmp_path):
    times = [0.5, 0.6, 1, 2, 2.1, 2.2, 3, 5, 5.5]  # starts late, too
    write_clip(tmp_path / "clip.mp4", size=(112, 112), times=times)
    clip = read_clip(
        tmp_path / "clip.mp4", ClipSettings(frames=8, min_pixels=1, max_pixels=112 * 112)
    )
    everything = all_frames(tmp_path / "clip.mp4")
    # of the 5.6 s of sound and picture, those on display every 0.7 s
    chosen = [0, 1, 2, 4, 5, 6, 6, 6]
    np.testing.assert_array_equal(clip.frames, [everything[index] for index in chosen])
    np.testing.assert_allclose(clip.source.index.times, times, atol=1e-3)
    assert clip.source.fps == pytest.approx(1.6)


@pytest.mark.parametrize("rotation", [0, 90, 180, 270])
def test_rotation(tmp_path, rotation):
    """A red corner must come out where a player shows it."""
    scene = Scene(
        "purple", (Shape("square", "red", 0.5, (0.0, 0.0), (0.0, 0.0)),), Beeps(440, 2), seed=0
    )
    write_clip(
        tmp_path / "clip.mp4",
        seconds=1,
        size=(168, 112),
        rotation=rotation,
        scene=scene,
        audio=False,
    )
    clip = read_clip(tmp_path / "clip.mp4", SMALL)
    upright = np.rot90(draw_scene(scene, 0, (168, 112)), rotation // 90)
    assert clip.source.rotation == rotation
    assert (clip.source.height, clip.source.width) == upright.shape[:2]
    assert np.abs(clip.frames[0].astype(int) - upright).mean() < 6


def test_real_clips(shared_data):
    folder = shared_data / "videos"
    clip = read_clip(folder / "bigbuckbunny.mp4", ClipSettings(max_pixels=100_352))
    assert (clip.source.frames, clip.source.fps) == (132, 25)
    assert (clip.source.width, clip.source.height) == (1280, 720)
    assert len(clip.frames) == 10
    assert clip.sample_fps == pytest.approx(1.894, abs=1e-3)
    everything = all_frames(folder / "bigbuckbunny.mp4")
    np.testing.assert_array_equal(clip.frames[3], resize(everything[44], *clip.frames.shape[1:3]))
    assert len(clip.waveform) == pytest.approx(5.312 * 16_000, abs=1)
    silent = read_clip(folder / "bikes.mp4", SMALL)
    assert (silent.source.has_audio, silent.waveform) == (False, None)
    assert media.probe(folder / "testMovie.mp4").frames == 237


def test_one_frame_is_taken_twice(tmp_path):
    write_clip(tmp_path / "clip.mp4", seconds=0.04)
    clip = read_clip(tmp_path / "clip.mp4", SMALL)
    assert clip.source.frames == 1
    assert len(clip.frames) == 2
    np.testing.assert_array_equal(clip.frames[0], clip.frames[1])


def test_damaged_middle_is_bridged(tmp_path):
    path = tmp_path / "clip.mp4"
    write_clip(path, size=(112, 112), key_every=1, audio=False)
    with av.open(str(path)) as container:
        packets = [(p.pos, p.size) for p in container.demux(video=0) if p.size]
    content = bytearray(path.read_bytes())
    for position, size in packets[48:52]:
        content[position : position + size] = b"\0" * size
    path.write_bytes(content)
    clip = read_clip(path, ClipSettings(fps=25.0, min_pixels=1, max_pixels=112 * 112))
    assert len(clip.frames) == 100
    assert "4 pictures do not decode; the ones before them are taken" in clip.notes
    np.testing.assert_array_equal(clip.frames[51], clip.frames[47])


# ---- pictures that nothing wanted depends on -----------------------------------------------------


def moving(count=60, size=(112, 112)):
    """Pictures of a panning texture with noise, so that codecs use B-frames and references."""
    random = np.random.default_rng(0)
    small = random.integers(0, 256, (size[0] // 8, size[1] // 8 + 40, 3), np.uint8)
    wide = np.asarray(Image.fromarray(small).resize((size[1] + 320, size[0]), Image.BICUBIC))
    noise = random.integers(0, 20, (count, *size, 1), np.uint8)
    return [np.maximum(wide[:, 3 * k : 3 * k + size[1]], noise[k]) for k in range(count)]


X264 = {"bf": "3", "g": "30", "qp": "24"}


@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [
        ("a.mp4", "libx264", X264),
        ("a.ts", "libx264", X264 | {"x264-params": "b-pyramid=strict"}),
        ("a.mkv", "libx264", X264 | {"x264-params": "open-gop=1"}),
        ("a.mp4", "libx264", X264 | {"x264-params": "tff=1"}),
        ("a.mp4", "mpeg4", {"bf": "2", "g": "12", "b": "900k"}),
        ("a.ts", "mpeg2video", {"bf": "2", "g": "12", "b": "2M"}),
        ("a.mpg", "mpeg1video", {"bf": "2", "g": "12", "b": "2M"}),
        ("a.mp4", "libx265", {"x265-params": "log-level=none:bframes=4:keyint=30"}),
        ("a.ts", "libx265", {"x265-params": "log-level=none:bframes=4:keyint=30"}),
        ("a.mp4", "libx265", {"x265-params": "log-level=none:bframes=7:temporal-layers=3"}),
        ("a.webm", "libvpx-vp9", {"b": "500k", "g": "30", "auto-alt-ref": "1"}),
        ("a.mp4", "libsvtav1", {"crf": "35", "g": "30", "svtav1-params": "lp=1"}),
    ],
)
@pytest.mark.parametrize("frames", [4, 14])
def test_leaving_out_pictures_changes_no_other(tmp_path, name, codec, options, frames):
    path = tmp_path / name
    encode(path, moving(), codec, options=options, fps=25)
    settings = ClipSettings(frames=frames, min_pixels=1, max_pixels=112 * 112)
    clip = read_clip(path, settings)
    plan = plan_frames(clip.source, resolve(settings), GEOMETRY.vision)
    everything = all_frames(path)
    assert len(everything) == clip.source.frames == 60
    np.testing.assert_array_equal(clip.frames, [everything[index] for index in plan.indices])


@pytest.mark.parametrize("codec", ["libx264", "libx265"])
def test_pictures_without_dependents_are_not_decoded(tmp_path, monkeypatch, codec):
    options = X264 if codec == "libx264" else {"x265-params": "log-level=none:bframes=4"}
    encode(tmp_path / "a.mp4", moving(), codec, options=options, fps=25)
    returned, decode = [], picture.decode
    monkeypatch.setattr(
        picture, "decode", lambda *one: returned.extend(frames := decode(*one)) or frames
    )
    read_clip(tmp_path / "a.mp4", ClipSettings(frames=2))
    assert 2 <= len(returned) < 45  # of 60


# ---- size and shape within a file ----------------------------------------------------------------


def disc(height, width, stretch=1.0):
    """A white disc of 60 pixels across on black, `stretch` times as wide."""
    rows, columns = np.mgrid[:height, :width]
    inside = (rows - height / 2) ** 2 + ((columns - width / 2) / stretch) ** 2 < 30**2
    return np.repeat(inside[..., None], 3, 2).astype(np.uint8) * 235


def extent(frame):
    """(height, width) of what is bright."""
    bright = frame.mean(-1) > 120
    return bright.any(1).sum(), bright.any(0).sum()


def join(path, parts, codec="libx264", form="mpegts"):
    """Write parts (picture, pixel aspect ratio) of 10 equal pictures each as one stream."""
    with av.open(str(path), "w", format=form) as container:
        stream = container.add_stream(codec, rate=10)
        stream.height, stream.width, stream.pix_fmt = *parts[0][0].shape[:2], "yuv420p"
        stream.codec_context.time_base = Fraction(1, 10)
        for number, (page, aspect) in enumerate(parts):
            context = av.CodecContext.create(codec, "w")
            context.height, context.width, context.pix_fmt = *page.shape[:2], "yuv420p"
            context.time_base = Fraction(1, 10)
            context.sample_aspect_ratio = aspect
            context.options = {"bf": "0", "qp": "20"} if codec == "libx264" else {"b": "300k"}
            packets = []
            for k in range(10):
                frame = av.VideoFrame.from_ndarray(page, format="rgb24")
                frame.pts, frame.time_base = 10 * number + k, Fraction(1, 10)
                packets += context.encode(frame)
            for packet in packets + context.encode(None):
                packet.stream, packet.time_base = stream, Fraction(1, 10)
                container.mux(packet)


CHANGE = "the picture's shape changes; it is fitted into the first one's"


@pytest.mark.parametrize("swap", [False, True])
@pytest.mark.parametrize(
    ("name", "codec", "form"),
    [("a.webm", "libvpx", "webm"), ("a.ts", "libx264", "mpegts"), ("a.mkv", "libx264", "matroska")],
)
@pytest.mark.parametrize("preset", ["qwen", "upstream"])
def test_a_changing_size_keeps_its_shape(tmp_path, name, codec, form, swap, preset):
    parts = [(disc(120, 160), Fraction(1)), (disc(160, 120), Fraction(1))]
    join(tmp_path / name, parts[::-1] if swap else parts, codec, form)
    clip = read_clip(tmp_path / name, ClipSettings(preset=preset, frames=8))
    assert CHANGE in clip.notes
    for frame in (clip.frames[0], clip.frames[-1]):
        height, width = extent(frame)
        assert abs(height / width - 1) < 0.12
    last = clip.frames[-1]
    edge = last[: last.shape[0] // 8] if swap else last[:, : last.shape[1] // 8]
    assert edge.max() < 10


def test_a_new_size_of_the_same_shape_fills_the_picture(tmp_path):
    large = np.repeat(np.repeat(disc(120, 160), 2, 0), 2, 1)
    join(tmp_path / "a.ts", [(disc(120, 160), Fraction(1)), (large, Fraction(1))])
    clip = read_clip(tmp_path / "a.ts", SMALL)
    assert clip.notes == [UNKNOWN_LENGTH, "no sound in the file"]
    assert extent(clip.frames[0]) == pytest.approx(extent(clip.frames[-1]), abs=4)


def test_a_changing_pixel_aspect_keeps_its_shape(tmp_path):
    """As television does between 4:3 and 16:9, at one size in pixels."""
    square, wide = disc(120, 160), disc(120, 160, 3 / 4)
    join(tmp_path / "a.ts", [(square, Fraction(1)), (wide, Fraction(4, 3))])
    clip = read_clip(tmp_path / "a.ts", ClipSettings(frames=8))
    assert CHANGE in clip.notes
    for frame in (clip.frames[0], clip.frames[-1]):
        height, width = extent(frame)
        assert abs(height / width - 1) < 0.12


def test_fit():
    source = SimpleNamespace(width=160, height=120)
    assert picture.fit(source, (160, 120), (280, 392)) == (280, 392)
    assert picture.fit(source, (320, 240), (280, 392)) == (280, 392)
    assert picture.fit(source, (120, 160), (280, 392)) == (280, 220)
    assert picture.fit(source, (320, 120), (280, 392)) == (140, 392)
    assert picture.fit(source, (1, 9000), (280, 392)) == (280, 1)


def test_a_damaged_picture_has_a_note(tmp_path):
    path = tmp_path / "a.h264"
    encode(path, moving(30), options={"bf": "0", "g": "30", "qp": "20"})
    content = bytearray(path.read_bytes())
    for place in range(len(content) // 3, len(content) // 2, 97):
        content[place] ^= 0x55
    path.write_bytes(content)
    notes = read_clip(path, ClipSettings(frames=30)).notes
    assert any("damaged" in note or "do not decode" in note for note in notes)
