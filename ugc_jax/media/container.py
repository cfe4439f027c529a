"""Media files opened through FFmpeg (PyAV): demuxers, main streams, and what errors mean."""

import contextlib
import struct
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
from av.stream import Disposition

from ugc_jax.errors import EnvironmentFailure, UnreadableFile, UserError, environment_failure

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
def open_media(path: str) -> Iterator[av.container.InputContainer]:
    """Open a media file; FFmpeg's errors become those of `reading_error`."""
    options = {"format_whitelist": DEMUXERS, "protocol_whitelist": "file"}
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
    try:
        np.empty(MEMORY_TRIAL, np.uint8)
    except MemoryError as short:
        return environment_failure(short)
    if error is None or isinstance(error, MemoryError):
        return None
    return environment_failure(error)


def main_stream(
    container: av.container.InputContainer, kind: str
) -> av.VideoStream | av.AudioStream | None:
    """Return the main "video" or "audio" stream that can be decoded, except cover art, or None."""
    streams = [
        stream
        for stream in getattr(container.streams, kind)
        if stream.codec_context is not None and not stream.disposition & Disposition.attached_pic
    ]
    best = container.streams.best(kind)
    return best if best in streams else next(iter(streams), None)


def check_size(path: str | Path, width: int, height: int):
    """Raise UserError, before anything is allocated, for a size that only a bad header has."""
    if not 0 < width * height <= MAX_SOURCE_PIXELS:
        claim = f"the header claims a picture of {width}x{height} pixels"
        raise UserError(f"{path}: {claim}; copy or encode it again")


def check_complete(
    path: Path, container: av.container.InputContainer, extents: dict, is_video: bool
):
    """Raise UserError for a file that was cut off, which would get a caption as if it were whole.

    extents: the first and the last second of each stream by its packets.
    """
    if "mp4" in container.format.name:
        found, announced = path.stat().st_size, _announced_bytes(path)
        if found < announced:
            kept = f"only {found} of its {announced} bytes are in the file"
            raise UserError(f"{path}: cut off, {kept}; copy it again")
    elif is_video:  # many sound files only estimate their length
        announced = (container.duration or 0) / av.time_base
        last = max((high for _, high in extents.values()), default=0.0)
        found = last - (container.start_time or 0) / av.time_base
        if announced - found > max(0.3, 0.05 * announced):
            kept = f"only {found:.1f} of its {announced:.1f} seconds are in the file"
            raise UserError(f"{path}: cut off, {kept}; copy it again")


def _announced_bytes(path: Path) -> int:
    """Return where an mp4's media data end by the sizes of its boxes (ISO/IEC 14496-12, 4.2)."""
    place, end, size = 0, 0, path.stat().st_size
    with path.open("rb") as file:
        while place + 8 <= size:
            file.seek(place)
            length, name, large = struct.unpack(">I4sQ", file.read(16).ljust(16, b"\0"))
            length = {0: size - place, 1: large}.get(length, length)
            if length < 8:
                break
            place += length
            end = place if name in (b"mdat", b"moov", b"moof") else end
    return end


def decode(stream, packet: av.Packet | None) -> list:
    """Return the frames that a packet (None: the end) completes; none if it is damaged."""
    try:
        return stream.codec_context.decode(packet)
    except av.FFmpegError as error:
        if (failure := machine_failure(error)) is not None:
            raise failure from None
        return []
