"""Selected pictures of a video, decoded from the key frame before each; others are skipped.

A picture is shown as a careful player shows it: its colours (colour.py), its orientation, and, if
its size or shape changes within the file, fitted into the first one's shape.
"""

import bisect
import itertools
import os
from collections.abc import Callable, Iterator
from fractions import Fraction
from types import SimpleNamespace
from typing import NamedTuple

import av
import numpy as np

from ugc_jax.errors import UserError
from ugc_jax.media.colour import to_rgb
from ugc_jax.media.container import decode, machine_failure, main_stream, open_media, read_packets
from ugc_jax.media.orientation import orientation
from ugc_jax.media.timeline import Index, Source, display_size

# Two spans with at most this many packets between them are decoded as one: a restart costs more.
GAP_PACKETS = 8
# Most packets by which a decoder may return a picture later than its packet; a limit of all codecs.
REORDERED = 16
# Threads of a decoder: as many as leave each of 8 processes its cores, for they cost more work on
# pictures of up to SMALL pixels; on larger ones little, but each holds pictures in memory.
CORES = os.cpu_count() or 1
THREADS, LARGE_THREADS = max(1, CORES // 8), min(4, CORES)
SMALL = 1280 * 720
# Codecs with hidden frames list up to this many more packets than they display pictures.
TAIL_FRAMES = 5
# WebM stores transparency beside the picture; FFmpeg's own decoders leave it out, these do not.
TRANSPARENT = {"vp8": "libvpx", "vp9": "libvpx-vp9"}


# Resizes an upright picture u8[h, w, 3] to (height, width).
Prepare = Callable[[np.ndarray, tuple[int, int]], np.ndarray]


class Picture(NamedTuple):
    """A decoded picture. aspect: of its pixels, width over height; None if unknown."""

    stamp: int
    frame: av.VideoFrame
    aspect: Fraction | None


def read_frames(
    source: Source,
    indices: np.ndarray,
    size: tuple[int, int],
    prepare: Prepare,
    untagged_bt709: bool = False,
) -> tuple[np.ndarray, list[str]]:
    """Read the pictures numbered `indices`: u8[n, *size, 3] RGB, and notes on how they are shown.

    prepare: applied to each picture when it is decoded, with `size` or the part of it that the
      picture takes.
    untagged_bt709: as of `colour.to_rgb`.
    Raises UserError if too many pictures do not decode.
    """
    rows = {}  # time stamp -> rows of the result
    for row, stamp in enumerate(source.index.displayed[indices].tolist()):
        rows.setdefault(stamp, []).append(row)
    result, notes = np.zeros((len(indices), *size, 3), np.uint8), {}

    def put(stamp: int, picture: Picture):
        frame, turn = picture.frame, orientation(picture.frame)
        colours, note = to_rgb(frame, size, untagged_bt709)
        inner = fit(source, display_size(frame, picture.aspect, turn.rotation), size)
        top, left = (size[0] - inner[0]) // 2, (size[1] - inner[1]) // 2
        part = np.s_[top : top + inner[0], left : left + inner[1]]
        shown = prepare(turn.apply(colours), inner)
        for row in rows.pop(stamp):
            result[row][part] = shown
        if note:
            notes[note] = None
        if inner != size:
            notes["the picture's shape changes; it is fitted into the first one's"] = None
        if abs(turn.remainder) > 1:
            angle = f"{abs(turn.remainder):.0f} degrees"
            notes[f"the picture is turned to the nearest right angle, {angle} off"] = None
        if frame.is_corrupt:
            notes["some pictures are damaged and shown as far as they decode"] = None

    for picture in _run_decoder(source, _spans(source.index, list(rows)), set(rows)):
        if picture.stamp in rows:
            put(picture.stamp, picture)
    if rows:
        count = len(rows)
        _fill(source, sorted(rows), put)
        what = "1 picture does" if count == 1 else f"{count} pictures do"
        notes[f"{what} not decode; the ones before them are taken"] = None
    return result, list(notes)


def fit(source: Source, shape: tuple[int, int], size: tuple[int, int]) -> tuple[int, int]:
    """Return the part of `size` (height, width), the whole source's, that a picture takes.

    shape: (width, height) of the picture as displayed, which differs if it changes in the file.
    """
    ratio = shape[0] * source.height / (shape[1] * source.width)  # of the shapes; 1: no change
    return max(1, round(size[0] * min(1, 1 / ratio))), max(1, round(size[1] * min(1, ratio)))


def _fill(source: Source, missing: list[int], put: Callable[[int, Picture], None]):
    """Replace each picture that does not decode by the last one before it, as a player does.

    missing: time stamps, ascending.
    """
    if (failure := machine_failure()) is not None:
        raise failure
    displayed, previous = source.index.displayed, None
    for picture in _run_decoder(source, [(0, len(source.index.stamps) - 1)], None):
        while missing and missing[0] < picture.stamp:
            put(missing.pop(0), previous or picture)
        previous = picture
    readable = 0
    if previous is not None:
        readable = int(np.searchsorted(displayed, previous.stamp, side="right"))
    if missing and (not readable or source.frames - readable > TAIL_FRAMES):
        found = f"only {readable} of {source.frames} pictures decode"
        raise UserError(f"{source.path}: {found}; copy or encode it again")
    for stamp in missing:
        put(stamp, previous)


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
    source: Source, spans: list[tuple[int, int]], wanted: set[int] | None
) -> Iterator[Picture]:
    """Yield the pictures of the given spans of packets; others are not decoded.

    wanted: time stamps; pictures of others may be left out where nothing depends on them. None:
      all pictures.
    """
    spans = iter(spans)
    first, last = next(spans)
    stamps, timed = source.index.stamps.tolist(), source.index.timed
    with open_media(source.path, source.probe) as container:
        stream = main_stream(container, "video")
        context = stream.codec_context
        if stream.metadata.get("alpha_mode") == "1" and context.name in TRANSPARENT:
            context = av.CodecContext.create(TRANSPARENT[context.name], "r")
        decoder = SimpleNamespace(codec_context=context)
        context.thread_type = "AUTO"
        context.thread_count = THREADS if context.width * context.height <= SMALL else LARGE_THREADS
        may_skip = wanted is not None and timed and _tells_references(context)
        coded_aspect = context.sample_aspect_ratio
        packets = read_packets(container, stream, shifts=source.shifts["video"])
        count = itertools.count()
        for place, packet in enumerate(packets):
            if place < first:
                continue
            if may_skip:  # a field may have a packet of its own, after the first one's
                needed = not wanted.isdisjoint(stamps[max(0, place - 1) : place + 1])
                context.skip_frame = "DEFAULT" if needed else "NONREF"
            frames = decode(decoder, packet)
            if place == last:
                frames += decode(decoder, None)
            for frame in frames:
                # The container's aspect stands for the whole file, unless the coded one changes.
                aspect = context.sample_aspect_ratio
                aspect = stream.sample_aspect_ratio if aspect == coded_aspect else aspect
                yield Picture(frame.pts if timed else next(count), frame, aspect)
            if place == last:
                context.flush_buffers()
                first, last = next(spans, (None, None))
                if first is None:
                    return


def _tells_references(context: av.VideoCodecContext) -> bool:
    """Return whether each packet tells if a later picture depends on it, whichever is wanted.

    HEVC tells it only of pictures of the same temporal layer, so there may be but one; the number
    is in the header of its configuration (ISO/IEC 14496-15, 8.3.2.1).
    """
    if context.name == "hevc":
        header = context.extradata or b""
        return len(header) > 22 and header[0] == 1 and header[21] >> 3 & 7 == 1
    return context.name in ("h264", "mpeg4", "mpeg2video", "mpeg1video")
