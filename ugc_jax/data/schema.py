"""What passes from host to device: one prompt (`Example`), and what jitted code sees (`Batch`).

    clip.mp4 -> media.Clip -> features (patches, log-mel) -> prompt + positions -> Example
    Examples of one bucket -> batching.collate -> Batch

Everything is numpy. All choices that depend on data (which window a patch is in, which token takes
which feature row, what position a token has) are made here on the host, so that the device only
runs dense programs of a few shapes.
"""

from typing import NamedTuple

import numpy as np


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


class Example(NamedTuple):
    """One prompt (or one prompt with its answer), unpadded.

    tokens: i32[T].
    positions: i32[3, T], (time, height, width) rotary positions.
    next_position: on all three axes, of the first token generated after the prompt.
    source: i8[T], 0 for a text token, 1 for one that takes a row of the vision encoder's output,
      2 for one that takes a row of the audio encoder's.
    row: i32[T, 2], where that row is. For source 1 (temporal grid, cell of the grid in window
      order), for source 2 (chunk, token of the chunk), 0 for text. Grids are numbered through all
      vision inputs, chunks through all sounds.
    vision: the images and videos in prompt order.
    mels: f32[frames, 128], the log-mel of each sound in prompt order.
    target: bool[T], the tokens to train on: an assistant's text and its end of turn. All False in a
      prompt without an answer.
    """

    tokens: np.ndarray
    positions: np.ndarray
    next_position: int
    source: np.ndarray
    row: np.ndarray
    vision: tuple[VisionInput, ...]
    mels: tuple[np.ndarray, ...]
    target: np.ndarray


class Patches(NamedTuple):
    """The pictures of a batch: B rows, F temporal grids a row, W windows a grid, K = 64 patches a
    window.

    patches: u8[B, F, W, K, patch_dim]. coords: i32[B, F, W, K, 2], padding -1.
    """

    patches: np.ndarray
    coords: np.ndarray


class LogMel(NamedTuple):
    """The sounds of a batch: B rows, C chunks a row, M = 200 mel frames a chunk.

    mel: f32[B, C, M, 128]. frames: i32[B, C], valid frames of each chunk, 0 for padding.
    """

    mel: np.ndarray
    frames: np.ndarray


class Batch(NamedTuple):
    """Examples padded to one bucket: the only thing that jitted code sees. A pytree.

    B rows, T tokens; the sizes of the media are those of Patches and LogMel.

    tokens: i32[B, T], right-padded with the pad id.
    positions: i32[B, 3, T], padding 0.
    segment_ids: i32[B, T], 0 for padding, 1.. for the example within the row (1 unless packed).
    splice: i32[B, T], -1 for a token's own embedding, otherwise the row that it takes of
      concat(vision rows [F * W * K / 4], audio rows [C * 50]).
    target: bool[B, T], the tokens to train on; padding False.
    next_position: i32[B], `Example.next_position` of the row's last example; 0 for an empty row.
    media: the input of each encoder by modality: {"vision": Patches, "audio": LogMel}.
    """

    tokens: np.ndarray
    positions: np.ndarray
    segment_ids: np.ndarray
    splice: np.ndarray
    target: np.ndarray
    next_position: np.ndarray
    media: dict[str, Patches | LogMel]


def named_arrays(batch: Batch) -> dict[str, np.ndarray]:
    """The arrays of a batch by name, those of the media as "vision.patches": for an .npz file."""
    arrays = batch._asdict()
    media = arrays.pop("media")
    return arrays | {
        f"{modality}.{name}": array
        for modality, fields in media.items()
        for name, array in fields._asdict().items()
    }
