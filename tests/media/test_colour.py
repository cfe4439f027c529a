"""Colours as a player shows them: high dynamic range, transparency, pictures without a tag."""

import av
import numpy as np
import pytest
from encode import encode, planes
from PIL import Image

from ugc_jax.media import clip as media
from ugc_jax.media import colour
from ugc_jax.media.presets import ClipSettings, resolve
from ugc_jax.models.qwen2_5_omni.config import GEOMETRY

BARS = np.array(
    [
        (255, 255, 255), (192, 192, 0), (0, 192, 192), (0, 192, 0),
        (192, 0, 192), (192, 0, 0), (0, 0, 192), (32, 32, 32),
    ]
)  # fmt: skip
BT709_TO_BT2020 = np.array(  # ITU-R BT.2087
    [[0.6274, 0.3293, 0.0433], [0.0691, 0.9195, 0.0114], [0.0164, 0.0880, 0.8956]]
)
LUMA = {1: (0.2126, 0.0722), 5: (0.299, 0.114), 9: (0.2627, 0.0593)}  # matrix -> kr, kb


def read_clip(path, **settings):
    return media.read_clip(media.probe(path), resolve(ClipSettings(**settings)), 1 << 30, GEOMETRY)


def linear(levels):
    """sRGB levels -> light, 1 at white."""
    x = levels / 255
    return np.where(x <= 0.04045, x / 12.92, ((x + 0.055) / 1.055) ** 2.4)


def hlg(light):
    """Scene light in [0, 1] -> the signal (ARIB STD-B67)."""
    bright = 0.17883277 * np.log(np.maximum(12 * light - 0.28466892, 1e-9)) + 0.55991073
    return np.where(light <= 1 / 12, np.sqrt(3 * light), bright)


def signals(white=203.0):
    """name -> (R'G'B' of the bars, matrix and primaries, transfer). white: cd/m2 of the white."""
    wide = linear(BARS) @ BT709_TO_BT2020.T
    return {
        "sdr": (BARS / 255, 1, 1),
        "pq": (colour.nits_to_pq(wide * white), 9, colour.PQ),
        "hlg": (hlg(wide * white / 203 * 0.265), 9, colour.HLG),
    }


def yuv(signal, matrix, form="yuv444p10le", size=(120, 160)):
    """A frame of vertical bars of these R'G'B' values, limited range."""
    kr, kb = LUMA[matrix]
    height, width = size
    r, g, b = np.moveaxis(np.repeat(signal, width // len(signal), 0), -1, 0)
    luma = kr * r + (1 - kr - kb) * g + kb * b
    scale = 4 if "10" in form else 1
    lines = (
        scale * (16 + 219 * luma),
        scale * (128 + 112 * (b - luma) / (1 - kb)),
        scale * (128 + 112 * (r - luma) / (1 - kr)),
    )
    step = 2 if "420" in form else 1
    parts = [lines[0], *(line[::step] for line in lines[1:])]
    rows = [height, height // step, height // step]
    return planes(form, [np.tile(part, (n, 1)) for part, n in zip(parts, rows, strict=True)])


def tag(frame, matrix, transfer=2, primaries=2):
    frame.colorspace, frame.color_trc, frame.color_primaries = matrix, transfer, primaries

    def setup(stream):
        context = stream.codec_context
        context.colorspace, context.color_trc = matrix, transfer
        context.color_primaries = primaries

    return setup


def bars(picture):
    """Mean colour of each of the eight bars: f64[8, 3]."""
    height, width = picture.shape[:2]
    edges = [(int((k + 0.3) * width / 8), int((k + 0.7) * width / 8)) for k in range(8)]
    middle = picture[height // 4 : height // 2]
    return np.array([middle[:, low:high].reshape(-1, 3).mean(0) for low, high in edges])


def write_bars(path, name, white=203.0, size=(120, 160), tagged=True):
    signal, matrix, transfer = signals(white)[name]
    frame = yuv(signal, matrix, size=size)
    setup = tag(frame, matrix if tagged else 2, transfer, matrix if tagged else 2)
    encode(path, [frame, frame], "ffv1", pix_fmt="yuv444p10le", setup=setup)


# ---- high dynamic range --------------------------------------------------------------------------


@pytest.mark.parametrize("tagged", [True, False])
@pytest.mark.parametrize("name", ["pq", "hlg"])
def test_hdr_looks_like_its_sdr_twin(tmp_path, name, tagged):
    write_bars(tmp_path / "sdr.mkv", "sdr")
    write_bars(tmp_path / "hdr.mkv", name, tagged=tagged)
    twin, clip = read_clip(tmp_path / "sdr.mkv"), read_clip(tmp_path / "hdr.mkv")
    assert np.abs(bars(twin.frames[0]) - BARS).max() < 4
    assert np.abs(bars(clip.frames[0]) - BARS).max() < 30
    assert np.abs(bars(clip.frames[0]) - BARS)[1:].max() < 5  # all but white
    assert clip.notes[0] == f"high dynamic range ({name.upper()}) is shown in standard range"
    assert twin.notes == ["no sound in the file"]


@pytest.mark.parametrize("name", ["pq", "hlg"])
def test_highlights_stay_below_white_and_in_order(tmp_path, name):
    levels = []
    for number, white in enumerate((50, 203, 400, 700)):
        write_bars(tmp_path / f"{number}.mkv", name, white)
        levels.append(bars(read_clip(tmp_path / f"{number}.mkv").frames[0])[0].mean())
    assert levels == sorted(levels)
    assert 120 < levels[0] < 200 < levels[1] < levels[2] < levels[3] <= 255


def test_a_large_hdr_picture_is_reduced_first(tmp_path):
    write_bars(tmp_path / "large.mkv", "pq", size=(960, 1280))
    write_bars(tmp_path / "small.mkv", "pq")
    large = read_clip(tmp_path / "large.mkv", max_pixels=112 * 112)
    small = read_clip(tmp_path / "small.mkv")
    assert large.frames.shape[1] < 200
    assert np.abs(bars(large.frames[0]) - bars(small.frames[0])).max() < 4


def test_ten_bit_sdr_is_as_ffmpeg_converts_it(tmp_path):
    write_bars(tmp_path / "sdr.mkv", "sdr", size=(112, 112))
    clip = read_clip(tmp_path / "sdr.mkv", min_pixels=1, max_pixels=112 * 112)
    frame = next(av.open(str(tmp_path / "sdr.mkv")).decode(video=0))
    np.testing.assert_array_equal(clip.frames[0], frame.to_ndarray(format="rgb24"))


def test_curves_have_their_published_values():
    # SMPTE ST 2084: 100, 203, 1000 and 10000 cd/m2
    np.testing.assert_allclose(
        colour.nits_to_pq(np.array([0, 100, 203, 1000, 10_000])),
        [0, 0.5081, 0.5807, 0.7518, 1],
        atol=1e-4,
    )
    nits = np.array([0.01, 1, 203, 4000])
    np.testing.assert_allclose(colour.pq_to_nits(colour.nits_to_pq(nits)), nits, rtol=1e-6)
    # ARIB STD-B67: 1/12 at one half; BT.2408: reference white is 26.5 % of the peak
    np.testing.assert_allclose(
        colour.hlg_to_scene(np.array([0, 0.5, 0.75, 1])), [0, 1 / 12, 0.265, 1], atol=1e-3
    )


def test_eetf_keeps_shadows_and_ends_at_white():
    nits = np.linspace(0, 1000, 500)
    shown = colour.eetf(nits, 1000.0)
    np.testing.assert_allclose(shown[nits < 60], nits[nits < 60], rtol=1e-6)
    assert (np.diff(shown) >= 0).all()
    assert (shown <= nits + 1e-6).all()
    assert shown[-1] == pytest.approx(203, rel=1e-3)
    assert colour.eetf(np.array(4000.0), 1000.0) == pytest.approx(203, rel=1e-3)


def test_primaries():
    grey = np.full((1, 1, 3), 30_000, np.uint16)
    for primaries in (1, 2, 9, 12):
        shown = colour.tone_map(grey, colour.PQ, primaries)
        assert np.ptp(shown) <= 1
    red = np.array([[[38_000, 0, 0]]], np.uint16)
    assert colour.tone_map(red, colour.PQ, 1)[0, 0, 1:].tolist() == [0, 0]
    narrow, wide = (colour.tone_map(red, colour.PQ, primaries) for primaries in (1, 12))
    assert wide[0, 0, 0] > narrow[0, 0, 0]


# ---- transparency --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "codec", "form"),
    [
        ("a.mov", "qtrle", "argb"),
        ("a.mov", "png", "rgba"),
        ("a.mkv", "ffv1", "yuva420p"),
        ("a.webm", "libvpx", "yuva420p"),
        ("a.webm", "libvpx-vp9", "yuva420p"),
    ],
)
def test_transparent_video_is_put_on_white(tmp_path, name, codec, form):
    page = np.zeros((112, 112, 4), np.uint8)
    page[..., 0], page[:, :56, 3] = 200, 255
    options = {"auto-alt-ref": "0", "b": "1M"} if "libvpx" in codec else {}
    encode(tmp_path / name, [page] * 5, codec, pix_fmt=form, options=options)
    clip = read_clip(tmp_path / name)
    for frame in clip.frames:
        height, width = frame.shape[:2]
        assert frame[height // 2, -width // 8].tolist() == [255, 255, 255]
        assert np.abs(frame[height // 2, width // 8].astype(int) - (200, 0, 0)).max() < 6
    assert "transparency is shown as white" in clip.notes


def test_opaque_video_with_alpha_is_as_ffmpeg_converts_it(tmp_path):
    page = np.random.default_rng(0).integers(0, 256, (112, 112, 4), np.uint8)
    page[..., 3] = 255
    encode(tmp_path / "a.mkv", [page] * 2, "ffv1", pix_fmt="yuva420p")
    clip = read_clip(tmp_path / "a.mkv", min_pixels=1, max_pixels=112 * 112)
    frame = next(av.open(str(tmp_path / "a.mkv")).decode(video=0))
    np.testing.assert_array_equal(clip.frames[0], frame.to_ndarray(format="rgb24"))
    assert clip.notes == ["no sound in the file"]


def test_half_transparent_pixels_are_mixed_with_white():
    image = Image.new("RGBA", (2, 1), (100, 0, 0, 128))
    assert np.abs(np.asarray(colour.on_white(image)).astype(int) - (177, 127, 127)).max() <= 1


# ---- colours without a tag -----------------------------------------------------------------------


@pytest.mark.parametrize("size", [(720, 1280), (1280, 720)])
def test_untagged_hd(tmp_path, size):
    for name, matrix in (("untagged", 2), ("tagged", 1)):
        frame = yuv(BARS / 255, 1, "yuv420p", size)
        options = {"qp": "6"}
        encode(tmp_path / f"{name}.mkv", [frame, frame], options=options, setup=tag(frame, matrix))
    tagged = read_clip(tmp_path / "tagged.mkv")
    assert np.abs(bars(tagged.frames[0]) - BARS).max() < 8
    assert tagged.notes == ["no sound in the file"]
    clip = read_clip(tmp_path / "untagged.mkv", untagged_bt709=True)
    assert np.abs(bars(clip.frames[0]) - bars(tagged.frames[0])).max() < 4
    assert clip.notes[0] == "colours without a tag are read as BT.709 (untagged_bt709)"
    clip = read_clip(tmp_path / "untagged.mkv")
    assert np.abs(bars(clip.frames[0]) - bars(tagged.frames[0])).max() > 25
    assert clip.notes[0].startswith("colours without a tag are read as BT.601, as the reference")
    frame = next(av.open(str(tmp_path / "untagged.mkv")).decode(video=0))
    expected = media.resize(frame.to_ndarray(format="rgb24"), *clip.frames.shape[1:3])
    np.testing.assert_array_equal(clip.frames[0], expected)


@pytest.mark.parametrize("form", ["yuv420p", "gray", "rgb24"])
def test_other_pictures_without_a_tag_have_no_note(tmp_path, form):
    size = (480, 640) if form == "yuv420p" else (720, 1280)
    codec = "libx264" if form == "yuv420p" else "ffv1" if form == "gray" else "qtrle"
    page = np.full((*size, 3), 90, np.uint8)
    suffix = "mov" if codec == "qtrle" else "mkv"
    encode(tmp_path / f"a.{suffix}", [page] * 2, codec, pix_fmt=form)
    settings = dict(untagged_bt709=True)
    clip = read_clip(tmp_path / f"a.{suffix}", **settings)
    assert clip.notes == ["no sound in the file"]
    assert np.abs(clip.frames.astype(int) - 90).max() <= 2


@pytest.mark.parametrize(("matrix", "shown"), [(8, 1), (10, 9), (14, 1)])
def test_a_matrix_that_ffmpeg_refuses_is_replaced(tmp_path, matrix, shown):
    frame = yuv(BARS / 255, shown, "yuv420p")
    encode(tmp_path / "a.mkv", [frame, frame], options={"qp": "6"}, setup=tag(frame, matrix))
    clip = read_clip(tmp_path / "a.mkv")
    assert np.abs(bars(clip.frames[0]) - BARS).max() < 8
    assert clip.notes[0] == f"its colour matrix ({matrix}) is unknown; the usual one is taken"
