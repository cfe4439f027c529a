"""ugc_jax.plan.shapes: what is planned for where no checkpoint and no records are."""

import jax
import pytest

from ugc_jax import sharding
from ugc_jax.data.batching import BucketKey, collate_rows
from ugc_jax.data.planning import DataConfig
from ugc_jax.errors import UserError
from ugc_jax.jobs import init
from ugc_jax.jobs.init import InitConfig
from ugc_jax.models.qwen2_5_omni.config import omni_3b, tiny
from ugc_jax.plan.shapes import TypicalClip, batch_shapes, model_of

KEY = BucketKey(tokens=128, grids=2, windows=4, chunks=1)


def test_a_row_of_typical_clips():
    """32 frames of 30 x 16 patches are 1920 tokens, 24 s of sound 600; 1.36 of them in a row."""
    key = TypicalClip().bucket(DataConfig(train="-", tokens=4096), omni_3b(), packing=True)
    assert key == BucketKey(tokens=4096, grids=24, windows=8, chunks=24)
    single = TypicalClip().bucket(DataConfig(train="-", tokens=4096), omni_3b(), packing=False)
    assert single == BucketKey(tokens=3072, grids=16, windows=8, chunks=12)
    with pytest.raises(UserError, match="takes 3024 tokens, and a row has data.tokens=2048"):
        TypicalClip().bucket(DataConfig(train="-", tokens=2048), omni_3b(), packing=True)


def test_frames_are_pairs_and_sides_whole_cells_as_of_a_real_clip():
    """A pair of 420 x 224 is 120 tokens: 16 pairs and the sound fit in 2560 tokens, 17 do not."""
    single = DataConfig(train="-", tokens=2560)
    even, odd = (TypicalClip(frames=n, text=0) for n in (32, 31))
    assert odd.bucket(single, omni_3b(), packing=False) == even.bucket(
        single, omni_3b(), packing=False
    )
    with pytest.raises(UserError, match="takes 2644 tokens"):
        TypicalClip(frames=33, text=0).bucket(single, omni_3b(), packing=False)
    for side, value in (("height", 421), ("width", 14), ("height", 0)):
        with pytest.raises(UserError, match=f"typical.{side} is {value}; use a multiple of 28$"):
            TypicalClip(**{side: value}).bucket(single, omni_3b(), packing=False)


def test_batch_shapes_are_those_of_a_batch():
    mesh = sharding.make_mesh(2, 2, 2)
    found = batch_shapes(KEY, 8, tiny(), mesh)
    batch = collate_rows([], KEY, 8, tiny())
    for shape, array in zip(*map(jax.tree.leaves, (found, batch)), strict=True):
        assert (shape.shape, shape.dtype) == (array.shape, array.dtype)
        assert shape.sharding.shard_shape(shape.shape)[0] == 2
    with pytest.raises(UserError, match="batch of 6 rows is not a multiple of 4 devices"):
        batch_shapes(KEY, 6, tiny(), mesh)


def test_a_run_is_planned_as_its_model(tmp_path):
    init.main(InitConfig(output=str(tmp_path / "run" / "model")), [])
    (tmp_path / "run" / "checkpoints").mkdir()
    assert model_of(str(tmp_path / "run")) == tiny()
