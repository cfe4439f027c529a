"""Read mutated media files by the reading pool of the jobs, and check that it survives them.

    python launch/fuzz_media.py --count 2000

Makes small files of ten kinds (mp4, mov, mkv, webm, avi, ts, flv, mpg, sounds, images), changes
bytes, ranges, sizes and header fields of copies at random, and reads each as `ugc-jax caption`
does. A mutant depends only on --seed and its number. Each must be read, or refused in one line; one
that kills its decoder or exceeds a limit is kept and counted. Exit status 1 if a mutant raises
anything else, takes more memory or time than the limits allow, or stops the pool; it is kept, too.
"""

import argparse
import collections
import contextlib
import functools
import io
import os
import shutil
import struct
import sys
import tempfile
import time
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
from PIL import Image

from ugc_jax.cli import set_up_logging
from ugc_jax.data.example import read_media
from ugc_jax.data.workers import Pool, ReadingConfig, ReadingFailure
from ugc_jax.errors import EnvironmentFailure, UserError
from ugc_jax.media.presets import ClipSettings, resolve
from ugc_jax.models.qwen2_5_omni.config import GEOMETRY
from ugc_jax.progress import Progress

CLIP = ClipSettings(fps=4.0, min_pixels=28 * 28, max_pixels=16 * 28 * 28, question="")
RATE, SOUND_RATE, SECONDS = 10, 44_100, 0.8
VIDEOS = {  # container -> (picture codec, sound codec) of its files
    "mp4": [("libx264", "aac"), ("libx265", "aac")],
    "mov": [("mpeg4", "pcm_s16le"), ("mjpeg", "aac")],
    "mkv": [("libx264", "libopus"), ("ffv1", "flac")],
    "webm": [("libvpx", "libopus"), ("libvpx-vp9", "libopus")],
    "avi": [("mpeg4", "libmp3lame"), ("mjpeg", "pcm_s16le")],
    "ts": [("libx264", "aac"), ("mpeg2video", "mp2")],
    "flv": [("flv1", "libmp3lame"), ("libx264", "aac")],
    "mpg": [("mpeg1video", "mp2"), ("mpeg2video", "mp2")],
}
SOUNDS = {"wav": "pcm_s16le", "mp3": "libmp3lame", "ogg": "libopus", "flac": "flac"}
IMAGES = ("png", "jpg", "webp", "gif", "tif", "bmp")
# Names before or after which containers store the size of a box, chunk or element.
NAMES = (
    b"ftyp", b"moov", b"mvhd", b"trak", b"tkhd", b"edts", b"elst", b"mdia", b"mdhd", b"hdlr",
    b"stbl", b"stsd", b"stts", b"ctts", b"stss", b"stsz", b"stsc", b"stco", b"avc1", b"avcC",
    b"hvcC", b"mp4a", b"esds", b"mdat", b"RIFF", b"LIST", b"avih", b"strh", b"strf", b"idx1",
    b"movi", b"00dc", b"01wb", b"fmt ", b"data", b"VP8 ", b"IHDR", b"IDAT", b"FLV\x01", b"OggS",
    b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67", b"\x16\x54\xae\x6b", b"\x1f\x43\xb6\x75",
    b"\x1c\x53\xbb\x6b", b"\xa3", b"\xae", b"\xe0", b"\xe1", b"\x63\xa2", b"\x47\x40",
    b"\x00\x00\x01\xba", b"\x00\x00\x01\xb3", b"\x00\x00\x01\xe0", b"\xff\xd8", b"\xff\xc0",
)  # fmt: skip
EXTREMES = (0, 1, 2, 7, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
OUTCOMES = ("ok", "refused", "died", "time", "memory", "unexpected")


class Figures(NamedTuple):
    """counts: {container: {outcome: mutants}}. kept: files that were not simply read or refused.

    violations: lines about what must not be. slowest: (seconds, file). memory: most bytes that a
    worker took.
    """

    counts: dict[str, collections.Counter]
    kept: list[str]
    violations: list[str]
    slowest: tuple[float, str]
    memory: int

    def table(self) -> str:
        """Return the counts as a table."""
        rows = [f"{'':<8}" + "".join(f"{name:>12}" for name in OUTCOMES)]
        total = sum(self.counts.values(), collections.Counter())
        for name, counts in [*self.counts.items(), ("all", total)]:
            rows.append(f"{name:<8}" + "".join(f"{counts[outcome]:>12}" for outcome in OUTCOMES))
        return "\n".join(rows)


# ---- whole files ---------------------------------------------------------------------------------


def originals() -> dict[str, list[tuple[str, bytes]]]:
    """Return {container: [(suffix, content)]} of files that can be read."""
    found = {name: [(name, video(name, *codecs)) for codecs in VIDEOS[name]] for name in VIDEOS}
    found["sound"] = [(name, video(name, None, codec)) for name, codec in SOUNDS.items()]
    found["image"] = [(name, image(name)) for name in IMAGES]
    return found


def video(container: str, picture: str | None, sound: str) -> bytes:
    """Return a file with moving stripes and a tone."""
    file = io.BytesIO()
    form = {"mkv": "matroska", "ts": "mpegts", "mpg": "mpeg"}.get(container, container)
    with av.open(file, "w", format=form) as out:
        rate = 25 if form == "mpeg" else RATE  # MPEG-1 knows a few rates only
        if picture is not None:
            stream = out.add_stream(picture, rate=rate)
            stream.width, stream.height = 96, 64
            stream.pix_fmt = "yuvj420p" if picture == "mjpeg" else "yuv420p"
            stream.codec_context.gop_size, stream.codec_context.thread_count = 5, 1
            stream.options = {"x265-params": "log-level=none"} if picture == "libx265" else {}
        track = out.add_stream(sound, rate=48_000 if sound == "libopus" else SOUND_RATE)
        track.layout = "stereo"
        if picture is not None:
            for number in range(round(SECONDS * rate)):
                page = np.add.outer(np.arange(64), np.arange(96) + 7 * number).astype(np.uint8)
                frame = av.VideoFrame.from_ndarray(np.stack([page, page[::-1], page], 2), "rgb24")
                frame.pts, frame.time_base = number, Fraction(1, rate)
                out.mux(stream.encode(frame))
            out.mux(stream.encode(None))
        tone = np.sin(np.arange(round(SECONDS * track.rate)) / 20)
        wave = np.repeat((tone * 8000).astype(np.int16), 2)[None]
        frame = av.AudioFrame.from_ndarray(wave, "s16", "stereo")
        frame.rate, frame.pts, frame.time_base = track.rate, 0, Fraction(1, track.rate)
        size = track.codec_context.frame_size or 1024
        fifo, convert = av.AudioFifo(), av.AudioResampler(track.format, "stereo", track.rate)
        for piece in [*convert.resample(frame), *convert.resample(None)]:
            fifo.write(piece)
        while (piece := fifo.read(size, partial=True)) is not None:
            out.mux(track.encode(piece))
        out.mux(track.encode(None))
    return file.getvalue()


def image(suffix: str) -> bytes:
    """Return an image with its orientation in Exif, or an animation."""
    pages = [Image.effect_noise((90, 60), 40 + 20 * page).convert("RGB") for page in range(3)]
    exif, file = Image.Exif(), io.BytesIO()
    exif[0x0112] = 6
    form = {"jpg": "jpeg", "tif": "tiff"}.get(suffix, suffix)
    more = {"gif": dict(save_all=True, append_images=pages[1:]), "bmp": {}}
    pages[0].save(file, form, **more.get(suffix, dict(exif=exif)))
    return file.getvalue()


# ---- mutants -------------------------------------------------------------------------------------


def mutate(content: bytes, random: np.random.Generator) -> bytes:
    """Return the content with one to three changes."""
    out = bytearray(content)
    for _ in range(random.integers(1, 4)):
        change = CHANGES[random.integers(len(CHANGES))]
        change(out, random)
        if not out:
            break
    return bytes(out)


def _span(out: bytearray, random: np.random.Generator) -> slice:
    """A random range, mostly short."""
    length = int(len(out) ** random.uniform(0, 1))
    first = int(random.integers(len(out)))
    return slice(first, first + length)


def flip(out: bytearray, random: np.random.Generator):
    """Flip a bit each of some bytes, in the whole file or in its head."""
    end = len(out) if random.random() < 0.5 else min(len(out), 1000)
    for place in random.integers(end, size=random.integers(1, 33)):
        out[place] ^= 1 << int(random.integers(8))


def cut(out: bytearray, random: np.random.Generator):
    """Drop the end, the beginning, or a range."""
    place = int(random.integers(len(out)))
    ranges = slice(place, None), slice(0, place // 8), _span(out, random)
    del out[ranges[random.integers(3)]]


def double(out: bytearray, random: np.random.Generator):
    """Repeat a range, there or elsewhere."""
    span, place = _span(out, random), int(random.integers(len(out)))
    place = span.start if random.random() < 0.5 else place
    out[place:place] = out[span]


def zero(out: bytearray, random: np.random.Generator):
    """Overwrite a range with zeros, ones or noise."""
    span = _span(out, random)
    size = len(out[span])
    out[span] = [bytes(size), b"\xff" * size, random.bytes(size)][random.integers(3)]


def resize(out: bytearray, random: np.random.Generator):
    """Change a size or a field beside the name of a box, chunk or element."""
    name = NAMES[random.integers(len(NAMES))]
    for _ in range(20):  # most names are those of other containers
        if name in out:
            break
        name = NAMES[random.integers(len(NAMES))]
    place = out.find(name, int(random.integers(len(out))))
    place = out.find(name) if place < 0 else place
    place += [-4, len(name), len(name) + int(random.integers(40))][random.integers(3)]
    field(out, random, max(place, 0))


def field(out: bytearray, random: np.random.Generator, place: int | None = None):
    """Write an extreme or a near number of 1, 2, 4 or 8 bytes, mostly into the head."""
    if place is None:
        place = int(random.integers(min(len(out), 600)))
    code = [">B", ">H", "<H", ">I", "<I", ">Q"][random.integers(6)]
    size = struct.calcsize(code)
    old = int.from_bytes(out[place : place + size], "big" if code[0] == ">" else "little")
    new = [
        EXTREMES[random.integers(len(EXTREMES))],
        old + int(random.integers(-16, 17)),
        old * int(random.integers(2, 300)),
        int(random.integers(1 << 32)),
    ][random.integers(4)]
    out[place : place + size] = struct.pack(code, new % (1 << 8 * size))


CHANGES = (flip, cut, double, zero, resize, resize, field)


# ---- the run -------------------------------------------------------------------------------------


def fuzz(count: int, seed: int, folder: Path, keep: Path, config: ReadingConfig) -> Figures:
    """Read `count` mutants, made in `folder`; files of interest are moved to `keep`."""
    whole = originals()
    kinds = list(whole)
    counts = {name: collections.Counter() for name in kinds}
    kept, violations, slowest, memory = [], [], (0.0, ""), 0
    under_way: collections.deque[str] = collections.deque()

    def mutants() -> Iterator[str]:
        for number in range(count):
            random = np.random.default_rng([seed, number])
            kind = kinds[number % len(kinds)]
            suffix, content = whole[kind][random.integers(len(whole[kind]))]
            path = folder / f"{kind}-{seed}-{number:06d}.{suffix}"
            path.write_bytes(mutate(content, random))
            under_way.append(str(path))
            yield str(path)

    read = functools.partial(read_media, settings=resolve(CLIP), text_tokens=8, config=GEOMETRY)
    try:
        with Pool(read, config) as pool, Progress(count, "file", "fuzzing") as bar:
            for path, value, seconds in pool.read(mutants(), ahead=2 * pool.workers):
                name = Path(path).name
                under_way.popleft()
                outcome = "ok"
                if isinstance(value, UserError):
                    outcome = value.kind if isinstance(value, ReadingFailure) else "refused"
                bad = outcome == "unexpected" or (outcome == "refused" and "\n" in str(value))
                if outcome in ("ok", "refused") and not bad:
                    Path(path).unlink()
                else:
                    keep.mkdir(parents=True, exist_ok=True)
                    kept.append(f"{shutil.move(path, keep / name)}: {value}")
                violations += kept[-1:] if bad else []
                counts[name.partition("-")[0]][outcome] += 1
                slowest = max(slowest, (seconds, name))
                bar.update()
                if bar.done % 50 == 0 or bar.done == count:
                    memory = max(memory, memory_of_workers())
    except EnvironmentFailure as error:
        keep.mkdir(parents=True, exist_ok=True)
        files = [shutil.move(path, keep / Path(path).name) for path in under_way]
        violations.append(f"{error} (the pool stopped; one of {', '.join(map(str, files))})")
    # Beside its limit a process has its libraries' code.
    if memory > (config.clip_memory + 0.5) * 2**30:
        violations.append(f"a worker took {memory / 2**30:.1f} GB")
    if slowest[0] > config.clip_timeout + 2 * SECONDS + 60:
        violations.append(f"{slowest[1]} took {slowest[0]:.0f} s")
    return Figures(counts, kept, violations, slowest, memory)


def memory_of_workers() -> int:
    """Return the most bytes that a living child of this process has taken (Linux; else 0)."""
    most = 0
    for path in Path("/proc").glob("[0-9]*/status"):
        with contextlib.suppress(OSError):  # it ends meanwhile
            facts = dict(line.split(":", 1) for line in path.read_text().splitlines())
            if int(facts["PPid"]) == os.getpid() and "VmHWM" in facts:
                most = max(most, int(facts["VmHWM"].split()[0]) * 1024)
    return most


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, default=Path("runs/fuzz_media"), help="for findings")
    parser.add_argument("--workers", type=int)
    parser.add_argument("--clip_timeout", type=float, default=30.0)
    parser.add_argument("--clip_memory", type=float, default=2.0)
    args = parser.parse_args()
    set_up_logging()
    config = ReadingConfig(
        workers=args.workers, clip_timeout=args.clip_timeout, clip_memory=args.clip_memory
    )
    start = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="ugc-jax-fuzz-") as folder:
        figures = fuzz(args.count, args.seed, Path(folder), args.keep, config)
    seconds = time.perf_counter() - start
    print(figures.table())
    print(f"{args.count} files in {seconds:.0f} s, {args.count / seconds:.1f} files/s; slowest "
          f"{figures.slowest[1]} ({figures.slowest[0]:.2f} s); most memory of a worker "
          f"{figures.memory / 2**20:.0f} MB")  # fmt: skip
    for line in figures.kept:
        print(f"kept {line}")
    for line in figures.violations:
        print(f"violation: {line}")
    sys.exit(1 if figures.violations else 0)


if __name__ == "__main__":
    main()
