"""The released sizes, and what follows from them."""

import dataclasses
import math

import pytest

from ugc_jax.models.qwen2_5_omni.config import GEOMETRY, SIZES, omni_3b, omni_7b


def test_released_sizes():
    small, large = omni_3b(), omni_7b()
    assert (small.text.hidden_size, large.text.hidden_size) == (2048, 3584)
    assert (small.text.vocab_size, large.text.vocab_size) == (151936, 152064)
    assert small.vision.head_dim == large.vision.head_dim == 80
    assert (small.vision.cell_pixels, small.vision.window_cells, small.vision.window_patches) == (
        28,
        4,
        64,
    )
    assert (small.vision.patch_dim, small.audio.chunk_frames, small.audio.chunk_tokens) == (
        1176,
        200,
        50,
    )
    ids = dataclasses.asdict(small.tokens)
    assert list(ids.values()) == [
        151643,
        151644,
        151645,
        151646,
        151647,
        151648,
        151652,
        151653,
        151655,
        151656,
    ]


@pytest.mark.parametrize("size", SIZES)
def test_features_are_cut_alike_for_every_size(size):
    config = SIZES[size]()
    sizes = ("patch_dim", "cell_pixels", "window_cells", "window_patches", "window_size")
    for name in sizes:
        assert getattr(config.vision, name) == getattr(GEOMETRY.vision, name), name
    for name in ("num_mel_bins", "chunk_frames", "chunk_tokens"):
        assert getattr(config.audio, name) == getattr(GEOMETRY.audio, name), name


def test_windows_cover_a_frame():
    side = GEOMETRY.vision.window_cells
    for rows, columns in ((1, 1), (side, side + 1), (3 * side - 1, 2 * side)):
        expected = math.ceil(rows / side), math.ceil(columns / side)
        assert GEOMETRY.vision.windows(rows, columns) == expected


def test_chunks_and_tokens_of_a_sound():
    audio = GEOMETRY.audio
    assert [audio.chunks(frames) for frames in (0, 1, 200, 201)] == [0, 1, 1, 2]
    # A chunk's tokens are those of its frames alone: cutting a sound into chunks loses none.
    assert audio.tokens(audio.chunk_frames) == audio.chunk_tokens
    for frames in range(1, 1000):
        whole, rest = divmod(frames, audio.chunk_frames)
        alone = whole * audio.chunk_tokens + (audio.tokens(rest) if rest else 0)
        assert audio.tokens(frames) == alone


def test_share_of_blocks_that_attend_fully():
    assert omni_3b().costly_share == 4 / 32
