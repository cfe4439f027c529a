"""The sound of a clip: the reference's samples, on the picture's clock."""

import wave

import av
import numpy as np
import pytest
from clips import write_clip

from ugc_jax.media import clip as media
from ugc_jax.media.presets import ClipSettings, resolve
from ugc_jax.models.qwen2_5_omni.config import GEOMETRY

NO_LIMIT = 1 << 30  # tokens
SMALL = ClipSettings(min_pixels=1, max_pixels=100_000)


def read_clip(path, settings):
    return media.read_clip(media.probe(path), resolve(settings), NO_LIMIT, GEOMETRY)


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


@pytest.mark.parametrize(("late", "kept"), [(0.2, False), (0.5, True), (1.5, True)])
def test_sound_is_aligned_to_a_late_picture(tmp_path, late, kept):
    """The picture starts `late` seconds into the file: it stands still while only sound is heard.

    Sound too short for a picture of its own is dropped.
    """
    write_clip(tmp_path / "late.mp4", times=[late + frame / 25 for frame in range(50)])
    write_clip(tmp_path / "plain.mp4", seconds=late + 2.0)
    clip = read_clip(tmp_path / "late.mp4", ClipSettings(fps=10.0, max_pixels=10_000))
    plain = read_clip(tmp_path / "plain.mp4", SMALL).waveform
    dropped = 0 if kept else round(late * 16_000)
    length = min(len(clip.waveform), len(plain) - dropped)
    assert length > 1.9 * 16_000
    np.testing.assert_allclose(
        clip.waveform[100 : length - 800], plain[dropped:][100 : length - 800], atol=2e-2
    )
    still = int((clip.times < late + 0.01).sum())
    if kept:
        assert clip.notes == [
            f"the sound begins {late:.1f} s before the picture; the first one is shown"
        ]
        assert still == pytest.approx(late * 10, abs=1)
        shown = np.arange(len(clip.times)) / clip.sample_fps
        assert np.abs(np.maximum(shown, late) - clip.times)[: round(late * 10 + 18)].max() < 0.05
        assert (clip.frames[:still] == clip.frames[0]).all()
    else:
        assert clip.notes == ["0.20 s of sound before the first picture are left out"]
        assert still == 1


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
