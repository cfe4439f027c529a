"""Media files opened through FFmpeg (PyAV): demuxers, main streams, and what errors mean."""

import contextlib
import re
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import BinaryIO, NamedTuple

import av
import av.logging
from av.stream import Disposition

from ugc_jax.errors import (
    EnvironmentFailure,
    UnreadableFile,
    UserError,
    environment_failure,
    has_memory,
)

DEMUXERS = (  # none that reads other files (playlists), draws text, or guesses a raw format
    "mov,matroska,avi,flv,mpegts,mpeg,mpegvideo,asf,ogg,mxf,ivf,gif,apng,h264,hevc,m4v,"
    "wav,w64,mp3,aac,flac,aiff,amr,caf,au,ac3,eac3"
)
# Most pixels of one picture, those of 16K video; a larger header is broken or hostile.
MAX_SOURCE_PIXELS = 1 << 27
# Bytes, twice the largest that a picture of that size needs at once: a machine that has them is not
# out of memory.
MEMORY_TRIAL = 6 * MAX_SOURCE_PIXELS
# A title in a broken encoding must not make a clip unreadable; from av 19 on it does not.
TOLERANT = {"metadata_errors": "replace"} if int(av.__version__.split(".")[0]) < 19 else {}


@contextlib.contextmanager
def open_media(path: str, probe: int = 0) -> Iterator[av.container.InputContainer]:
    """Open a media file; FFmpeg's errors become those of `reading_error`.

    probe: bytes to search for streams; 0: as many as FFmpeg does.
    """
    options = {"format_whitelist": DEMUXERS, "protocol_whitelist": "file"}
    if probe:
        options |= {"probesize": str(probe), "analyzeduration": str(1 << 40)}
    try:
        # "file:", so that FFmpeg does not take "part 1: start.mp4" for an address
        with av.open(f"file:{path}", container_options=options, **TOLERANT) as file:
            yield file
    except (av.FFmpegError, MemoryError) as error:
        reason = getattr(error, "strerror", None) or type(error).__name__
        fault = f"not readable as video, image or sound ({reason}); copy or encode it again"
        raise reading_error(path, fault, error) from None


def reading_error(path: str | Path, fault: str, error: Exception | None = None) -> Exception:
    """Return what to raise where `path` cannot be read: mostly a UserError with the fault.

    error: of the library that reads it. EnvironmentFailure if the machine is the reason,
    UnreadableFile if the system refuses the file.
    """
    if (failure := machine_failure(error)) is not None:
        return failure
    refused = isinstance(error, OSError) and error.errno is not None
    return (UnreadableFile if refused else UserError)(f"{path}: {fault}")


def machine_failure(error: Exception | None = None) -> EnvironmentFailure | None:
    """Return the failure of the environment for which a file is not read, or None.

    FFmpeg hides a lack of memory behind other errors, and a broken header may claim a size for
    which no machine has the memory. So whether there is memory is tried.
    """
    if not has_memory(MEMORY_TRIAL):
        return environment_failure(MemoryError())
    if error is None or isinstance(error, MemoryError):
        return None
    return environment_failure(error)


def main_stream(
    container: av.container.InputContainer, kind: str
) -> av.VideoStream | av.AudioStream | None:
    """Return the main "video" or "audio" stream that can be decoded, except cover art, or None."""
    streams = [stream for stream in _streams(container, kind) if stream.codec_context is not None]
    best = container.streams.best(kind)
    return best if best in streams else next(iter(streams), None)


def undecodable(container: av.container.InputContainer, kind: str) -> str:
    """Return the codec of the main "video" or "audio" stream if it has no decoder, or "".

    The name is FFmpeg's, or the container's own for a codec that FFmpeg does not know.
    """
    streams = [stream for stream in _streams(container, kind) if stream.codec_context is None]
    best = container.streams.best(kind)
    if not streams or not (best in streams or main_stream(container, kind) is None):
        return ""
    index = (best if best in streams else streams[0]).index
    line = describe(container).get(index, "")
    found = re.search(r": (?:Video|Audio): (\w+)(?:.*?\((\S+) / 0x)?", line)
    name, tag = found.groups() if found else ("none", None)
    if name not in ("none", "unknown"):
        return name
    if "matroska" in container.format.name:  # its own names are text (RFC 9559, 5.1.4.1.21)
        with open(container.name.removeprefix("file:"), "rb") as file:
            found = re.findall(rb"\x86([\x80-\xff])([AV]_[\w/.]+)", file.read(1 << 16))
        names = [name[: size[0] - 128].decode() for size, name in found]
        names = [name for name in names if name[0] == kind[0].upper()]
        numbers = [stream.index for stream in getattr(container.streams, kind)]
        if len(names) == len(numbers):
            return names[numbers.index(index)]
    return tag or "unknown"


def describe(container: av.container.InputContainer) -> dict[int, str]:
    """Return FFmpeg's description by stream number, also of streams that began after opening."""
    level = av.logging.get_level()
    av.logging.set_level(av.logging.INFO)
    try:
        lines = container.dumps_format().splitlines()
    finally:
        av.logging.set_level(level)
    found = (re.match(r"\s*Stream #0:(\d+)(.*)", line) for line in lines)
    return {int(line[1]): line[2] for line in found if line}


def _streams(container: av.container.InputContainer, kind: str) -> list:
    """Return the "video" or "audio" streams, except cover art."""
    return [
        stream
        for stream in getattr(container.streams, kind)
        if not stream.disposition & Disposition.attached_pic
    ]


def check_size(path: str | Path, width: int, height: int):
    """Raise UserError, before anything is allocated, for a size that only a bad header has."""
    if not 0 < width * height <= MAX_SOURCE_PIXELS:
        claim = f"the header claims a picture of {width}x{height} pixels"
        raise UserError(f"{path}: {claim}; copy or encode it again")


def check_complete(path: Path, container: av.container.InputContainer, extents: dict) -> list[str]:
    """Return notes on a length that is doubtful. Raises UserError for a file that was cut off.

    A cut file would get a caption as if it were whole. Only what the sizes in it prove is refused:
    headers state wrong seconds, of another file or of a live stream.
    extents: the first and the last second of each stream by its packets.
    """
    name, size = container.format.name, path.stat().st_size
    reader = next((reader for part, reader in _LENGTHS.items() if part in name), None)
    length = Length() if reader is None else reader(path, size)
    check_bytes(path, length.announced, size)
    begin = min((low for low, _ in extents.values()), default=0.0)
    last = max((high for _, high in extents.values()), default=0.0)
    # counted from the first packet in some containers, from zero in others
    found = max(last, last - begin)
    announced = length.seconds or (container.duration or 0) / av.time_base
    missing = 0.0 if length.estimated else announced - found
    if missing > max(0.3, 0.05 * announced):
        kept = f"only {found:.1f} of its {announced:.1f} seconds are in the file"
        if length.seconds or name in EXACT:
            raise UserError(f"{path}: cut off, {kept}; copy it again")
        return [f"the header announces {announced:.1f} s, the file has {found:.1f} s"]
    return [] if length.known else ["nothing in this file tells its length; it may be cut off"]


def check_bytes(path: Path, announced: int, size: int):
    """Raise UserError for a file of `size` bytes that must have more: `announced`."""
    if announced > size:
        kept = f"only {size} of its {announced} bytes are in the file"
        raise UserError(f"{path}: cut off, {kept}; copy it again")


class Length(NamedTuple):
    """What a file says about its length.

    announced: bytes that it must have; 0 if unknown. known: whether anything tells its end.
    seconds: stated by a fragmented mp4; 0 if unknown. estimated: FFmpeg's seconds are a guess.
    """

    announced: int = 0
    known: bool = True
    seconds: float = 0.0
    estimated: bool = False


def _boxes(file: BinaryIO, place: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Yield (name, place of the content, end) of mp4 boxes (ISO/IEC 14496-12, 4.2)."""
    while place + 8 <= end:
        file.seek(place)
        length, name, large = struct.unpack(">I4sQ", file.read(16).ljust(16, b"\0"))
        content = place + (16 if length == 1 else 8)
        length = {0: end - place, 1: large}.get(length, length)
        if length < 8:
            return
        place += length
        yield name, content, place


def length_of_mp4(path: Path, size: int) -> Length:
    """Return the length by the boxes, the segment index and the header of fragments (8.16, 8.8)."""
    announced, fragmented, known, seconds = 0, False, False, 0.0
    with path.open("rb") as file:
        for name, place, end in _boxes(file, 0, size):
            if name in (b"mdat", b"moov", b"moof"):
                announced = max(announced, end)
            fragmented |= name == b"moof"
            known |= name == b"mfra"
            if name == b"sidx":
                file.seek(place)
                last, parts = _end_of_index(file.read(min(end - place, 1 << 20)), end)
                announced, known = max(announced, last), known or parts > 1
            if name == b"moov" and end <= size:
                seconds = _fragments_seconds(file, place, end)
    return Length(announced, known or bool(seconds) or not fragmented, seconds)


def _end_of_index(content: bytes, anchor: int) -> tuple[int, int]:
    """Return the end in bytes, and the number, of the parts that a `sidx` box lists (8.16.3)."""
    wide = content[:1] != b"\0"
    head = 28 if wide else 20
    if len(content) < head + 4:
        return 0, 0
    place = (
        anchor + struct.unpack_from(">Q" if wide else ">I", content, head - 8 if wide else 16)[0]
    )
    (parts,) = struct.unpack_from(">H", content, head + 2)
    parts = min(parts, (len(content) - head - 4) // 12)
    sizes = [struct.unpack_from(">I", content, head + 4 + 12 * part)[0] for part in range(parts)]
    return place + sum(size & 0x7FFF_FFFF for size in sizes), parts


def _fragments_seconds(file: BinaryIO, place: int, end: int) -> float:
    """Return the seconds of all fragments as `moov` states them (8.2.2, 8.8.2); 0 if unknown."""
    scale, ticks = 0, 0
    for name, content, last in _boxes(file, place, end):
        file.seek(content)
        if name == b"mvhd":
            head = file.read(24)
            scale = int.from_bytes(head[20:24] if head[:1] == b"\1" else head[12:16], "big")
        if name == b"mvex":
            for inner, begin, _ in list(_boxes(file, content, min(last, end))):
                if inner == b"mehd":
                    file.seek(begin)
                    head = file.read(12)
                    ticks = int.from_bytes(head[4:12] if head[:1] == b"\1" else head[4:8], "big")
    return ticks / scale if scale else 0.0


def _length_of_matroska(path: Path, size: int) -> Length:
    """Return the end of the last segment of known size (RFC 9559, 4 and RFC 8794, 4 to 6)."""
    place, end = 0, 0
    with path.open("rb") as file:
        while place < size:
            file.seek(place)
            head = file.read(12)
            wide = 9 - head[0].bit_length()  # bytes of the element's name
            if wide > 4 or len(head) <= wide or not head[wide]:
                break
            count = 9 - head[wide].bit_length()  # bytes of its size
            if len(head) < wide + count:
                break
            value = int.from_bytes(head[wide : wide + count], "big") - (1 << 7 * count)
            if value == (1 << 7 * count) - 1:  # unknown: a live recording
                return Length(known=False)
            place += wide + count + value
            end = place if head[:wide] == b"\x18\x53\x80\x67" else end
    return Length(end)


def _length_of_riff(path: Path, size: int) -> Length:
    """Return the end of the last RIFF (AVI, WAV) or FORM (AIFF) chunk."""
    place, end = 0, 0
    with path.open("rb") as file:
        while place + 8 <= size:
            file.seek(place)
            name, length = struct.unpack("<4sI", file.read(8))
            if name == b"FORM":
                length = int.from_bytes(length.to_bytes(4, "little"), "big")
            # Writers without a way back leave the largest sizes there are; some count 8 too many.
            if name not in (b"RIFF", b"FORM") or length >= 0x7FFF_0000:
                break
            place += 8 + length + length % 2
            end = place - 16
    return Length(end)


def _length_of_w64(path: Path, size: int) -> Length:
    """Return the size of the whole file in the header of Sony Wave64."""
    with path.open("rb") as file:
        return Length(int.from_bytes(file.read(24)[16:], "little"))


def _length_of_caf(path: Path, size: int) -> Length:
    """Return the end of the last chunk of known size (Apple Core Audio Format, "Chunks")."""
    place = 8
    with path.open("rb") as file:
        while place + 12 <= size:
            file.seek(place + 4)
            (length,) = struct.unpack(">q", file.read(8))
            if length < 0:  # unknown: up to the end
                return Length()
            place += 12 + length
    return Length(place)


def _length_of_flv(path: Path, size: int) -> Length:
    """Return the end of the last tag (Adobe FLV 10.1, annex E.4)."""
    place = 13
    with path.open("rb") as file:
        while place < size:
            file.seek(place)
            head = file.read(4)
            if head[0] & 0x1F not in (8, 9, 18):
                return Length()
            place += 15 + int.from_bytes(head[1:], "big")
    return Length(place - 4)  # some writers leave out the last tag's size


def _length_of_asf(path: Path, size: int) -> Length:
    """Return the size in the file properties, unless of a broadcast (ASF 1.2.0, 3.2)."""
    with path.open("rb") as file:
        head = file.read(1 << 16)
    place = head.find(bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365"))
    if place < 0 or len(head) < place + 92:
        return Length()
    (announced,) = struct.unpack_from("<Q", head, place + 40)
    broadcast = head[place + 88] & 1
    return Length(0 if broadcast else announced)


def _length_of_mp3(path: Path, size: int) -> Length:
    """Return whether a Xing, Info or VBRI header counts the frames."""
    with path.open("rb") as file:
        head = file.read(1 << 16)
        if head[:3] == b"ID3":  # its size: four times seven bits
            file.seek(10 + sum((byte & 0x7F) << 7 * (3 - i) for i, byte in enumerate(head[6:10])))
            head = file.read(1 << 12)
    counted = any(tag in head[: 1 << 12] for tag in (b"Xing", b"Info", b"VBRI"))
    return Length(known=counted, estimated=not counted)


def _length_of_ogg(path: Path, size: int) -> Length:
    """Return whether the last page ends its stream (RFC 3533, 6)."""
    tail = _tail(path, size, 1 << 17)
    page = tail.rfind(b"OggS")
    flags = tail[page + 5] if 0 <= page < len(tail) - 5 else 0
    return Length(known=bool(flags & 4), estimated=True)


def _length_of_gif(path: Path, size: int) -> Length:
    """Return whether the trailer is there (GIF89a, 27)."""
    return Length(known=_tail(path, size, 64).rstrip(b"\0").endswith(b"\x3b"))


def _length_of_png(path: Path, size: int) -> Length:
    """Return whether the last chunk is there (PNG, 11.2.5)."""
    return Length(known=b"IEND" in _tail(path, size, 64))


def _length_of_stream(path: Path, size: int) -> Length:
    """Return whether an MPEG program has its end code (ISO/IEC 13818-1, 2.5.3.2)."""
    ended = _tail(path, size, 1 << 12).rstrip(b"\xff\0").endswith(b"\x01\xb9")
    return Length(known=ended, estimated=True)


def _tail(path: Path, size: int, count: int) -> bytes:
    with path.open("rb") as file:
        file.seek(max(0, size - count))
        return file.read()


_LENGTHS = {  # by a part of the demuxer's name
    "mp4": length_of_mp4,
    "matroska": _length_of_matroska,
    "avi": _length_of_riff,
    "wav": _length_of_riff,
    "w64": _length_of_w64,
    "caf": _length_of_caf,
    "aiff": _length_of_riff,
    "flv": _length_of_flv,
    "asf": _length_of_asf,
    "mp3": _length_of_mp3,
    "ogg": _length_of_ogg,
    "gif": _length_of_gif,
    "apng": _length_of_png,
    # Streams that may end anywhere; "mpeg" is also of mpegts and mpegvideo, "ac3" of eac3.
    **dict.fromkeys(("mpeg", "h264", "hevc", "m4v", "aac", "amr", "ac3"), _length_of_stream),
}
MOST_TRIES = 100  # to read one packet
# Formats whose headers count samples, or state a length only if it is known.
EXACT = ("flac", "au", "aiff", "mxf")


def read_packets(
    container: av.container.InputContainer,
    *streams,
    shifts: Mapping[int, int] = MappingProxyType({}),
) -> Iterator[av.Packet]:
    """Yield the packets with data of the streams (none given: of all), in the file's order.

    shifts: ticks to add to the time stamps from the packet of that number on, of one stream.
    """
    shift, packets = 0, (packet for packet in _demux(container, streams) if packet.size)
    try:
        for place, packet in enumerate(packets):
            shift = shifts.get(place, shift)
            if shift and packet.pts is not None:
                packet.pts += shift
            if shift and packet.dts is not None:
                packet.dts += shift
            yield packet
    except IndexError:  # at the end, where a stream began after opening: PyAV has no object for it
        return


def _demux(container: av.container.InputContainer, streams: tuple) -> Iterator[av.Packet]:
    """Yield all packets. FFmpeg's "try again" is not an error: damage has hidden a packet."""
    tries = 0
    while True:
        try:
            for packet in container.demux(*streams):
                yield packet
                tries = 0
            return
        except av.BlockingIOError:
            tries += 1
            if tries == MOST_TRIES:
                name = container.name.removeprefix("file:")
                raise UserError(f"{name}: too damaged to be read; copy it again") from None


def decode(stream, packet: av.Packet | None) -> list:
    """Return the frames that a packet (None: the end) completes; none if it is damaged."""
    try:
        return stream.codec_context.decode(packet)
    except av.FFmpegError as error:
        if (failure := machine_failure(error)) is not None:
            raise failure from None
        return []
