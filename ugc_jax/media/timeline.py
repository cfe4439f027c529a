"""The facts of a video or a sound file, from a pass that only demultiplexes its packets.

The pass lists the time stamp and the key-frame flag of every picture, so that "frame k" is the same
picture in any container, whatever its header says (variable rate, edit lists, B-frames, late
start).
"""

import bisect
import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np

from ugc_jax.errors import UserError
from ugc_jax.media.container import (
    check_complete,
    check_size,
    decode,
    describe,
    main_stream,
    open_media,
    read_packets,
    reading_error,
    undecodable,
)
from ugc_jax.media.memory import Clip
from ugc_jax.media.orientation import orientation

# Pixel aspect ratios that differ from 1 by at most this are encoders' rounding.
SQUARE_PIXELS = 0.05
# Most bytes to search for streams that begin later: these packets are held in memory.
MAX_PROBE = 1 << 28
# Seconds by which time stamps may go back or forth within a stream before that is a jump of the
# clock and not a gap: FFmpeg's limits for formats whose clock restarts, and for others.
BACKWARD, FORWARD, FORWARD_BOTH, FORWARD_ONE = 0.1, 10.0, 60.0, 3600.0
# Seconds of a codec's delay or padding, by which sound may be longer than its picture.
PADDING = 0.1
# Most packets of picture, and of sound, that may stand on the other side of a jump in the file.
LEFTOVERS = (8, 64)
# Demuxers that may find streams after opening a file.
LATE_STREAMS = ("mpegts", "mpeg", "flv", "ogg")
# Seconds by which time stamps are rounded: a picture is shown so much before its own.
ROUNDING = 1e-3
# Formats of bare frames: what FFmpeg counts is wrong once their rate changes.
UNSTAMPED = ("aac", "mp3", "ac3", "eac3", "amr")
# So many tell a fault of a few time stamps from a rate that varies.
MANY_PICTURES = 25
# Seconds of sound before the first picture that are worth a picture: one at the usual sampling.
EARLY_SOUND = 0.5
LONG_STAND = 0.5  # seconds of the last picture from which on pictures are chosen by time


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
    rotation: int  # degrees counter-clockwise that turn the stored picture upright, before a mirror
    has_audio: bool
    audio_seconds: float
    index: Index | None  # None unless video
    origin: float = 0.0  # second of the file's clock at which the clip begins; 0 unless video
    notes: tuple[str, ...] = ()  # in what a player could differ, one line each
    sound_begin: float = 0.0  # second of the file's clock of the first packet of sound
    sound_codec: str = ""  # of a sound for which there is no decoder
    sound_stamped: bool = True  # whether the packets of sound carry times; else FFmpeg counts them
    # "video" and "audio" -> packet number -> ticks added to time stamps from there on
    shifts: Mapping[str, Mapping[int, int]] = {"video": {}, "audio": {}}
    probe: int = 0  # bytes to search for streams; 0: as many as FFmpeg does
    by_time: bool = False  # pictures are to be chosen by time: their numbers do not tell it
    animation: bool = False  # an animated image, read by still.py
    clip: Clip | None = None  # of which these are the facts, instead of a file
    # start and end of the settings cut it into pieces: frames are taken as of a file of the piece
    is_cut: bool = False

    @property
    def length(self) -> float:
        """Seconds of picture or of sound, whichever is longer."""
        return max(self.seconds, self.audio_seconds)


def scan(path: Path) -> Source:
    """Return the facts of a video or a sound file, from all its packets and its first picture.

    Raises UserError naming the file if it is unreadable, cut off, holds no media, or if its picture
    has no decoder.
    """
    source = _scan(path, 0)
    return source or _scan(path, min(path.stat().st_size, MAX_PROBE))


def _scan(path: Path, probe: int) -> Source | None:
    """Scan a file; None if a stream begins later than FFmpeg looked for it, and `probe` is 0."""
    with open_media(str(path), probe) as container:
        picture, sound = main_stream(container, "video"), main_stream(container, "audio")
        notes = _decodable(path, container, picture is not None)
        if picture is not None:
            size = picture.codec_context.width, picture.codec_context.height
            if not probe and not all(size):  # its first picture was not found
                return None
            check_size(path, *size)
        # AVI stores no presentation times, and FFmpeg's guesses are wrong with B-frames.
        has_pts = container.format.name != "avi"
        extents, frame = {}, None
        tracks = {stream.index: [] for stream in (picture, sound) if stream is not None}
        for place, packet in enumerate(read_packets(container)):
            stamp = packet.dts if packet.pts is None else packet.pts
            if stamp is not None:
                begin = float(stamp * packet.time_base)
                end = float((stamp + (packet.duration or 0)) * packet.time_base)
                low, high = extents.get(packet.stream_index, (begin, end))
                extents[packet.stream_index] = min(low, begin), max(high, end)
            if packet.stream_index in tracks:
                facts = packet.duration or 0, packet.is_keyframe, packet.is_discard
                tracks[packet.stream_index].append(_Packet(place, packet.pts, packet.dts, *facts))
            if picture is not None and packet.stream_index == picture.index:
                frame = frame or next(iter(decode(picture, packet)), None)
        late = "" if probe else _late_streams(container)
        if (picture is None and "Video:" in late) or (sound is None and "Audio:" in late):
            return None
        notes += check_complete(path, container, extents)
        streams = {"video": picture, "audio": sound}
        shifts, jumps = _shifts(
            [
                (tracks[stream.index], float(stream.time_base)) if stream else ([], 1.0)
                for stream in streams.values()
            ],
            bool(container.format.flags & av.format.Flags.ts_discont.value),
        )
        if jumps:
            times = "once" if jumps == 1 else f"{jumps} times"
            notes.append(f"the file's clock jumps {times}; its parts are joined")
        shifts = dict(zip(streams, shifts, strict=True))
        low, high = 0.0, 0.0
        if sound and tracks[sound.index]:
            low, high = _extent(tracks[sound.index], shifts["audio"], float(sound.time_base))
        facts = dict(
            path=str(path),
            has_audio=high > low,
            audio_seconds=high - low,
            sound_begin=low,
            sound_stamped=container.format.name not in UNSTAMPED,
            sound_codec=undecodable(container, "audio") if sound is None else "",
            shifts=shifts,
            probe=probe,
        )
        if picture is None:
            if facts["sound_codec"]:
                raise UserError(
                    f"{path}: its sound has the codec {facts['sound_codec']}, for which there is "
                    "no decoder; encode it as AAC or WAV with the program that made it"
                )
            if not high > low:
                raise UserError(
                    f"{path}: holds neither picture nor sound; name a video, image or sound file"
                )
            sizes = dict(width=0, height=0, fps=0.0, frames=0, seconds=high - low, rotation=0)
            return Source(kind="audio", **sizes, index=None, notes=tuple(notes), **facts)
        packets = tracks[picture.index]
        frame = frame or next(iter(decode(picture, None)), None)
        if frame is None:
            fault = f"none of its {len(packets)} pictures is readable; copy or encode it again"
            raise reading_error(path, fault)
        announced = float(picture.average_rate or picture.guessed_rate or 0)
        tick = float(picture.time_base)
        index = _index(_shifted(packets, shifts["video"]), has_pts, tick, announced)
        fps, count = _rate(index.times, announced), len(index.displayed)
        seconds, origin = count / fps, float(index.times[0])
        last = max(packets, key=lambda packet: packet.pts if index.timed else packet.place)
        stands = last.duration * tick
        if by_time := not_by_number(index.times, stands, fps):
            seconds = float(index.times[-1]) - origin + (stands or 1 / fps)
        heard = 0.0 if -BACKWARD < low < 0 else low  # before zero, packets only fill the decoder
        early = origin - heard if high > low else 0.0
        if early >= EARLY_SOUND:
            by_time = True
            notes.append(
                f"the sound begins {early:.1f} s before the picture; the first one is shown"
            )
            origin, seconds = heard, seconds + early
        if high - (origin + seconds) >= LONG_STAND:
            notes.append(f"the picture ends {high - origin - seconds:.1f} s before the sound")
        rotation = orientation(frame).rotation
        width, height = display_size(frame, picture.sample_aspect_ratio, rotation)
        check_size(path, width, height)
        return Source(
            kind="video",
            width=width,
            height=height,
            fps=fps,
            frames=count,
            seconds=seconds,
            rotation=rotation,
            index=index,
            origin=origin,
            notes=tuple(notes),
            by_time=by_time,
            **facts,
        )


def _decodable(path: Path, container: av.container.InputContainer, has_picture: bool) -> list[str]:
    """Return a note on main streams without a decoder, in place of which another one is read.

    Raises UserError if no picture of a video has a decoder.
    """
    codec = undecodable(container, "video")
    if codec and not has_picture:
        raise UserError(
            f"{path}: its picture has the codec {codec}, for which there is no decoder; encode it "
            "as H.264, or save its sound as a sound file if that is all you need"
        )
    notes = []
    if codec:
        notes.append(f"the main picture (codec {codec}) has no decoder; another one is shown")
    codec = undecodable(container, "audio")
    if codec and main_stream(container, "audio") is not None:
        notes.append(f"the main sound (codec {codec}) has no decoder; another one is heard")
    return notes


def _late_streams(container: av.container.InputContainer) -> str:
    """Return FFmpeg's description of the streams that began after opening."""
    if container.format.name not in LATE_STREAMS:
        return ""
    known = len(container.streams)
    return "\n".join(line for number, line in describe(container).items() if number >= known)


# ---- the clip's clock ----------------------------------------------------------------------------


class _Packet(NamedTuple):
    """A packet: number in the file, times in ticks; whether it is a key frame, is hidden."""

    place: int
    pts: int | None
    dts: int | None
    duration: int
    key: bool
    hidden: bool


class _Run(NamedTuple):
    """Packets of a stream between jumps of its clock."""

    first: int  # number of the first packet in the stream
    place: int  # and in the file
    begin: float  # seconds
    end: float  # with a usual duration for the last packet
    until: float  # with the stated one: a picture may stand for minutes


def _runs(packets: list[_Packet], tick: float) -> list[_Run]:
    """Split a stream where its time stamps go back, or far ahead."""
    stamps = np.array([np.nan if p.dts is None else p.dts for p in packets]) * tick
    known = np.flatnonzero(~np.isnan(stamps))
    if not len(known):  # a stream without decoding times is in the order of presentation
        stamps = np.array([np.nan if p.pts is None else p.pts for p in packets]) * tick
        known = np.flatnonzero(~np.isnan(stamps))
    if not len(known):
        return []
    follow = known[np.minimum(np.searchsorted(known, np.arange(len(stamps))), len(known) - 1)]
    begins = stamps[follow]  # of the next packet with a time, or of the last one
    steps = np.diff(begins)
    usual = float(np.median(steps[steps > 0])) if (steps > 0).any() else 0.0
    cuts = [0, *(np.flatnonzero((steps < -BACKWARD) | (steps > FORWARD)) + 1).tolist()]
    runs = []
    for first, after in zip(cuts, [*cuts[1:], len(packets)], strict=True):
        last = float(begins[first:after].max())
        lasting = packets[after - 1].duration * tick or usual
        end = last + (lasting if lasting < FORWARD else usual)
        runs.append(_Run(first, packets[first].place, float(begins[first]), end, last + lasting))
    return runs


def _shifts(
    tracks: list[tuple[list[_Packet], float]], restarts: bool
) -> tuple[list[dict[int, int]], int]:
    """Make one continuous clock of two streams' time stamps, as a player does.

    tracks: picture and sound: (packets, seconds of a tick). restarts: whether the format is one
    whose clock may start again (joined or broadcast MPEG streams, Ogg).
    A jump that both streams make is one of the file's clock: what follows is joined to the end of
    both. A jump back of one stream is joined to its own end. A jump ahead of one stream, while the
    other one goes on, is a gap. A few packets with stray times stand where the ones around them do.
    Returns for each stream the ticks to add from a packet on, and the number of jumps.
    """
    pairs = [_without_strays(_runs(packets, tick)) for packets, tick in tracks]
    runs, strays = zip(*pairs, strict=True)
    places = [[packet.place for packet in packets] for packets, _ in tracks]
    added = [{0: 0.0}, {0: 0.0}]  # packet -> seconds
    now, part = [0, 0], [0, 0]  # of each stream: the run that is reached, the part of the clock
    # A stream that begins with a part of the file may be ahead of the other one in the file.
    events = sorted(
        (places[k][min(LEFTOVERS[k], len(places[k]) - 1)] if number == 0 else run.place, k, number)
        for k in (0, 1)
        for number, run in enumerate(runs[k])
    )
    for place, track, number in events:
        own, other, run = runs[track], runs[1 - track], runs[track][number]
        shift, shift_beside = (next(reversed(added[k].values())) for k in (track, 1 - track))
        beside = other[now[1 - track]] if other else None
        after = next(iter(other[now[1 - track] + 1 :]), None)
        now[track] = number
        if (
            part[1 - track] > part[track]
            and beside.begin - FORWARD < run.begin < beside.end + FORWARD
            and not (number == 0 and own[1:] and abs(own[1].begin - beside.begin) < FORWARD)
        ):  # the other stream has come here first
            part[track], added[track][run.first] = part[1 - track], shift_beside
        if number == 0 or run.first in added[track]:
            continue
        before = own[number - 1]
        ahead, most = run.begin - before.until, FORWARD if restarts else FORWARD_ONE
        end, begin = before.end + shift, run.begin
        until = len(places[1 - track]) if after is None else after.first
        left = until - bisect.bisect_right(places[1 - track], place, hi=until)
        few = LEFTOVERS[1 - track]
        if beside is not None and beside.first == 0 and left >= until - few:
            beside = None  # it has not begun
        if after is not None and beside is not None and abs(after.begin - begin) < FORWARD:
            ahead, most = begin - before.end, FORWARD if restarts else FORWARD_BOTH
            ends, begins = [end, beside.end + shift_beside], [begin, after.begin]
            if abs(ends[0] - ends[1]) < PADDING:  # the picture goes on without a break
                end, begin = ends[track], begins[track]
            else:
                end, begin = max(ends), min(begins)
        elif beside is not None and left > few:
            most = FORWARD_ONE
        elif beside is not None:  # it has ended
            end = max(end, beside.end + shift_beside)
        if run.begin < before.end - BACKWARD or ahead > most:
            part[track], added[track][run.first] = max(part) + 1, end - begin
    for track, found in enumerate(strays):
        for first, after, seconds in found:
            shift = added[track][max(number for number in added[track] if number <= first)]
            added[track] |= {first: shift + seconds, after: shift}
    ticks = [
        {number: round(seconds / tick) for number, seconds in sorted(shifts.items())}
        for shifts, (_, tick) in zip(added, tracks, strict=True)
    ]
    return [shifts if any(shifts.values()) else {} for shifts in ticks], max(part)


def _without_strays(runs: list[_Run]) -> tuple[list[_Run], list[tuple[int, int, float]]]:
    """Return the runs without those shorter than a second after which the clock goes on as before.

    Also returns the strays: (first packet, first packet after it, seconds to add).
    """
    kept, strays = runs[:1], []
    rest = iter(itertools.zip_longest(runs[1:], runs[2:]))
    for run, after in rest:
        before = kept[-1]
        if (
            after is not None
            and run.end - run.begin < 1
            and -BACKWARD < after.begin - before.end < FORWARD
        ):
            strays.append((run.first, after.first, before.end - run.begin))
            kept[-1] = before._replace(end=after.end)
            next(rest, None)
        else:
            kept.append(run)
    return kept, strays


def _shifted(packets: list[_Packet], shifts: Mapping[int, int]) -> list[_Packet]:
    """Return the packets with the time stamps of the continuous clock."""
    if not shifts:
        return packets
    result, shift = [], 0
    for number, packet in enumerate(packets):
        shift = shifts.get(number, shift)
        pts, dts = (None if stamp is None else stamp + shift for stamp in (packet.pts, packet.dts))
        result.append(packet._replace(pts=pts, dts=dts))
    return result


def _extent(packets: list[_Packet], shifts: Mapping[int, int], tick: float) -> tuple[float, float]:
    """Return the first and the last second of a stream; zeros if it has no time stamps."""
    spans = []
    for packet in _shifted(packets, shifts):
        stamp = packet.dts if packet.pts is None else packet.pts
        if stamp is not None:
            spans.append((stamp, stamp + packet.duration))
    if not spans:
        return 0.0, 0.0
    return min(spans)[0] * tick, max(spans)[1] * tick


def uniform(times: np.ndarray) -> bool:
    """Return whether pictures are at most half a frame from a straight line over their numbers.

    Of many, up to a fifth may be up to one frame off: multiplexers make the first picture longer,
    and times that FFmpeg guesses between stamps are wrong by one frame.
    """
    if len(times) < 3 or times[-1] <= times[0]:
        return True
    line = np.linspace(times[0], times[-1], len(times))
    if np.abs(times - line).max() < 0.501 * (line[1] - line[0]):
        return True
    if len(times) < MANY_PICTURES:
        return False
    numbers = np.arange(len(times)) - (len(times) - 1) / 2
    step = float(numbers @ times / (numbers @ numbers))
    off = np.abs(times - times.mean() - step * numbers) / step  # frames
    return bool(off.max() < 1.01 and np.quantile(off, 0.8) < 0.501)


def not_by_number(times: np.ndarray, stands: float, fps: float) -> bool:
    """Return whether the numbers of pictures do not tell when a player shows them.

    times: f64[frames], ascending, seconds. stands: seconds that the last picture is shown. Equal
    times of several pictures say nothing, so these are taken by number.
    """
    if len(times) > 1 and times[-1] <= times[0]:
        return False
    return not uniform(times) or stands >= max(LONG_STAND, 2 / fps)


def shown(source: Source, instants: np.ndarray) -> np.ndarray:
    """Return the numbers of the pictures that a player shows at seconds of the clip's clock."""
    times = source.index.times - source.origin
    return np.maximum(np.searchsorted(times, instants + ROUNDING, side="right") - 1, 0)


def _index(packets: list[_Packet], has_pts: bool, tick: float, rate: float) -> Index:
    """Index the packets of a picture stream, given in decoding order.

    tick: seconds of a time stamp's unit. rate: announced frames per second, for files without time
      stamps.
    """
    pts, dts, keys, hidden = zip(
        *((p.pts if has_pts else None, p.dts, p.key, p.hidden) for p in packets), strict=True
    )
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


def display_size(frame: av.VideoFrame, aspect, rotation: int) -> tuple[int, int]:
    """Return (width, height) after pixel aspect ratio and rotation."""
    width, height = frame.width, frame.height
    if aspect and abs(aspect - 1) > SQUARE_PIXELS:
        width = max(1, round(width * aspect))
    return (height, width) if rotation % 180 else (width, height)
