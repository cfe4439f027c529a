"""Metrics of a GRPO step and of its evaluation, and the tables of completions."""

import math
from collections.abc import Sequence

import numpy as np

from ugc_jax.data.prompt import ChatTokenizer
from ugc_jax.generate.engine import finish_reason
from ugc_jax.rl.advantages import Advantages, reward_metrics
from ugc_jax.rl.rewards.runner import completion_texts
from ugc_jax.rl.rows import Completions, Groups

_OF_TOKENS = {
    "kl", "entropy", "ratio", "clip_low", "clip_high", "dual_clip", "tis", "mult_prob_error",
}  # fmt: skip


def columns(names: Sequence[str]) -> tuple[str, ...]:
    """Return all metrics of a run with these reward functions, the most important first.

    reward, reward_std: of the weighted sum; rewards/NAME/...: of a function (failed: the share of
    completions on which it failed). completion_tokens: mean length; truncated: share that
    max_new_tokens cut off; zero_std_groups: share of groups whose rewards are equal; left_out:
    share of completions that lack a reward; skipped: 1 for a step that was skipped for lack of
    rewards, else 0; draws: batches of prompts drawn; replaced: share of groups that dynamic
    sampling replaced. tokens_per_second: tokens of the rows trained on, per second of the step;
    generated_tokens_per_second: per second of the rollout. The others are those of rl/objective.py,
    means over the tokens.
    """
    of_functions = [
        f"rewards/{name}/{figure}" for name in names for figure in ("mean", "std", "failed")
    ]
    return (
        "reward", "reward_std", "completion_tokens", "truncated", "zero_std_groups", "kl",
        "entropy", "grad_norm", "rollout_seconds", "reward_seconds", "update_seconds",
        *of_functions,
        "loss", "learning_rate", "ratio", "max_ratio", "clip_low", "clip_high", "dual_clip", "tis",
        "token_mult_prob_error", "completion_tokens_min", "completion_tokens_max", "left_out",
        "skipped", "draws", "replaced", "generated_tokens_per_second", "tokens_per_second",
        "data_wait", "memory_gb",
        "eval_reward", *(f"eval_rewards/{name}" for name in names), "eval_left_out",
        "eval_completion_tokens", "eval_truncated",
    )  # fmt: skip


def update_metrics(metrics: Sequence[dict]) -> dict[str, float]:
    """Return the metrics of a step from those of its updates: mostly means.

    max_ratio is the maximum, finite the minimum, learning_rate the last. A mean over tokens is one
    over the tokens of all updates; None without any.
    """
    tokens = np.array([one["tokens"] for one in metrics])
    joined = {name: float(np.mean([one[name] for one in metrics])) for name in metrics[0]}
    for name in joined.keys() & _OF_TOKENS:
        values = np.array([one[name] for one in metrics])
        joined[name] = float(values @ tokens / tokens.sum()) if tokens.any() else None
    joined["max_ratio"] = max(float(one["max_ratio"]) for one in metrics)
    joined["finite"] = min(float(one["finite"]) for one in metrics)
    joined["learning_rate"] = float(metrics[-1]["learning_rate"])
    joined["token_mult_prob_error"] = joined.pop("mult_prob_error")
    return joined


def sampling_metrics(groups: Groups, names: Sequence[str]) -> dict[str, float | None]:
    """Return metrics of all completions sampled in a step; empty rows are not counted."""
    real = groups.completions.lengths.any(axis=1)
    lengths, stopped = groups.completions.lengths[real], groups.completions.stopped[real]
    rewards, result = groups.rewards[real], Advantages(*(leaf[real] for leaf in groups.advantages))
    return reward_metrics(rewards, result, names) | {
        "completion_tokens": float(lengths.mean()),
        "completion_tokens_min": float(lengths.min()),
        "completion_tokens_max": float(lengths.max()),
        "truncated": float(1 - stopped.mean()),
        **{
            f"rewards/{name}/failed": float(np.isnan(rewards[..., i]).mean())
            for i, name in enumerate(names)
        },
    }


def evaluation_metrics(
    completions: Completions, rewards: np.ndarray, weights: np.ndarray, names: Sequence[str]
) -> dict[str, float]:
    """Return metrics of n evaluated completions [n, 1] with rewards f32[n, R], the known ones.

    A completion that lacks a reward is left out of that reward's mean.
    """
    weighted = weights != 0
    total = rewards[..., weighted].astype(np.float64) @ weights[weighted]
    metrics = {
        "eval_reward": _mean(total),
        **{f"eval_rewards/{name}": _mean(rewards[:, i]) for i, name in enumerate(names)},
        "eval_left_out": float(np.isnan(total).mean()),
        "eval_completion_tokens": float(completions.lengths.mean()),
        "eval_truncated": float(1 - completions.stopped.mean()),
    }
    return {name: value for name, value in metrics.items() if value is not None}


def completion_rows(groups: Groups, names: Sequence[str], tokenizer: ChatTokenizer) -> list[dict]:
    """Return a row for each completion of a step's groups."""
    entries, completions, rewards, result = groups
    texts = completion_texts(completions, tokenizer)
    return [
        {
            "clip": entry.id,
            "sample": g,
            "prompt": entry.question,
            "completion": texts[row][g],
            **reward_row(rewards[row, g], names),
            "reward": _number(result.reward[row, g]),
            "advantage": _number(result.values[row, g]),
            "tokens": int(completions.lengths[row, g]),
            "finish_reason": finish_reason(completions.stopped[row, g]),
        }
        for row, entry in enumerate(entries)
        if entry is not None
        for g in range(completions.lengths.shape[1])
    ]


def reward_row(rewards: np.ndarray, names: Sequence[str]) -> dict[str, float | None]:
    """Return the columns of one completion's rewards, f32[R]."""
    return {f"rewards/{name}": _number(rewards[i]) for i, name in enumerate(names)}


def _number(value: float) -> float | None:
    """A number for JSON: None for NaN."""
    return None if math.isnan(value) else round(float(value), 6)


def _mean(values: np.ndarray) -> float | None:
    known = values[~np.isnan(values)]
    return float(known.mean(dtype=np.float64)) if known.size else None
