"""Files that cannot be opened, or are cut off: the machine is to blame, or the file."""

import struct
import subprocess
import sys
from types import SimpleNamespace

import av
import numpy as np
import pytest
import timed
from clips import write_clip
from PIL import Image
from timed import boxes, clicks, read, tenths, write

from ugc_jax.errors import EnvironmentFailure, UnreadableFile, UserError
from ugc_jax.media import clip as media
from ugc_jax.media.container import read_packets
from ugc_jax.media.presets import ClipSettings, resolve
from ugc_jax.media.sound import read_sound
from ugc_jax.media.timeline import scan
from ugc_jax.models.qwen2_5_omni.config import GEOMETRY

NO_LIMIT = 1 << 30  # tokens
SMALL = ClipSettings(min_pixels=1, max_pixels=100_000)


def test_no_handles(tmp_path, no_handles):
    write_clip(tmp_path / "clip.mp4", seconds=1)
    source = media.probe(tmp_path / "clip.mp4")
    with no_handles():
        for read in (
            lambda: media.probe(tmp_path / "clip.mp4"),
            lambda: scan(tmp_path / "clip.mp4"),
            lambda: media.read_clip(source, resolve(SMALL), NO_LIMIT, GEOMETRY),
            lambda: read_sound(source, 0.0, None, 9.0),
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
    return read_clip(probe(path), resolve(ClipSettings(frames=4)), 1 << 30, GEOMETRY)

expected = {path: read(path).frames for path in sys.argv[1:]}  # all libraries are loaded now
pages = int(open("/proc/self/statm").read().split()[0])
for mebibytes in (0, 2, 8, 16):
    limit = pages * resource.getpagesize() + (mebibytes << 20)
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
    for path in sys.argv[1:]:
        try:
            assert (read(path).frames == expected[path]).all()
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
    assert lines[1] != "read"


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


# ---- cut off, or only said to be -----------------------------------------------------------------

WAVE = clicks([0.5, 1.5, 2.5, 3.5], 4)
WHOLE = {  # name -> codecs, format, options: files whose sizes tell their end
    "a.mp4": (("libx264", "aac"), None, {"movflags": "faststart"}),
    "a.mkv": (("libx264", "aac"), None, {}),
    "a.webm": (("libvpx", "libopus"), None, {}),
    "a.avi": (("mpeg4", "libmp3lame"), None, {}),
    "a.flv": (("libx264", "aac"), None, {}),
    "a.wav": ((None, "pcm_s16le"), None, {}),
    "f.wav": ((None, "pcm_f32le"), None, {}),
    "a.w64": ((None, "pcm_s16le"), None, {}),
    "a.aiff": ((None, "pcm_s16be"), None, {}),
    "a.caf": ((None, "pcm_s16be"), None, {}),
    "a.au": ((None, "pcm_s16be"), None, {}),
    "a.flac": ((None, "flac"), None, {}),
}


@pytest.mark.parametrize("name", WHOLE)
def test_half_a_file_is_refused(tmp_path, name):
    codecs, form, options = WHOLE[name]
    pictures = tenths(4) if codecs[0] else None
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, WAVE.shape).astype(np.float32)
    path = write(tmp_path / name, pictures, noise, codecs=codecs, form=form, options=options)
    assert scan(path).notes == ()
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 3 // 5])
    with pytest.raises(UserError, match=rf"{name}: cut off, only [\d.]+ of its [\d.]+ (bytes|sec)"):
        scan(path)


def test_half_of_an_indexed_dash_file_is_refused(tmp_path):
    """The segment index in front lists the bytes of all fragments."""
    options = {"movflags": "dash+frag_keyframe+empty_moov+global_sidx"}
    path = write(tmp_path / "a.mp4", tenths(4), WAVE, options=options)
    assert scan(path).notes == ()
    content = path.read_bytes()
    fragments = [place for name, place, _ in boxes(content) if name == b"moof"]
    path.write_bytes(content[: fragments[2]])
    with pytest.raises(UserError, match=rf"cut off, only {fragments[2]} of its \d+ bytes"):
        scan(path)


@pytest.mark.parametrize("flags", ["frag_keyframe+empty_moov", "dash+empty_moov", "cmaf"])
def test_half_of_the_fragments(tmp_path, flags):
    """Nothing tells how many there are; the whole file ends with an index of them."""
    options = {"movflags": flags + "+frag_keyframe"}
    path = write(tmp_path / "a.mp4", tenths(4), WAVE, options=options)
    assert scan(path).notes == ()
    found = boxes(path.read_bytes())
    ends = [end for name, _, end in found if name == b"mdat"]
    path.write_bytes(path.read_bytes()[: ends[1]])
    assert scan(path).notes == ("nothing in this file tells its length; it may be cut off",)
    content = bytearray(path.read_bytes())
    place, end = next((place, end) for name, place, end in found if name == b"moov")
    place_of_mvex = content.index(b"mvex", place) - 4
    # the movie extends header, with which packagers state the length of all fragments: 4 seconds
    (scale,) = struct.unpack_from(">I", content, content.index(b"mvhd") + 16)
    header = struct.pack(">I4sII", 16, b"mehd", 0, 4 * scale)
    content[place_of_mvex + 8 : place_of_mvex + 8] = header
    for at in (place, place_of_mvex):
        (size,) = struct.unpack_from(">I", content, at)
        struct.pack_into(">I", content, at, size + len(header))
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"cut off, only 2.\d of its 4.0 seconds are in the file"):
        scan(path)


@pytest.mark.parametrize(("name", "shift"), [("a.mkv", 1.0), ("a.webm", 1.0), ("a.mkv", 100.0)])
def test_matroska_that_starts_late(tmp_path, name, shift):
    """Its duration counts from zero."""
    codecs = WHOLE[name][0]
    source = scan(write(tmp_path / name, tenths(4), WAVE, codecs=codecs, shift=shift))
    assert (source.frames, source.notes) == (40, ())
    assert source.index.times[0] == pytest.approx(shift)


def test_header_of_another_file(tmp_path):
    """FLV's duration is text that any tool may have left."""
    path = write(tmp_path / "a.flv", tenths(4), WAVE)
    content = bytearray(path.read_bytes())
    place = content.index(b"duration") + 9
    for stated, notes in (
        (100.0, ("the header announces 100.0 s, the file has 4.0 s",)),
        (0.0, ()),
        (1.0, ()),
    ):
        struct.pack_into(">d", content, place, stated)
        path.write_bytes(content)
        source = scan(path)
        assert (source.frames, source.notes) == (40, notes)
    assert len(read(path, frames=4).frames) == 4


def test_live_recording(tmp_path):
    """Sizes that are unknown prove nothing."""
    path = write(tmp_path / "a.mkv", tenths(4), WAVE, options={"live": "1"})
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 3 // 5])
    assert 10 < scan(path).frames < 40
    path = write(tmp_path / "a.wav", None, WAVE, codecs=(None, "pcm_s16le"))
    content = bytearray(path.read_bytes())
    for at in (4, content.index(b"data") + 4):
        struct.pack_into("<I", content, at, 0xFFFF_FFFF)
    path.write_bytes(content)
    assert scan(path).seconds == pytest.approx(4.0, abs=0.01)


class Hesitant:
    """A container whose demuxer asks to try again, as FFmpeg's does in damaged files."""

    name = "file:a.ts"

    def __init__(self, *tries: int):
        """Take the number of refusals before each packet."""
        self.tries = list(tries)

    def demux(self):
        while self.tries:
            if self.tries[0]:
                self.tries[0] -= 1
                raise av.BlockingIOError(11, "Resource temporarily unavailable")
            self.tries.pop(0)
            yield SimpleNamespace(size=1, pts=None, dts=None)


def test_a_demuxer_that_asks_to_try_again():
    assert len(list(read_packets(Hesitant(0, 3, 0, 99, 99)))) == 5
    with pytest.raises(UserError, match="^a.ts: too damaged to be read; copy it again"):
        list(read_packets(Hesitant(0, 100)))


# ---- lengths that nothing tells ------------------------------------------------------------------


def sound_file(path, codec, rate=44_100, **options):
    """Twelve seconds of sound."""
    return write(path, None, clicks([0.5], 12.0, rate), codecs=("", codec), rate=rate, **options)


@pytest.mark.parametrize(
    ("name", "codec"), [("a.mp3", "libmp3lame"), ("a.ogg", "libopus"), ("a.mka", "aac")]
)
def test_half_a_sound_file_is_noted_or_refused(tmp_path, name, codec):
    pages = {"page_duration": "1000000"} if name == "a.ogg" else {}
    path = sound_file(tmp_path / name, codec, 48_000, options=pages)
    assert not read(path).notes
    whole = path.read_bytes()
    end = whole.rfind(b"OggS") if name == "a.ogg" else len(whole) // 2
    path.write_bytes(whole[:end])
    if name == "a.mka":
        with pytest.raises(UserError, match="cut off"):
            read(path)
        return
    (note,) = read(path).notes
    announced = "the header announces 12." if name == "a.mp3" else timed.UNKNOWN_LENGTH
    assert note.startswith(announced)


@pytest.mark.parametrize("name", ["a.aac", "a.ac3"])
def test_streams_tell_no_length(tmp_path, name):
    path = sound_file(tmp_path / name, name[2:], 48_000)
    assert read(path).notes == [timed.UNKNOWN_LENGTH]


def test_half_an_animation_is_noted(tmp_path):
    pages = [Image.fromarray(np.full((64, 96, 3), 40 * n, np.uint8)) for n in range(5)]
    path = tmp_path / "a.gif"
    pages[0].save(path, save_all=True, append_images=pages[1:], duration=200)
    assert timed.UNKNOWN_LENGTH not in read(path).notes
    path.write_bytes(path.read_bytes()[:-20])
    assert timed.UNKNOWN_LENGTH in read(path).notes


def test_a_live_recording_tells_no_length(tmp_path):
    live = {"live": "1"}
    path = write(tmp_path / "a.mkv", tenths(2), clicks([0.5], 2.0), options=live)
    assert read(path).notes == [timed.UNKNOWN_LENGTH]
