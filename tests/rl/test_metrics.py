"""ugc_jax.rl.metrics: of updates, samples and evaluations. (Their files: test_step.py.)"""

import numpy as np
import pytest

from ugc_jax.rl import metrics as report
from ugc_jax.rl.advantages import advantages
from ugc_jax.rl.options import GrpoOptions
from ugc_jax.rl.rows import Completions, Groups

NAMES, WEIGHTS = ("a", "b"), np.array([1.0, 0.0], np.float32)


def test_columns_are_different_and_hold_each_function():
    names = report.columns(NAMES)
    assert len({*names}) == len(names)
    assert {"rewards/a/mean", "rewards/b/std", "eval_rewards/b"} <= {*names}


def test_updates_become_one():
    first = {
        "learning_rate": 0.1, "mult_prob_error": 1.0, "loss": 1.0, "max_ratio": 3.0, "finite": 1.0,
        "tokens": 10.0,
    }  # fmt: skip
    second = {
        "learning_rate": 0.2, "mult_prob_error": 2.0, "loss": 2.0, "max_ratio": 2.0, "finite": 0.0,
        "tokens": 30.0,
    }  # fmt: skip
    assert report.update_metrics([first, second]) == {
        "loss": 1.5, "max_ratio": 3.0, "finite": 0.0, "learning_rate": 0.2, "tokens": 20.0,
        "token_mult_prob_error": 1.75,
    }  # fmt: skip
    idle = second | {"tokens": 0.0, "mult_prob_error": 0.0}
    assert report.update_metrics([first, idle])["token_mult_prob_error"] == 1.0
    assert report.update_metrics([idle])["token_mult_prob_error"] is None


def test_draws_without_their_empty_rows():
    lengths = np.array([[4, 2], [6, 6], [0, 0]], np.int32)
    made = Completions(None, lengths, lengths < 6, None)._replace(
        tokens=np.zeros((3, 2, 6)), logprobs=np.zeros((3, 2, 6))
    )
    rewards = np.array([[[1, 5], [0, 5]], [[1, 5], [np.nan, 5]], [[np.nan] * 2] * 2], np.float32)
    result = advantages(rewards, WEIGHTS, GrpoOptions())
    figures = report.sampling_metrics(Groups([], made, rewards, result), NAMES)
    assert figures["completion_tokens"] == pytest.approx(4.5)
    assert (figures["completion_tokens_min"], figures["completion_tokens_max"]) == (2, 6)
    assert figures["truncated"] == 0.5
    assert figures["left_out"] == 0.5  # a group of which one reward is there says nothing
    assert figures["reward"] == pytest.approx(0.5)
    assert figures["zero_std_groups"] == 0


def test_evaluation_says_nothing_of_what_it_does_not_know():
    made = Completions(None, np.array([[3], [5]]), np.array([[True], [False]]), None)
    rewards = np.array([[0.5, np.nan], [np.nan, np.nan]], np.float32)
    figures = report.evaluation_metrics(made, rewards, WEIGHTS, NAMES)
    assert figures == {
        "eval_reward": 0.5, "eval_rewards/a": 0.5, "eval_left_out": 0.5,
        "eval_completion_tokens": 4.0, "eval_truncated": 0.5,
    }  # fmt: skip
    huge = report.evaluation_metrics(made, np.full_like(rewards, 3e38), WEIGHTS * 2, NAMES)
    assert np.isfinite(huge["eval_reward"])
    nothing = report.evaluation_metrics(made, rewards * np.nan, WEIGHTS, NAMES)
    assert "eval_reward" not in nothing
    assert nothing["eval_left_out"] == 1
