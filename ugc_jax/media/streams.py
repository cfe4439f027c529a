"""Video and sound files through FFmpeg (PyAV): their facts, selected pictures, and mono sound.

A file is read twice. The first pass only demultiplexes: it lists the time stamp and the key-frame
flag of every picture, so that "frame k" is the same picture in any container, whatever its header
says (variable rate, edit lists, B-frames, late start). The second pass decodes the packets from a
key frame to each required picture and skips the others.
"""

import bisect
import contextlib
import itertools
import logging
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
from av.stream import Disposition

from ugc_jax.errors import EnvironmentFailure, UnreadableFile, UserError, environment_failure
from ugc_jax.models.qwen2_5_omni.config import SAMPLE_RATE

log = logging.getLogger(__name__)

DEMUXERS = (  # none that reads other files (playlists), draws text, or guesses a raw format
    "mov,matroska,avi,flv,mpegts,mpeg,mpegvideo,asf,ogg,mxf,ivf,gif,apng,h264,hevc,m4v,"
    "wav,w64,mp3,aac,flac,aiff,amr,caf,au,ac3,eac3"
)
# Most pixels of one picture, those of 16K video; a larger header is broken or hostile.
MAX_SOURCE_PIXELS = 1 << 27
# Bytes, twice the largest that a picture of that size needs at once: a machine that has them is not
# out of memory.
MEMORY_TRIAL = 6 * MAX_SOURCE_PIXELS
# Two spans with at most this many packets between them are decoded as one: a restart costs more.
GAP_PACKETS = 8
# Most packets by which a decoder may return a picture later than its packet; a limit of all codecs.
REORDERED = 16
# Codecs with hidden frames list up to this many more packets than they display pictures.
TAIL_FRAMES = 5
# A title in a broken encoding must not make a clip unreadable; from av 19 on it does not.
TOLERANT = {"metadata_errors": "replace"} if int(av.__version__.split(".")[0]) < 19 else {}
# Seconds of an audio token; smaller offsets of sound against picture are ignored, as the reference
# ignores them.
ALIGN_SECONDS = 0.04
# Pixel aspect ratios that differ from 1 by at most this are encoders' rounding.
SQUARE_PIXELS = 0.05


class Index(NamedTuple):
    """The packets of a picture stream. Frame k is the k-th picture displayed.

    stamps: i64[packets] in decoding order: presentation times, or running numbers if untimed.
    keys: bool[packets], decoding may start here.
    displayed: i64[frames], ascending, the stamps of the pictures that are displayed.
    times: f64[frames], ascending, seconds on the file's clock.
    timed: whether the stamps are presentation times.
    """

    stamps: np.ndarray
    keys: np.ndarray
    displayed: np.ndarray
    times: np.ndarray
    timed: bool


class Source(NamedTuple):
    """The facts of a file. Sizes are as displayed: after rotation and pixel aspect ratio."""

    path: str
    kind: str  # "video", "image" or "audio"
    width: int  # pixels; 0 for audio
    height: int
    fps: float  # average frames per second; 0 unless video
    frames: int  # 1 for an image, 0 for audio
    seconds: float  # of picture; of sound for audio; 0 for an image
    rotation: int  # degrees counter-clockwise that turn the stored picture upright: 0, 90, 180, 270
    has_audio: bool
    audio_seconds: float
    index: Index | None  # None unless video


# ---- opening and indexing ------------------------------------------------------------------------


@contextlib.contextmanager
def _open(path: str) -> Iterator[av.container.InputContainer]:
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
    if (failure := _environment_failure(error)) is not None:
        return failure
    refused = isinstance(error, OSError) and error.errno is not None
    return (UnreadableFile if refused else UserError)(f"{path}: {fault}")


def _environment_failure(error: Exception | None = None) -> EnvironmentFailure | None:
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


def _main_stream(
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


def scan(path: Path) -> Source:
    """Return the facts of a video or a sound file, from all its packets and its first picture.

    Raises UserError naming the file if it is unreadable, cut off, or holds no media.
    """
    with _open(str(path)) as container:
        picture, sound = _main_stream(container, "video"), _main_stream(container, "audio")
        if picture is not None:
            check_size(path, picture.codec_context.width, picture.codec_context.height)
        # AVI stores no presentation times, and FFmpeg's guesses are wrong with B-frames.
        has_pts = container.format.name != "avi"
        packets, extents, frame = [], {}, None
        for packet in container.demux():
            if packet.size == 0:
                continue
            stamp = packet.dts if packet.pts is None else packet.pts
            if stamp is not None:
                begin = float(stamp * packet.time_base)
                end = float((stamp + (packet.duration or 0)) * packet.time_base)
                low, high = extents.get(packet.stream_index, (begin, end))
                extents[packet.stream_index] = min(low, begin), max(high, end)
            if picture is not None and packet.stream_index == picture.index:
                pts = packet.pts if has_pts else None
                packets.append((pts, packet.dts, packet.is_keyframe, packet.is_discard))
                frame = frame or next(iter(_decode(picture, packet)), None)
        _check_complete(path, container, extents, picture is not None)
        low, high = extents.get(sound.index, (0.0, 0.0)) if sound else (0.0, 0.0)
        sound_seconds = high - low
        if picture is None:
            if not sound_seconds:
                raise UserError(
                    f"{path}: holds neither picture nor sound; name a video, image or sound file"
                )
            facts = 0, 0, 0.0, 0, sound_seconds, 0, True, sound_seconds, None
            return Source(str(path), "audio", *facts)
        frame = frame or next(iter(_decode(picture, None)), None)
        if frame is None:
            fault = f"none of its {len(packets)} pictures is readable; copy or encode it again"
            raise reading_error(path, fault)
        announced = float(picture.average_rate or picture.guessed_rate or 0)
        index = _index(packets, float(picture.time_base), announced)
        fps, count = _rate(index.times, announced), len(index.displayed)
        rotation = round(frame.rotation / 90) % 4 * 90
        width, height = _display_size(frame, picture.sample_aspect_ratio, rotation)
        check_size(path, width, height)
        return Source(
            path=str(path),
            kind="video",
            width=width,
            height=height,
            fps=fps,
            frames=count,
            seconds=count / fps,
            rotation=rotation,
            has_audio=sound_seconds > 0,
            audio_seconds=sound_seconds,
            index=index,
        )


def _check_complete(
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


def _index(
    packets: list[tuple[int | None, int | None, bool, bool]], tick: float, rate: float
) -> Index:
    """Index the packets of a picture stream.

    packets: in decoding order, (presentation time, decoding time, is key frame, is hidden by an
      edit list) of each. tick: seconds of a time stamp's unit. rate: announced frames per second,
      for files without time stamps.
    """
    pts, dts, keys, hidden = zip(*packets, strict=True)
    timed = None not in pts
    hidden = np.array(hidden) & timed & (not all(hidden))
    stamps = np.array(pts if timed else range(len(packets)), np.int64)
    clock = pts if timed else dts
    times = np.arange(len(packets)) / (rate or 25.0) if None in clock else np.array(clock) * tick
    return Index(stamps, np.array(keys), np.sort(stamps[~hidden]), np.sort(times[~hidden]), timed)


def _rate(times: np.ndarray, announced: float) -> float:
    """Return the average frames per second: the announced fraction unless the times differ."""
    if times[-1] <= times[0]:
        return announced or 25.0
    measured = float((len(times) - 1) / (times[-1] - times[0]))
    return announced if abs(announced - measured) < 0.02 * measured else measured


def _display_size(frame: av.VideoFrame, aspect, rotation: int) -> tuple[int, int]:
    """Return (width, height) after pixel aspect ratio and rotation."""
    width, height = frame.width, frame.height
    if aspect and abs(aspect - 1) > SQUARE_PIXELS:
        width = max(1, round(width * aspect))
    return (height, width) if rotation % 180 else (width, height)


# ---- decoding ------------------------------------------------------------------------------------


def _decode(stream, packet: av.Packet | None) -> list:
    """Return the frames that a packet (None: the end) completes; none if it is damaged."""
    try:
        return stream.codec_context.decode(packet)
    except av.FFmpegError as error:
        if (failure := _environment_failure(error)) is not None:
            raise failure from None
        return []


def read_frames(
    source: Source,
    indices: np.ndarray,
    size: tuple[int, int],
    prepare: Callable[[np.ndarray], np.ndarray],
) -> np.ndarray:
    """Read the pictures numbered `indices`: u8[n, *size, 3] RGB.

    prepare: applied to each picture when it is decoded: u8[h, w, 3], upright, of the file's own
      size -> u8[*size, 3].
    Raises UserError if too many pictures do not decode.
    """
    rows = {}  # time stamp -> rows of the result
    for row, stamp in enumerate(source.index.displayed[indices].tolist()):
        rows.setdefault(stamp, []).append(row)
    result = np.empty((len(indices), *size, 3), np.uint8)

    def put(stamp: int, frame: av.VideoFrame):
        upright = np.rot90(frame.to_ndarray(format="rgb24"), source.rotation // 90)
        result[rows.pop(stamp)] = prepare(upright)

    for stamp, frame in _run_decoder(source, _spans(source.index, list(rows))):
        if stamp in rows:
            put(stamp, frame)
    if rows:
        _fill(source, sorted(rows), put)
    return result


def _fill(source: Source, missing: list[int], put: Callable[[int, av.VideoFrame], None]):
    """Replace each picture that does not decode by the last one before it, as a player does.

    missing: time stamps, ascending.
    """
    if (failure := _environment_failure()) is not None:
        raise failure
    message = "%s: %d selected pictures do not decode; the ones before them are taken"
    log.warning(message, source.path, len(missing))
    displayed, last_stamp, last_frame = source.index.displayed, None, None
    for stamp, frame in _run_decoder(source, [(0, len(source.index.stamps) - 1)]):
        while missing and missing[0] < stamp:
            put(missing.pop(0), last_frame or frame)
        last_stamp, last_frame = stamp, frame
    readable = 0
    if last_frame is not None:
        readable = int(np.searchsorted(displayed, last_stamp, side="right"))
    if missing and (not readable or source.frames - readable > TAIL_FRAMES):
        found = f"only {readable} of {source.frames} pictures decode"
        raise UserError(f"{source.path}: {found}; copy or encode it again")
    for stamp in missing:
        put(stamp, last_frame)


def _spans(index: Index, required: list[int]) -> list[tuple[int, int]]:
    """Return the spans (first, last packet) to decode for the required time stamps."""
    if not index.timed:
        return [(0, min(max(required) + REORDERED, len(index.stamps) - 1))]
    position = {stamp: place for place, stamp in enumerate(index.stamps.tolist())}
    keys = np.flatnonzero(index.keys).tolist()
    spans = []
    for last in sorted(position[stamp] for stamp in required):
        place = bisect.bisect_right(keys, last) - 1
        while place > 0 and index.stamps[keys[place]] > index.stamps[last]:
            place -= 1  # displayed before this key frame: it depends on an earlier one
        first = keys[place] if place >= 0 else 0
        if spans and first <= spans[-1][1] + GAP_PACKETS:
            spans[-1] = spans[-1][0], last
        else:
            spans.append((first, last))
    return spans


def _run_decoder(
    source: Source, spans: list[tuple[int, int]]
) -> Iterator[tuple[int, av.VideoFrame]]:
    """Yield (time stamp, picture) of the given spans of packets; others are not decoded."""
    spans = iter(spans)
    first, last = next(spans)
    with _open(source.path) as container:
        stream = _main_stream(container, "video")
        stream.thread_type = "AUTO"
        packets = (packet for packet in container.demux(stream) if packet.size)
        count = itertools.count()
        for place, packet in enumerate(packets):
            if place < first:
                continue
            frames = _decode(stream, packet)
            if place == last:
                frames += _decode(stream, None)
            for frame in frames:
                yield (frame.pts if source.index.timed else next(count)), frame
            if place == last:
                stream.codec_context.flush_buffers()
                first, last = next(spans, (None, None))
                if first is None:
                    return


# ---- sound ---------------------------------------------------------------------------------------


def read_sound(source: Source, start: float, end: float | None, limit: float) -> np.ndarray | None:
    """Read sound from `start` to `end` seconds of the picture's clock: f32[samples], mono, 16 kHz.

    limit: seconds that are kept at most. Returns None if there is no sample in between.
    As in the reference: FFmpeg's samples as 16-bit integers, mean of the channels, soxr_hq
    resampling (spec 4.3).
    """
    length = limit + 1.0  # one second more, so that resampling at `limit` does not see the cut
    if end is not None:
        length = min(end - start, length)
    pieces, rate, first, last, place, found = [], 0, 0, 0, 0, False
    for time, rate, piece in _decode_sound(source.path):
        if not pieces:
            late = time - source.index.times[0] if source.index else 0.0
            first = round((start - (late if abs(late) >= ALIGN_SECONDS else 0.0)) * rate)
            last = first + round(length * rate)
            # silence while only the picture has started
            pieces.append(np.zeros(max(0, min(-first, last - first)), np.float32))
        pieces.append(piece[max(0, first - place) : max(0, last - place)])
        found = found or len(pieces[-1]) > 0
        place += len(piece)
        if place >= last:
            break
    if not found:
        return None
    waveform = np.concatenate(pieces)
    if rate != SAMPLE_RATE:
        import librosa  # slow to import, and needed only where there is sound

        waveform = librosa.resample(
            waveform, orig_sr=rate, target_sr=SAMPLE_RATE, res_type="soxr_hq"
        )
    waveform = np.ascontiguousarray(waveform[: round(limit * SAMPLE_RATE)], np.float32)
    return waveform if len(waveform) else None


def _decode_sound(path: str) -> Iterator[tuple[float, int, np.ndarray]]:
    """Yield the sound piece by piece: (seconds, samples per second, f32[n] mono)."""
    with _open(path) as container:
        stream = _main_stream(container, "audio")
        to_int16 = av.AudioResampler(format="s16p")
        packets = (packet for packet in container.demux(stream) if packet.size)
        for packet in itertools.chain(packets, [None]):
            for frame in _decode(stream, packet):
                time = frame.time or 0.0
                for piece in to_int16.resample(frame):
                    mono = piece.to_ndarray().astype(np.float32).mean(axis=0) / 32768
                    yield time, piece.sample_rate, mono
