"""Images: read whole and upright, animations as videos, anything else refused by name."""

import io
import struct
import sys
import zlib

import av
import numpy as np
import pytest
from encode import corners, read_corners
from PIL import Image, TiffImagePlugin

from ugc_jax.errors import UserError
from ugc_jax.media import clip as media
from ugc_jax.media import colour, still
from ugc_jax.media.presets import ClipSettings, resolve
from ugc_jax.models.qwen2_5_omni.config import GEOMETRY


def read_clip(path, **settings):
    return media.read_clip(media.probe(path), resolve(ClipSettings(**settings)), 1 << 30, GEOMETRY)


# EXIF orientation -> the corners as a viewer shows them
EXIF = dict(enumerate(["RGBY", "GRYB", "YBGR", "BYRG", "RBGY", "BRYG", "YGBR", "GYRB"], 1))


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tiff", "avif"])
@pytest.mark.parametrize("orientation", EXIF)
def test_all_orientations(tmp_path, suffix, orientation):
    image = Image.fromarray(corners())
    exif = image.getexif()
    exif[still.ORIENTATION] = orientation
    image.save(tmp_path / f"a.{suffix}", exif=exif)
    clip = read_clip(tmp_path / f"a.{suffix}")
    assert read_corners(clip.frames[0]) == EXIF[orientation]
    size = (160, 120) if orientation < 5 else (120, 160)
    assert (clip.source.width, clip.source.height) == size
    assert clip.notes == []


@pytest.mark.parametrize("suffix", ["png", "tiff", "pgm"])
def test_sixteen_bits_of_grey(tmp_path, suffix):
    levels = np.linspace(0, 65535, 112 * 112).astype(np.uint16).reshape(112, 112)
    Image.fromarray(levels).save(tmp_path / f"a.{suffix}")
    shown = read_clip(tmp_path / f"a.{suffix}").frames[0]
    assert np.abs(shown[..., 1].astype(int) - (levels >> 8)).max() <= 1


@pytest.mark.parametrize("kind", [np.int32, np.float32])
def test_pictures_of_wide_numbers_are_refused(tmp_path, kind):
    Image.fromarray(np.full((8, 8), 70_000, kind)).save(tmp_path / "a.tiff")
    with pytest.raises(UserError, match=r"a\.tiff: a picture of 32-bit numbers is not read; save"):
        media.probe(tmp_path / "a.tiff")


# ---- several pictures ----------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["webp", "avif", "gif", "png"])
def test_animated_images_are_videos(tmp_path, suffix):
    """Each picture at its time; only the changed part of a picture is stored."""
    pages = []
    for number in range(8):
        page = np.full((112, 112, 3), 40, np.uint8)
        page[:, 14 * number : 14 * number + 14] = 220
        pages.append(Image.fromarray(page))
    lossless = {"lossless": True} if suffix == "webp" else {}
    pages[0].save(
        tmp_path / f"a.{suffix}", save_all=True, append_images=pages[1:], duration=200, **lossless
    )
    clip = read_clip(tmp_path / f"a.{suffix}", frames=8, min_pixels=1, max_pixels=112 * 112)
    assert (clip.source.kind, clip.source.frames, clip.source.has_audio) == ("video", 8, False)
    assert clip.source.seconds == pytest.approx(1.6)
    np.testing.assert_allclose(clip.times - clip.times[0], 0.2 * np.arange(8), atol=1e-3)
    found = clip.frames[:, 56, 7::14, 1].argmax(1)
    assert found.tolist() == list(range(8))
    assert np.abs(clip.frames[3].astype(int) - np.asarray(pages[3])).max() < 12


def test_animation_of_different_durations_and_alpha(tmp_path):
    pages = [Image.new("RGBA", (112, 112), (200, 0, 0, alpha)) for alpha in (255, 0, 255)]
    pages[0].save(
        tmp_path / "a.webp", save_all=True, append_images=pages[1:], duration=[100, 1000, 400]
    )
    source = media.probe(tmp_path / "a.webp")
    np.testing.assert_allclose(source.index.times, [0, 0.1, 1.1])
    assert source.seconds == pytest.approx(1.5)
    clip = read_clip(tmp_path / "a.webp", start=0.3, end=0.9)
    assert (clip.frames == 255).all()


def test_animation_that_is_cut_off(tmp_path):
    pages = [Image.effect_noise((112, 112), 50).convert("RGB") for _ in range(5)]
    pages[0].save(tmp_path / "a.webp", save_all=True, append_images=pages[1:], lossless=True)
    content = (tmp_path / "a.webp").read_bytes()
    (tmp_path / "a.webp").write_bytes(content[: len(content) * 3 // 4])
    with pytest.raises(UserError, match=r"a\.webp: the image does not decode"):
        read_clip(tmp_path / "a.webp")


def test_pages(tmp_path):
    pages = [Image.new("RGB", (112, 112), (60 * k, 0, 0)) for k in range(1, 4)]
    pages[0].save(tmp_path / "a.tiff", save_all=True, append_images=pages[1:])
    clip = read_clip(tmp_path / "a.tiff")
    assert (clip.source.kind, clip.frames[0, 0, 0].tolist()) == ("image", [60, 0, 0])
    assert clip.notes == ["the first of 3 pages is shown"]


@pytest.mark.parametrize(("tag", "value"), [(still.SUBFILE, 1), (still.DNG_VERSION, b"\1\4\0\0")])
def test_raw_pictures_are_refused_and_not_shown_as_their_thumbnail(tmp_path, tag, value):
    info = TiffImagePlugin.ImageFileDirectory_v2()
    info[tag] = value
    info.tagtype[tag] = 4 if isinstance(value, int) else 1
    Image.new("RGB", (16, 16)).save(tmp_path / "a.dng", format="TIFF", tiffinfo=info)
    with pytest.raises(UserError, match=r"a\.dng: a camera's raw picture is not read; save it as"):
        media.probe(tmp_path / "a.dng")


@pytest.mark.parametrize(
    ("name", "start"),
    [
        ("a Photoshop picture (PSD)", b"8BPS\0\1"),
        ("an icon (ICO)", b"\0\0\1\0\1\0"),
        ("a JPEG XL picture", b"\xff\x0a\1\2"),
        ("a JPEG XL picture", b"\0\0\0\x0cJXL \r\n\x87\n"),
        ("a JPEG 2000 picture", b"\0\0\0\x0cjP  \r\n\x87\n"),
        ("a PDF document", b"%PDF-1.7"),
    ],
)
def test_other_pictures_are_refused_by_name(tmp_path, name, start):
    (tmp_path / "a.bin").write_bytes(start + bytes(500))
    with pytest.raises(UserError) as caught:
        media.probe(tmp_path / "a.bin")
    assert str(caught.value) == f"{tmp_path}/a.bin: {name} is not read; save it as PNG or JPEG"


def test_real_files_of_other_formats(tmp_path):
    for name in ("a.ico", "a.jp2", "a.icns", "a.dds"):
        Image.new("RGBA", (64, 64)).save(tmp_path / name)
        with pytest.raises(UserError, match=f"{name}: an? .* is not read; save it as PNG or JPEG"):
            media.probe(tmp_path / name)


# ---- high dynamic range --------------------------------------------------------------------------


def test_png_and_avif_of_high_dynamic_range(tmp_path):
    """A grey of reference white in PQ, tagged by cICP or nclx, becomes nearly white."""
    level = round(255 * float(colour.nits_to_pq(np.array(203.0))))
    image = Image.new("RGB", (112, 112), (level,) * 3)
    image.save(tmp_path / "plain.png")
    content = (tmp_path / "plain.png").read_bytes()
    chunk = b"cICP" + bytes([9, 16, 0, 1])
    chunk = struct.pack(">I", 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
    place = content.index(b"IDAT") - 4
    (tmp_path / "pq.png").write_bytes(content[:place] + chunk + content[place:])
    image.save(tmp_path / "plain.avif", quality=95)
    content = (tmp_path / "plain.avif").read_bytes()
    place = content.index(b"colrnclx") + 8
    content = content[:place] + struct.pack(">HH", 9, 16) + content[place + 4 :]
    (tmp_path / "pq.avif").write_bytes(content)
    for suffix in ("png", "avif"):
        plain = read_clip(tmp_path / f"plain.{suffix}")
        assert np.abs(plain.frames.astype(int) - level).max() < 4
        assert plain.notes == []
        clip = read_clip(tmp_path / f"pq.{suffix}")
        assert clip.frames.min() > 220
        assert clip.notes == ["high dynamic range (PQ) is shown in standard range"]


# ---- pictures made of tiles ----------------------------------------------------------------------


def box(name: str, *parts: bytes) -> bytes:
    content = b"".join(parts)
    return struct.pack(">I4s", 8 + len(content), name.encode()) + content


def full(name: str, *parts: bytes, version: int = 0, flags: int = 0) -> bytes:
    return box(name, struct.pack(">I", version << 24 | flags), *parts)


def tile(codec: str, page: np.ndarray) -> tuple[bytes, bytes]:
    """(the configuration box, the coded picture) of one tile."""
    file = io.BytesIO()
    if codec == "av01":
        Image.fromarray(page).save(file, "AVIF", quality=95, subsampling="4:2:0")
        content = file.getvalue()
        place = content.index(b"av1C") - 4
        config = content[place : place + struct.unpack_from(">I", content, place)[0]]
        return config, content[content.index(b"mdat") + 4 :]
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("libx265", rate=1)
        stream.height, stream.width, stream.pix_fmt = *page.shape[:2], "yuv420p"
        stream.codec_context.codec_tag = "hvc1"
        stream.options = {"x265-params": "log-level=none:keyint=1", "crf": "10"}
        frame = av.VideoFrame.from_ndarray(page, format="rgb24")
        container.mux([*stream.encode(frame), *stream.encode(None)])
    content = file.getvalue()
    place = content.index(b"hvcC") - 4
    config = content[place : place + struct.unpack_from(">I", content, place)[0]]
    file.seek(0)
    with av.open(file) as container:
        return config, bytes(next(packet for packet in container.demux(video=0) if packet.size))


def write_tiles(path, codec: str, page: np.ndarray, side: int = 128):
    """Write a picture as a grid of tiles, as phones do (ISO/IEC 23008-12, 6.6.2.3)."""
    rows, columns = page.shape[0] // side, page.shape[1] // side
    tiles = [
        tile(codec, np.ascontiguousarray(page[y : y + side, x : x + side]))
        for y in range(0, page.shape[0], side)
        for x in range(0, page.shape[1], side)
    ]
    count, config = len(tiles), tiles[0][0]
    grid = struct.pack(">BBBBHH", 0, 0, rows - 1, columns - 1, columns * side, rows * side)
    numbers = range(2, count + 2)
    entries = [(1, "grid", 0)] + [(number, codec, 1) for number in numbers]
    infos = [
        full("infe", struct.pack(">HH4sx", number, 0, kind.encode()), version=2, flags=hidden)
        for number, kind, hidden in entries
    ]
    properties = box(
        "ipco",
        config,
        full("ispe", struct.pack(">II", side, side)),
        full("ispe", struct.pack(">II", columns * side, rows * side)),
        full("pixi", b"\3\x08\x08\x08"),
        box("colr", b"nclx", struct.pack(">HHHB", 1, 13, 6, 128)),
    )
    own = [(1, [3, 4, 5])] + [(number, [0x81, 2, 4, 5]) for number in numbers]
    uses = [struct.pack(">HB", number, len(one)) + bytes(one) for number, one in own]

    def meta(data: int) -> bytes:
        """data: place of the first byte of the media data in the file."""
        places, place = [], data + len(grid)
        for _, content in tiles:
            places.append((place, len(content)))
            place += len(content)
        spans = [(1, data, len(grid))] + [(n, *p) for n, p in zip(numbers, places, strict=True)]
        locations = [struct.pack(">HHHII", n, 0, 1, place, size) for n, place, size in spans]
        return full(
            "meta",
            full("hdlr", struct.pack(">I4s12xx", 0, b"pict")),
            full("pitm", struct.pack(">H", 1)),
            full("iloc", struct.pack(">BBH", 0x44, 0, len(spans)), *locations),
            full("iinf", struct.pack(">H", len(infos)), *infos),
            full("iref", box("dimg", struct.pack(f">HH{count}H", 1, count, *numbers))),
            box("iprp", properties, full("ipma", struct.pack(">I", len(uses)), *uses)),
        )

    brand = b"avif" if codec == "av01" else b"heic"
    start = box("ftyp", brand, struct.pack(">I", 0), b"mif1", brand, b"miaf")
    head = start + meta(len(start) + len(meta(0)) + 8)
    path.write_bytes(head + box("mdat", grid, *(content for _, content in tiles)))


def test_tiled_avif_is_read_whole(tmp_path):
    write_tiles(tmp_path / "a.avif", "av01", corners((256, 384)))
    clip = read_clip(tmp_path / "a.avif")
    assert (clip.source.kind, clip.source.width, clip.source.height) == ("image", 384, 256)
    assert read_corners(clip.frames[0]) == "RGBY"


def test_tiled_heic_is_read_whole(tmp_path):
    pytest.importorskip("pillow_heif")
    write_tiles(tmp_path / "a.heic", "hvc1", corners((256, 384)))
    clip = read_clip(tmp_path / "a.heic")
    assert (clip.source.kind, clip.source.width, clip.source.height) == ("image", 384, 256)
    assert read_corners(clip.frames[0]) == "RGBY"
    content = (tmp_path / "a.heic").read_bytes()
    (tmp_path / "a.heic").write_bytes(content[: len(content) * 2 // 3])
    with pytest.raises(UserError, match=r"a\.heic: cut off, only \d+ of its \d+ bytes"):
        read_clip(tmp_path / "a.heic")


def test_heic_without_its_library_is_refused_by_name(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    write_tiles(tmp_path / "a.heic", "hvc1", corners((256, 384)))
    with pytest.raises(UserError, match=r"a\.heic: a HEIC photo is not read without pillow-heif; "):
        media.probe(tmp_path / "a.heic")
