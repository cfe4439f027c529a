"""Video and sound files through FFmpeg (PyAV): their facts, chosen pictures, and mono sound.

A file is read twice. The first pass only demultiplexes: it lists every picture's time stamp and key-frame flag, so
that "frame k" means the same in any container, whatever its header says (variable rate, edit lists, B-frames, late
start). The second pass decodes the runs of packets that lead from a key frame to a wanted picture and drops the
others undecoded.
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

from ugc_jax.data.features import SAMPLE_RATE
from ugc_jax.data.framing import Source
from ugc_jax.errors import UserError

log = logging.getLogger(__name__)

DEMUXERS = (  # nothing that reads other files (playlists), draws text, or guesses at raw bytes
    "mov,matroska,avi,flv,mpegts,mpeg,mpegvideo,asf,ogg,mxf,ivf,gif,apng,h264,hevc,m4v,"
    "wav,w64,mp3,aac,flac,aiff,amr,caf,au,ac3,eac3"
)
MAX_SOURCE_PIXELS = 1 << 27  # of one picture; beyond 16K video a header is broken or hostile
GAP_PACKETS = (
    8  # fewer undecoded packets than this between two runs do not pay for restarting the decoder
)
REORDERED = 16  # packets that a picture may follow its place by; no codec allows more
TAIL_FRAMES = 5  # codecs with hidden frames list a few more packets than they show pictures
ALIGN_SECONDS = 0.04  # one audio token; smaller offsets of sound against picture are left as the reference leaves them
SQUARE_PIXELS = 0.05  # pixel aspect ratios this near 1 are encoders' rounding


class Index(NamedTuple):
    """The packets of a picture stream. Frame k is the k-th picture shown."""

    stamps: (
        np.ndarray
    )  # i64[packets], decoding order: presentation times, or running numbers if the file has none
    keys: np.ndarray  # bool[packets]: decoding may start here
    shown: np.ndarray  # i64[frames], ascending: the stamps of the pictures that are shown
    times: np.ndarray  # f64[frames], ascending: seconds on the file's clock
    timed: bool  # stamps are presentation times


# ---- opening and indexing ------------------------------------------------------------------------


@contextlib.contextmanager
def _open(path: str) -> Iterator[av.container.InputContainer]:
    """An opened media file; whatever FFmpeg has against it becomes a UserError."""
    try:
        options = {"format_whitelist": DEMUXERS, "protocol_whitelist": "file"}
        with av.open(path, container_options=options, metadata_errors="replace") as container:
            yield container
    except (av.FFmpegError, MemoryError) as error:
        reason = getattr(error, "strerror", None) or type(error).__name__
        raise UserError(
            f"{path}: not readable as video, image or sound ({reason}); copy or encode it again"
        ) from None


def _main_stream(
    container: av.container.InputContainer, kind: str
) -> av.VideoStream | av.AudioStream | None:
    """The main "video" or "audio" stream that can be decoded; the cover art of a song is no video."""
    streams = [
        stream for stream in getattr(container.streams, kind) if stream.codec_context is not None
    ]
    streams = [stream for stream in streams if not stream.disposition & Disposition.attached_pic]
    best = container.streams.best(kind)
    return best if best in streams else next(iter(streams), None)


def check_size(path: str | Path, width: int, height: int):
    """Raise UserError, before anything is allocated, for a size that only a broken or hostile header can claim."""
    if not 0 < width * height <= MAX_SOURCE_PIXELS:
        raise UserError(
            f"{path}: the header claims a picture of {width}x{height} pixels; copy or encode it again"
        )


def scan_streams(path: Path) -> tuple[Source, Index | None]:
    """Facts about a video or a sound file, from all of its packets and its first picture."""
    with _open(str(path)) as container:
        picture, sound = _main_stream(container, "video"), _main_stream(container, "audio")
        if picture is not None:
            check_size(path, picture.codec_context.width, picture.codec_context.height)
        packets, extents, frame = [], {}, None
        has_pts = (
            container.format.name != "avi"
        )  # it stores none, and FFmpeg's guesses are wrong with B-frames
        for packet in container.demux():
            if packet.size == 0:
                continue
            stamp = packet.dts if packet.pts is None else packet.pts
            if stamp is not None:
                begin, end = (
                    float(tick * packet.time_base)
                    for tick in (stamp, stamp + (packet.duration or 0))
                )
                low, high = extents.get(packet.stream_index, (begin, end))
                extents[packet.stream_index] = min(low, begin), max(high, end)
            if picture is not None and packet.stream_index == picture.index:
                packets.append(
                    (
                        packet.pts if has_pts else None,
                        packet.dts,
                        packet.is_keyframe,
                        packet.is_discard,
                    )
                )
                frame = frame or next(iter(_decode(picture, packet)), None)
        _check_complete(path, container, extents, len(packets))
        low, high = extents.get(sound.index, (0.0, 0.0)) if sound else (0.0, 0.0)
        if sound is not None and high == low:
            log.warning("%s: its sound stream holds no sound; taken as silent", path)
        if picture is None:
            if high == low:
                raise UserError(
                    f"{path}: holds neither picture nor sound; name a video, image or sound file"
                )
            return Source(str(path), "audio", 0, 0, 0.0, 0, high - low, 0, True, high - low), None
        frame = frame or next(iter(_decode(picture, None)), None)
        if frame is None:
            raise UserError(
                f"{path}: none of its {len(packets)} pictures is readable; copy or encode it again"
            )
        announced = float(picture.average_rate or picture.guessed_rate or 0)
        index = _index(packets, float(picture.time_base), announced)
        fps = _rate(index.times, announced)
        rotation = round(frame.rotation / 90) % 4 * 90
        size = _display_size(frame, picture.sample_aspect_ratio, rotation)
        check_size(path, *size)
        shown = len(index.shown)
        return Source(
            str(path), "video", *size, fps, shown, shown / fps, rotation, high > low, high - low
        ), index


def _check_complete(
    path: Path, container: av.container.InputContainer, extents: dict, pictures: int
):
    """Refuse a video that ends before its own announcement: half a clip would get a caption as if it were whole."""
    if not pictures:
        return
    if "mp4" in container.format.name:
        cut_off = _announced_bytes(path) > path.stat().st_size
    else:
        announced = (container.duration or 0) / av.time_base
        found = (
            max((high for _, high in extents.values()), default=0)
            - (container.start_time or 0) / av.time_base
        )
        cut_off = announced - found > max(0.3, 0.05 * announced)
    if cut_off:
        raise UserError(
            f"{path}: cut off, at most its first {pictures} pictures are in the file; copy it again"
        )


def _announced_bytes(path: Path) -> int:
    """Where the media data of an mp4 end by the sizes in its outermost boxes (ISO/IEC 14496-12, 4.2)."""
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
    """From (presentation time, decoding time, is key frame, is hidden by an edit list) of every packet.

    tick: seconds of a time stamp's unit. rate: announced frames per second, for files without any time.
    """
    pts, dts, keys, hidden = zip(*packets, strict=True)
    timed = None not in pts
    hidden = np.array(hidden) & timed & (not all(hidden))
    stamps = np.array(
        pts if timed else range(len(packets)), np.int64
    )  # pictures are counted where nothing is stamped
    clock = pts if timed else dts
    times = np.arange(len(packets)) / (rate or 25.0) if None in clock else np.array(clock) * tick
    return Index(stamps, np.array(keys), np.sort(stamps[~hidden]), np.sort(times[~hidden]), timed)


def _rate(times: np.ndarray, announced: float) -> float:
    """Average frames per second: as announced (an exact fraction) unless the time stamps contradict it."""
    if times[-1] <= times[0]:
        return announced or 25.0
    measured = float((len(times) - 1) / (times[-1] - times[0]))
    return announced if abs(announced - measured) < 0.02 * measured else measured


def _display_size(frame: av.VideoFrame, aspect, rotation: int) -> tuple[int, int]:
    """(width, height) after pixel aspect ratio and rotation."""
    width, height = frame.width, frame.height
    if aspect and abs(aspect - 1) > SQUARE_PIXELS:
        width = max(1, round(width * aspect))
    return (height, width) if rotation % 180 else (width, height)


# ---- decoding ------------------------------------------------------------------------------------


def _decode(stream, packet: av.Packet | None) -> list:
    """Frames that a packet (None: the end) sets free. A damaged packet gives none, as in any player."""
    try:
        return stream.codec_context.decode(packet)
    except av.FFmpegError:
        return []


def read_frames(
    source: Source,
    index: Index,
    indices: np.ndarray,
    size: tuple[int, int],
    prepare: Callable[[np.ndarray], np.ndarray],
) -> np.ndarray:
    """u8[n, *size, 3] RGB: the pictures numbered `indices`, each through `prepare` as soon as it is decoded.

    prepare: u8[h, w, 3], upright, of the file's own size -> u8[*size, 3]. Raises UserError if a picture is not there.
    """
    rows = {}  # time stamp -> rows of the result
    for row, stamp in enumerate(index.shown[indices].tolist()):
        rows.setdefault(stamp, []).append(row)
    result = np.empty((len(indices), *size, 3), np.uint8)

    def put(stamp: int, frame: av.VideoFrame):
        result[rows.pop(stamp)] = prepare(
            np.rot90(frame.to_ndarray(format="rgb24"), source.rotation // 90)
        )

    for stamp, frame in _run_decoder(source.path, index, _spans(index, list(rows))):
        if stamp in rows:
            put(stamp, frame)
    if rows:
        _fill(source, index, sorted(rows), put)
    return result


def _fill(source: Source, index: Index, missing: list[int], put):
    """Damaged files: for a picture that does not decode, take the one a player would still be showing."""
    log.warning(
        "%s: %d wanted pictures do not decode; the ones before them are taken",
        source.path,
        len(missing),
    )
    last_stamp, last_frame = None, None
    for stamp, frame in _run_decoder(source.path, index, [(0, len(index.stamps) - 1)]):
        while missing and missing[0] < stamp:
            put(missing.pop(0), last_frame or frame)
        last_stamp, last_frame = stamp, frame
    readable = (
        0 if last_frame is None else int(np.searchsorted(index.shown, last_stamp, side="right"))
    )
    if missing and (not readable or source.frames - readable > TAIL_FRAMES):
        raise UserError(
            f"{source.path}: only {readable} of {source.frames} pictures decode; copy or encode it again"
        )
    for stamp in missing:
        put(stamp, last_frame)


def _spans(index: Index, wanted: list[int]) -> list[tuple[int, int]]:
    """Runs (first, last packet) to decode for the wanted time stamps, each beginning at a key frame."""
    if not index.timed:
        return [(0, min(max(wanted) + REORDERED, len(index.stamps) - 1))]
    position = {stamp: place for place, stamp in enumerate(index.stamps.tolist())}
    keys = np.flatnonzero(index.keys).tolist()
    spans = []
    for last in sorted(position[stamp] for stamp in wanted):
        place = bisect.bisect_right(keys, last) - 1
        while place > 0 and index.stamps[keys[place]] > index.stamps[last]:
            place -= 1  # a picture shown before the key frame that precedes it in the file needs the one before
        first = keys[place] if place >= 0 else 0
        if spans and first <= spans[-1][1] + GAP_PACKETS:
            spans[-1] = spans[-1][0], last
        else:
            spans.append((first, last))
    return spans


def _run_decoder(
    path: str, index: Index, spans: list[tuple[int, int]]
) -> Iterator[tuple[int, av.VideoFrame]]:
    """(time stamp, picture) of everything in the given runs of packets; the other packets are dropped undecoded."""
    spans = iter(spans)
    first, last = next(spans)
    with _open(path) as container:
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
                yield (frame.pts if index.timed else next(count)), frame
            if place == last:
                stream.codec_context.flush_buffers()
                first, last = next(spans, (None, None))
                if first is None:
                    return


# ---- sound ---------------------------------------------------------------------------------------


def read_sound(
    path: str, start: float, end: float | None, limit: float, picture_start: float | None
) -> np.ndarray | None:
    """f32[samples], mono, 16 kHz, from `start` to `end` seconds of the picture's clock; None if there is none.

    limit: seconds that are kept. picture_start: seconds of the first picture on the file's clock, None without picture.
    As the reference: FFmpeg's samples as 16-bit integers, mean of the channels, soxr_hq resampling (spec 4.3).
    """
    length = (
        limit + 1.0 if end is None else min(end - start, limit + 1.0)
    )  # a second more tells that there is more
    pieces, rate, first, last, place, sounding = [], 0, 0, 0, 0, False
    for time, rate, piece in _decode_sound(path):
        if not pieces:
            late = 0.0 if picture_start is None else time - picture_start
            first = round((start - (late if abs(late) >= ALIGN_SECONDS else 0.0)) * rate)
            last = first + round(length * rate)
            pieces.append(
                np.zeros(max(0, min(-first, last - first)), np.float32)
            )  # where the picture starts earlier
        pieces.append(piece[max(0, first - place) : max(0, last - place)])
        sounding = sounding or len(pieces[-1]) > 0
        place += len(piece)
        if place >= last:
            break
    if not sounding:
        log.warning("%s: no sound between start and end; taken as silent", path)
        return None
    waveform = np.concatenate(pieces)
    if rate != SAMPLE_RATE:
        import librosa  # slow to import, and needed only where there is sound

        waveform = librosa.resample(
            waveform, orig_sr=rate, target_sr=SAMPLE_RATE, res_type="soxr_hq"
        )
    keep = round(limit * SAMPLE_RATE)
    if len(waveform) > keep:
        log.warning("%s: sound is cut at %g s; raise max_audio_seconds to keep more", path, limit)
    return np.ascontiguousarray(waveform[:keep], np.float32)


def _decode_sound(path: str) -> Iterator[tuple[float, int, np.ndarray]]:
    """(seconds, samples per second, f32[n] mono) of one piece of sound after the other."""
    with _open(path) as container:
        stream = _main_stream(container, "audio")
        to_int16 = av.AudioResampler(format="s16p")
        packets = itertools.chain(
            (packet for packet in container.demux(stream) if packet.size), [None]
        )
        for packet in packets:
            for frame in _decode(stream, packet):
                time = frame.time or 0.0
                for piece in to_int16.resample(frame):
                    yield (
                        time,
                        piece.sample_rate,
                        piece.to_ndarray().astype(np.float32).mean(axis=0) / 32768,
                    )
