"""Pixels -> patches (`VisionInput`), sound -> log-mel, on the host.

Frames stay bytes and the device normalises them: a batch takes a quarter of the transfer and of the
host memory that floats would take.
"""

import functools
from typing import NamedTuple

import numpy as np

from ugc_jax.models.qwen2_5_omni.config import (
    FFT,
    HOP,
    MEL_BINS,
    SAMPLE_RATE,
    AudioConfig,
    VisionConfig,
)

REFERENCE_SAMPLES = 300 * SAMPLE_RATE  # the reference pads every sound with silence to this length


# ---- picture -------------------------------------------------------------------------------------


class VisionInput(NamedTuple):
    """One image or video, cut into patches in window order.

    A temporal grid is a pair of frames (an image is one frame twice). Its patches are laid out
    window by window; every window has K = 64 places in the order (cell row, cell column, patch
    row, patch column), and windows at the edges are padded.

    patches: u8[t, windows, K, patch_dim], the pixels of a patch in the order (channel, frame of
      the pair, row, column); padding is 0.
    coords: i32[t, windows, K, 2], (row, column) of the patch in its frame, counted in patches;
      -1 marks padding.
    grid: (t, h, w) counted in patches, as the reference's `video_grid_thw`.
    """

    patches: np.ndarray
    coords: np.ndarray
    grid: tuple[int, int, int]


def patchify(frames: np.ndarray, config: VisionConfig) -> VisionInput:
    """Cut frames u8[n, h, w, 3] into patches in window order.

    h and w: multiples of `config.cell_pixels`, as `media` resizes to; ValueError otherwise.
    Frames are paired (an odd last one, or an image, with itself) and padded with zeros to whole
    windows; the rest is a transpose, done pair by pair to avoid a copy of the whole clip.
    """
    count, height, width, channels = frames.shape
    cell, patch, merge = config.cell_pixels, config.patch_size, config.spatial_merge_size
    if height % cell or width % cell:
        raise ValueError(f"frame of {width}x{height} pixels: sides must be multiples of {cell}")
    depth, side = config.temporal_patch_size, config.window_cells
    rows, columns = config.windows(height // cell, width // cell)
    grids = -(-count // depth)

    size = config.window_size
    page = np.zeros((depth, rows * size, columns * size, channels), np.uint8)
    cut = page.reshape(depth, rows, side, merge, patch, columns, side, merge, patch, channels)
    #                  0      1     2     3      4      5        6     7      8      9
    cut = cut.transpose(1, 5, 2, 6, 3, 7, 9, 0, 4, 8)
    patches = np.empty((grids, rows * columns, config.window_patches, config.patch_dim), np.uint8)
    places = patches.reshape(grids, *cut.shape)
    for grid in range(grids):
        for number in range(depth):
            page[number, :height, :width] = frames[min(grid * depth + number, count - 1)]
        places[grid] = cut

    grid = (grids, height // patch, width // patch)
    return VisionInput(patches, np.tile(_coords(grid[1], grid[2], config), (grids, 1, 1, 1)), grid)


@functools.lru_cache(maxsize=64)
def _coords(height: int, width: int, config: VisionConfig) -> np.ndarray:
    """Return (row, column) of each patch of a frame in window order: i32[windows, K, 2].

    height, width: of the frame, counted in patches. Padding is -1.
    """
    merge, side = config.spatial_merge_size, config.window_cells
    rows, columns = config.windows(height // merge, width // merge)
    row, column = np.indices((rows * side * merge, columns * side * merge), dtype=np.int32)
    coords = np.stack([row, column], axis=-1)
    coords[(row >= height) | (column >= width)] = -1
    coords = coords.reshape(rows, side, merge, columns, side, merge, 2)
    coords = coords.transpose(0, 3, 1, 4, 2, 5, 6)
    return coords.reshape(rows * columns, config.window_patches, 2)


# ---- sound ---------------------------------------------------------------------------------------


def mel_length(samples: int) -> int:
    """Return the frames that `log_mel` makes of so many samples."""
    return -(-samples // HOP)


def log_mel(waveform: np.ndarray) -> np.ndarray:
    """Compute Whisper's features: f32[samples] at 16 kHz -> f32[ceil(samples / 160), 128].

    Spec 4.3. Equals the valid frames of the reference, without its padding to 300 s.
    """
    samples, frames = len(waveform), mel_length(len(waveform))
    if frames == 0:
        return np.zeros((0, MEL_BINS), np.float32)
    half = FFT // 2
    padded = np.zeros(max(half + frames * HOP + FFT, 3 * half), np.float32)
    padded[half : half + samples] = waveform
    # The reference centres windows and reflects both ends; only 300 s of sound reach its right end.
    padded[:half] = padded[2 * half : half : -1]
    if frames == REFERENCE_SAMPLES // HOP:
        end = half + REFERENCE_SAMPLES
        padded[end : end + half] = padded[end - 2 : end - 2 - half : -1]
    windows = np.lib.stride_tricks.sliding_window_view(padded, FFT)[: frames * HOP : HOP]
    mel = np.empty((frames, MEL_BINS), np.float32)
    block = 2048  # bounds the memory of a long sound
    for first in range(0, frames, block):
        spectrum = np.fft.rfft(windows[first : first + block] * _hann())
        power = (spectrum.real**2 + spectrum.imag**2).astype(np.float32)
        mel[first : first + block] = power @ _mel_filters()
    mel = np.log10(np.maximum(mel, 1e-10))
    return (np.maximum(mel, mel.max() - 8) + 4) / 4


@functools.cache
def _hann() -> np.ndarray:
    """Return the periodic Hann window, f32[400]."""
    return (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(FFT) / FFT)).astype(np.float32)


@functools.cache
def _mel_filters() -> np.ndarray:
    """Return Slaney's mel filters with area norm, 0 to 8000 Hz: f32[201, 128].

    Equal to librosa's, whose import is too slow for every process that reads clips.
    """
    linear, corner = 200 / 3, 1000.0  # linear up to 1000 Hz, logarithmic from there
    step, corner_mel = np.log(6.4) / 27, corner / linear
    top = corner_mel + np.log(SAMPLE_RATE / 2 / corner) / step
    mels = np.linspace(0.0, top, MEL_BINS + 2)
    edges = np.where(mels < corner_mel, linear * mels, corner * np.exp(step * (mels - corner_mel)))
    slopes = np.subtract.outer(edges, np.fft.rfftfreq(FFT, 1 / SAMPLE_RATE))
    width = np.diff(edges)[:, None]
    rising, falling = -slopes[:-2] / width[:-1], slopes[2:] / width[1:]
    filters = np.maximum(0, np.minimum(rising, falling)).astype(np.float32)
    filters *= (2 / (edges[2:] - edges[:-2]))[:, None]
    return np.ascontiguousarray(filters.T)


def chunk_mel(mel: np.ndarray, config: AudioConfig) -> tuple[np.ndarray, np.ndarray]:
    """Cut log-mel f32[frames, 128] into the encoder's chunks.

    Returns (f32[C, 200, 128] padded with 0, i32[C] valid frames of each chunk).
    """
    size = config.chunk_frames
    chunks = config.chunks(len(mel))
    padded = np.zeros((chunks * size, mel.shape[1]), np.float32)
    padded[: len(mel)] = mel
    lengths = np.minimum(len(mel) - size * np.arange(chunks), size).astype(np.int32)
    return padded.reshape(chunks, size, mel.shape[1]), lengths
