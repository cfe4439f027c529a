"""Still and animated images: read whole and upright, as a viewer shows them (PIL, pillow-heif).

An animated WebP or AVIF is a video of its pictures; animated GIF and PNG are left to FFmpeg. A
photo of HEIC is made of tiles, which FFmpeg takes for videos: it is known by its brand (ISO/IEC
23008-12, 10) and read by pillow-heif if that is installed. A picture of another format, or of which
PIL would show another one than a viewer, is refused by name.
"""

import contextlib
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError, features

from ugc_jax.errors import UserError
from ugc_jax.media.colour import HDR, on_white, tone_map
from ugc_jax.media.container import check_bytes, check_size, length_of_mp4, reading_error
from ugc_jax.media.picture import Prepare
from ugc_jax.media.timeline import Index, Source, not_by_number

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "AVIF")  # JPEG includes MPO
ANIMATED = ("WEBP", "AVIF")  # of which PIL reads all pictures, complete
ORIENTATION, SUBFILE, DNG_VERSION = 0x0112, 254, 50706  # tags of TIFF and EXIF
HEADER = 1 << 18  # bytes in which the tags of a picture's colours are searched
HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"mif1", b"avif", b"avis")
REMEDY = "save it as PNG or JPEG"
# What other pictures begin with: place, bytes, name.
_OTHERS = (
    (0, b"8BPS", "a Photoshop picture (PSD)"),
    (0, b"gimp xcf", "a GIMP picture (XCF)"),
    (0, b"\0\0\1\0", "an icon (ICO)"),
    (0, b"icns", "an icon (ICNS)"),
    (0, b"\xff\x0a", "a JPEG XL picture"),
    (4, b"JXL \r\n\x87\n", "a JPEG XL picture"),
    (4, b"jP  \r\n\x87\n", "a JPEG 2000 picture"),
    (0, b"\xff\x4f\xff\x51", "a JPEG 2000 picture"),
    (0, b"v/1\1", "an OpenEXR picture"),
    (0, b"#?R", "a Radiance picture (HDR)"),
    (0, b"qoif", "a QOI picture"),
    (0, b"\x01\xda", "an SGI picture"),
    (0, b"\n\x05\x01", "a PCX picture"),
    (0, b"DDS ", "a DDS picture"),
    (0, b"FUJIFILMCCD-RAW", "a camera's raw picture"),
    (0, b"IIRO", "a camera's raw picture"),
    (0, b"IIU\0", "a camera's raw picture"),
    (0, b"%PDF", "a PDF document"),
    (0, b"<svg", "an SVG drawing"),
)


def probe(path: Path) -> Source | None:
    """Return the facts of an image; None for anything else and for an animated GIF or PNG.

    Raises UserError naming the file if it does not decode, or is not read.
    """
    with _errors(path):
        if _is_heic(path):
            with _open_heic(path) as image:
                return _still(path, image.size, ())
        Image.init()  # PIL knows the rarer formats only after this
        try:
            image = Image.open(path, formats=FORMATS)
        except UnidentifiedImageError:
            return None
        with image:
            check_size(path, *image.size)
            # orientations 5 to 8 swap the sides, which PIL has done for TIFF
            swapped = image.format != "TIFF" and image.getexif().get(ORIENTATION) in range(5, 9)
            size, notes = image.size[::-1] if swapped else image.size, []
            animated = getattr(image, "is_animated", False)
            if animated and image.format in ANIMATED:
                return _animation(path, image, size)
            if animated and image.format in ("GIF", "PNG"):
                return None
            if image.format == "TIFF":
                if image.tag_v2.get(SUBFILE, 0) & 1 or DNG_VERSION in image.tag_v2:
                    raise UserError(f"{path}: a camera's raw picture is not read; {REMEDY}")
                if animated:
                    notes.append(f"the first of {image.n_frames} pages is shown")
            if image.mode == "F" or (image.mode == "I" and image.format == "TIFF"):
                raise UserError(f"{path}: a picture of 32-bit numbers is not read; {REMEDY}")
            if (colours := _hdr(path)) is not None:
                notes.append(f"high dynamic range ({HDR[colours[0]]}) is shown in standard range")
            return _still(path, size, tuple(notes))


def read(path: str) -> np.ndarray:
    """Read an image upright as u8[h, w, 3] RGB; transparent pixels become white."""
    with _errors(path):
        if _is_heic(Path(path)):
            with _open_heic(Path(path)) as image:
                return _rgb(image, _hdr(Path(path)))
        with Image.open(path, formats=FORMATS) as image:
            return _rgb(image, _hdr(Path(path)))


def read_frames(
    source: Source,
    indices: np.ndarray,
    size: tuple[int, int],
    prepare: Prepare,
) -> np.ndarray:
    """Read the pictures numbered `indices` of an animated image: u8[n, *size, 3] RGB.

    prepare: as of `picture.read_frames`.
    """
    result = np.empty((len(indices), *size, 3), np.uint8)
    with _errors(source.path), Image.open(source.path, formats=ANIMATED) as image:
        colours = _hdr(Path(source.path))
        for number in sorted(set(indices.tolist())):
            image.seek(number)
            result[indices == number] = prepare(_rgb(image, colours), size)
    return result


def other_format(path: Path) -> str | None:
    """Return what a file is that is no video or sound and no picture of `FORMATS`, if known."""
    with path.open("rb") as file:
        head = file.read(32)
    return next((name for at, magic, name in _OTHERS if head[at:].startswith(magic)), None)


def _still(path: Path, size: tuple[int, int], notes: tuple[str, ...]) -> Source:
    return Source(str(path), "image", *size, 0.0, 1, 0.0, 0, False, 0.0, None, notes=notes)


def _animation(path: Path, image: Image.Image, size: tuple[int, int]) -> Source:
    """Return the facts of an animated image, as a video without sound. size: (width, height)."""
    lasting = []  # seconds of each picture
    for number in range(image.n_frames):
        image.seek(number)
        image.load()
        lasting.append((image.info.get("duration") or 100) / 1000)  # as browsers show it
    count, seconds = len(lasting), sum(lasting)
    numbers, times = np.arange(count), np.cumsum([0.0, *lasting[:-1]])
    index = Index(numbers, np.ones(count, bool), numbers, times, False)
    return Source(
        path=str(path),
        kind="video",
        width=size[0],
        height=size[1],
        fps=count / seconds,
        frames=count,
        seconds=seconds,
        rotation=0,
        has_audio=False,
        audio_seconds=0.0,
        index=index,
        by_time=not_by_number(times, lasting[-1], count / seconds),
        animation=True,
    )


@contextlib.contextmanager
def _errors(path: str | Path) -> Iterator[None]:
    """Raise PIL's errors as those of `reading_error`."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # PIL's parsers raise anything for broken headers
        fault = f"the image does not decode ({error}); copy it again"
        raise reading_error(path, fault, error) from None


def _rgb(image: Image.Image, colours: tuple[int, int] | None) -> np.ndarray:
    """Return an image upright as u8[h, w, 3] RGB. colours: of `_hdr`."""
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # 16 bits, of which PIL would keep the lower 8
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.has_transparency_data:
        image = on_white(image.convert("RGBA"))
    picture = np.asarray(image.convert("RGB"))
    return picture if colours is None else tone_map(picture.astype(np.uint16) * 257, *colours)


def _hdr(path: Path) -> tuple[int, int] | None:
    """Return (transfer, primaries) of a picture that is tagged as of high dynamic range, or None.

    The tags are the `nclx` colours of HEIF and AVIF (ISO/IEC 14496-12, 12.1.5) and the cICP chunk
    of PNG, both with the numbers of ISO/IEC 23091-2.
    """
    with path.open("rb") as file:
        head = file.read(HEADER)
    found = None
    if head[4:8] == b"ftyp" and (place := head.find(b"colrnclx")) >= 0:
        found = struct.unpack_from(">HH", head.ljust(place + 12, b"\0"), place + 8)
    elif head[1:4] == b"PNG" and (place := head.find(b"cICP", 0, head.find(b"IDAT"))) >= 0:
        found = struct.unpack_from(">BB", head, place + 4)
    return found[::-1] if found and found[1] in HDR else None


# ---- HEIC ----------------------------------------------------------------------------------------


def _is_heic(path: Path) -> bool:
    """Return whether a file is a picture of HEIF whose parts PIL alone cannot read."""
    with path.open("rb") as file:
        head = file.read(64)
    if head[4:8] != b"ftyp" or head[8:12] not in HEIF_BRANDS:
        return False
    brands = head[8 : int.from_bytes(head[:4], "big")]
    return not (b"avif" in brands or b"avis" in brands) or not features.check("avif")


@contextlib.contextmanager
def _open_heic(path: Path) -> Iterator[Image.Image]:
    """Open the main picture of a HEIF file. Raises UserError without pillow-heif.

    Also for a file that was cut off, of which libheif would leave out tiles.
    """
    size = path.stat().st_size
    check_bytes(path, length_of_mp4(path, size).announced, size)
    try:
        import pillow_heif
    except ModuleNotFoundError:
        raise UserError(
            f"{path}: a HEIC photo is not read without pillow-heif; pip install pillow-heif, or "
            "save it as JPEG"
        ) from None
    yield pillow_heif.open_heif(path).to_pillow()
