"""Prompts of every kind with random media, to compare the model with others and itself."""

import dataclasses
from collections.abc import Iterator

import numpy as np

from ugc_jax.data.batching import BucketKey, Buckets, bucket_of, collate
from ugc_jax.data.example import Example
from ugc_jax.data.features import patchify
from ugc_jax.data.prompt import Medium, Text, layout
from ugc_jax.hf.random_weights import random_tensor
from ugc_jax.models.params import build_tree, leaves
from ugc_jax.models.qwen2_5_omni import thinker
from ugc_jax.models.qwen2_5_omni.config import OmniConfig
from ugc_jax.plan.flops import _jaxprs

SECONDS_PER_GRID = 1.0  # 2 frames a second

# Each prompt is a list of parts: an int is so many text tokens, ("answer", n) are text tokens that
# are trained on, the others are what they say.
CASES = {
    "text": [20],
    "image": [5, ("image", 112, 140), 9],
    "audio": [5, ("audio", 437), 7],
    "audio_two_sounds": [3, ("audio", 200), 2, ("audio", 61), 4],
    "video": [4, ("video", 4, 84, 112, None), 6],
    "video_odd_frames": [4, ("video", 5, 112, 84, None), 6],
    "video_portrait": [2, ("video", 4, 252, 112, None), 3],
    "video_landscape": [2, ("video", 2, 112, 308, None), 3],
    "video_tiny": [2, ("video", 2, 28, 28, None), 3],
    "video_strip": [2, ("video", 2, 28, 840, None), 3],
    "video_with_sound": [4, ("video", 8, 112, 84, 400), 6],
    "video_sound_shorter": [4, ("video", 12, 56, 84, 440), 6],
    "video_sound_longer": [4, ("video", 4, 84, 84, 731), 6],
    "several_media": [
        3,
        ("image", 56, 84),
        2,
        ("video", 6, 84, 56, 300),
        4,
        ("video", 2, 56, 56, 90),
        2,
    ],
}

EVERY_CASE = BucketKey(tokens=256, grids=6, windows=8, chunks=4)


def fewer_layers(config: OmniConfig) -> OmniConfig:
    """Two layers of the decoder, one of each kind of the encoders: programs compile faster."""
    return dataclasses.replace(
        config,
        vision=dataclasses.replace(config.vision, depth=2, fullatt_block_indexes=(1,)),
        audio=dataclasses.replace(config.audio, encoder_layers=1),
    )


def make_example(config: OmniConfig, parts, seed: int = 0) -> Example:
    """An Example from parts as in CASES."""
    rng = np.random.default_rng(seed)
    pieces, pictures, mels = [], [], []

    def picture(frames, height, width):
        pictures.append(
            patchify(
                rng.integers(0, 256, (frames, height, width, 3), dtype=np.uint8), config.vision
            )
        )
        return pictures[-1].grid

    def sound(frames):
        mels.append(rng.uniform(-1, 1, (frames, config.audio.num_mel_bins)).astype(np.float32))
        return frames

    for part in parts:
        if isinstance(part, int):
            pieces.append(Text(rng.integers(0, config.tokens.pad_token_id, part).tolist()))
        elif part[0] == "answer":
            ids = rng.integers(0, config.tokens.pad_token_id, part[1])
            pieces.append(Text(ids.tolist(), target=True))
        elif part[0] == "image":
            pieces.append(Medium("image", picture(1, *part[1:])))
        elif part[0] == "audio":
            pieces.append(Medium("audio", mel_frames=sound(part[1])))
        else:
            *size, frames = part[1:]
            pieces.append(
                Medium(
                    "video",
                    picture(*size),
                    SECONDS_PER_GRID,
                    None if frames is None else sound(frames),
                )
            )
    return Example(**layout(pieces, config)._asdict(), vision=tuple(pictures), mels=tuple(mels))


def random_params(config: OmniConfig, stacked: bool = True) -> dict:
    """The weights that `ugc-jax init` writes, without the files."""
    arrays = {}
    for leaf in leaves(thinker.declare(config), stacked):
        values = [random_tensor(tensor, seed=0) for tensor in leaf.tensors]
        arrays[leaf.path] = np.stack(values) if leaf.is_stacked else values[0]
    return build_tree(arrays.items())


def has_sound_in_video(parts) -> bool:
    return any(
        not isinstance(part, int) and part[0] == "video" and part[-1] is not None for part in parts
    )


def videos(parts) -> int:
    return sum(not isinstance(part, int) and part[0] == "video" for part in parts)


def one_batch(
    config: OmniConfig, examples, batch_size: int | None = None, least: BucketKey = EVERY_CASE
):
    """Examples -> one Batch in the bucket `least`, of all CASES for one program, or larger."""
    keys = [bucket_of(example, Buckets(), config) for example in examples]
    key = BucketKey(*map(max, zip(least, *keys, strict=True)))
    return collate(examples, key, batch_size or len(examples), config)


def followed(example: Example, ids, target: bool = True) -> Example:
    """An Example of text with further tokens at its end."""
    ids = np.asarray(ids, np.int32)
    n = len(ids)
    running = example.next_position + np.arange(n, dtype=np.int32)
    return example._replace(
        tokens=np.concatenate([example.tokens, ids]),
        positions=np.concatenate([example.positions, np.tile(running, (3, 1))], axis=1),
        next_position=example.next_position + n,
        source=np.concatenate([example.source, np.zeros(n, np.int8)]),
        row=np.concatenate([example.row, np.zeros((n, 2), np.int32)]),
        target=np.concatenate([example.target, np.full(n, target)]),
    )


def equations(jaxpr) -> Iterator:
    """Yield all equations of a program, those inside of others, too."""
    for equation in jaxpr.eqns:
        yield equation
        for inner in _jaxprs(equation.params.values()):
            yield from equations(inner)
