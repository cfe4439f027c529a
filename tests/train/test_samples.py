"""ugc_jax.train.samples: programs, and nothing to sample. (What it says: test_sft.py.)"""

import jax
import pytest
from fake_records import FakeSource

from ugc_jax.data import pipeline
from ugc_jax.data.batching import Buckets, bucket_of, collate
from ugc_jax.data.planning import DataConfig
from ugc_jax.generate.settings import SamplingConfig
from ugc_jax.sharding import make_mesh
from ugc_jax.train.samples import Sampler, make_sampler
from ugc_jax.train.state import Setup


def test_without_clips_or_data_there_is_none():
    assert make_sampler(DataConfig(train="records"), 4, 16, None, None) is None
    assert make_sampler(DataConfig(train="records", eval="records"), 0, 16, None, None) is None


@pytest.mark.parametrize("devices", [1, 2])
def test_each_prompt_as_alone_and_programs_compiled_once(tiny_captioner, tokenizer, devices):
    config, source = tiny_captioner.config, FakeSource("3-5")
    prompts = pipeline.prompts(source, range(5), tokenizer, config)
    setup = Setup(model=config, mesh=make_mesh(devices, 1, 1, jax.devices()[:devices]))
    options = SamplingConfig(max_new_tokens=8)
    sampler = Sampler(prompts, setup, tokenizer, options)
    sampler._weights = lambda state: state
    # On the mesh, as a train state's are: else jit counts the first step's program twice.
    params = jax.device_put(tiny_captioner.params, jax.NamedSharding(setup.mesh, jax.P()))
    rows = sampler(params, lambda: None)
    keys = {bucket_of(one.example, Buckets(), config) for one in prompts}
    programs = sampler._engine.programs()
    assert programs["prefill"] == len({key.tokens for key in keys}) <= len(keys) > 1
    assert programs["decode"] == 1
    assert sampler(params, lambda: None) == rows
    assert sampler._engine.programs() == programs
    assert [row["clip"] for row in rows] == [one.entry.id for one in prompts]
    for row, one in zip(rows, prompts, strict=True):
        batch = collate([one.example], bucket_of(one.example, Buckets(), config), 1, config)
        alone = tiny_captioner.engine.generate(tiny_captioner.params, batch, options, [0])
        text = tokenizer.decode(alone.tokens[0, : alone.lengths[0]].tolist()).strip()
        assert row["caption"] == text
