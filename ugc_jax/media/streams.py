"""Video and sound files through FFmpeg (PyAV): their facts, chosen pictures, and mono sound.

A file is read twice. The first pass only demultiplexes: it lists every picture's time stamp and
key-frame flag, so that "frame k" means the same in any container, whatever its header says
(variable rate, edit lists, B-frames, late start). The second pass decodes the runs of packets that
lead from a key frame to a wanted picture and drops the others undecoded.
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

from ugc_jax.errors import UserError
from ugc_jax.models.qwen2_5_omni.config import SAMPLE_RATE

log = logging.getLogger(__name__)

DEMUXERS = (  # nothing that reads other files (playlists), draws text, or guesses at raw bytes
    "mov,matroska,avi,flv,mpegts,mpeg,mpegvideo,asf,ogg,mxf,ivf,gif,apng,h264,hevc,m4v,"
    "wav,w64,mp3,aac,flac,aiff,amr,caf,au,ac3,eac3"
)
# Pixels of one picture; beyond 16K video a header is broken or hostile.
MAX_SOURCE_PIXELS = 1 << 27
# Fewer undecoded packets than this between two runs do not pay for restarting the decoder.
GAP_PACKETS = 8
# Packets that a picture may follow its place by; no codec allows more.
REORDERED = 16
# Codecs with hidden frames list a few more packets than they show pictures.
TAIL_FRAMES = 5
# A title in a broken encoding must not hide a clip; from av 19 on it does not.
TOLERANT = {"metadata_errors": "replace"} if int(av.__version__.split(".")[0]) < 19 else {}
# One audio token; smaller offsets of sound against picture are left as the reference leaves them.
ALIGN_SECONDS = 0.04
# Pixel aspect ratios this near 1 are encoders' rounding.
SQUARE_PIXELS = 0.05


class Index(NamedTuple):
    """The packets of a picture stream. Frame k is the k-th picture shown.

    stamps: i64[packets] in decoding order: presentation times, or running numbers if untimed.
    keys: bool[packets], decoding may start here.
    shown: i64[frames], ascending, the stamps of the pictures that are shown.
    times: f64[frames], ascending, seconds on the file's clock.
    timed: the stamps are presentation times.
    """

    stamps: np.ndarray
    keys: np.ndarray
    shown: np.ndarray
    times: np.ndarray
    timed: bool


class Source(NamedTuple):
    """A file's own facts. Sizes are as displayed: after rotation and pixel aspect ratio."""

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
    """An opened media file; whatever FFmpeg has against it becomes a UserError."""
    options = {"format_whitelist": DEMUXERS, "protocol_whitelist": "file"}
    try:
        # "file:", lest FFmpeg take "part 1: start.mp4" for an address
        with av.open(f"file:{path}", container_options=options, **TOLERANT) as file:
            yield file
    except (av.FFmpegError, MemoryError) as error:
        reason = getattr(error, "strerror", None) or type(error).__name__
        raise UserError(
            f"{path}: not readable as video, image or sound ({reason}); copy or encode it again"
        ) from None


def _main_stream(
    container: av.container.InputContainer, kind: str
) -> av.VideoStream | av.AudioStream | None:
    """The main "video" or "audio" stream that can be decoded; a song's cover art is no video."""
    streams = [
        stream
        for stream in getattr(container.streams, kind)
        if stream.codec_context is not None and not stream.disposition & Disposition.attached_pic
    ]
    best = container.streams.best(kind)
    return best if best in streams else next(iter(streams), None)


def check_size(path: str | Path, width: int, height: int):
    """Raise UserError, before anything is allocated, for a size that only a bad header claims."""
    if not 0 < width * height <= MAX_SOURCE_PIXELS:
        claim = f"the header claims a picture of {width}x{height} pixels"
        raise UserError(f"{path}: {claim}; copy or encode it again")


def scan(path: Path) -> Source:
    """Facts about a video or a sound file, from all of its packets and its first picture.

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
        heard = high - low
        if picture is None:
            if not heard:
                raise UserError(
                    f"{path}: holds neither picture nor sound; name a video, image or sound file"
                )
            return Source(str(path), "audio", 0, 0, 0.0, 0, heard, 0, True, heard, None)
        frame = frame or next(iter(_decode(picture, None)), None)
        if frame is None:
            raise UserError(
                f"{path}: none of its {len(packets)} pictures is readable; copy or encode it again"
            )
        announced = float(picture.average_rate or picture.guessed_rate or 0)
        index = _index(packets, float(picture.time_base), announced)
        fps, count = _rate(index.times, announced), len(index.shown)
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
            has_audio=heard > 0,
            audio_seconds=heard,
            index=index,
        )


def _check_complete(
    path: Path, container: av.container.InputContainer, extents: dict, is_video: bool
):
    """Refuse a file that ends early: half a clip would get a caption as if it were whole.

    extents: of each stream, its first and last second by its packets.
    """
    if "mp4" in container.format.name:
        found, announced = path.stat().st_size, _announced_bytes(path)
        if found < announced:
            kept = f"only {found} of its {announced} bytes are in the file"
            raise UserError(f"{path}: cut off, {kept}; copy it again")
    elif is_video:  # many a sound file only estimates its length
        announced = (container.duration or 0) / av.time_base
        last = max((high for _, high in extents.values()), default=0.0)
        found = last - (container.start_time or 0) / av.time_base
        if announced - found > max(0.3, 0.05 * announced):
            kept = f"only {found:.1f} of its {announced:.1f} seconds are in the file"
            raise UserError(f"{path}: cut off, {kept}; copy it again")


def _announced_bytes(path: Path) -> int:
    """Where an mp4's media data end by the sizes of its outer boxes (ISO/IEC 14496-12, 4.2)."""
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
    """The index of packets, in decoding order.

    packets: (presentation time, decoding time, is key frame, is hidden by an edit list) of each.
    tick: seconds of a time stamp's unit.
    rate: announced frames per second, for files without any time.
    """
    pts, dts, keys, hidden = zip(*packets, strict=True)
    timed = None not in pts
    hidden = np.array(hidden) & timed & (not all(hidden))
    stamps = np.array(pts if timed else range(len(packets)), np.int64)
    clock = pts if timed else dts
    times = np.arange(len(packets)) / (rate or 25.0) if None in clock else np.array(clock) * tick
    return Index(stamps, np.array(keys), np.sort(stamps[~hidden]), np.sort(times[~hidden]), timed)


def _rate(times: np.ndarray, announced: float) -> float:
    """Average frames per second: as announced (an exact fraction) unless the times contradict."""
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
    """Frames that a packet (None: the end) sets free; none if it is damaged, as in any player."""
    try:
        return stream.codec_context.decode(packet)
    except av.FFmpegError:
        return []


def read_frames(
    source: Source,
    indices: np.ndarray,
    size: tuple[int, int],
    prepare: Callable[[np.ndarray], np.ndarray],
) -> np.ndarray:
    """u8[n, *size, 3] RGB: the pictures numbered `indices`, each prepared as soon as it is decoded.

    prepare: u8[h, w, 3], upright, of the file's own size -> u8[*size, 3].
    Raises UserError if too many pictures do not decode.
    """
    rows = {}  # time stamp -> rows of the result
    for row, stamp in enumerate(source.index.shown[indices].tolist()):
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
    """Damaged files: for each picture that does not decode, put the one a player would still show.

    missing: time stamps, ascending.
    """
    message = "%s: %d wanted pictures do not decode; the ones before them are taken"
    log.warning(message, source.path, len(missing))
    shown, last_stamp, last_frame = source.index.shown, None, None
    for stamp, frame in _run_decoder(source, [(0, len(source.index.stamps) - 1)]):
        while missing and missing[0] < stamp:
            put(missing.pop(0), last_frame or frame)
        last_stamp, last_frame = stamp, frame
    readable = 0 if last_frame is None else int(np.searchsorted(shown, last_stamp, side="right"))
    if missing and (not readable or source.frames - readable > TAIL_FRAMES):
        found = f"only {readable} of {source.frames} pictures decode"
        raise UserError(f"{source.path}: {found}; copy or encode it again")
    for stamp in missing:
        put(stamp, last_frame)


def _spans(index: Index, wanted: list[int]) -> list[tuple[int, int]]:
    """Runs (first, last packet) to decode for wanted time stamps, each from a key frame on."""
    if not index.timed:
        return [(0, min(max(wanted) + REORDERED, len(index.stamps) - 1))]
    position = {stamp: place for place, stamp in enumerate(index.stamps.tolist())}
    keys = np.flatnonzero(index.keys).tolist()
    spans = []
    for last in sorted(position[stamp] for stamp in wanted):
        place = bisect.bisect_right(keys, last) - 1
        while place > 0 and index.stamps[keys[place]] > index.stamps[last]:
            place -= 1  # stored after this key frame but shown before it: made from an earlier one
        first = keys[place] if place >= 0 else 0
        if spans and first <= spans[-1][1] + GAP_PACKETS:
            spans[-1] = spans[-1][0], last
        else:
            spans.append((first, last))
    return spans


def _run_decoder(
    source: Source, spans: list[tuple[int, int]]
) -> Iterator[tuple[int, av.VideoFrame]]:
    """(time stamp, picture) of all in the given runs of packets; other packets are not decoded."""
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
    """f32[samples], mono, 16 kHz, from `start` to `end` seconds of the picture's clock.

    None if there is not one sample in between. limit: seconds that are kept at most.
    As the reference: FFmpeg's samples as 16-bit integers, mean of the channels, soxr_hq resampling
    (spec 4.3).
    """
    length = limit + 1.0  # a second more, lest resampling hear the cut
    if end is not None:
        length = min(end - start, length)
    pieces, rate, first, last, place, sounding = [], 0, 0, 0, 0, False
    for time, rate, piece in _decode_sound(source.path):
        if not pieces:
            late = time - source.index.times[0] if source.index else 0.0
            first = round((start - (late if abs(late) >= ALIGN_SECONDS else 0.0)) * rate)
            last = first + round(length * rate)
            # silence where the picture starts earlier
            pieces.append(np.zeros(max(0, min(-first, last - first)), np.float32))
        pieces.append(piece[max(0, first - place) : max(0, last - place)])
        sounding = sounding or len(pieces[-1]) > 0
        place += len(piece)
        if place >= last:
            break
    if not sounding:
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
    """(seconds, samples per second, f32[n] mono) of one piece of sound after the other."""
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
