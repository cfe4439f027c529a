"""ugc_jax.media.streams: parts of a clip that hold nothing of the others."""

import io
import wave

import av
import numpy as np
import pytest
from PIL import Image

from ugc_jax.errors import UserError
from ugc_jax.media import streams
from ugc_jax.media.clip import probe
from ugc_jax.media.sound import read_sound
from ugc_jax.toy import world
from ugc_jax.toy.world import WorldSettings


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """A clip with a title and a place in its metadata."""
    folder = tmp_path_factory.mktemp("streams")
    (folder / "train").mkdir()
    world.write_example("train", 0, WorldSettings(), folder)
    told = folder / "told.mp4"
    with av.open(str(folder / "train/000000.mp4")) as given, av.open(str(told), "w") as out:
        out.metadata.update(title="my holiday", comment="at home")
        copies = {one.index: out.add_stream_from_template(one) for one in given.streams}
        for packet in given.demux():
            if packet.dts is not None:
                packet.stream = copies[packet.stream.index]
                out.mux(packet)
    assert b"my holiday" in told.read_bytes()
    return told


def packets(data, kind: str) -> list[tuple]:
    """Time and content of the packets of a stream."""
    with av.open(data) as file:
        stream = getattr(file.streams, kind)[0]
        return [(float(p.pts * p.time_base), bytes(p)) for p in file.demux(stream) if p.size]


def kinds(part) -> list[str]:
    with av.open(io.BytesIO(part.data)) as file:
        return [stream.type for stream in file.streams]


def test_the_sound_alone(path):
    source = probe(path)
    part = streams.sound_part(source)
    assert (part.kind, kinds(part)) == ("audio/wav", ["audio"])
    with wave.open(io.BytesIO(part.data)) as file:
        assert (file.getnchannels(), file.getframerate(), file.getsampwidth()) == (1, 16000, 2)
        samples = np.frombuffer(file.readframes(file.getnframes()), "<i2")
    expected = read_sound(source, 0.0, None, 100.0).waveform
    np.testing.assert_allclose(samples / 32768, expected, atol=1 / 65536 + 1e-7)


def test_the_picture_alone(path):
    part = streams.picture_part(probe(path))
    assert (part.kind, kinds(part)) == ("video/mp4", ["video"])
    assert packets(io.BytesIO(part.data), "video") == packets(str(path), "video")
    assert b"my holiday" not in part.data
    assert b"at home" not in part.data


def test_both(path):
    part = streams.whole_part(probe(path))
    assert kinds(part) == ["video", "audio"]
    for kind in ("video", "audio"):
        assert packets(io.BytesIO(part.data), kind) == packets(str(path), kind)
    assert b"my holiday" not in part.data


def test_stills(path):
    made = streams.stills(probe(path), 3, 56)
    assert [part.kind for part in made] == ["image/jpeg"] * 3
    sizes = {Image.open(io.BytesIO(part.data)).size for part in made}
    assert sizes == {(56, 56)}
    assert len({part.data for part in made}) == 3  # the shape moves


def test_without_sound_or_picture(path, tmp_path):
    wav = tmp_path / "sound.wav"
    wav.write_bytes(streams.sound_part(probe(path)).data)
    assert streams.picture_part(probe(wav)) is None
    muted = tmp_path / "muted.mp4"
    muted.write_bytes(streams.picture_part(probe(path)).data)
    assert streams.sound_part(probe(muted)) is None
    assert kinds(streams.whole_part(probe(muted))) == ["video"]


def coded(path, codec: str):
    """Write ten pictures by a codec."""
    with av.open(str(path), "w") as out:
        stream = out.add_stream(codec, rate=10)
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv420p"
        for number in range(10):
            frame = av.VideoFrame.from_ndarray(np.full((64, 64, 3), 20 * number, np.uint8))
            frame.pts = number
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return probe(path)


def test_a_codec_that_mp4_does_not_take_is_copied_into_matroska(tmp_path):
    part = streams.picture_part(coded(tmp_path / "clip.webm", "libvpx"))
    assert part.kind == "video/x-matroska"
    assert len(packets(io.BytesIO(part.data), "video")) == 10


def test_a_codec_that_neither_takes_is_told(tmp_path):
    with pytest.raises(UserError, match=r"clip\.avi: cannot be copied .*; encode it as mp4"):
        streams.picture_part(coded(tmp_path / "clip.avi", "wmv2"))


def test_a_turned_clip_stays_turned(path, tmp_path):
    turned = tmp_path / "turned.mp4"
    data = bytearray(path.read_bytes())
    place = data.find(b"tkhd") + 4 + 40  # the matrix of the first track: turned by 90 degrees
    matrix = np.array([0, 1 << 16, 0, -(1 << 16), 0, 0, 0, 0, 1 << 30], ">i4").tobytes()
    data[place : place + 36] = matrix
    turned.write_bytes(data)
    rotation = probe(turned).rotation
    copy = tmp_path / "copy.mp4"
    copy.write_bytes(streams.picture_part(probe(turned)).data)
    assert rotation in (90, 270)
    assert probe(copy).rotation == rotation


def test_an_unreadable_file_is_the_user_s(tmp_path):
    (tmp_path / "no.mp4").write_bytes(b"no clip")
    with pytest.raises(UserError, match=r"no\.mp4"):
        streams.picture_part(probe(tmp_path / "no.mp4"))
