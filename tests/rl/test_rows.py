"""Rows of prompts and completions: places, positions, segments, and what predicts what."""

import fake_rollout as fake
import jax
import numpy as np
import pytest

from ugc_jax.rl import rows
from ugc_jax.rl.options import GrpoOptions

PROMPTS = fake.prompts()
MADE = fake.completions()
WEIGHTS = np.where(MADE.lengths > 0, 0.25, 0).astype(np.float32)
ADVANTAGES = np.arange(len(WEIGHTS) * fake.G, dtype=np.float32).reshape(WEIGHTS.shape)


def lay_out(shared=True, weights=WEIGHTS, **options):
    size = rows.slots(MADE.lengths * (weights > 0), fake.N, shared)
    return rows.policy_rows(
        PROMPTS, MADE, ADVANTAGES, weights, size, fake.CONFIG, shared, **options
    )


def test_completions_stand_behind_their_prompt_one_after_the_other():
    batch = lay_out()
    T = PROMPTS.tokens.shape[1]
    assert batch.inputs.tokens.shape == (len(PROMPTS.tokens), T + batch.tokens.shape[1])
    for b, lengths in enumerate(MADE.lengths):
        start = int((PROMPTS.segment_ids[b] > 0).sum())
        row = batch.inputs.segment_ids[b]
        expected = np.repeat([1, 2, 3, 4], [start, *lengths])
        np.testing.assert_array_equal(row[: len(expected)], expected)
        assert not row[len(expected) :].any()
        following = PROMPTS.positions[b, :, max(start - 1, 0)].max() + 1
        for g, n in enumerate(lengths):
            place = np.flatnonzero(row == g + 2)
            np.testing.assert_array_equal(batch.inputs.tokens[b, place], MADE.tokens[b, g, :n])
            own = batch.inputs.positions[b, :, place]  # [n, 3]
            np.testing.assert_array_equal(own, np.tile(following + np.arange(n)[:, None], 3))


@pytest.mark.parametrize("shared", [True, False])
def test_slots_tell_their_token_its_predecessor_and_their_completion(shared):
    batch = lay_out(shared)
    seen = set()
    for row, used in zip(*np.nonzero(batch.weight), strict=True):
        number = int(batch.sample[row, used])
        b, g = (row, number) if shared else divmod(row, fake.G)
        members = np.flatnonzero((batch.sample[row] == number) & (batch.weight[row] > 0))
        i = used - members[0]
        start = int((PROMPTS.segment_ids[b] > 0).sum())
        before = batch.previous[row, used]
        assert batch.tokens[row, used] == MADE.tokens[b, g, i]
        assert (
            before == start - 1
            if i == 0
            else batch.inputs.tokens[row, before] == (MADE.tokens[b, g, i - 1])
        )
        assert batch.rollout[row, used] == MADE.logprobs[b, g, i]
        assert batch.advantage[row, used] == ADVANTAGES[b, g]
        seen.add((b, g, i))
    assert len(seen) == MADE.lengths.sum()
    assert (batch.sample[batch.weight == 0] == -1).all()


def test_a_completion_of_no_weight_takes_no_place():
    weights = WEIGHTS.copy()
    weights[0, 1] = 0
    batch = lay_out(weights=weights)
    tokens = batch.tokens[0, batch.sample[0] == 1]
    np.testing.assert_array_equal(tokens, MADE.tokens[0, 2, : MADE.lengths[0, 2]])
    assert not (lay_out(shared=False, weights=weights).weight[1] > 0).any()


def test_plain_rows_hold_a_prompt_and_one_completion():
    batch = lay_out(shared=False)
    assert len(batch.tokens) == len(PROMPTS.tokens) * fake.G
    assert set(np.unique(batch.inputs.segment_ids)) == {0, 1}
    for ours, theirs in zip(
        *map(jax.tree.leaves, (batch.inputs.media, PROMPTS.media)), strict=True
    ):
        np.testing.assert_array_equal(ours, np.repeat(theirs, fake.G, axis=0))


def test_media_may_be_left_out():
    inputs = lay_out(keep_media=False).inputs
    assert {leaf.shape[1] for leaf in jax.tree.leaves(inputs.media)} == {0}
    np.testing.assert_array_equal(inputs.splice[:, : PROMPTS.splice.shape[1]], PROMPTS.splice)


@pytest.mark.parametrize(
    ("counts", "most", "shared", "size"),
    [
        ([[40, 50], [1, 2]], 64, True, 128),  # the top: all completions at their longest
        ([[40, 50], [1, 2]], 512, True, 128),
        ([[300, 500], [1, 2]], 512, True, 1024),
        ([[300, 500], [1, 2]], 512, False, 512),
        ([[300, 200], [1, 2]], 512, False, 384),
        ([[0, 0]], 16, True, 32),
    ],
)
def test_slots_are_the_next_rung(counts, most, shared, size):
    assert rows.slots(np.array(counts), most, shared) == size


def test_weights_of_the_options_reach_the_slots():
    batch = fake.rows(GrpoOptions(aggregation="dapo"))
    assert batch.weight.sum() == pytest.approx(1)
    assert len(np.unique(batch.weight[batch.weight > 0])) == 1
