"""Selected pictures of a video, decoded from the key frame before each; others are skipped."""

import bisect
import itertools
import logging
from collections.abc import Callable, Iterator

import av
import numpy as np

from ugc_jax.errors import UserError
from ugc_jax.media.container import decode, machine_failure, main_stream, open_media
from ugc_jax.media.timeline import Index, Source

log = logging.getLogger(__name__)

# Two spans with at most this many packets between them are decoded as one: a restart costs more.
GAP_PACKETS = 8
# Most packets by which a decoder may return a picture later than its packet; a limit of all codecs.
REORDERED = 16
# Codecs with hidden frames list up to this many more packets than they display pictures.
TAIL_FRAMES = 5


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
    if (failure := machine_failure()) is not None:
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
    with open_media(source.path) as container:
        stream = main_stream(container, "video")
        stream.thread_type = "AUTO"
        packets = (packet for packet in container.demux(stream) if packet.size)
        count = itertools.count()
        for place, packet in enumerate(packets):
            if place < first:
                continue
            frames = decode(stream, packet)
            if place == last:
                frames += decode(stream, None)
            for frame in frames:
                yield (frame.pts if source.index.timed else next(count)), frame
            if place == last:
                stream.codec_context.flush_buffers()
                first, last = next(spans, (None, None))
                if first is None:
                    return
