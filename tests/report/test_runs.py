"""ugc_jax.report.runs: curves of metrics.jsonl, groups of completions.jsonl."""

import json

import pytest

from ugc_jax.errors import UserError
from ugc_jax.report.runs import STEPS, _evenly, _series, read_run


def lines(path, rows, end=""):
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows) + end)


def completion(step, clip, sample, **values):
    facts = {"prompt": "What?", "completion": f"text {sample}", "reward": 0.5, "advantage": 0.0}
    return {"step": step, "clip": clip, "sample": sample, "tokens": 3} | facts | values


def test_the_last_value_of_a_step_counts(tmp_path):
    again = [{"step": 2, "loss": 2.0, "kl": None}, {"step": 2, "loss": 1.5}]
    lines(tmp_path / "metrics.jsonl", [{"step": 1, "loss": 3.0}, *again])
    assert _series(tmp_path / "metrics.jsonl") == {"loss": ([1, 2], [3.0, 1.5])}


def test_a_run_has_curves_and_groups(tmp_path):
    metrics = [
        {"step": step, "loss": 1 / step, "reward": step / 10, "rewards/rouge/mean": 0.2, "kl": 0.1}
        for step in range(1, 4)
    ]
    lines(tmp_path / "metrics.jsonl", [*metrics, {"step": 3, "eval_reward": 0.7}])
    rows = [completion(3, clip, sample) for clip in "ab" for sample in range(2)]
    rows.append(completion(3, "a", 1, completion="again", reward=None))
    lines(tmp_path / "completions.jsonl", [completion(1, "a", 0), *rows])
    run = read_run(str(tmp_path))
    assert [plot["title"] for plot in run.plots] == ["Loss", "Reward", "KL to the reference"]
    assert (
        run.plots[1]["text"] == "At the end: reward 0.3, eval_reward 0.7, rewards/rouge/mean 0.2."
    )
    assert [(one["step"], [group["clip"] for group in one["groups"]]) for one in run.steps] == [
        (1, ["a"]),
        (3, ["a", "b"]),
    ]
    (first, second) = run.steps[1]["groups"][0]["completions"]
    assert first["reward"] == 0.5
    assert second == {"completion": "again", "advantage": 0.0, "tokens": 3}


def test_some_steps_stand_for_all():
    assert _evenly([5, 6], STEPS) == [5, 6]
    some = _evenly(list(range(1000)), STEPS)
    assert len(some) == STEPS
    assert (some[0], some[-1]) == (0, 999)


def test_what_is_no_run_is_refused(tmp_path):
    with pytest.raises(UserError, match="has no metrics.jsonl; name the folder of a run"):
        read_run(str(tmp_path))
    lines(tmp_path / "metrics.jsonl", [{"loss": 1.0}, {"step": 1}])
    with pytest.raises(UserError, match=r"metrics\.jsonl:1: has no step"):
        read_run(str(tmp_path))
