"""Time the reading of clips by its parts: the table of docs/media.md.

    python launch/media_bench.py clip.mp4 ...

Reads 32 frames and the sound of each clip, as `ugc-jax caption --frames 32` does, in this process.
Prints medians of CPU seconds: in all, and of the scan of its packets, of decoding pictures, of
their colours, of resizing them, and of the sound. Compare figures of one machine only.
"""

import collections
import functools
import statistics
import sys
import time
from types import ModuleType

from ugc_jax.media import clip, picture
from ugc_jax.media.presets import ClipSettings, resolve
from ugc_jax.models.qwen2_5_omni.config import GEOMETRY

TURNS = 5  # after one that is not counted
PARTS = {  # column -> function
    "scan": (clip, "scan"),
    "decode": (picture, "decode"),
    "colour": (picture, "to_rgb"),
    "resize": (clip, "resize"),
    "sound": (clip, "read_sound"),
}


def timed(module: ModuleType, name: str, column: str, seconds: collections.Counter):
    """Let a function of a module add the CPU seconds of its calls to `seconds[column]`."""
    function = getattr(module, name)

    @functools.wraps(function)
    def measured(*args, **options):
        start = time.process_time()
        try:
            return function(*args, **options)
        finally:
            seconds[column] += time.process_time() - start

    setattr(module, name, measured)


def main(paths: list[str]):
    if not paths:
        sys.exit("usage: python launch/media_bench.py CLIP...")
    settings, seconds = resolve(ClipSettings(frames=32)), collections.Counter()
    for column, place in PARTS.items():
        timed(*place, column, seconds)
    print("".join(f"{column:>8}" for column in ("all", *PARTS)))
    for path in paths:
        turns = []
        for _ in range(1 + TURNS):
            seconds.clear()
            start = time.process_time()
            clip.read_clip(clip.probe(path), settings, 1 << 30, GEOMETRY)
            turns.append([time.process_time() - start, *(seconds[column] for column in PARTS)])
        medians = map(statistics.median, zip(*turns[1:], strict=True))
        print("".join(f"{median:>8.2f}" for median in medians), path, flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
