"""The inputs of a plan: a model of a known size, and the shapes of its largest batch."""

import dataclasses
import re
from collections.abc import Iterable
from pathlib import Path

import jax
import numpy as np

from ugc_jax.data.batching import (
    Batch,
    BucketKey,
    Buckets,
    bucket_of_size,
    collate_rows,
    size_of_media,
)
from ugc_jax.data.planning import DataConfig, ExampleSet, make_plan
from ugc_jax.data.prompt import Medium
from ugc_jax.errors import UserError
from ugc_jax.hf.config import load_config
from ugc_jax.models.qwen2_5_omni.config import HOP, SAMPLE_RATE, SIZES, OmniConfig
from ugc_jax.sharding import abstract, batch_shardings, check_batch
from ugc_jax.train.run import resolve_weights


@dataclasses.dataclass(frozen=True)
class TypicalClip:
    """A typical clip, to plan with if there are no records."""

    frames: int = 32  # taken from it; an odd number is rounded up
    height: int = 420  # of a frame, in pixels: whole cells of the vision encoder
    width: int = 224  # of a frame, in pixels: whole cells of the vision encoder
    seconds: float = 24.0  # of sound
    text: int = 500  # tokens of prompt and caption; for grpo, caption and serve, of the prompt
    clips: int = 1000  # of the training data, or to caption, for the hours

    def bucket(self, data: DataConfig, model: OmniConfig, packing: bool) -> BucketKey:
        """Return the shape of a training row of such clips.

        Raises UserError for a clip that is longer than a row, and for a height or width that is
        not a multiple of the vision encoder's cell.
        """
        size = self._size(model)
        if size.tokens > data.tokens:
            raise UserError(
                f"typical: takes {size.tokens} tokens, and a row has data.tokens={data.tokens}; "
                "raise that or plan for a smaller clip"
            )
        one = ExampleSet("clip", np.zeros(1, np.int64), np.array([size]), digest="", draws=1)
        return max(make_plan([one], data, steps=1, packing=packing).buckets)

    def prompt(self, model: OmniConfig, new_tokens: int) -> BucketKey:
        """Return the bucket of the prompt of such a clip, to be completed by so many tokens.

        Raises UserError for a clip that leaves no positions for them, and as `bucket`.
        """
        size, positions = self._size(model), model.text.max_position_embeddings
        if size.tokens > positions - new_tokens:
            raise UserError(
                f"typical: takes {size.tokens} tokens, and the model has {positions} positions for "
                f"these and {new_tokens} new ones; plan for a smaller clip"
            )
        return bucket_of_size(size, Buckets(), "typical")

    def _size(self, model: OmniConfig) -> BucketKey:
        patch, cell = model.vision.patch_size, model.vision.cell_pixels
        for name, side in (("height", self.height), ("width", self.width)):
            if side < cell or side % cell:
                raise UserError(f"typical.{name} is {side}; use a multiple of {cell}")
        grid = (-(-self.frames // 2), self.height // patch, self.width // patch)
        sound = round(self.seconds * SAMPLE_RATE / HOP)
        size = size_of_media([Medium("video", grid, 1.0, sound)], model)
        return size._replace(tokens=size.tokens + self.text)

    def examples(self, data: DataConfig, model: OmniConfig, packing: bool) -> float:
        """Return how many such clips a row of the data's tokens holds on average."""
        if not packing:
            return 1.0
        grid = model.vision.patch_size * model.vision.spatial_merge_size
        cells = -(-self.frames // 2) * (self.height // grid) * (self.width // grid)
        sound = model.audio.tokens(round(self.seconds * SAMPLE_RATE / HOP)) if self.seconds else 0
        return data.tokens / (cells + sound + self.text)


def largest(buckets: Iterable[BucketKey]) -> BucketKey:
    """Return the maximum of each size over shapes of rows."""
    return BucketKey(*map(max, zip(*buckets, strict=True)))


def model_of(checkpoint: str, revision: str | None = None) -> OmniConfig:
    """Return the config of a checkpoint; if it is not on this disk, of the size in its name."""
    words = re.split("[^0-9a-z]+", checkpoint.lower())
    sizes = [size for size in SIZES if size in words]
    if sizes and not Path(checkpoint).is_dir():
        return SIZES[sizes[0]]()
    return load_config(resolve_weights(checkpoint, revision, weights=False))


def batch_shapes(
    key: BucketKey, rows: int, model: OmniConfig, mesh: jax.sharding.Mesh, accumulate: int = 1
) -> Batch:
    """Return the global Batch of a bucket, of jax.ShapeDtypeStructs with shardings.

    Raises UserError if the mesh does not divide the rows of each microbatch.
    """
    check_batch(mesh, rows, accumulate)
    shapes = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((rows, *x.shape[1:]), x.dtype),
        collate_rows([], key, 1, model),
    )
    return abstract(shapes, batch_shardings(mesh, shapes))


def describe(batch: Batch) -> str:
    """Return the shapes of a batch as text."""
    rows, tokens = batch.tokens.shape
    grids, chunks = batch.media["vision"].patches.shape, batch.media["audio"].mel.shape
    return (
        f"{rows} rows of {tokens} tokens, {grids[1]} grids of {grids[2]} windows and {chunks[1]} "
        "chunks of sound"
    )
