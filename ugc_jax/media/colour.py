"""A decoded picture -> 8-bit RGB as a player shows it on an ordinary display.

High dynamic range (ITU-R BT.2100: PQ or HLG) is tone-mapped. Its reference white, 203 cd/m2 (ITU-R
BT.2408), and what is brighter share the range up to white by the curve of ITU-R BT.2390, 5.4.1.
"""

import functools
import math

import av
import numpy as np
from PIL import Image

PQ, HLG = 16, 18  # transfer characteristics, ISO/IEC 23091-2, table 3
HDR = {PQ: "PQ", HLG: "HLG"}
WHITE = 203.0  # cd/m2 of reference white
PQ_PEAK = 1000.0  # cd/m2 of the brightest picture: most are graded for that, and more is clipped
HLG_WHITE = 0.75  # signal of reference white
BT709, UNSPECIFIED, BT2020 = 1, 2, 9  # matrix coefficients and colour primaries
BT2020_CONSTANT = 10
MATRICES = (0, BT709, UNSPECIFIED, 4, 5, 6, 7, BT2020)  # that FFmpeg converts
# Linear RGB of other primaries (ISO/IEC 23091-2, table 2) -> linear RGB of BT.709.
BT2020_TO_BT709 = (  # ITU-R BT.2087
    (1.6605, -0.5876, -0.0728),
    (-0.1246, 1.1329, -0.0083),
    (-0.0182, -0.1006, 1.1187),
)
DISPLAY_P3_TO_BT709 = (
    (1.2249, -0.2247, 0.0),
    (-0.0420, 1.0419, 0.0),
    (-0.0197, -0.0786, 1.0979),
)
TO_BT709 = {BT709: np.eye(3).tolist(), 12: DISPLAY_P3_TO_BT709}
ENCODED = 1 << 14  # levels of linear light that are told apart
CHUNK = 1 << 13  # pixels that are converted together, few enough for a core's cache


def to_rgb(
    frame: av.VideoFrame, size: tuple[int, int], untagged_bt709: bool = False
) -> tuple[np.ndarray, str | None]:
    """Convert a decoded picture to u8[h, w, 3] RGB, and note what it shows differently.

    size: (height, width) to which the caller resizes: a picture of high dynamic range that is twice
      as large or more is reduced by a whole factor first, as tone mapping is slow.
    untagged_bt709: read colours of high definition without a tag as BT.709, as players do, instead
      of BT.601, as FFmpeg does.
    """
    transfer, matrix, form = frame.color_trc, frame.colorspace, frame.format
    matrices, note = {}, None
    if matrix not in MATRICES:  # FFmpeg refuses to convert others
        matrix = BT2020 if transfer in HDR or matrix == BT2020_CONSTANT else BT709
        matrices = dict(src_colorspace=matrix, dst_colorspace=matrix)
        note = f"its colour matrix ({frame.colorspace}) is unknown; the usual one is taken"
    if transfer in HDR:
        if matrix == UNSPECIFIED:
            matrices = dict(src_colorspace=BT2020, dst_colorspace=BT2020)
        factor = max(1, math.isqrt(frame.width * frame.height // (size[0] * size[1])))
        code = frame.to_ndarray(
            format="rgb48le",
            width=max(1, frame.width // factor),
            height=max(1, frame.height // factor),
            interpolation="AREA",
            threads=1,
            **matrices,
        )
        note = note or f"high dynamic range ({HDR[transfer]}) is shown in standard range"
        return tone_map(code, transfer, frame.color_primaries), note
    if form.has_palette or any(part.is_alpha for part in form.components):
        picture = frame.to_ndarray(format="rgba", threads=1, **matrices)
        if picture[..., 3].min() < 255:
            return np.asarray(on_white(Image.fromarray(picture))), "transparency is shown as white"
    if matrix == UNSPECIFIED and is_hd(frame):
        note = "colours without a tag are read as BT.601, as the reference does; players read "
        note += "BT.709 (untagged_bt709)"
        if untagged_bt709:
            matrices = dict(src_colorspace=BT709, dst_colorspace=BT709)
            note = "colours without a tag are read as BT.709 (untagged_bt709)"
    return frame.to_ndarray(format="rgb24", threads=1, **matrices), note


def is_hd(frame: av.VideoFrame) -> bool:
    """Return whether a picture has colour differences and a size for which players take BT.709."""
    coloured = not frame.format.is_rgb and len(frame.format.components) >= 3
    return coloured and (frame.width >= 1280 or frame.height > 576)


def on_white(image: Image.Image) -> Image.Image:
    """Return an RGBA image as RGB with its transparent pixels put on white."""
    page = Image.new("RGB", image.size, "white")
    page.paste(image, mask=image)
    return page


# ---- high dynamic range --------------------------------------------------------------------------


def tone_map(code: np.ndarray, transfer: int, primaries: int = BT2020) -> np.ndarray:
    """Convert RGB of high dynamic range to u8[..., 3] sRGB (IEC 61966-2-1).

    code: u16[..., 3], the whole range. transfer: PQ or HLG. primaries: of ISO/IEC 23091-2; those
      that are not known here are taken for BT.2020.
    """
    (light, gain), encoding = _curves(transfer), _encoding()
    to_bt709 = np.array(TO_BT709.get(primaries, BT2020_TO_BT709), np.float32).T * (ENCODED - 1)
    pixels = code.reshape(-1, 3)
    shown = np.empty(pixels.shape, np.uint8)
    for first in range(0, len(pixels), CHUNK):
        part = pixels[first : first + CHUNK]
        brightest = np.maximum(np.maximum(part[:, 0], part[:, 1]), part[:, 2])
        linear = light.take(part) * gain.take(brightest)[:, None]  # keeps the hue
        level = (linear @ to_bt709).clip(0, ENCODED - 1) + 0.5
        shown[first : first + CHUNK] = encoding.take(level.astype(np.uint16))
    return shown.reshape(code.shape)


@functools.cache
def _curves(transfer: int) -> tuple[np.ndarray, np.ndarray]:
    """Return tables of a 16-bit signal: f32[65536] each.

    The first is linear light, 1 at reference white; the second is the factor by which tone mapping
    changes it where it is the largest of R, G and B.
    """
    signal = np.arange(1 << 16) / 65535
    if transfer == PQ:
        light, peak = pq_to_nits(signal) / WHITE, PQ_PEAK
    else:
        # Scene light as it is: the system gamma is 1 on a display of 334 cd/m2 (BT.2100, table 5).
        white = hlg_to_scene(np.float64(HLG_WHITE))
        light, peak = hlg_to_scene(signal) / white, WHITE / white
    shown = eetf(light * WHITE, peak) / WHITE
    gain = np.divide(shown, light, out=np.ones_like(light), where=light > 0)
    return light.astype(np.float32), gain.astype(np.float32)


def eetf(nits: np.ndarray, peak: float, white: float = WHITE) -> np.ndarray:
    """Compress light of up to `peak` cd/m2 to a display of `white` (BT.2390, 5.4.1; black at 0)."""
    top = nits_to_pq(peak)
    x, most = np.minimum(nits_to_pq(nits) / top, 1), nits_to_pq(white) / top
    knee = 1.5 * most - 0.5
    t = np.maximum(x - knee, 0) / (1 - knee)
    spline = (
        (2 * t**3 - 3 * t**2 + 1) * knee
        + (t**3 - 2 * t**2 + t) * (1 - knee)
        + (-2 * t**3 + 3 * t**2) * most
    )
    return pq_to_nits(np.where(x < knee, x, spline) * top)


# of SMPTE ST 2084
_M1, _M2, _C1, _C2, _C3 = 2610 / 16384, 2523 / 32, 3424 / 4096, 2413 / 128, 2392 / 128


def pq_to_nits(signal: np.ndarray) -> np.ndarray:
    """Return the light in cd/m2 of a PQ signal in [0, 1] (SMPTE ST 2084)."""
    root = signal ** (1 / _M2)
    return 10_000 * (np.maximum(root - _C1, 0) / (_C2 - _C3 * root)) ** (1 / _M1)


def nits_to_pq(nits: np.ndarray) -> np.ndarray:
    """Return the PQ signal of light in cd/m2 (SMPTE ST 2084)."""
    power = (nits / 10_000) ** _M1
    return ((_C1 + _C2 * power) / (1 + _C3 * power)) ** _M2


def hlg_to_scene(signal: np.ndarray) -> np.ndarray:
    """Return the scene light in [0, 1] of an HLG signal (ARIB STD-B67)."""
    bright = (np.exp((signal - 0.55991073) / 0.17883277) + 0.28466892) / 12
    return np.where(signal <= 0.5, signal**2 / 3, bright)


@functools.cache
def _encoding() -> np.ndarray:
    """Return the sRGB level of each of the levels of linear light: u8[ENCODED]."""
    light = np.arange(ENCODED) / (ENCODED - 1)
    curved = 1.055 * light ** (1 / 2.4) - 0.055
    return np.rint(255 * np.where(light <= 0.0031308, 12.92 * light, curved)).astype(np.uint8)
