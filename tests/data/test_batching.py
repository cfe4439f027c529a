"""Buckets, grouping, and that each token of a padded batch takes the feature of its own place."""

import dataclasses
import functools
import itertools

import numpy as np
import pytest

from ugc_jax.data.batching import (
    BucketKey,
    Buckets,
    begin_alike,
    bucket_of,
    check_counts,
    collate,
    collate_rows,
    collate_shared,
    group,
    named_arrays,
    shared_bucket,
    size_of,
    size_of_media,
)
from ugc_jax.data.example import Example
from ugc_jax.data.features import patchify
from ugc_jax.data.prompt import AUDIO, VISION, Medium, Text, layout
from ugc_jax.errors import UserError
from ugc_jax.models.qwen2_5_omni.config import tiny

CONFIG = tiny()
CELL = CONFIG.vision.cell_pixels
RNG = np.random.default_rng(0)


def picture(t, rows, columns):
    return RNG.integers(0, 256, (2 * t, rows * CELL, columns * CELL, 3), np.uint8)


def sound(frames):
    return RNG.normal(size=(frames, 128)).astype(np.float32)


def make(*parts, text=5):
    """(example, its features in token order).

    parts: frames u8[n, h, w, 3], mels f32[frames, 128], or (frames, mel) for a video with sound.
    """
    pieces, vision, mels, features = [Text(list(range(1, text + 1)))], [], [], []
    for part in parts:
        if isinstance(part, tuple):
            frames, mel = part
        else:
            frames, mel = (part, None) if part.dtype == np.uint8 else (None, part)
        if frames is not None:
            vision.append(patchify(frames, CONFIG.vision))
            features.append(("vision", cell_means(frames)))
        if mel is not None:
            mels.append(mel)
            features.append(("audio", token_sums(mel)))
        grid = vision[-1].grid if frames is not None else None
        if frames is None:
            pieces.append(Medium("audio", mel_frames=len(mel)))
        elif len(frames) == 2 and mel is None:
            pieces.append(Medium("image", grid))
        else:
            pieces.append(Medium("video", grid, 1.0, None if mel is None else len(mel)))
    out = layout([*pieces, Text([7]), Text([8], target=True)], CONFIG)
    streams = {
        kind: [row for k, rows in features if k == kind for row in rows]
        for kind in ("vision", "audio")
    }
    return Example(**out._asdict(), vision=tuple(vision), mels=tuple(mels)), streams


def cell_means(frames):
    """Mean pixel of each merged cell of each frame pair, in token order."""
    n, h, w, _ = frames.shape
    cells = frames.reshape(n // 2, 2, h // CELL, CELL, w // CELL, CELL, 3).astype(np.float64)
    return cells.mean(axis=(1, 3, 5, 6)).ravel()


def token_sums(mel):
    """Sum of the first three of the four mel frames that a token stands for."""
    return [
        mel[4 * i : 4 * i + 3].sum(dtype=np.float64) for i in range(CONFIG.audio.tokens(len(mel)))
    ]


def taken(batch, b):
    """What each token of row b gathers from stand-in encoders (these means, sums); nan for text."""
    cells = batch.media["vision"].patches[b].reshape(-1, 4 * CONFIG.vision.patch_dim).mean(axis=1)
    mel = batch.media["audio"].mel[b].astype(np.float64)
    heard = mel.reshape(-1, 4, 128)[:, :3].sum(axis=(1, 2))
    rows = np.concatenate([cells, heard])
    return np.where(batch.splice[b] >= 0, rows[batch.splice[b]], np.nan)


MIXED = {
    "text": make(),
    "image": make(picture(1, 5, 9)),
    "video": make(picture(3, 4, 6)),
    "sound": make(sound(437)),
    "video with sound": make((picture(4, 3, 5), sound(450))),
    "sound of no token": make((picture(2, 2, 2), sound(2))),
    "many": make(
        picture(1, 2, 10),
        sound(201),
        (picture(2, 5, 4), sound(77)),
        picture(2, 1, 1),
        sound(3),
        text=40,
    ),
}


def test_sizes_are_known_from_the_facts_of_media():
    for name, media in {
        "image": [Medium("image", (1, 10, 18))],
        "video": [Medium("video", (3, 8, 12), 1.0)],
        "sound": [Medium("audio", mel_frames=437)],
        "video with sound": [Medium("video", (4, 6, 10), 1.0, 450)],
        "many": [
            Medium("image", (1, 4, 20)),
            Medium("audio", mel_frames=201),
            Medium("video", (2, 10, 8), 1.0, 77),
            Medium("video", (2, 2, 2), 1.0),
            Medium("audio", mel_frames=3),
        ],
    }.items():
        example = MIXED[name][0]
        texts = 40 + 2 if name == "many" else 5 + 2
        size = size_of_media(media, CONFIG)
        assert size._replace(tokens=size.tokens + texts) == size_of(example, CONFIG)
    assert size_of_media([], CONFIG) == BucketKey(0, 0, 0, 0)


@pytest.mark.parametrize("wide", [False, True])
def test_tokens_take_the_features_of_their_place(wide):
    examples = [example for example, _ in MIXED.values()]
    keys = [bucket_of(example, Buckets(), CONFIG) for example in examples]
    key = BucketKey(*map(max, zip(*keys, strict=True)))
    if wide:
        key = BucketKey(*(size * 2 for size in key))
    batch = collate(examples, key, len(examples) + 2, CONFIG)
    for b, (example, streams) in enumerate(MIXED.values()):
        row, n = taken(batch, b), len(example.tokens)
        for kind, name in ((VISION, "vision"), (AUDIO, "audio")):
            # Within a video the sound lies between the pictures, but each stream keeps its order.
            np.testing.assert_allclose(row[:n][example.source == kind], streams[name], rtol=1e-9)
        assert np.isnan(row[:n][example.source == 0]).all()
        assert np.isnan(row[n:]).all()


def test_shapes_dtypes_and_padding():
    example = MIXED["video with sound"][0]
    key = bucket_of(example, Buckets(), CONFIG)
    assert key == BucketKey(192, 4, 2, 4)  # 5 + 4 * 15 + 112 + 4 + 2 tokens; 3x5 cells; 3 chunks
    batch = collate([example], key, 3, CONFIG)
    shapes = {name: (value.shape, value.dtype) for name, value in named_arrays(batch).items()}
    assert shapes == {
        "tokens": ((3, 192), np.int32),
        "positions": ((3, 3, 192), np.int32),
        "segment_ids": ((3, 192), np.int32),
        "splice": ((3, 192), np.int32),
        "target": ((3, 192), bool),
        "next_position": ((3,), np.int32),
        "vision.patches": ((3, 4, 2, 64, 1176), np.uint8),
        "vision.coords": ((3, 4, 2, 64, 2), np.int32),
        "audio.mel": ((3, 4, 200, 128), np.float32),
        "audio.frames": ((3, 4), np.int32),
    }
    n = len(example.tokens)
    np.testing.assert_array_equal(batch.tokens[0, :n], example.tokens)
    np.testing.assert_array_equal(batch.positions[0, :, :n], example.positions)
    assert (batch.tokens[0, n:] == CONFIG.tokens.pad_token_id).all()
    assert batch.segment_ids[0].tolist() == [1] * n + [0] * (192 - n)
    assert batch.target[0].nonzero()[0].tolist() == [n - 1]
    assert not batch.target[1:].any()
    assert batch.media["audio"].frames.tolist() == [[200, 200, 50, 0], [0] * 4, [0] * 4]
    assert batch.next_position.tolist() == [example.next_position, 0, 0]
    padding = {"tokens": CONFIG.tokens.pad_token_id, "splice": -1, "vision.coords": -1}
    for name, empty in padding.items():
        assert (named_arrays(batch)[name][1:] == empty).all()
    empty = ("positions", "segment_ids", "vision.patches", "audio.mel")
    assert not any(named_arrays(batch)[name][1:].any() for name in empty)


def test_text_needs_no_features():
    key = bucket_of(MIXED["text"][0], Buckets(), CONFIG)
    assert key == BucketKey(128, 0, 1, 0)
    batch = collate([MIXED["text"][0]], key, 1, CONFIG)
    assert batch.media["vision"].patches.shape[1] == batch.media["audio"].mel.shape[1] == 0


def test_row_is_the_same_whatever_it_is_batched_with():
    examples = [example for example, _ in MIXED.values()]
    key = BucketKey(
        *map(max, zip(*(bucket_of(e, Buckets(), CONFIG) for e in examples), strict=True))
    )
    together = collate(examples, key, 8, CONFIG)
    for b, example in enumerate(examples):
        alone = collate([example], key, 1, CONFIG)
        theirs = named_arrays(together)
        for name, ours in named_arrays(alone).items():
            np.testing.assert_array_equal(ours[0], theirs[name][b])


@pytest.mark.parametrize("order", itertools.islice(itertools.permutations(MIXED), 0, None, 700))
def test_packed_rows_unpack_to_their_examples(order):
    """Tokens, positions, targets and the gathered features of each segment, in any order."""
    rows = [order[:3], order[3:4], order[4:]]
    sizes = [[size_of(MIXED[name][0], CONFIG) for name in row] for row in rows]
    totals = [functools.reduce(BucketKey.joined, row) for row in sizes]
    key = BucketKey(*map(max, zip(*totals, strict=True)))
    batch = collate_rows([[MIXED[name][0] for name in row] for row in rows], key, 4, CONFIG)
    for b, row in enumerate(rows):
        features = taken(batch, b)
        assert batch.segment_ids[b].max() == len(row)
        assert (batch.segment_ids[b] > 0).sum() == totals[b].tokens
        assert (batch.media["vision"].coords[b, totals[b].grids :] == -1).all()
        assert not batch.media["audio"].frames[b, totals[b].chunks :].any()
        for segment, name in enumerate(row, start=1):
            (example, streams), at = MIXED[name], batch.segment_ids[b] == segment
            np.testing.assert_array_equal(batch.tokens[b, at], example.tokens)
            np.testing.assert_array_equal(batch.positions[b][:, at], example.positions)
            np.testing.assert_array_equal(batch.target[b, at], example.target)
            for kind, stream in ((VISION, "vision"), (AUDIO, "audio")):
                np.testing.assert_allclose(
                    features[at][example.source == kind], streams[stream], rtol=1e-9
                )
            assert np.isnan(features[at][example.source == 0]).all()
    assert not batch.segment_ids[3].any()


def test_a_row_that_holds_too_much_is_refused():
    example = MIXED["video with sound"][0]
    with pytest.raises(UserError, match=r"row of BucketKey\(tokens=366, .* does not fit BucketKey"):
        collate_rows([[example, example]], BucketKey(365, 8, 2, 6), 1, CONFIG)


@pytest.mark.parametrize(
    ("buckets", "message"),
    [
        (Buckets(tokens=(128,)), r"needs \d+ tokens, the largest bucket has 128; lower max_tokens"),
        (Buckets(grids=(0, 1, 4)), "needs 5 grids"),
        (Buckets(windows=(1, 2)), "needs 3 windows"),
        (Buckets(chunks=(0, 3)), "needs 4 chunks, .*; lower max_audio_seconds"),
    ],
)
def test_what_exceeds_the_largest_bucket_is_named(buckets, message):
    with pytest.raises(UserError, match=message):
        bucket_of(MIXED["many"][0], buckets, CONFIG)


def test_ladders_must_ascend():
    with pytest.raises(UserError, match="buckets.grids"):
        Buckets(grids=(1, 1, 2))
    with pytest.raises(UserError, match="buckets.tokens"):
        Buckets(tokens=())


def test_default_ladders_grow_slowly_and_hold_the_largest_inputs():
    for field in dataclasses.fields(Buckets):
        ladder = [size for size in getattr(Buckets(), field.name) if size >= 4]
        assert max(b / a for a, b in zip(ladder, ladder[1:], strict=False)) <= 1.5
    assert Buckets().grids[-1] >= 384
    assert Buckets().chunks[-1] >= 150
    assert Buckets().windows[-1] >= 1359
    assert Buckets().tokens[-1] == 32768


def drop(example, keep):
    return example._replace(
        tokens=example.tokens[keep],
        positions=example.positions[:, keep],
        source=example.source[keep],
        row=example.row[keep],
        target=example.target[keep],
    )


def test_cut_or_foreign_features_are_refused_with_the_counts():
    example = MIXED["video with sound"][0]
    check_counts(example, CONFIG)
    last_audio = np.flatnonzero(example.source == AUDIO)[-1]
    for broken, message in (
        (
            drop(example, slice(0, 100)),
            r"image/video tokens, of which each medium takes \[\d+\], .* have \[60\] rows",
        ),
        (
            drop(example, np.arange(len(example.tokens)) != last_audio),
            r"111 audio tokens, .* \[111\], .* \[112\] rows",
        ),
        (example._replace(mels=(sound(446),)), r"112 audio tokens, .* \[112\], .* \[111\] rows"),
        (example._replace(mels=()), r"112 audio tokens"),
        (example._replace(vision=()), r"60 image/video tokens"),
        (example._replace(vision=example.vision * 2), r"takes \[60, 0\], .* have \[60, 60\] rows"),
        (example._replace(source=np.zeros_like(example.source)), "tokens"),
    ):
        with pytest.raises(UserError, match=message) as caught:
            collate([broken], BucketKey(256, 8, 2, 4), 1, CONFIG)
        assert "\n" not in str(caught.value)


def test_collate_refuses_what_does_not_fit():
    example = MIXED["video"][0]
    with pytest.raises(UserError, match="2 rows do not fit a batch of 1"):
        collate([example] * 2, BucketKey(128, 4, 2, 0), 1, CONFIG)
    with pytest.raises(UserError, match="does not fit BucketKey"):
        collate([example], BucketKey(128, 2, 2, 0), 1, CONFIG)


def test_groups_are_full_first_and_lose_nothing():
    text, video = MIXED["text"][0], MIXED["video"][0]
    stream = [(i, text if i % 3 else video) for i in range(10)]  # videos: 0 3 6 9
    groups = list(group(stream, 3, Buckets(), CONFIG))
    assert [[tag for tag, _ in members] for _, members in groups] == [
        [1, 2, 4],
        [0, 3, 6],
        [5, 7, 8],
        [9],
    ]
    for key, members in groups:
        assert all(bucket_of(example, Buckets(), CONFIG) == key for _, example in members)


def test_group_bounds_what_waits():
    text, video = MIXED["text"][0], MIXED["video"][0]
    stream = iter([(0, text), (1, text), (2, video), (3, text)])
    groups = group(stream, 8, Buckets(), CONFIG, pending=3)
    assert [tag for tag, _ in next(groups)[1]] == [0, 1]
    assert next(stream)[0] == 3  # nothing beyond was read


# ---- prompts that begin alike --------------------------------------------------------------------


def asked(example: Example, *texts: int) -> Example:
    """The example with a question of so many tokens after it; equal beginnings of questions."""
    n = sum(texts)
    running = example.next_position + np.arange(n, dtype=np.int32)
    ids = np.concatenate([100 * i + np.arange(count) for i, count in enumerate(texts)])
    return example._replace(
        tokens=np.concatenate([example.tokens, ids.astype(np.int32)]),
        positions=np.concatenate([example.positions, np.tile(running, (3, 1))], axis=1),
        next_position=example.next_position + n,
        source=np.concatenate([example.source, np.zeros(n, np.int8)]),
        row=np.concatenate([example.row, np.zeros((n, 2), np.int32)]),
        target=np.concatenate([example.target, np.zeros(n, bool)]),
    )


def test_a_shared_row_has_each_prompt_once():
    clip, other = make((picture(2, 2, 3), sound(150)))[0], make(picture(1, 2, 2))[0]
    prompts = [asked(clip, 7), asked(clip, 4, 9), asked(clip, 7)]  # two are equal
    assert all(begin_alike(prompts[0], one) for one in prompts)
    assert not begin_alike(prompts[0], other)
    key = shared_bucket(prompts, 4, Buckets(), CONFIG)
    batch, shared = collate_shared([prompts], key, 2, CONFIG)
    row, places = shared.batch, shared.places
    assert (places.shape, batch.media) == ((2, 4, 128), {})
    # the clip and the four tokens in which all questions begin are there once
    length = len(clip.tokens) + 4
    assert np.sum(row.segment_ids[0] == 1) == length
    assert np.sum(row.segment_ids[0] > 0) == length + 3 + 9 + 3
    assert (row.media["vision"].coords[0, ..., 0] >= 0).any()
    for q, prompt in enumerate(prompts):
        place = places[0, q][places[0, q] >= 0]
        np.testing.assert_array_equal(row.tokens[0, place], prompt.tokens)
        np.testing.assert_array_equal(row.positions[0][:, place], prompt.positions)
        assert set(row.segment_ids[0, place]) == {1, q + 2}
        np.testing.assert_array_equal(batch.tokens[q, : len(place)], prompt.tokens)
        assert batch.next_position[q] == prompt.next_position
        assert batch.segment_ids[q].sum() == len(prompt.tokens)
    assert (places[0, 3] == -1).all()
    assert not batch.segment_ids[3:].any()


def test_a_row_that_no_bucket_holds_has_no_key():
    clip = make(sound(200))[0]
    few = Buckets(tokens=(128,))
    assert shared_bucket([asked(clip, 20), asked(clip, 0, 20)], 2, few, CONFIG) is not None
    assert shared_bucket([asked(clip, 45), asked(clip, 0, 45)], 2, few, CONFIG) is None
