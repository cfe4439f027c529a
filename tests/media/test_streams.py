"""Files through FFmpeg: the right pictures, upright; the right sound; nothing decoded in vain."""

import subprocess
import sys
import wave
from fractions import Fraction

import av
import numpy as np
import pytest
from clips import write_clip
from PIL import Image

from ugc_jax.errors import EnvironmentFailure, UnreadableFile, UserError
from ugc_jax.media import clip as media
from ugc_jax.media import streams
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


# ---- decoding ------------------------------------------------------------------------------------


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
    assert streams._display_size(frame, None, 0) == (720, 576)
    assert streams._display_size(frame, Fraction(64, 45), 0) == (1024, 576)
    assert streams._display_size(frame, Fraction(64, 45), 90) == (576, 1024)
    assert streams._display_size(frame, Fraction(1215, 1216), 0) == (720, 576)


def test_name_that_looks_like_an_address(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_clip(tmp_path / "plain.mp4", seconds=0.2)
    (tmp_path / "plain.mp4").rename("http:%d.mp4")
    assert read_clip("http:%d.mp4", SMALL).source.frames == 5


def test_only_the_needed_packets_are_decoded(tmp_path, monkeypatch):
    write_clip(tmp_path / "clip.mp4", seconds=12, key_every=25, size=(112, 112), audio=False)
    decoded = []
    decode = streams._decode
    monkeypatch.setattr(
        streams, "_decode", lambda stream, packet: decoded.append(packet) or decode(stream, packet)
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
    chosen = [0, 1, 2, 3, 5, 6, 7, 8]
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


def test_damaged_middle_is_bridged(tmp_path, caplog):
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
    assert "4 selected pictures do not decode" in caplog.text
    np.testing.assert_array_equal(clip.frames[51], clip.frames[47])


# ---- the machine is to blame, not the file -------------------------------------------------------


def test_no_handles(tmp_path, no_handles):
    write_clip(tmp_path / "clip.mp4", seconds=1)
    source = media.probe(tmp_path / "clip.mp4")
    with no_handles():
        for read in (
            lambda: media.probe(tmp_path / "clip.mp4"),
            lambda: streams.scan(tmp_path / "clip.mp4"),
            lambda: media.read_clip(source, resolve(SMALL), NO_LIMIT, GEOMETRY),
            lambda: streams.read_sound(source, 0.0, None, 9.0),
        ):
            with pytest.raises(EnvironmentFailure, match="^too many open files; raise the limit"):
                read()


LOW_MEMORY = """
import resource, sys
from ugc_jax.data.features import log_mel
from ugc_jax.errors import EnvironmentFailure, environment_failure
from ugc_jax.media.clip import probe, read_clip
from ugc_jax.media.presets import ClipSettings, resolve
from ugc_jax.models.qwen2_5_omni.config import GEOMETRY

def read(path):
    read_clip(probe(path), resolve(ClipSettings(frames=4)), 1 << 30, GEOMETRY)

for path in sys.argv[1:]:
    read(path)  # all libraries are loaded now
pages = int(open("/proc/self/statm").read().split()[0])
for mebibytes in (0, 2, 8, 16):
    limit = pages * resource.getpagesize() + (mebibytes << 20)
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
    for path in sys.argv[1:]:
        try:
            read(path)
        except Exception as error:
            failure = environment_failure(error)
            print(failure if failure is not None else repr(error))
        else:
            print("read")
"""


def test_no_memory(tmp_path):
    """FFmpeg calls the pictures damaged then, and tells of no error."""
    write_clip(tmp_path / "clip.mp4", seconds=0.5, size=(1280, 720))
    Image.effect_noise((3000, 3000), 50).save(tmp_path / "a.jpg")
    done = subprocess.run(
        [sys.executable, "-c", LOW_MEMORY, tmp_path / "clip.mp4", tmp_path / "a.jpg"],
        capture_output=True,
        text=True,
        check=True,
    )
    lines = done.stdout.splitlines()
    assert len(lines) == 8
    no_stack = "no thread or process can be started"
    assert {line.split(";")[0] for line in lines} <= {"out of memory", no_stack, "read"}
    assert any(line.startswith("out of memory; free memory or lower workers") for line in lines)
    assert lines[0] != "read"


@pytest.mark.parametrize("box", [b"stts", b"stsd"])
def test_a_header_for_which_no_machine_has_the_memory(tmp_path, box):
    """FFmpeg finds no memory for it, which is the fault of the file."""
    path = tmp_path / "clip.mp4"
    write_clip(path, seconds=1)
    content = bytearray(path.read_bytes())
    place = content.index(box) + (8 if box == b"stts" else 12)
    content[place : place + 4] = (0x1FFF_FFFF).to_bytes(4, "big")
    path.write_bytes(content)
    with pytest.raises(av.error.MemoryError):
        av.open(str(path))
    with pytest.raises(
        UserError, match="clip.mp4: not readable .*Cannot allocate memory"
    ) as caught:
        media.probe(path)
    assert not isinstance(caught.value, UnreadableFile)


def test_a_file_that_the_system_refuses_is_not_known_to_be_broken(tmp_path, monkeypatch):
    with pytest.raises(UnreadableFile, match="no such file"):
        media.probe(tmp_path / "a.mp4")
    write_clip(tmp_path / "a.mp4", seconds=1)

    def refuse(*_, **__):
        raise av.error.PermissionError(13, "Permission denied")

    monkeypatch.setattr(av, "open", refuse)
    with pytest.raises(UnreadableFile, match=r"a.mp4: not readable .*\(Permission denied\)"):
        media.probe(tmp_path / "a.mp4")


# ---- sound ---------------------------------------------------------------------------------------


def test_sound_equals_the_reference_recipe(tmp_path):
    librosa = pytest.importorskip("librosa")
    write_clip(tmp_path / "clip.mp4")
    with av.open(str(tmp_path / "clip.mp4")) as container:
        native = np.concatenate([frame.to_ndarray()[0] for frame in container.decode(audio=0)])
    native = np.clip(np.rint(native * 32768), -32768, 32767).astype(np.float32) / 32768
    expected = librosa.resample(native, orig_sr=44_100, target_sr=16_000, res_type="soxr_hq")
    waveform = read_clip(tmp_path / "clip.mp4", SMALL).waveform
    assert waveform.dtype == np.float32
    np.testing.assert_allclose(waveform, expected, atol=1e-6)


def write_wav(path, samples, rate=16_000):
    """int16[n, channels]"""
    with wave.open(str(path), "wb") as file:
        file.setnchannels(samples.shape[1])
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(samples.astype("<i2").tobytes())


def ramp(seconds):
    """int16[n, 2] that tells where a sample came from; the channels' mean is sample / 8."""
    place = np.arange(round(seconds * 16_000)) // 8
    return np.stack([place + 100, place - 100], axis=1)


def test_sound_file(tmp_path):
    write_wav(tmp_path / "a.wav", ramp(2.0))
    clip = read_clip(tmp_path / "a.wav", ClipSettings())
    assert (clip.source.kind, clip.frames, clip.sample_fps) == ("audio", None, 0.0)
    assert clip.source.seconds == pytest.approx(2.0)
    np.testing.assert_array_equal(clip.waveform, ramp(2.0).mean(axis=1).astype(np.float32) / 32768)


@pytest.mark.parametrize(
    ("settings", "first", "last"),
    [
        (dict(start=0.5), 8000, 32_000),
        (dict(end=0.5), 0, 8000),
        (dict(start=0.25, end=1.25), 4000, 20_000),
        (dict(start=1.0, end=9.0), 16_000, 32_000),
        (dict(max_audio_seconds=0.5), 0, 8000),
        (dict(start=1.0, max_audio_seconds=0.25), 16_000, 20_000),
    ],
)
def test_sound_is_cut(tmp_path, settings, first, last):
    write_wav(tmp_path / "a.wav", ramp(2.0))
    waveform = read_clip(tmp_path / "a.wav", ClipSettings(**settings)).waveform
    expected = ramp(2.0).mean(axis=1)[first:last].astype(np.float32) / 32768
    np.testing.assert_array_equal(waveform, expected)


def test_sound_is_cut_with_the_picture(tmp_path):
    write_clip(tmp_path / "clip.mp4")
    whole = read_clip(tmp_path / "clip.mp4", SMALL).waveform
    part = read_clip(tmp_path / "clip.mp4", ClipSettings(start=1.0, end=2.5, frames=2)).waveform
    assert len(part) == 24_000
    np.testing.assert_allclose(part[100:-100], whole[16_100:39_900], atol=1e-3)


@pytest.mark.parametrize("late", [0.5, 1.5])
def test_sound_is_aligned_to_a_late_picture(tmp_path, late):
    """The picture starts `late` seconds into the file: the sound before it is dropped."""
    write_clip(tmp_path / "late.mp4", times=[late + frame / 25 for frame in range(50)])
    write_clip(tmp_path / "plain.mp4", seconds=late + 2.0)
    sound = read_clip(tmp_path / "late.mp4", SMALL).waveform
    plain = read_clip(tmp_path / "plain.mp4", SMALL).waveform
    length = min(len(sound), len(plain) - round(late * 16_000))
    assert length > 1.9 * 16_000
    np.testing.assert_allclose(
        sound[100 : length - 800], plain[round(late * 16_000) :][100 : length - 800], atol=2e-2
    )


def test_sound_that_starts_after_the_picture_is_padded(tmp_path):
    path = tmp_path / "clip.mkv"
    write_clip(tmp_path / "plain.mp4", seconds=2)
    with av.open(str(tmp_path / "plain.mp4")) as before, av.open(str(path), "w") as after:
        streams = {
            stream.index: after.add_stream_from_template(stream) for stream in before.streams
        }
        for packet in before.demux():
            if packet.size:
                if packet.stream.type == "audio":
                    packet.pts += 44_100
                    packet.dts += 44_100
                packet.stream = streams[packet.stream.index]
                after.mux(packet)
    waveform = read_clip(path, SMALL).waveform
    assert len(waveform) == pytest.approx(3.0 * 16_000, abs=1600)
    assert np.abs(waveform[:15_000]).max() < 1e-3 < np.abs(waveform[17_000:20_000]).max()


@pytest.mark.parametrize("audio", [False, 0.0])
def test_no_sound(tmp_path, audio):
    write_clip(tmp_path / "clip.mp4", audio=audio)
    clip = read_clip(tmp_path / "clip.mp4", SMALL)
    assert clip.waveform is None
    assert not clip.source.has_audio


def test_sound_that_ends_before_start(tmp_path):
    write_clip(tmp_path / "clip.mp4", audio=1.0)
    assert read_clip(tmp_path / "clip.mp4", ClipSettings(start=2.0)).waveform is None
    assert read_clip(tmp_path / "clip.mp4", ClipSettings(audio=False)).waveform is None
