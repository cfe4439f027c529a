"""What ran on a device, from a profile of jax.profiler: kernels, copies and their time."""

import collections
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from jax.profiler import ProfileData

# A kernel that only moves data, by its name: a GPU's memcpy, or an instruction of XLA, which names
# a fusion by its work.
_COPY = re.compile(
    r"memcpyd2d|(loop_|input_|wrapped_|bitcast_|constant_)*"
    r"(copy|slice|dynamic[_-]slice|transpose|concatenate|pad)(-start)?",
    re.IGNORECASE,
)
_TRANSFER = re.compile(r"memcpy(h2d|d2h)|memset|infeed|outfeed", re.IGNORECASE)
# Events that contain other ones.
_OUTER = re.compile(r"(while|call|conditional|tuple|end:)\b", re.IGNORECASE)


class Event(NamedTuple):
    """A kernel, a copy or a transfer, and its seconds."""

    name: str
    seconds: float


class Activity(NamedTuple):
    """What ran on a device. Counts and seconds; transfers are between host and device."""

    kernels: int
    copies: int
    transfers: int
    busy_seconds: float
    copy_seconds: float
    largest: tuple[tuple[str, int, float], ...]  # (name, count, seconds) by their time


def read_profile(folder: str | Path) -> ProfileData | None:
    """Return the newest profile of `jax.profiler.trace` below a folder; None without one."""
    files = sorted(Path(folder).rglob("*.xplane.pb"), key=lambda path: path.stat().st_mtime)
    return ProfileData.from_file(str(files[-1])) if files else None


def device_events(profile: ProfileData) -> Iterator[Event]:
    """Yield what ran on the first device: a GPU, a TPU or, without them, the CPU."""
    planes = {plane.name: plane for plane in profile.planes}
    devices = sorted(name for name in planes if re.match(r"/device:(GPU|TPU):", name))
    if not devices:
        for line in planes["/host:CPU"].lines if "/host:CPU" in planes else ():
            for event in line.events:
                ran = any(name == "hlo_op" for name, _ in event.stats)
                if ran and not _OUTER.match(event.name):
                    yield Event(event.name, event.duration_ns / 1e9)
        return
    of_gpu = ":GPU:" in devices[0]
    for line in planes[devices[0]].lines:
        if line.name.startswith("Stream") if of_gpu else line.name == "XLA Ops":
            for event in line.events:
                name = event.name.lstrip("%")
                if of_gpu or not _OUTER.match(name):
                    yield Event(name, event.duration_ns / 1e9)


def activity(events: Iterable[Event], largest: int = 12) -> Activity:
    """Sum up events. A fusion is a copy if its name says no more than that it moves data."""
    kernels = copies = transfers = 0
    busy = copying = 0.0
    by_name: dict[str, list] = collections.defaultdict(lambda: [0, 0.0])
    for name, seconds in events:
        busy += seconds
        if _TRANSFER.search(name):
            transfers += 1
        elif is_copy(name):
            copies += 1
            copying += seconds
        else:
            kernels += 1
        # The same instruction of other layers has another number.
        total = by_name[re.sub(r"[._]?\d+$", "", name)]
        total[0] += 1
        total[1] += seconds
    ranked = sorted(by_name.items(), key=lambda item: -item[1][1])[:largest]
    return Activity(
        kernels, copies, transfers, busy, copying,
        tuple((name, count, seconds) for name, (count, seconds) in ranked),
    )  # fmt: skip


def is_copy(name: str) -> bool:
    """Return whether a kernel of this name only moves data."""
    words = re.sub(r"[._]\d+", "", name)
    plain = re.sub(r"(_fusion|\.remat\w*|\.clone)+$", "", words)
    return _COPY.fullmatch(plain) is not None
