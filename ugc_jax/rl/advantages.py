"""From rewards to advantages and token weights; numpy, on the host, over the whole batch.

options.py has the formulas. Letters: B prompts, G completions of each, R reward functions.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ugc_jax.rl.options import GrpoOptions

EPSILON = 1e-4  # added to a standard deviation that divides
EQUAL = 1e-6  # rewards of a group that differ by no more count as equal


class Advantages(NamedTuple):
    """Of B groups of G completions.

    values: f32[B, G], the advantages; 0 where not used and in groups that are not informative.
    used: bool[B, G], whether the completion and another one of its group have all their rewards.
    reward: f32[B, G], the weighted sum of the rewards plus the penalty; NaN if one is missing.
    informative: bool[B], whether the used rewards of the group differ.
    """

    values: np.ndarray
    used: np.ndarray
    reward: np.ndarray
    informative: np.ndarray


def advantages(
    rewards: np.ndarray,
    weights: np.ndarray,
    options: GrpoOptions,
    penalty: np.ndarray | None = None,
) -> Advantages:
    """Return the advantages of a batch by `options.scale`.

    rewards: f32[B, G, R], NaN where a reward is missing. weights: f32[R]; a function of weight 0 is
    only reported, and no completion is left out because of it. penalty: f32[B, G] <= 0, of
    `overlong_penalty`.
    """
    weighted = weights != 0
    columns, weights = (x[..., weighted].astype(np.float64) for x in (rewards, weights))
    columns[~np.isfinite(columns)] = np.nan
    scale = options.scale
    if scale == "auto":
        scale = "gdpo" if len(weights) > 1 else "group"
    reward = columns @ weights
    if penalty is not None:
        reward = reward + penalty
        columns = np.concatenate([columns, penalty[..., None]], -1)
        weights = np.append(weights, 1.0)
    used = np.isfinite(reward)
    used &= used.sum(1, keepdims=True) >= 2

    score = np.ma.array(reward, mask=~used)
    if scale == "gdpo":
        each = np.ma.array(columns, mask=np.broadcast_to(~used[..., None], columns.shape))
        each = each - each.mean(1, keepdims=True)
        score = np.sum(weights * each / (each.std(1, ddof=1, keepdims=True) + EPSILON), -1)
        values = (score - score.mean()) / (score.std(ddof=1) + EPSILON)
    else:
        values = score - score.mean(1, keepdims=True)
        if scale != "none":
            axis = 1 if scale == "group" else None
            values = values / (score.std(axis, ddof=1, keepdims=True) + EPSILON)
    informative = np.ma.filled(score.max(1) - score.min(1) > EQUAL, False)
    return Advantages(
        values=np.where(used & informative[:, None], values.filled(0), 0).astype(np.float32),
        used=used,
        reward=reward.astype(np.float32),
        informative=informative,
    )


def overlong_penalty(
    lengths: np.ndarray, options: GrpoOptions, max_new_tokens: int
) -> np.ndarray | None:
    """Return the penalty f32[B, G] <= 0 of completions of i32[B, G] tokens; None without one.

    DAPO's equation 13 (arXiv 2503.14476), times options.overlong_penalty.
    """
    if options.overlong == 0:
        return None
    over = lengths - (max_new_tokens - options.overlong)
    share = np.clip(over / options.overlong, 0, 1)
    return (-options.overlong_penalty * share).astype(np.float32)


def token_counts(
    lengths: np.ndarray, stopped: np.ndarray, used: np.ndarray, options: GrpoOptions
) -> np.ndarray:
    """Return the trained tokens i32[B, G]: lengths where used, 0 where left out or masked."""
    trained = used & stopped if options.mask_truncated else used
    return np.where(trained, lengths, 0).astype(np.int32)


def token_weights(
    counts: np.ndarray, options: GrpoOptions, max_new_tokens: int, microbatches: int = 1
) -> np.ndarray:
    """Return the weight f32[B, G] of each token of a completion, by `options.aggregation`.

    counts: i32[B, G], of `token_counts`. Minibatch i has the groups i, i + minibatches, ..., and is
    one update.
    """
    weights = np.zeros(counts.shape, np.float32)
    for number in range(options.minibatches):
        groups = counts[number :: options.minibatches]
        rows = groups if options.shared_prompt else groups.reshape(-1, 1)
        of_rows = _update_weights(rows, options, max_new_tokens, microbatches)
        weights[number :: options.minibatches] = of_rows.reshape(groups.shape)
    return weights


def reward_metrics(
    rewards: np.ndarray, result: Advantages, names: Sequence[str]
) -> dict[str, float | None]:
    """Return metrics of a batch's rewards; None where no completion has the value.

    reward, reward_std: of the weighted sum, and rewards/NAME/mean, rewards/NAME/std: of a function,
    over the used completions. left_out: share of completions that are not used. zero_std_groups:
    share of groups whose rewards are equal, among those that have used completions.
    """
    metrics, columns = {}, [("reward", "reward_std", result.reward)]
    for i, name in enumerate(names):
        columns.append((f"rewards/{name}/mean", f"rewards/{name}/std", rewards[..., i]))
    for mean, std, column in columns:
        values = column[result.used & np.isfinite(column)].astype(np.float64)
        metrics[mean] = float(values.mean()) if values.size else None
        metrics[std] = float(values.std(ddof=1)) if values.size > 1 else None
    groups = result.used.any(1)
    metrics["left_out"] = float(1 - result.used.mean())
    metrics["zero_std_groups"] = (
        float(1 - result.informative[groups].mean()) if groups.any() else None
    )
    return metrics


def _update_weights(
    counts: np.ndarray, options: GrpoOptions, max_new_tokens: int, microbatches: int
) -> np.ndarray:
    """The weights of the rows of one update; counts and result: [rows, completions of a row].

    Microbatch m has the rows m, m + microbatches, ... (train/step.py).
    """
    completions = (counts > 0).sum()
    if options.aggregation == "dapo":
        divisor = counts.sum()
    elif options.aggregation == "grpo":
        divisor = completions * counts
    elif options.aggregation == "dr_grpo":
        divisor = completions * max_new_tokens
    else:
        of_row = np.arange(len(counts)) % microbatches
        tokens = np.bincount(of_row, weights=counts.sum(1), minlength=microbatches)
        divisor = (microbatches * tokens[of_row])[:, None]
    return np.where(counts > 0, 1 / np.maximum(divisor, 1), 0).astype(np.float32)
