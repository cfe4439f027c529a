"""Selected pictures: the right ones, upright; nothing decoded in vain."""

from fractions import Fraction

import av
import numpy as np
import pytest
from clips import write_clip

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
