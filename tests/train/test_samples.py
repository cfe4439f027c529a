"""ugc_jax.train.samples: when there is nothing to sample. (What it says: test_sft.py.)"""

from ugc_jax.data.planning import DataConfig
from ugc_jax.train.samples import make_sampler


def test_without_clips_or_data_there_is_none():
    assert make_sampler(DataConfig(train="records"), 4, 16, None, None) is None
    assert make_sampler(DataConfig(train="records", eval="records"), 0, 16, None, None) is None
