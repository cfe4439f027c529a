"""The sound of a clip: the reference's samples, on the picture's clock."""

import re
import struct
import wave

import av
import numpy as np
import pytest
import timed
from clips import write_clip

from ugc_jax.errors import UserError
from ugc_jax.media import clip as media
from ugc_jax.media import sound
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


# ---- sound that is not all there -----------------------------------------------------------------

CLICKS = [0.5, 1.5, 5.5, 6.5]
GAPS = {
    "mp4": ("libx264", "aac"),
    "mkv": ("libx264", "libmp3lame"),
    "webm": ("libvpx", "libopus"),
    "ts": ("libx264", "ac3"),
    "flv": ("libx264", "aac"),
    "m4a": (None, "aac"),
    "ogg": (None, "libopus"),
}


def heard(clip, expected, within=0.02):
    found = timed.onsets(clip.waveform)
    assert len(found) == len(expected), found
    assert np.abs(np.array(found) - expected).max() <= within, found


@pytest.mark.parametrize("suffix", GAPS)
def test_gap_is_silent(tmp_path, suffix):
    codecs = GAPS[suffix]
    path = timed.write(
        tmp_path / f"gap.{suffix}",
        timed.tenths(7) if codecs[0] else None,
        timed.clicks(CLICKS, 7),
        codecs=codecs,
        keep=lambda time: not 2 <= time < 5,
        form="mp4" if suffix == "m4a" else None,
    )
    clip = timed.read(path)
    heard(clip, CLICKS)
    assert not clip.waveform[round(2.2 * 16_000) : round(4.9 * 16_000)].any()
    (note,) = clip.notes
    assert re.fullmatch(r"(2.9|3.0)\d s of the sound are missing in the file or .*", note)
    part = timed.read(path, start=5.0, end=7.0)
    heard(part, [0.5, 1.5])
    assert part.notes == []
    if codecs[0]:
        inside = timed.read(path, start=2.5, end=4.5)
        assert inside.waveform is None
        assert inside.notes == ["2.00 s of the sound are missing in the file or do not decode"]


def test_scattered_losses(tmp_path):
    """Each lost packet of 21 ms is made up for at once."""
    random = np.random.default_rng(0)

    def keep(time):
        return (
            random.random() > 0.1 or time < 0.1 or min(abs(time - click) for click in CLICKS) < 0.05
        )

    path = timed.write(tmp_path / "a.mp4", timed.tenths(7), timed.clicks(CLICKS, 7), keep=keep)
    clip = timed.read(path)
    heard(clip, CLICKS)
    assert "s of the sound are missing" in clip.notes[0]


@pytest.mark.parametrize("jitter", [0.015, 0.05])
def test_jitter_of_time_stamps_is_no_gap(tmp_path, jitter):
    """Recorders stamp packets of sound when they get them: now late, now in time."""
    random, wave = np.random.default_rng(0), timed.clicks(CLICKS, 7)
    last = -1.0

    def move(time):
        nonlocal last
        last = max(last + 0.001, time + random.choice([0, 0, jitter]))
        return last

    options = dict(codecs=(None, "pcm_s16le"), form="matroska")
    plain = timed.read(timed.write(tmp_path / "plain.mka", None, wave, **options))
    moved = timed.read(timed.write(tmp_path / "moved.mka", None, wave, move=move, **options))
    np.testing.assert_array_equal(plain.waveform, moved.waveform)
    assert moved.notes == []


@pytest.mark.parametrize(
    ("damaged", "clicks", "note"),
    [
        ((2, 5), CLICKS, r"3.0\d s of the sound are missing"),
        ((2, 9), [0.5, 1.5], r"(4.9|5.0)\d s of the sound are missing"),
        ((0, 2), [5.5, 6.5], r"(1.9|2.0)\d s of the sound are missing"),
        ((-1, 9), None, "the sound does not decode; the clip is silent"),
    ],
)
def test_damaged_packets(tmp_path, damaged, clicks, note):
    path = timed.write(tmp_path / "a.mp4", timed.tenths(7), timed.clicks(CLICKS, 7))
    with av.open(str(path)) as file:
        packets = [p for p in file.demux(audio=0) if p.size]
        packets = [(float(p.pts * p.time_base), p.pos, p.size) for p in packets]
    content = bytearray(path.read_bytes())
    for time, place, size in packets:
        if damaged[0] <= time < damaged[1]:
            content[place : place + size] = b"\xff" * size
    path.write_bytes(content)
    clip = timed.read(path)
    assert re.match(note, clip.notes[0])
    assert len(clip.notes) == 1
    if clicks:
        heard(clip, clicks)
    else:
        assert clip.waveform is None
        with pytest.raises(UserError, match="a.mp4: the sound does not decode"):
            timed.read(path, require_sound=True)
        assert timed.read(path, require_sound=True, audio=False).waveform is None


# ---- channels, formats ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "codec", "layout"),
    [
        ("a.mp4", "aac", "7.1"),
        ("a.mp4", "aac", "octagonal"),
        ("a.m4a", "aac", "hexadecagonal"),
        ("a.mkv", "libopus", "7.1"),
        ("a.mkv", "flac", "7.1(wide)"),
        ("a.mkv", "wavpack", "22.2"),
        ("a.mkv", "pcm_f32le", "ambisonic 2"),
        ("a.mkv", "pcm_s24le", "5.1.4"),
        ("a.flac", "flac", "7.1"),
        ("a.wav", "pcm_s16le", "7.1"),
    ],
)
def test_many_channels(tmp_path, name, codec, layout):
    count = av.AudioLayout(layout).nb_channels
    wave = timed.clicks([0.5, 1.5], 2, channels=count)
    path = timed.write(
        tmp_path / name,
        timed.tenths(2) if name in ("a.mp4", "a.mkv") else None,
        wave,
        codecs=("libx264", codec),
        layout=layout,
        form="mp4" if name == "a.m4a" else None,
    )
    clip = timed.read(path)
    heard(clip, [0.5, 1.5])
    if "pcm" in codec:  # equal channels: their mean is each of them
        mono = timed.write(tmp_path / "b.wav", None, wave[:1], codecs=(None, "pcm_s16le"))
        np.testing.assert_allclose(clip.waveform, timed.read(mono).waveform, atol=1e-4)


@pytest.mark.parametrize("channels", [2, 7, 8, 9, 64, 65, 255])
@pytest.mark.parametrize("kind", ["u1", "<i2", "<i4", "<f4", "<f8"])
def test_channels_without_a_layout(tmp_path, channels, kind):
    dtype = np.dtype(kind)
    values = np.random.default_rng(0).integers(-99, 99, (4000, channels)) * 256
    samples = {
        "u": lambda: (values // 256 + 128).astype(kind),
        "i": lambda: (values << 8 * (dtype.itemsize - 2)).astype(kind),
        "f": lambda: (values / 32768).astype(kind),
    }[dtype.kind]()
    width = channels * dtype.itemsize
    form = 3 if dtype.kind == "f" else 1
    head = struct.pack(
        "<4sIHHIIHH", b"fmt ", 16, form, channels, 16_000, 16_000 * width, width, 8 * dtype.itemsize
    )
    data = b"WAVE" + head + struct.pack("<4sI", b"data", samples.nbytes) + samples.tobytes()
    path = tmp_path / "a.wav"
    path.write_bytes(struct.pack("<4sI", b"RIFF", len(data)) + data)
    expected = values.astype(np.float32).mean(axis=1) / 32768
    np.testing.assert_allclose(timed.read(path).waveform, expected, atol=1e-7)


FORMS = (("stereo", 48_000), ("mono", 44_100), ("5.1", 32_000))


def parts(folder, suffix, codec, shift=0.0, pictures=None, **options):
    for number, (layout, rate) in enumerate(FORMS):
        count = av.AudioLayout(layout).nb_channels
        yield timed.write(
            folder / f"{number}.{suffix}",
            pictures,
            timed.clicks([0.5, 1.5], 2, rate, count),
            codecs=("libx264", codec),
            layout=layout,
            rate=rate,
            shift=number * shift,
            **options,
        )


@pytest.mark.parametrize("shift", [2.0, 0.0])
@pytest.mark.parametrize("codec", ["aac", "ac3"])
def test_rate_and_layout_change(tmp_path, codec, shift):
    """Of joined transport streams, whose clock goes on, or starts again."""
    files = parts(tmp_path, "ts", codec, shift, timed.tenths(2))
    clip = timed.read(timed.join(tmp_path / "joined.ts", *files), fps=10.0)
    heard(clip, [0.5, 1.5, 2.5, 3.5, 4.5, 5.5], 0.03)
    assert len(clip.waveform) == pytest.approx(6 * 16_000, abs=1600)
    jumped = ["the file's clock jumps 2 times; its parts are joined"]
    assert clip.notes == ([] if shift else jumped)


@pytest.mark.parametrize(("suffix", "codec"), [("aac", "aac"), ("ac3", "ac3")])
def test_joined_sound_files(tmp_path, suffix, codec):
    """Each part brings its codec's delay along."""
    form = "adts" if suffix == "aac" else None
    files = parts(tmp_path, suffix, codec, form=form)
    clip = timed.read(timed.join(tmp_path / f"joined.{suffix}", *files))
    heard(clip, [0.5, 1.5, 2.5, 3.5, 4.5, 5.5], 0.13)
    found = timed.onsets(clip.waveform)
    np.testing.assert_allclose(np.diff(found)[::2], 1.0, atol=2e-3)


def test_a_piece_that_is_years_away_takes_no_memory():
    """Of damaged time stamps, at a change of the rate."""
    tone = np.ones(8000, np.float32)
    pieces = [sound._Piece(0.0, 16_000, tone), sound._Piece(1e9, 8_000, tone)]
    joined = sound._join(pieces, [0.0, 1e9], 0.0, 301.0)
    np.testing.assert_array_equal(joined, tone)
    assert len(sound._join(pieces, [0.0, 2.0], 0.0, 301.0)) == 48_000
