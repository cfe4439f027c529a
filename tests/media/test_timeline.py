"""The clip's clock: jumps, variable rates, early and late streams, tracks without a decoder."""

import av
import numpy as np
import pytest
import timed
from timed import clicks, join, onsets, read, seen, tenths, write

from ugc_jax.errors import UserError
from ugc_jax.media.clip import plan_frames
from ugc_jax.media.presets import ClipSettings, resolve
from ugc_jax.media.timeline import Index, Source, not_by_number, scan, shown, uniform
from ugc_jax.models.qwen2_5_omni.config import GEOMETRY

JOINED = "the file's clock jumps {}; its parts are joined"


def agrees(clip, expected, within=0.05):
    """The sound clicks at `expected`."""
    found = onsets(clip.waveform)
    assert len(found) == len(expected), found
    assert np.abs(np.array(found) - expected).max() <= within, found


# ---- jumps of the clock --------------------------------------------------------------------------


def part(path, seconds=2.0, sound=2.0, **options):
    wave = clicks([0.5, 1.5], sound) if sound else None
    return write(path, tenths(seconds), wave, **options)


@pytest.mark.parametrize("suffix", ["ts", "mkv", "webm"])
def test_clock_that_starts_again(tmp_path, suffix):
    codecs = ("libvpx", "libopus") if suffix == "webm" else ("libx264", "aac")
    whole = part(tmp_path / f"a.{suffix}", codecs=codecs)
    clip = read(join(tmp_path / f"twice.{suffix}", whole, whole), fps=10.0)
    assert (clip.source.frames, clip.notes) == (40, [JOINED.format("once")])
    assert clip.source.audio_seconds == pytest.approx(4.0, abs=0.05)
    agrees(clip, [0.5, 1.5, 2.5, 3.5])
    np.testing.assert_allclose(seen(clip), np.tile(tenths(2), 2), atol=0.005)
    later = read(tmp_path / f"twice.{suffix}", start=2.0, end=3.5, frames=4)
    agrees(later, [0.5], within=0.06)
    np.testing.assert_allclose(seen(later), [0.0, 0.5, 1.0, 1.5], atol=0.11)


def test_clock_that_starts_again_twice(tmp_path):
    whole = part(tmp_path / "a.ts")
    clip = read(join(tmp_path / "thrice.ts", whole, whole, whole), fps=10.0)
    assert (clip.source.frames, clip.notes) == (60, [JOINED.format("2 times")])
    agrees(clip, [0.5, 1.5, 2.5, 3.5, 4.5, 5.5])
    np.testing.assert_allclose(seen(clip), np.tile(tenths(2), 3), atol=0.005)


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        (dict(), dict(shift=1000.0), [0.5, 1.5, 2.5, 3.5]),
        (dict(shift=1000.0), dict(), [0.5, 1.5, 2.5, 3.5]),
        (dict(sound=3.0), dict(), [0.5, 1.5, 3.5, 4.5]),  # the longer stream counts
        (dict(sound=None), dict(), [2.5, 3.5]),
        (dict(), dict(sound=None), [0.5, 1.5]),
    ],
)
def test_joined_parts_that_differ(tmp_path, first, second, expected):
    files = part(tmp_path / "a.ts", **first), part(tmp_path / "b.ts", **second)
    clip = read(join(tmp_path / "joined.ts", *files), fps=10.0)
    assert clip.notes == [JOINED.format("once")]
    agrees(clip, expected, 0.06)
    length = 5 if first.get("sound") == 3.0 else 4
    assert clip.source.seconds == pytest.approx(length, abs=0.1)
    assert len(clip.frames) == pytest.approx(10 * length, abs=1)
    np.testing.assert_allclose(seen(clip)[-19:], tenths(2)[-19:], atol=0.11)


@pytest.mark.parametrize("suffix", ["ts", "mkv", "flv", "mp4"])
def test_clock_that_jumps_ahead(tmp_path, suffix):
    """No player shows 1,000 seconds of nothing."""
    path = write(
        tmp_path / f"a.{suffix}",
        tenths(4),
        clicks([0.5, 1.5, 2.5, 3.5], 4),
        move=lambda time: time + 1000 * (time >= 2),
    )
    clip = read(path, fps=10.0)
    assert clip.notes == [JOINED.format("once")]
    assert clip.source.seconds == pytest.approx(4.0, abs=0.05)
    assert clip.source.audio_seconds == pytest.approx(4.0, abs=0.05)
    agrees(clip, [0.5, 1.5, 2.5, 3.5], 0.025)
    np.testing.assert_allclose(seen(clip), tenths(4), atol=0.005)


@pytest.mark.parametrize("suffix", ["ts", "mkv"])
def test_jump_of_one_stream_is_a_gap(tmp_path, suffix):
    """12 seconds without sound, or without a new picture, while the other stream goes on."""
    for name, options in (
        ("sound", dict(keep=lambda time: not 2 <= time < 14)),
        ("picture", dict(pictures=[time for time in tenths(18) if not 2 <= time < 14])),
    ):
        options = {"pictures": tenths(18)} | options
        path = write(
            tmp_path / f"{name}.{suffix}", wave=clicks([0.5, 1.5, 14.5, 16.5], 18), **options
        )
        clip = read(path, fps=2.0)
        agrees(clip, [0.5, 1.5, 14.5, 16.5], 0.025)
        assert clip.source.seconds == pytest.approx(18.0, abs=0.3)
        times = np.arange(len(clip.frames)) / clip.sample_fps
        if name == "picture":
            times[(times > 1.9) & (times < 14)] = 1.9
            np.testing.assert_allclose(seen(clip), times, atol=0.11)
        assert JOINED.format("once") not in clip.notes


def test_clock_that_wraps(tmp_path):
    """The clock of a transport stream has 33 bits."""
    for number, seconds in enumerate((2.0, 5.0)):
        path = write(
            tmp_path / f"{number}.ts",
            tenths(6),
            clicks([0.5, 2.5, 4.5], 6),
            shift=2**33 / 90_000 - seconds,
        )
        clip = read(path, fps=10.0)
        agrees(clip, [0.5, 2.5, 4.5], 0.025)
        np.testing.assert_allclose(seen(clip), tenths(6), atol=0.005)


def test_stray_time_stamps(tmp_path):
    """A few packets with wild times stand between their neighbours."""
    for number, wild in enumerate((5000.0, 100.0)):
        path = write(
            tmp_path / f"{number}.ts",
            None,
            clicks([0.5, 1.5, 2.5, 3.5], 4),
            move=lambda time, wild=wild: wild + time if 1 <= time < 1.02 else time,
        )
        clip = read(path)
        agrees(clip, [0.5, 1.5, 2.5, 3.5], 0.025)
        assert clip.source.audio_seconds == pytest.approx(4.0, abs=0.1)


# ---- streams that begin early or late ------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts", "flv"])
def test_sound_before_the_picture_is_kept(tmp_path, suffix):
    path = write(
        tmp_path / f"a.{suffix}",
        tenths(4),
        clicks([0.5, 2.5, 5.5, 7.5], 9),
        shift=5.0,
        sound_shift=-5.0,
    )
    clip = read(path, fps=2.0)
    agrees(clip, [0.5, 2.5, 5.5, 7.5], 0.025)
    assert clip.notes == ["the sound begins 5.0 s before the picture; the first one is shown"]
    shown_at = np.arange(len(clip.frames)) / clip.sample_fps
    np.testing.assert_allclose(seen(clip), np.maximum(shown_at - 5, 0), atol=0.13)
    part = read(path, start=5.0, end=7.0, frames=4)
    agrees(part, [0.5], 0.025)
    np.testing.assert_allclose(seen(part), [0.0, 0.5, 1.0, 1.5], atol=0.11)


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts", "flv"])
def test_sound_that_begins_late(tmp_path, suffix):
    path = write(tmp_path / f"a.{suffix}", tenths(6), clicks([0.5, 1.5, 2.5], 3), sound_shift=3.0)
    agrees(read(path), [3.5, 4.5, 5.5], 0.025)


def test_stream_that_appears_late(tmp_path):
    """Past what FFmpeg reads to find streams: the sound is in the file's last two seconds."""
    noise = np.random.default_rng(0).integers(0, 255, (2, 6_000_000), np.uint8)
    silent = tmp_path / "silent.ts"
    with av.open(str(silent), "w") as out:
        video = out.add_stream("mpeg2video", rate=25)
        video.width, video.height, video.pix_fmt = 640, 480, "yuv420p"
        video.options = {"g": "5", "qmin": "1", "qmax": "1"}
        for number in range(50):
            plane = noise.reshape(-1)[number * 1000 :][: 640 * 480 * 3].reshape(480, 640, 3)
            frame = av.VideoFrame.from_ndarray(plane, format="rgb24")
            frame.pts = number
            out.mux(video.encode(frame))
        out.mux(video.encode(None))
    assert silent.stat().st_size > 6e6
    both = tmp_path / "both.ts"
    with av.open(str(both), "w") as out:
        video, audio = out.add_stream("mpeg2video", rate=25), out.add_stream("mp2", rate=48_000)
        video.width, video.height, video.pix_fmt, audio.layout = 640, 480, "yuv420p", "mono"
        packets = []
        for number in range(50):
            frame = av.VideoFrame(640, 480, "yuv420p")
            frame.pts = number + 50
            packets += video.encode(frame)
        packets += video.encode(None)
        wave = clicks([0.5, 1.5], 2)
        for place in range(0, wave.shape[1], 1152):
            piece = np.ascontiguousarray(wave[:, place : place + 1152] * 32767).astype(np.int16)
            frame = av.AudioFrame.from_ndarray(piece, format="s16", layout="mono")
            frame.rate, frame.pts = 48_000, place + 96_000
            packets += audio.encode(frame)
        packets += audio.encode(None)
        for packet in sorted(packets, key=lambda packet: packet.dts * packet.time_base):
            out.mux(packet)
    clip = read(join(tmp_path / "late.ts", silent, both), frames=2)
    agrees(clip, [2.5, 3.5])


# ---- variable rate -------------------------------------------------------------------------------

PHONE = [k / 30 for k in range(150)] + [5 + k / 15 for k in range(75)]
SCREEN = [k / 30 for k in range(90)] + [3.0 + k for k in range(7)]


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
@pytest.mark.parametrize("times", [PHONE, SCREEN])
@pytest.mark.parametrize(
    "settings",
    [
        dict(),
        dict(fps=4.0),
        dict(preset="upstream"),
        dict(start=5.0, end=7.0),
        dict(start=4.0, end=8.0, preset="upstream", frames=8),
    ],
)
def test_pictures_meet_their_sound(tmp_path, suffix, times, settings):
    """The k-th frame is on display k / sample_fps seconds after the first."""
    path = write(tmp_path / f"a.{suffix}", times, clicks([0.5, 2.5, 5.5, 8.5], 10))
    clip = read(path, **settings)
    start = settings.get("start", 0.0)
    instants = start + np.arange(len(clip.frames)) / clip.sample_fps
    np.testing.assert_allclose(seen(clip), clip.times, atol=0.007)
    after = np.array(
        [min([t for t in times if t > time + 0.002], default=99) for time in clip.times]
    )
    rounding = 0.002
    assert (clip.times <= instants + rounding).all()
    assert (after > instants - rounding).all()
    length = settings.get("end", clip.source.seconds) - start
    assert len(clip.frames) / clip.sample_fps == pytest.approx(length)
    if "frames" not in settings and "preset" not in settings:
        assert len(clip.frames) == int(length * settings.get("fps", 2.0)) // 2 * 2


def test_uniform():
    times = np.arange(100) / 25
    assert uniform(times)
    assert uniform(times + 100.0)
    assert uniform(np.round(times * 60, 3) / 60)
    assert uniform(np.round(np.arange(300) * 1001 / 30_000, 3))  # milliseconds
    assert uniform(times[:1])
    assert uniform(np.array([0.0, 5.0]))
    first_is_long = np.concatenate([[0.0], times[1:] + 0.02])
    assert uniform(first_is_long)
    missing = np.delete(times, [50, 51])
    assert not uniform(missing)
    assert not uniform(np.delete(np.arange(1000) / 25, [300, 700, 701]))
    assert not uniform(np.array(PHONE))
    assert not uniform(np.array(SCREEN))
    assert not uniform(np.array([0.0, 9.0, 40.0]))


def source(times, origin=None, fps=25.0):
    times = np.array(times, float)
    ticks = np.round(times * 1000).astype(np.int64)
    index = Index(ticks, np.ones(len(times), bool), ticks, times, True)
    origin = times[0] if origin is None else origin
    seconds = float(times[-1] - origin) + 1 / fps
    facts = len(times), seconds, 0, False, 0.0, index
    by_time = not_by_number(times, 1 / fps, fps)
    return Source("a.mp4", "video", 64, 64, fps, *facts, origin=origin, by_time=by_time)


def test_shown():
    clip = source([5.0, 6.0, 9.0])
    assert shown(clip, np.array([0.0, 0.5, 0.9995, 1.0, 3.9, 4.0, 99.0])).tolist() == [
        0, 0, 1, 1, 1, 2, 2,
    ]  # fmt: skip
    early = source([5.0, 6.0, 9.0], origin=0.0)
    assert shown(early, np.array([0.0, 5.5, 6.5, 9.5])).tolist() == [0, 0, 1, 2]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (dict(frames=6), [0, 1, 1, 1, 1, 2]),
        (dict(frames=32), [0, 1, 1, 1, 1, 2]),
        (dict(), [0, 1, 1, 1, 1, 2]),
        (dict(preset="upstream", frames=12), [0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 2, 2]),
        (dict(start=5.0, end=25.0), [0, 1]),
    ],
)
def test_few_pictures_are_not_repeated_in_vain(settings, expected):
    """At most as many frames as the picture would have at the rate of its shortest step."""
    clip = source([0, 10, 50], fps=0.1)
    plan = plan_frames(clip, resolve(ClipSettings(**settings)), GEOMETRY.vision)
    assert plan.indices.tolist() == expected
    length = settings.get("end", 60.0) - settings.get("start", 0.0)
    assert plan.sample_fps == pytest.approx(len(expected) / length)


# ---- tracks without a decoder --------------------------------------------------------------------


def without_decoder(path, sound=True, **replaced):
    """Write an mp4 and rename its codecs, as their boxes call them."""
    write(path, tenths(4), clicks([0.5, 1.5], 4) if sound else None)
    data = path.read_bytes()
    for old, new in replaced.items():
        place = data.index(old.encode(), data.index(b"stsd", data.rfind(b"moov")))
        data = data[:place] + new.encode() + data[place + 4 :]
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("sound", [True, False])
def test_picture_without_a_decoder_is_refused(tmp_path, sound):
    path = without_decoder(tmp_path / "a.mp4", sound, avc1="bvc2", avcC="bvcC")
    with pytest.raises(UserError, match=r"a.mp4: its picture has the codec bvc2, .* as H.264"):
        scan(path)


def test_sound_without_a_decoder_is_noted(tmp_path):
    path = without_decoder(tmp_path / "a.mp4", mp4a="apac", esds="dapa")
    clip = read(path)
    assert clip.notes == ["the sound (codec apac) has no decoder; the clip is silent"]
    assert (clip.waveform, len(clip.frames)) == (None, 8)
    assert read(path, audio=False).notes == ["the sound is left out (audio=false)"]
    with pytest.raises(UserError, match=r"a.mp4: the sound \(codec apac\) has no decoder"):
        read(path, require_sound=True)


def test_sound_file_without_a_decoder(tmp_path):
    path = write(tmp_path / "a.m4a", None, clicks([0.5], 2), form="mp4")
    path.write_bytes(path.read_bytes().replace(b"mp4a", b"apac").replace(b"esds", b"dapa"))
    with pytest.raises(UserError, match="a.m4a: its sound has the codec apac, .* no decoder"):
        scan(path)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (b"V_MPEG4/ISO/AVC", b"V_XPEG4/ISO/AVC", "its picture has the codec V_XPEG4/ISO/AVC,"),
        (b"A_AAC", b"A_XYZ", r"the sound \(codec A_XYZ\) has no decoder"),
    ],
)
def test_matroska_names_its_codecs(tmp_path, old, new, message):
    path = write(tmp_path / "a.mkv", tenths(2), clicks([0.5], 2))
    path.write_bytes(path.read_bytes().replace(old, new))
    with pytest.raises(UserError, match=message):
        read(path, require_sound=True)


def test_another_picture_is_shown_with_a_note(tmp_path):
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as out:
        streams = [out.add_stream("libx264", rate=10) for _ in range(2)]
        for stream in streams:
            stream.width, stream.height, stream.pix_fmt = 160, 120, "yuv420p"
        for time in range(10):
            for stream in streams:
                frame = av.VideoFrame.from_ndarray(timed.picture(time / 10), format="rgb24")
                frame.pts = time
                out.mux(stream.encode(frame))
        for stream in streams:
            out.mux(stream.encode(None))
    data = path.read_bytes()
    place = data.index(b"avc1", data.index(b"stsd"))
    path.write_bytes(data[:place] + b"bvc2" + data[place + 4 :])
    clip = read(path, fps=10.0)
    assert clip.notes[0] == "the main picture (codec bvc2) has no decoder; another one is shown"
    np.testing.assert_allclose(seen(clip), tenths(1), atol=0.005)


# ---- a last picture that stands, a picture that begins late --------------------------------------


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
@pytest.mark.parametrize("pictures", [[0.0], [0.0, 1.0], [0.0, 1.0, 4.0], tenths(3)])
def test_a_last_picture_that_stands(tmp_path, suffix, pictures):
    path = tmp_path / f"a.{suffix}"
    write(path, pictures, clicks([0.5, 7.5], 10.0), stand=10.0 - pictures[-1])
    clip = read(path, frames=10)
    assert clip.source.seconds == pytest.approx(10.0, abs=0.05)
    instants = np.arange(len(clip.frames)) * 10 / len(clip.frames)
    shown_then = [max(time for time in pictures if time <= second + 1e-3) for second in instants]
    np.testing.assert_allclose(seen(clip), shown_then, atol=0.005)
    agrees(clip, [0.5, 7.5])
    late = read(path, start=5.0, end=8.0, frames=4)
    np.testing.assert_allclose(seen(late), pictures[-1], atol=0.005)
    agrees(late, [2.5], within=0.06)


def test_a_last_picture_of_ordinary_length_changes_nothing(tmp_path):
    for stand in (0.1, 0.15):
        clip = read(write(tmp_path / "a.mp4", tenths(3), stand=stand), fps=2.0)
        np.testing.assert_allclose(seen(clip), [0.0, 0.6, 1.2, 1.7, 2.3, 2.9], atol=0.005)


def test_a_rate_that_the_header_rounds_changes_nothing(tmp_path):
    """At its 10 pictures a second, 600 would last 0.6 s longer; the last one stands no longer."""
    pictures = [round(0.099 * number, 3) for number in range(600)]
    clip = read(write(tmp_path / "a.mkv", pictures), frames=32)
    assert clip.source.fps == 10.0
    taken = np.rint(np.linspace(0, 599, 32)).astype(int)
    np.testing.assert_allclose(clip.times, np.array(pictures)[taken], atol=0.001)


def test_a_start_after_the_last_time_shows_the_last_picture(tmp_path):
    path = write(tmp_path / "a.mp4", tenths(3))
    np.testing.assert_allclose(seen(read(path, start=2.95, end=3.0)), 2.9, atol=0.005)
    with pytest.raises(UserError, match="no frame between start=3.0 and end=None"):
        read(path, start=3.0)


def test_sound_after_the_picture_is_noted(tmp_path):
    clip = read(write(tmp_path / "a.mp4", tenths(2), clicks([0.5, 4.5], 6.0)))
    assert [note for note in clip.notes if "before the sound" in note] == [
        "the picture ends 4.0 s before the sound"
    ]
    agrees(clip, [0.5, 4.5])


def test_a_picture_that_begins_long_after_the_sound(tmp_path):
    wave = clicks([0.5, 10.5], 14.0)
    clip = read(write(tmp_path / "a.ts", tenths(4), wave, shift=10.0, sound_shift=-10.0), fps=1.0)
    assert (clip.source.width, clip.source.height) == (160, 120)
    assert clip.source.seconds == pytest.approx(14.0, abs=0.6)
    agrees(clip, [0.5, 10.5], within=0.1)
