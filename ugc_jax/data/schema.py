"""The contract between host and device: what one prompt is (`Example`) and what a jitted function sees (`Batch`).

    clip.mp4 -> media.Video -> features (patches, log-mel) -> prompt + positions -> Example -> batching.collate -> Batch

Everything is numpy. All data-dependent choices (which window a patch is in, which token takes which feature row, what
position a token has) are made here on the host, so that the device only runs dense programs of a few shapes.
"""

from typing import NamedTuple

import numpy as np


class VisionInput(NamedTuple):
    """One image or video, cut into patches in window order.

    A temporal grid is a pair of frames (an image is one frame twice). Its patches are laid out window by window; every window
    has K = 64 places in the order (cell row, cell column, patch row, patch column), edge windows padded.

    patches: u8[t, windows, K, patch_dim], the pixels of a patch as (channel, frame of the pair, row, column); padding is 0.
    coords: i32[t, windows, K, 2], (row, column) of the patch in its frame, in patch units; -1 marks padding.
    grid: (t, h, w) in patch units, as the reference's `video_grid_thw`.
    """

    patches: np.ndarray
    coords: np.ndarray
    grid: tuple[int, int, int]


class Example(NamedTuple):
    """One prompt (or one prompt with its answer), unpadded.

    tokens: i32[T]. positions: i32[3, T], (time, height, width) rotary positions.
    next_position: position, on all three axes, of the first token generated after the prompt.
    source: i8[T], 0 a text token, 1 takes a row of the vision encoder's output, 2 a row of the audio encoder's.
    row: i32[T, 2], where that row is. source 1: (temporal grid, cell within the grid in window order); the grids of all vision
      inputs are counted through. source 2: (chunk, token within the chunk); the chunks of all sounds are counted through.
    vision: the images and videos in prompt order. mels: f32[frames, 128] log-mel of each sound in prompt order.
    """

    tokens: np.ndarray
    positions: np.ndarray
    next_position: int
    source: np.ndarray
    row: np.ndarray
    vision: tuple[VisionInput, ...]
    mels: tuple[np.ndarray, ...]


class Batch(NamedTuple):
    """Examples padded to one bucket: the only thing that jitted code sees. A NamedTuple, hence a pytree.

    B rows, T tokens, F temporal grids a row, W windows a grid, K = 64 patches a window, C audio chunks a row, M = 200 mel frames.
    tokens: i32[B, T], right-padded with the pad id. positions: i32[B, 3, T], padding 0.
    segment_ids: i32[B, T], 0 padding, 1.. the example within the row (1 unless packed).
    splice: i32[B, T], -1 takes the token's embedding; otherwise row of concat(vision rows [F * W * K / 4], audio rows [C * 50]).
    patches: u8[B, F, W, K, patch_dim]. coords: i32[B, F, W, K, 2], -1 padding.
    mel: f32[B, C, M, 128]. mel_frames: i32[B, C], valid frames of each chunk, 0 padding.
    """

    tokens: np.ndarray
    positions: np.ndarray
    segment_ids: np.ndarray
    splice: np.ndarray
    patches: np.ndarray
    coords: np.ndarray
    mel: np.ndarray
    mel_frames: np.ndarray
