"""Advantages by TRL's formulas, and what happens to samples without a reward."""

import numpy as np
import pytest
import torch

from ugc_jax.rl.advantages import (
    advantages,
    overlong_penalty,
    reward_metrics,
    token_counts,
    token_weights,
)
from ugc_jax.rl.options import GrpoOptions

B, G, R = 4, 5, 3
WEIGHTS = np.array([1.0, 0.5, 2.0], np.float32)


@pytest.fixture
def rewards():
    return np.random.default_rng(0).random((B, G, R)).astype(np.float32)


def trl(rewards, weights, scale):
    """TRL's `sum_then_normalize` with scale_rewards, and its `normalize_then_sum` for gdpo."""
    rewards, weights = torch.from_numpy(rewards).double(), torch.from_numpy(weights).double()
    if scale == "gdpo":
        each = (rewards - rewards.mean(1, keepdim=True)) / (rewards.std(1, keepdim=True) + 1e-4)
        total = (each * weights).sum(-1)
        return (total - total.mean()) / (total.std() + 1e-4)
    total = (rewards * weights).sum(-1)
    above = total - total.mean(1, keepdim=True)
    divisor = {"group": total.std(1, keepdim=True), "batch": total.std()}
    return above / (divisor[scale] + 1e-4) if scale in divisor else above


@pytest.mark.parametrize("scale", ["group", "batch", "none", "gdpo"])
def test_values_equal_trls_formula(rewards, scale):
    result = advantages(rewards, WEIGHTS, GrpoOptions(scale=scale))
    np.testing.assert_allclose(result.values, trl(rewards, WEIGHTS, scale), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(result.reward, rewards @ WEIGHTS, rtol=1e-6)
    assert result.used.all()
    assert result.informative.all()
    assert result.values.dtype == result.reward.dtype == np.float32


def test_auto_is_gdpo_from_two_functions_that_count(rewards):
    auto, last = GrpoOptions(), np.array([0, 0, 2], np.float32)
    np.testing.assert_allclose(
        advantages(rewards, WEIGHTS, auto).values, trl(rewards, WEIGHTS, "gdpo"), rtol=1e-5
    )
    np.testing.assert_allclose(
        advantages(rewards, last, auto).values, trl(rewards, last, "group"), rtol=1e-5
    )


def test_gdpo_by_hand():
    # Normalised in their groups: +-0.7071 of weight 1 or 0.5; the std of these four is 0.6455.
    rewards = np.array([[[0, 10], [1, 10]], [[1, 0], [1, 4]]], np.float32)
    result = advantages(rewards, np.array([1, 0.5], np.float32), GrpoOptions(scale="gdpo"))
    expected = [[-1.0954, 1.0954], [-0.5477, 0.5477]]
    np.testing.assert_allclose(result.values, expected, rtol=1e-3)


@pytest.mark.parametrize("scale", ["group", "none", "gdpo", "batch"])
def test_a_sample_without_a_reward_is_as_if_it_were_not_there(rewards, scale):
    options, missing = GrpoOptions(scale=scale), rewards.copy()
    missing[:, 2, 1] = np.nan
    result = advantages(missing, WEIGHTS, options)
    rest = advantages(np.delete(rewards, 2, axis=1), WEIGHTS, options)
    np.testing.assert_allclose(np.delete(result.values, 2, axis=1), rest.values, rtol=1e-5)
    assert not result.used[:, 2].any()
    assert result.used.sum() == B * (G - 1)
    assert not result.values[:, 2].any()
    assert np.isnan(result.reward[:, 2]).all()


@pytest.mark.parametrize("scale", ["group", "none", "gdpo", "batch"])
def test_a_sample_alone_in_its_group_is_not_used(rewards, scale):
    missing = rewards.copy()
    missing[1, 1:, 0], missing[3] = np.nan, np.inf
    result = advantages(missing, WEIGHTS, GrpoOptions(scale=scale))
    assert result.used.sum(1).tolist() == [G, 0, G, 0]
    assert result.informative.tolist() == [True, False, True, False]
    assert not result.values[[1, 3]].any()
    assert np.isnan(result.reward[3]).all()
    kept = advantages(rewards[[0, 2]], WEIGHTS, GrpoOptions(scale=scale))
    np.testing.assert_allclose(result.values[[0, 2]], kept.values, rtol=1e-5)


def test_nothing_used():
    result = advantages(np.full((B, G, R), np.nan, np.float32), WEIGHTS, GrpoOptions())
    assert not result.used.any()
    assert not result.values.any()
    assert set(reward_metrics(np.zeros((B, G, 1)), result, ["a"]).values()) == {None, 1.0}


def test_a_function_of_weight_0_leaves_nothing_out(rewards):
    missing, weights = rewards.copy(), np.array([1, 0, 2], np.float32)
    missing[0, 0, 1] = np.nan
    result = advantages(missing, weights, GrpoOptions())
    np.testing.assert_array_equal(result.values, advantages(rewards, weights, GrpoOptions()).values)
    assert result.used.all()


@pytest.mark.parametrize("scale", ["group", "none", "gdpo", "batch"])
def test_equal_rewards_have_no_advantage(rewards, scale):
    rewards[2] = 0.1
    result = advantages(rewards, WEIGHTS, GrpoOptions(scale=scale))
    assert not result.values[2].any()
    assert result.informative.tolist() == [True, True, False, True]
    assert result.used.all()


def test_overlong_penalty_is_dapos():
    options = GrpoOptions(overlong=20, overlong_penalty=0.5)
    lengths = np.array([[1, 80, 81], [90, 99, 100]])
    expected = [[0, 0, -0.025], [-0.25, -0.475, -0.5]]
    np.testing.assert_allclose(overlong_penalty(lengths, options, 100), expected, rtol=1e-6)
    assert overlong_penalty(lengths, GrpoOptions(), 100) is None


@pytest.mark.parametrize("scale", ["group", "gdpo"])
def test_penalty_is_off_the_reward_or_one_more_reward(rewards, scale):
    penalty = -np.random.default_rng(1).random((B, G)).astype(np.float32)
    result = advantages(rewards, WEIGHTS, GrpoOptions(scale=scale), penalty)
    whole = np.concatenate([rewards, penalty[..., None]], -1)
    expected = trl(whole, np.append(WEIGHTS, np.float32(1)), scale)
    np.testing.assert_allclose(result.values, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(result.reward, rewards @ WEIGHTS + penalty, rtol=1e-5)


def test_truncated_completions_are_masked_if_wished():
    lengths, used = np.array([[3, 4, 5]]), np.array([[True, True, False]])
    stopped = np.array([[True, False, True]])
    assert token_counts(lengths, stopped, used, GrpoOptions()).tolist() == [[3, 0, 0]]
    options = GrpoOptions(mask_truncated=False)
    assert token_counts(lengths, stopped, used, options).tolist() == [[3, 4, 0]]


COUNTS = np.array([[3, 0, 5], [1, 2, 0], [0, 0, 0], [4, 4, 7], [0, 9, 1], [2, 0, 0]])


@pytest.mark.parametrize("parts", [1, 2, 3])
@pytest.mark.parametrize("aggregation", ["dapo", "grpo", "bnpo", "dr_grpo"])
def test_weights_give_the_aggregation(aggregation, parts):
    """Sum of weight * loss, against means taken completion by completion and part by part."""
    random = np.random.default_rng(0)
    losses = [[random.standard_normal(count) for count in row] for row in COUNTS]
    options = GrpoOptions(aggregation=aggregation)
    weights = token_weights(COUNTS, options, 10, parts)
    ours = sum(weights[b, g] * losses[b][g].sum() for b, g in np.ndindex(COUNTS.shape))

    learned = [loss for row in losses for loss in row if len(loss)]
    expected = {
        "dapo": np.concatenate(learned).mean(),
        "grpo": np.mean([loss.mean() for loss in learned]),
        "dr_grpo": np.mean([loss.sum() / 10 for loss in learned]),
        "bnpo": np.mean([np.concatenate(sum(losses[p::parts], [])).mean() for p in range(parts)]),
    }
    np.testing.assert_allclose(ours, expected[aggregation], rtol=1e-5)
    assert weights.dtype == np.float32
    assert not weights[COUNTS == 0].any()


@pytest.mark.parametrize("aggregation", ["dapo", "grpo", "bnpo", "dr_grpo"])
def test_weights_of_nothing_are_0(aggregation):
    options = GrpoOptions(aggregation=aggregation)
    assert not token_weights(np.zeros((B, G), np.int32), options, 10, 2).any()


def test_metrics_are_over_what_is_used(rewards):
    rewards[0] = 0.5
    rewards[1, 0, 2] = np.nan
    result = advantages(rewards, WEIGHTS, GrpoOptions())
    metrics = reward_metrics(rewards, result, ["a", "b", "c"])
    kept = rewards.reshape(-1, R)[result.used.reshape(-1)]
    assert len(kept) == B * G - 1
    for i, name in enumerate("abc"):
        np.testing.assert_allclose(metrics[f"rewards/{name}/mean"], kept[:, i].mean(), rtol=1e-5)
        std = kept[:, i].std(ddof=1)
        np.testing.assert_allclose(metrics[f"rewards/{name}/std"], std, rtol=1e-5)
    np.testing.assert_allclose(metrics["reward"], (kept @ WEIGHTS).mean(), rtol=1e-5)
    np.testing.assert_allclose(metrics["reward_std"], (kept @ WEIGHTS).std(ddof=1), rtol=1e-5)
    np.testing.assert_allclose(metrics["left_out"], 1 / (B * G), rtol=1e-5)
    assert metrics["zero_std_groups"] == 1 / B
