"""Generation against itself: batches, padding, cache, stopping, randomness, compiled programs."""

import dataclasses

import cases
import jax
import numpy as np
import pytest

from ugc_jax.data.batching import (
    BucketKey,
    Buckets,
    bucket_of,
    collate,
    collate_shared,
    shared_bucket,
)
from ugc_jax.generate.engine import Engine
from ugc_jax.generate.settings import SamplingConfig
from ugc_jax.models.compute import Compute
from ugc_jax.models.qwen2_5_omni import config as config_lib
from ugc_jax.models.qwen2_5_omni import thinker
from ugc_jax.sharding import make_mesh

NAMES = ("text", "audio", "video", "video_with_sound", "several_media", "video_sound_longer")
SIXTEEN = SamplingConfig(max_new_tokens=16)
ROWS = len(NAMES)
KEY = BucketKey(tokens=256, grids=6, windows=2, chunks=4)  # holds all of them


@pytest.fixture(scope="module")
def config():
    return cases.fewer_layers(config_lib.tiny())


@pytest.fixture(scope="module")
def params(config):
    return cases.random_params(config, stacked=False)


@pytest.fixture(scope="module")
def engine(params, config):
    return Engine(config, Compute())


@pytest.fixture(scope="module")
def examples(config):
    return [cases.make_example(config, cases.CASES[name], seed) for seed, name in enumerate(NAMES)]


@pytest.fixture(scope="module")
def greedy(engine, params, examples):
    """The sixteen tokens of each prompt."""
    return generate(engine, params, examples)


def generate(engine, params, examples, options=SIXTEEN, rows=ROWS, keys=None, key=None):
    if key is None:
        batch = cases.one_batch(engine.config, examples, rows, KEY)
    else:
        batch = collate(examples, key, rows, engine.config)
    key_ids = np.zeros(rows, np.uint32)
    key_ids[: len(examples)] = keys if keys is not None else range(len(examples))
    return engine.generate(params, batch, options, key_ids)


def test_row_does_not_depend_on_its_batch(engine, params, examples):
    options = SamplingConfig(max_new_tokens=16, temperature=0.8, top_p=0.9, repetition_penalty=1.1)
    together = generate(engine, params, examples, options)
    backwards = generate(engine, params, examples[::-1], options, keys=range(len(examples))[::-1])
    np.testing.assert_array_equal(together.tokens, backwards.tokens[::-1])
    for i, example in enumerate(examples):
        alone = generate(engine, params, [example], options, keys=[i])
        np.testing.assert_array_equal(alone.tokens[0], together.tokens[i])
        assert alone.lengths[0] == together.lengths[i]


def test_padding_does_not_matter(engine, params, examples):
    small = generate(
        engine, params, examples[3:4], rows=1, key=bucket_of(examples[3], Buckets(), engine.config)
    )
    large = generate(engine, params, examples[3:4], rows=2, key=BucketKey(512, 12, 4, 8))
    np.testing.assert_array_equal(small.tokens[0], large.tokens[0])
    assert large.lengths.tolist() == [16, 0]
    assert not large.stopped.any()


def test_stacked_layers_give_the_same(engine, examples, config, greedy):
    stacked = cases.random_params(config, stacked=True)
    np.testing.assert_array_equal(generate(engine, stacked, examples).tokens, greedy.tokens)


def test_chunks_give_the_same(examples, config, params, greedy):
    in_chunks = Engine(config, Compute(slab=100))
    np.testing.assert_array_equal(generate(in_chunks, params, examples).tokens, greedy.tokens)


def test_cached_decoding_equals_recomputing(examples, config, params, greedy):
    """Prompt and generated tokens through the uncached model give each generated token again."""
    grown = [cases.followed(example, greedy.tokens[i, :-1]) for i, example in enumerate(examples)]
    batch = cases.one_batch(config, grown, least=KEY)
    hidden = jax.jit(lambda p, b: thinker.hidden_states(p, config, Compute(), b))(params, batch)
    for i, example in enumerate(examples):
        last = len(example.tokens) - 1
        again = thinker.logits(thinker.head(params), hidden[i, last : last + 16]).argmax(-1)
        np.testing.assert_array_equal(again, greedy.tokens[i])


def test_samples_of_a_prompt_are_what_copies_of_it_would_give(engine, params, examples):
    """Three samples on one cache of the prompt: tokens, lengths and log-probabilities."""
    options = SamplingConfig(max_new_tokens=16, temperature=1.0, repetition_penalty=1.1)
    batch = cases.one_batch(engine.config, examples[2:4], least=KEY)
    keys = np.arange(6, dtype=np.uint32)
    shared = engine.generate(params, batch, options, keys, samples=3)
    copies = jax.tree.map(lambda leaf: np.repeat(leaf, 3, axis=0), batch)
    alone = engine.generate(params, copies, options, keys)
    np.testing.assert_array_equal(shared.tokens, alone.tokens)
    np.testing.assert_array_equal(shared.lengths, alone.lengths)
    np.testing.assert_allclose(shared.logprobs, alone.logprobs, atol=1e-5)
    assert len({tuple(row) for row in shared.tokens.tolist()}) == 6


@pytest.mark.parametrize("form", ["unrolled", "stacked", "chunks", "mesh"])
def test_prompts_that_begin_alike_are_prefilled_as_each_alone(
    form, engine, params, examples, config
):
    """Two clips with three and two questions: logits and the caches of all their tokens."""

    def asked(example, *ids):
        return cases.followed(example, ids, target=False)

    questions = (1, 2, 3), (1, 2, 9, 9, 9, 9, 9), (5,)
    rows = [
        [asked(examples[3], *ids) for ids in questions],
        [asked(examples[2], *ids) for ids in questions[:2]],
    ]
    keys = [shared_bucket(row, 3, Buckets(), config) for row in rows]
    key = keys[0]._replace(row=BucketKey(*map(max, *(one.row for one in keys))))
    batch, shared = collate_shared(rows, key, 2, config)
    if form == "stacked":
        params = cases.random_params(config, stacked=True)
    if form == "chunks":
        engine = Engine(config, Compute(slab=100))
    if form == "mesh":
        mesh = make_mesh(2, 1, 1, jax.devices()[:2])
        engine = Engine(config, Compute(), mesh)
        params = jax.device_put(params, jax.NamedSharding(mesh, jax.P()))
    host, plain = jax.device_get(params), Engine(config, Compute())
    made = jax.device_get(engine.prefill(params, batch, None, shared))
    for c, row in enumerate(rows):
        for q, example in enumerate(row):
            alone = bucket_of(example, Buckets(), config)
            single = collate([example], alone, 1, config)
            expected = jax.device_get(plain.prefill(host, single))
            b, n = c * 3 + q, len(example.tokens)
            np.testing.assert_allclose(made.logits[b], expected.logits[0], rtol=2e-4, atol=2e-4)
            axis = 1 if form == "stacked" else 0
            for ours, theirs in zip(
                jax.tree.leaves(made.cache), jax.tree.leaves(expected.cache), strict=True
            ):
                ours, theirs = np.take(ours, b, axis), np.take(theirs, 0, axis)
                where = -1 if ours.shape[-2] == config.text.head_dim else -2
                ours, theirs = (np.take(x, np.arange(n), where) for x in (ours, theirs))
                np.testing.assert_allclose(ours, theirs, rtol=2e-4, atol=2e-4)


def test_stops_at_the_end_token_inside_the_program(examples, config, params, greedy):
    """A token that greedy decoding is known to reach is made the end token: rows end there."""
    eos = int(greedy.tokens[0, 5])
    ends = [row.tolist().index(eos) + 1 if eos in row else 16 for row in greedy.tokens]
    tokens = dataclasses.replace(config.tokens, eos_token_id=eos)
    stopping = Engine(dataclasses.replace(config, tokens=tokens), Compute())
    cut = generate(stopping, params, examples)
    assert cut.lengths.tolist() == ends
    assert cut.stopped.tolist() == [eos in row for row in greedy.tokens]
    for i, end in enumerate(ends):
        np.testing.assert_array_equal(cut.tokens[i, :end], greedy.tokens[i, :end])
        assert (cut.tokens[i, end:] == config.tokens.pad_token_id).all()


def test_limit_is_exact_and_shares_the_program(engine, params, examples, greedy):
    before = engine.programs()
    short = generate(engine, params, examples, SamplingConfig(max_new_tokens=11))
    np.testing.assert_array_equal(short.tokens[:, :11], greedy.tokens[:, :11])
    assert short.lengths.tolist() == [11] * len(examples)
    assert engine.programs() == before


def test_seed_decides_the_samples(engine, params, examples):
    def sample(seed, keys=None):
        return generate(
            engine,
            params,
            examples,
            SamplingConfig(max_new_tokens=16, temperature=1.0, seed=seed),
            keys=keys,
        ).tokens

    first = sample(0)
    np.testing.assert_array_equal(first, sample(0))
    assert (first != sample(1)).mean() > 0.5
    assert (first != sample(0, keys=range(10, 16))).mean() > 0.5


def test_one_program_per_bucket_and_stage(params, config):
    """Twenty batches of four buckets compile at most four programs a stage."""
    engine = Engine(config, Compute())
    keys = [
        BucketKey(128, 4, 2, 2),
        BucketKey(256, 4, 2, 2),
        BucketKey(256, 6, 2, 4),
        BucketKey(512, 6, 2, 4),
    ]
    example = cases.make_example(config, [4, ("video", 4, 84, 84, 150), 6])
    for i in range(20):
        options = SamplingConfig(max_new_tokens=2 + i % 5, temperature=0.5 + i / 20, seed=i)
        generate(engine, params, [example], options, rows=2, key=keys[i % 4])
    # A stage knows only its own sizes: the grids decide for vision, the prompt length for decode.
    assert engine.programs() == {
        "vision": 2,
        "audio": 2,
        "embed": 4,
        "prefill": 3,
        "first": 1,
        "insert": 3,
        "decode": 3,
        "score": 0,
    }


def test_bfloat16_runs_in_bfloat16(config, examples):
    params = jax.tree.map(
        lambda leaf: leaf.astype("bfloat16"), cases.random_params(config, stacked=False)
    )
    engine = Engine(config, Compute("bfloat16"))
    prefilled = engine.prefill(params, cases.one_batch(config, examples, least=KEY))
    assert {leaf.dtype.name for leaf in jax.tree.leaves(prefilled.cache)} == {"bfloat16"}
    assert prefilled.logits.dtype == "float32"
    assert (generate(engine, params, examples).lengths == 16).all()
