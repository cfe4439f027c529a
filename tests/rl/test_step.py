"""ugc_jax.rl.step: what a step is made of, going on, breaking; with the toy policy of fake_rl.

The same with the real model is in test_grpo.py.
"""

import concurrent.futures
import itertools
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import fake_rl as fake
import fake_training
import jax
import numpy as np
import pytest
from fake_judge import FakeJudge
from fake_records import FakeSource

from ugc_jax.errors import UserError
from ugc_jax.judge.client import JudgeConfig
from ugc_jax.rl import step as grpo
from ugc_jax.rl.rewards.runner import RewardConfig, Rewards
from ugc_jax.sharding import make_mesh
from ugc_jax.train.checkpoint import Checkpoints
from ugc_jax.train.stopping import StopRequest


@pytest.fixture(autouse=True, scope="module")
def toy():
    with pytest.MonkeyPatch.context() as patch:
        fake.patch(patch.setattr)
        yield


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(2, 2, 1, jax.devices()[:4])


@pytest.fixture
def train(mesh, tokenizer):
    """A run in a folder; `mesh`, `rewards` and `wrap` as in fake_rl.train, the rest as settings."""

    def run(folder, rewards=None, wrap=lambda work: work, mesh=mesh, **settings):
        return fake.train(fake.settings(folder, **settings), mesh, tokenizer, rewards, wrap)

    return run


def lines(folder, name="metrics.jsonl") -> list[dict]:
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


def figures(folder) -> list[dict]:
    """The lines of metrics without what depends on the time."""
    timed = ("_seconds", "_per_second", "data_wait", "memory_gb")
    return [
        {name: value for name, value in line.items() if not name.endswith(timed)}
        for line in lines(folder)
    ]


def assert_equal(a, b):
    for left, right in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(np.asarray(left), np.asarray(right))


def assert_same_run(folder, run, other_folder, other):
    assert_equal(run.state, other.state)
    assert figures(folder) == figures(other_folder)
    for name in ("completions.jsonl", "samples.jsonl"):
        assert lines(folder, name) == lines(other_folder, name)


# ---- a step --------------------------------------------------------------------------------------


def test_what_is_reported(tmp_path, train):
    run = train(tmp_path, rows={"eval": "2-12"}, eval_every=3)
    assert run.status == 0
    *_, step, evaluation = lines(tmp_path)
    assert {*step} - {"step"} <= {*run.work.columns} >= {*evaluation} - {"step"}
    assert {
        "reward", "reward_std", "rewards/even/mean", "rewards/short/std", "completion_tokens",
        "completion_tokens_min", "completion_tokens_max", "truncated", "zero_std_groups",
        "left_out", "replaced", "entropy", "token_mult_prob_error", "generated_tokens_per_second",
        "tokens_per_second", "rollout_seconds", "reward_seconds", "update_seconds", "memory_gb",
    } <= step.keys()  # fmt: skip
    assert {"eval_reward", "eval_rewards/even", "eval_left_out"} <= evaluation.keys()
    made = [row for row in lines(tmp_path, "completions.jsonl") if row["step"] == 4]
    assert len(made) == 8 * 3
    even = np.mean([row["rewards/even"] for row in made])
    assert step["rewards/even/mean"] == pytest.approx(even)
    for row in made:
        total = row["rewards/even"] + row["rewards/short"] / 2
        assert row["reward"] == pytest.approx(total, abs=2e-6)
        assert row["finish_reason"] == ("stop" if row["tokens"] < fake.NEW_TOKENS else "length")
        assert row["prompt"] == "What?"
    assert {row["sample"] for row in made} == {0, 1, 2}
    assert [row["step"] for row in lines(tmp_path) if "eval_reward" in row] == [2, 3, 4]
    samples = [row for row in lines(tmp_path, "samples.jsonl") if row["step"] == 4]
    assert len(samples) == 4
    assert samples[0]["reference"] == FakeSource("2-12").entries[0].messages[-1]["content"]


def test_rewards_are_told_what_they_need(tmp_path, train):
    rewards = fake.Rewards()
    train(tmp_path, rewards, steps=1)
    entries = {entry.id: entry for entry in FakeSource("1-40").entries}
    assert len(rewards.seen) == 8 * 3
    for sample in rewards.seen:
        entry = entries[sample.metadata["id"]]
        assert sample.prompt == "What?"
        assert sample.reference == entry.messages[-1]["content"]
        assert sample.metadata["number"] == entry.extra["number"]
        assert sample.metadata["max_new_tokens"] == fake.NEW_TOKENS
        assert sample.metadata["finish_reason"] in ("stop", "length")


def test_a_part_is_scored_while_the_next_is_sampled(tmp_path, train):
    """The rewards of a group are begun before, and asked for after, the next one is sampled."""
    events = []

    class Watched(fake.Rewards):
        def submit(self, samples):
            events.append(("begin", len(samples)))
            pending = super().submit(samples)
            result = pending.result
            pending.result = lambda: events.append(("wait",)) or result()
            return pending

    def wrap(work):
        sample = work._rollout.sample

        def watched(*args):
            for part in sample(*args):
                events.append(("sample",))
                yield part

        work._rollout.sample = watched
        return work

    train(tmp_path / "parts", Watched(), wrap, steps=1, rollout={"parts": 2})
    part = [("sample",), ("begin", 12)]
    assert events == [*part, *part, ("wait",), ("wait",)]


def test_parts_change_nothing(tmp_path, train):
    one = train(tmp_path / "one")
    two = train(tmp_path / "two", rollout={"parts": 2})
    assert_same_run(tmp_path / "one", one, tmp_path / "two", two)


def test_another_mesh_changes_nothing(tmp_path, train):
    one = train(tmp_path / "one", steps=1, **fake.HARD, rewards=fake.Coarse())
    two = train(
        tmp_path / "two", steps=1, **fake.HARD, rewards=fake.Coarse(), mesh=make_mesh(1, 2, 4)
    )
    np.testing.assert_allclose(one.state.params["w"], two.state.params["w"], rtol=1e-5)
    drawn = [lines(tmp_path / name, "completions.jsonl") for name in ("one", "two")]
    assert drawn[0] == drawn[1]


def seen_batches(patch) -> list:
    """The batches that policy steps get from now on, in numpy."""
    batches, make = [], grpo.jit_step

    def jit_step(*args):
        step = make(*args)

        def watched(state, batch):
            batches.append(jax.tree.map(np.asarray, batch))
            return step(state, batch)

        return watched

    patch.setattr(grpo, "jit_step", jit_step)
    return batches


@pytest.mark.parametrize("shared", [True, False])
def test_minibatches_are_the_batch(tmp_path, train, monkeypatch, shared):
    options = dict(minibatches=2, iterations=2, shared_prompt=shared, mask_truncated=False)
    batches = seen_batches(monkeypatch)
    run = train(tmp_path, options=options, steps=2)
    assert int(run.state.step) == 8
    assert [line["step"] for line in lines(tmp_path)] == [1, 2]
    assert len(batches) == 8
    made = lines(tmp_path, "completions.jsonl")
    for step in (0, 1):
        first, second, *again = batches[4 * step :][:4]
        assert_equal(again, [first, second])
        for batch in (first, second):
            assert len(batch.tokens) == (4 if shared else 12)
            assert batch.weight.sum() == pytest.approx(1)
            assert batch.old is not None
        counts = [row["tokens"] for row in made if row["step"] == step + 1]
        rows = 1 if shared else 3  # of a group; groups 0, 2, ... are in the first minibatch
        filled = [(batch.weight > 0).sum(axis=1).reshape(-1, rows) for batch in (first, second)]
        whole = np.stack(filled, axis=1).reshape(8, rows)
        expected = np.array(counts).reshape(8, 3)
        assert_equal(whole, expected.sum(axis=1, keepdims=True) if shared else expected)


def test_on_policy_needs_no_other_log_probabilities(tmp_path, train, monkeypatch):
    batches = seen_batches(monkeypatch)
    train(tmp_path / "one", steps=1)
    train(tmp_path / "two", steps=1, options={"beta": 0.1})
    assert batches[0].old is None is batches[0].reference
    assert batches[1].old is None is not batches[1].reference


# ---- dynamic sampling ----------------------------------------------------------------------------


@pytest.mark.parametrize("shared", [True, False])
def test_groups_that_say_nothing_are_replaced(tmp_path, train, monkeypatch, shared):
    batches, draws = seen_batches(monkeypatch), []

    def wrap(work):
        draw = work._sample_and_score

        def watched(*args):
            draws.append(draw(*args))
            return draws[-1]

        work._sample_and_score = watched
        return work

    options = fake.HARD["options"] | dict(
        minibatches=1, iterations=1, shared_prompt=shared, mask_truncated=False
    )
    train(tmp_path, fake.Coarse(), wrap, steps=1, options=options)
    assert 1 < len(draws) <= 3
    (figure,) = figures(tmp_path)
    assert figure["draws"] == len(draws)
    informative = [draw.groups.advantages.informative for draw in draws]
    silent = np.flatnonzero(~informative[0])
    assert figure["replaced"] == min(len(silent), sum(map(sum, informative[1:]))) / 8
    assert figure["zero_std_groups"] == pytest.approx(1 - np.mean(informative))
    made = lines(tmp_path, "completions.jsonl")
    ids = [made[3 * row]["clip"] for row in range(8)]
    spare = (
        draw.groups.entries[b].id
        for draw, rows in zip(draws[1:], informative[1:], strict=True)
        for b in np.flatnonzero(rows)
    )
    wanted = [entry.id for entry in draws[0].groups.entries]
    for row in silent:
        wanted[row] = next(spare, wanted[row])
    assert ids == wanted
    # The rows on the devices are those of the chosen groups, picture and sound included.
    (batch,) = batches
    copies = 1 if shared else 3
    sources = {entry.id: (d, b) for d in draws for b, entry in enumerate(d.groups.entries)}
    for row, name in enumerate(ids):
        draw, b = sources[name]
        rows = draw.placed.rows
        n = (rows.segment_ids[b] > 0).sum()
        for copy in range(copies):
            at = row * copies + copy
            np.testing.assert_array_equal(batch.inputs.tokens[at, :n], rows.tokens[b, :n])
            ours, theirs = batch.media["vision"], draw.media["vision"]
            np.testing.assert_array_equal(ours[at], theirs[b * copies + copy])


def test_no_further_draw_than_the_limit(tmp_path, train):
    rewards = fake.Rewards(lambda sample: [1.0, 1.0])
    run = train(tmp_path, rewards, steps=2, options={"dynamic_sampling": True, "resamples": 1})
    assert run.work._rollout.calls == [0, 1, 2, 3]
    assert [line["zero_std_groups"] for line in lines(tmp_path)] == [1, 1]
    with Checkpoints(tmp_path) as checkpoints:
        _, data = checkpoints.restore(fake_training.abstract_state(run.work.setup.mesh))
    assert data["step"] == 4


# ---- going on ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(toy, mesh, tokenizer, tmp_path_factory):
    """An uninterrupted run with all that has a state: (its folder, the run)."""
    folder = tmp_path_factory.mktemp("whole")
    config = fake.settings(folder, **fake.HARD)
    return folder, fake.train(config, mesh, tokenizer, fake.Coarse())


@pytest.mark.parametrize("place", ["sample", "_generate", "result"])
@pytest.mark.parametrize("number", [2, 4, 6])
def test_a_stop_is_heeded_inside_a_step_and_an_evaluation(tmp_path, train, whole, place, number):
    """While it samples, also further batches; in its evaluation; while it waits for rewards."""
    calls = itertools.count(1)

    def signalled(function):
        def call(*args, **kwargs):
            if next(calls) == number:
                os.kill(os.getpid(), signal.SIGTERM)
            return function(*args, **kwargs)

        return call

    class Slow(fake.Coarse):
        """Never ready after the signal: only a look at the request ends the waiting."""

        def submit(self, samples):
            pending = super().submit(samples)
            if next(calls) >= number:
                future = concurrent.futures.Future()
                threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGTERM)).start()
                return future
            return pending

    def wrap(work):
        if place != "result":
            setattr(work._rollout, place, signalled(getattr(work._rollout, place)))
        return work

    rewards = Slow() if place == "result" else fake.Coarse()
    stopped = train(tmp_path, rewards, wrap, **fake.HARD)
    assert stopped.status == 143
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest * 4 == int(stopped.state.step) < 16
    run = train(tmp_path, fake.Coarse(), **fake.HARD)
    assert_same_run(tmp_path, run, *whole)


@pytest.mark.parametrize("after", [1, 2, 3])
def test_resumed_equals_uninterrupted(tmp_path, train, whole, monkeypatch, after):
    with monkeypatch.context() as patch:
        patch.setattr(StopRequest, "after", lambda _, step: step == after)
        patch.setattr(StopRequest, "status", 128 + signal.SIGTERM)
        assert train(tmp_path, fake.Coarse(), **fake.HARD).status == 143
    run = train(tmp_path, fake.Coarse(), **fake.HARD)
    assert_same_run(tmp_path, run, *whole)


def test_two_processes_equal_one(tmp_path, train):
    """Each has half of the completions scored; what they write is the same as one alone does."""
    one = train(tmp_path / "one", rewards := fake.Coarse(), steps=2, **fake.HARD)
    port = fake_training.free_port()
    environment = os.environ | {
        "XLA_FLAGS": os.environ["XLA_FLAGS"] + " --xla_force_host_platform_device_count=2",
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }
    both = [
        subprocess.Popen(
            [sys.executable, fake.__file__, str(tmp_path / "two"), str(port), str(number)],
            env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for number in range(2)
    ]  # fmt: skip
    told = [process.communicate(timeout=120) for process in both]
    assert [process.returncode for process in both] == [0, 0], told
    scored = [int(out.splitlines()[-1]) for out, _ in told]
    assert sum(scored) == len(rewards.seen)
    assert max(scored) < len(rewards.seen)
    for name in ("completions.jsonl", "samples.jsonl"):
        assert lines(tmp_path / "two", name) == lines(tmp_path / "one", name)
    with Checkpoints(tmp_path / "two") as checkpoints:  # two processes wrote it, one reads it
        state, _ = checkpoints.restore(fake_training.abstract_state(one.work.setup.mesh))
    np.testing.assert_allclose(state.params["w"], one.state.params["w"], rtol=1e-6)


def test_the_best_checkpoint_has_the_highest_reward(tmp_path, train):
    worth = itertools.count(10, -1)

    class Falling(fake.Rewards):
        def submit(self, samples):
            pending, value = super().submit(samples), next(worth)
            pending.rewards[:, 0] += value
            return pending

    train(tmp_path, Falling(), rows={"eval": "2-8"}, steps=6, keep=1)
    seen = {r["step"]: r["eval_reward"] for r in lines(tmp_path) if "eval_reward" in r}
    with Checkpoints(tmp_path, 1, "eval_reward", "max") as checkpoints:
        assert (checkpoints.best, checkpoints.latest) == (max(seen, key=seen.get), 6) == (2, 6)


# ---- what goes wrong -----------------------------------------------------------------------------


class Broken(fake.Rewards):
    """Its first function fails from the n-th call of `submit` on, or raises a UserError."""

    def __init__(self, begin, refused=False):
        super().__init__()
        self.calls, self.begin, self.refused = 0, begin, refused

    def submit(self, samples):
        self.calls += 1
        pending = super().submit(samples)
        if self.calls >= self.begin:
            pending.rewards[:, 0] = np.nan
            if self.refused:
                pending.result = self._refuse
        return pending

    def _refuse(self):
        raise UserError("judge: the server refuses the key; set another one")


@pytest.mark.parametrize("refused", [False, True])
def test_rewards_that_are_gone_for_good_lose_nothing(tmp_path, train, refused):
    whole = train(tmp_path / "whole")
    message = r"refuses the key; set another one" if refused else r"\(failed: even 3 times\).*"
    options = {"skipped_share": 0.0}
    for _ in range(2):  # tried again in vain
        with pytest.raises(
            UserError, match=rf"^step 4: .*{message}; .*checkpoints/3 holds"
        ) as told:
            train(tmp_path / "run", Broken(4 if _ == 0 else 1, refused), options=options)
        assert "\n" not in str(told.value)
    run = train(tmp_path / "run")
    assert_same_run(tmp_path / "run", run, tmp_path / "whole", whole)


class Failing(fake.Rewards):
    """Of the rows of these steps' batches the first reward always fails; they are 8 a step."""

    def __init__(self, steps):
        super().__init__()
        self.steps, self.batches = steps, {}

    def submit(self, samples):
        pending = super().submit(samples)
        rows = frozenset(sample.metadata["id"] for sample in samples)
        if self.batches.setdefault(rows, len(self.batches) + 1) in self.steps:
            pending.rewards[:, 0] = np.nan
        return pending


@pytest.mark.parametrize("after", [1, 2, 3])
def test_a_step_whose_rows_all_lack_a_column_is_skipped(
    tmp_path, train, monkeypatch, caplog, after
):
    """Also in a run that is stopped before, at and after it."""
    settings = dict(options={"minibatches": 2, "beta": 0.01}, log_every=3)

    seen = {}

    def rewards():  # a resumed run has the same batches
        failing = Failing({2})
        failing.batches = seen
        return failing

    whole = train(tmp_path / "whole", rewards(), **settings)
    assert int(whole.state.step) == 8
    assert [line["step"] for line in lines(tmp_path / "whole")] == [2, 3, 4]
    assert [line["skipped"] for line in lines(tmp_path / "whole")] == [1, 0, 0]
    names = {row["clip"] for row in lines(tmp_path / "whole", "completions.jsonl")[: 8 * 3]}
    (told,) = [line for line in caplog.messages if line.startswith("step 2 is skipped (1 so far)")]
    assert any(name in told for name in names)
    assert "and 3 more" in told
    with monkeypatch.context() as patch:
        patch.setattr(StopRequest, "after", lambda _, step: step == after)
        train(tmp_path / "run", rewards(), **settings)
    run = train(tmp_path / "run", rewards(), **settings)
    assert_same_run(tmp_path / "run", run, tmp_path / "whole", whole)


def test_a_skipped_step_changes_nothing(tmp_path, train):
    for steps in (1, 2):
        run = train(tmp_path / str(steps), Failing({2}), steps=steps)
        assert int(run.state.step) == steps
    one, two = (
        Checkpoints(tmp_path / name).restore(fake_training.abstract_state(run.work.setup.mesh))[0]
        for name in "12"
    )
    assert_equal(two.params, one.params)
    assert_equal(two.opt_state, one.opt_state)


@pytest.mark.parametrize(("steps", "last"), [(1, 1), (2, 2), (4, 3), (9, 3)])
def test_a_run_that_is_never_rewarded_stops(tmp_path, train, steps, last):
    message = rf"^step {last}: no two completions .*\(failed: even 3 times\) in the rows 1-40/"
    with pytest.raises(UserError, match=message) as told:
        train(tmp_path, Failing(range(1, 99)), steps=steps)
    assert f"in {last} of the last {last} steps, more than grpo.skipped_share=0.5;" in str(
        told.value
    )
    assert "\n" not in str(told.value)


def test_a_run_without_differences_says_so(tmp_path, train, caplog):
    train(tmp_path, fake.Rewards(lambda _: [1.0, 1.0]), steps=12)
    told = [line for line in caplog.messages if "the rewards are equal" in line]
    assert [line.partition(":")[0] for line in told] == ["step 1", "step 10"]
    assert "within each of the 8 groups" in told[0]
    caplog.clear()
    train(tmp_path / "usual", steps=2)
    assert not [line for line in caplog.messages if "equal" in line]


def test_samples_without_a_reward_are_left_out(tmp_path, train, monkeypatch):
    batches = seen_batches(monkeypatch)

    def some(sample):
        failed = int(sample.metadata["id"].split("/")[1]) % 4 == 0
        return [np.nan if failed else sample.metadata["completion_tokens"] % 2, 1.0]

    train(tmp_path, fake.Rewards(some), steps=1, options={"mask_truncated": False})
    made = lines(tmp_path, "completions.jsonl")
    without = [row["rewards/even"] is None for row in made]
    assert any(without)
    assert lines(tmp_path)[0]["left_out"] == pytest.approx(np.mean(without))
    for row, batch_row in zip(range(0, 24, 3), batches[0].weight, strict=True):
        assert (batch_row > 0).any() == (not without[row])
    assert batches[0].weight.sum() == pytest.approx(1)


def test_empty_rows_say_nothing(tmp_path, train, monkeypatch):
    """The end of the data: 11 prompts in batches of 8."""
    batches, rewards = seen_batches(monkeypatch), fake.Rewards()
    rows = {"train": "1-11"}
    train(tmp_path, rewards, rows=rows, steps=None, epochs=1.0, options={"mask_truncated": False})
    assert len(rewards.seen) == 33
    assert sum((batch.weight > 0).any(axis=1).sum() for batch in batches) == 11
    assert len(lines(tmp_path, "completions.jsonl")) == 33
    assert all(line["left_out"] == 0 for line in lines(tmp_path))
    assert min(line["completion_tokens_min"] for line in lines(tmp_path)) > 0


@pytest.mark.parametrize(("updates", "place"), [(1, r"checkpoints/2 holds"), (2, "after step 2:")])
def test_a_nan_stops_the_run(tmp_path, train, updates, place):
    """In the third step; of two updates, in the second one."""

    def wrap(work):
        step, calls = work._policy_step, itertools.count(1)

        def broken(state, batch):
            if next(calls) == 3 * updates:
                batch = batch._replace(rollout=batch.rollout * np.nan)
            return step(state, batch)

        work._policy_step = broken
        return work

    options = {"iterations": updates}
    with pytest.raises(UserError, match=rf"step 3: loss is nan .*{place}") as told:
        train(tmp_path, wrap=wrap, options=options)
    replay = np.load(tmp_path / "not_finite" / "step3_process0.npz")
    assert replay["tokens"].shape == (8, 3, fake.NEW_TOKENS)
    assert str(tmp_path) in str(told.value)
    run, whole = train(tmp_path, options=options), train(tmp_path / "whole", options=options)
    assert_same_run(tmp_path, run, tmp_path / "whole", whole)


def test_a_judge_that_dies_and_comes_back_loses_no_step(tmp_path, train):
    """It is down when the second step's questions come, and is started again a moment later."""
    judge = FakeJudge()
    config = JudgeConfig(model="judge", base_url=judge.url, wait=1.0, backoff=0.05)
    rewards = Rewards(RewardConfig(functions="holistic=1", judge=config))
    steps = itertools.count(1)

    def wrap(work):
        sample = work._rollout.sample

        def watched(*args):
            sampled = iter(list(sample(*args)))
            if next(steps) == 2:
                judge.stop()
                threading.Timer(0.5, judge.start).start()
            return sampled

        work._rollout.sample = watched
        return work

    try:
        train(tmp_path, rewards, wrap, steps=3)
    finally:
        rewards.close()
        judge.stop()
    assert [line["left_out"] for line in lines(tmp_path)] == [0, 0, 0]
