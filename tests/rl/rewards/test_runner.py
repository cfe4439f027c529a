"""ugc_jax.rl.rewards.runner: several functions at once, and what becomes of those that fail.

And the rewards of a batch: which process scores what, and that all get all of it.
"""

import subprocess
import sys
import textwrap
import threading
import time

import fake_rl as fake
import numpy as np
import pytest
from fake_judge import FakeJudge, Reply
from fake_records import FakeSource

from ugc_jax import settings
from ugc_jax.errors import UserError
from ugc_jax.judge.client import JudgeConfig
from ugc_jax.rl.rewards import runner as module
from ugc_jax.rl.rewards.runner import (
    BatchRewards,
    RewardConfig,
    RewardInput,
    Rewards,
    completion_texts,
    parse_weights,
)
from ugc_jax.rl.rows import Completions
from ugc_jax.toy.reward import REWARDS

OWN = """
import asyncio, os, threading, time
from pathlib import Path

calls, now, most = [], 0, 0

def count(prompt, completion, reference, metadata):
    return len(completion)

async def later(prompt, completion, reference, metadata):
    await asyncio.sleep(0.2)
    return 1

class Counted:
    async def __call__(self, prompt, completion, reference, metadata):
        global now, most
        now += 1
        most = max(most, now)
        await asyncio.sleep(0.02)
        now -= 1
        return most

def beside(prompt, completion, reference, metadata):
    mine = Path(metadata["folder"], str(os.getpid()))
    mine.touch()
    most = len(list(mine.parent.iterdir()))
    time.sleep(0.1)
    mine.unlink()
    return most

def noted(prompt, completion, reference, metadata):
    with open(metadata["log"], "a") as log:
        log.write(completion)
    return 1

def moody(prompt, completion, reference, metadata):
    calls.append(completion)
    if calls.count(completion) <= metadata["failures"]:
        raise OSError("in a mood")
    return 2.0

def odd(prompt, completion, reference, metadata):
    return {"nan": float("nan"), "text": "good", "none": None}.get(completion, 3)

def stuck(prompt, completion, reference, metadata):
    if completion == "stuck":
        threading.Event().wait()
    return 1.0

async def asleep(prompt, completion, reference, metadata):
    await asyncio.sleep(100 if completion == "stuck" else 0)
    return 1.0

def leave(prompt, completion, reference, metadata):
    raise SystemExit(3)

def incomplete(prompt, completion, reference, metadata):
    import nowhere

async def leave_later(prompt, completion, reference, metadata):
    raise SystemExit(3)

REWARDS = {
    "count": count, "later": later, "counted": Counted(), "beside": beside, "moody": moody,
    "odd": odd, "stuck": stuck, "asleep": asleep, "leave": leave, "leave_later": leave_later,
    "incomplete": incomplete,
    "noted": noted,
}
"""


@pytest.fixture
def own(tmp_path):
    """File with reward functions of a user."""
    path = tmp_path / "own.py"
    path.write_text(OWN)
    return str(path)


@pytest.fixture
def make(own):
    """`make(functions, **settings)` -> Rewards with the functions of `own`."""
    made = []

    def make(functions, **changes):
        changes = dict(file=own, backoff=0.01) | changes
        made.append(Rewards(RewardConfig(functions=functions, **changes), REWARDS))
        return made[-1]

    yield make
    for rewards in made:
        rewards.close()


def samples(*completions, **metadata):
    return [RewardInput("What is it?", text, "A cat.", metadata) for text in completions]


def test_several_functions(make):
    rewards = make("length=0.5, count=2,rouge", length_low=2, length_high=3)
    assert rewards.names == ("length", "count", "rouge")
    np.testing.assert_array_equal(rewards.weights, np.array([0.5, 2, 1], np.float32))
    found = rewards.submit(samples("a cat", "", "one dog or no cat at all, say")).result()
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, [[1, 5, 1], [0, 0, 0], [0, 29, 0.2]], rtol=1e-6)
    assert rewards.submit([]).result().shape == (0, 3)
    assert rewards.failures() == {"length": 0, "count": 0, "rouge": 0}


def test_submit_does_not_wait_and_all_run_at_once(make):
    rewards = make("later,asleep")
    begun = time.monotonic()
    pending = [rewards.submit(samples(*"abcdefgh", part=part)) for part in range(3)]
    assert time.monotonic() - begun < 0.2
    for part in pending:
        np.testing.assert_array_equal(part.result(), np.ones((8, 2)))
    assert time.monotonic() - begun < 3  # one after the other: 4.8 s


def test_limits_of_what_runs_at_once(make, tmp_path):
    (folder := tmp_path / "running").mkdir()
    texts = samples(*map(str, range(12)), folder=str(folder))
    assert make("beside", workers=3).submit(texts).result().max() == 3
    assert make("counted", concurrency=5).submit(texts).result().max() == 5


def test_equal_samples_are_computed_once(make, tmp_path):
    rewards, log = make("noted"), tmp_path / "log"
    rewards.submit(samples("a", "a", "b", log=str(log))).result()
    rewards.submit(samples("a", "c", log=str(log))).result()
    rewards.submit(samples("a", id="another", log=str(log))).result()
    assert sorted(log.read_text()) == ["a", "a", "b", "c"]


def test_the_cache_is_bounded(make):
    rewards = make("count", cache=2)
    rewards.submit(samples(*"abcdef")).result()
    assert len(rewards._cache) == 2
    without = make("count", cache=0)
    without.submit(samples("a", "b")).result()
    without.submit(samples("a")).result()
    assert not without._cache


def test_failures_are_tried_again_then_left_out_and_told_once(make, caplog):
    rewards = make("moody,count", retries=2, workers=1)  # one process, which counts its calls
    np.testing.assert_array_equal(
        rewards.submit(samples("a", "b", failures=2)).result(), [[2, 1], [2, 1]]
    )
    assert rewards.failures() == {"moody": 0, "count": 0}
    found = rewards.submit(samples("c", "d", failures=9)).result()
    assert np.isnan(found[:, 0]).all()
    np.testing.assert_array_equal(found[:, 1], [1, 1])
    assert rewards.failures() == {"moody": 2, "count": 0}
    assert rewards.failures() == {"moody": 0, "count": 0}
    told = [record.getMessage() for record in caplog.records if record.name == module.__name__]
    assert told == [
        "reward moody fails: in a mood (OSError); such samples are left out and counted"
    ]
    # a failure is not remembered: it is tried anew
    found = [rewards.submit(samples("e", failures=4)).result()[0, 0] for _ in range(2)]
    np.testing.assert_array_equal(found, [np.nan, 2])


def test_what_is_no_number_is_a_failure(make, caplog):
    rewards = make("odd", retries=0)
    found = rewards.submit(samples("nan", "text", "none", "fine")).result()[:, 0]
    np.testing.assert_array_equal(found, [np.nan, np.nan, np.nan, 3])
    assert rewards.failures() == {"odd": 3}
    assert "returned nan, not a finite number" in caplog.text


@pytest.mark.parametrize("name", ["stuck", "asleep"])
def test_what_takes_too_long_is_a_failure(make, caplog, name):
    rewards = make(name, timeout=0.5, retries=1, workers=1)
    begun = time.monotonic()
    found = rewards.submit(samples("stuck", "a", "b", "c")).result()[:, 0]
    np.testing.assert_array_equal(found, [np.nan, 1, 1, 1])
    assert time.monotonic() - begun < 10
    assert "took longer than 0.5 s (TimeoutError)" in caplog.text


@pytest.mark.parametrize("name", ["leave", "leave_later"])
def test_a_function_cannot_end_the_run(make, name):
    rewards = make(f"{name},count", retries=0)
    for _ in range(2):
        np.testing.assert_array_equal(rewards.submit(samples("a")).result(), [[np.nan, 1]])


def test_a_missing_library_ends_the_run(make):
    rewards = make("incomplete", retries=1)
    line = "^incomplete: the library nowhere does not load .*; install it, or"
    with pytest.raises(UserError, match=line):
        rewards.submit(samples("a")).result()
    assert rewards.failures() == {"incomplete": 0}


def test_a_shipped_function_that_cannot_tell_is_a_failure(make, caplog):
    rewards = make("attributes,rouge")
    row = RewardInput("What is it?", "A cat.", None, {})
    assert np.isnan(rewards.submit([row]).result()).all()
    assert rewards.failures() == {"attributes": 1, "rouge": 1}
    assert "reward attributes fails: the row has no attributes" in caplog.text


def test_close_gives_up_what_runs(make):
    rewards = make("asleep,stuck")
    pending = rewards.submit(samples("stuck"))
    time.sleep(0.05)
    begun = time.monotonic()
    rewards.close()
    rewards.close()
    assert time.monotonic() - begun < 10
    assert not [thread for thread in threading.enumerate() if thread.name == "rewards"]
    with pytest.raises(module.concurrent.futures.CancelledError):
        pending.result()


def test_a_stuck_function_does_not_keep_the_process(own):
    script = f"""
from ugc_jax.rl.rewards.runner import *
rewards = Rewards(RewardConfig(functions="stuck", file={own!r}, timeout=0.1, retries=0))
print(rewards.submit([RewardInput("", "stuck", None, {{}})]).result())
"""
    run = [sys.executable, "-c", script]
    assert subprocess.run(run, capture_output=True, timeout=20).stdout == b"[[nan]]\n"


@pytest.mark.parametrize(
    ("modules", "more"),
    [
        ("local, judged, process", ("jax", "numpy")),
        ("runner", ()),
    ],  # the runner gathers over processes with jax
)
def test_nothing_heavy_is_imported(modules, more):
    heavy = ("torch", "transformers", "openai", "tensorflow", "nltk", *more)
    script = f"""
import sys
from ugc_jax.rl.rewards import {modules}
assert not set({heavy}) & set(sys.modules), set({heavy}) & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", script], check=True)


# ---- by a judge ----------------------------------------------------------------------------------


@pytest.fixture
def server():
    server = FakeJudge(lambda question: {"score": 4})
    yield server
    server.stop()


def judged(server, **changes):
    changes = dict(model="fake", base_url=server.url, backoff=0.01, timeout=5) | changes
    return dict(judge=JudgeConfig(**changes))


class TestJudge:
    @pytest.fixture(autouse=True)
    def _openai(self):
        pytest.importorskip("openai")

    def test_beside_others(self, make, server):
        rewards = make("holistic=1,count=0", **judged(server))
        found = rewards.submit(samples("a", "bc")).result()
        np.testing.assert_array_equal(found, [[0.75, 1], [0.75, 2]])
        assert rewards.judge.usage.answered == 2

    def test_its_limits_are_its_own(self, make, server):
        server.delay = 0.1  # 8 questions one after the other take longer than `timeout`
        rewards = make("holistic", timeout=0.2, **judged(server, concurrency=1))
        assert np.isfinite(rewards.submit(samples(*"abcdefgh")).result()).all()

    def test_a_failing_judge_is_no_zero(self, make, server, caplog):
        server.script = [Reply(text="Good.")] * 4
        rewards = make("holistic,count", **judged(server, malformed=1, concurrency=1))
        found = rewards.submit(samples("a", "b", "c")).result()
        np.testing.assert_array_equal(found, [[np.nan, 1], [np.nan, 1], [0.75, 1]])
        assert rewards.failures() == {"holistic": 2, "count": 0}
        assert caplog.text.count("reward holistic fails") == 1

    def test_its_server_dies_and_comes_back(self, make, server):
        server.delay = 0.05
        rewards = make("holistic", timeout=0.2, **judged(server, concurrency=2))
        steps = [rewards.submit(samples(*"abcd", step=step)) for step in range(2)]
        time.sleep(0.1)
        server.stop()
        time.sleep(0.5)
        server.start()
        for step in steps:
            np.testing.assert_array_equal(step.result(), np.full((4, 1), 0.75))
        assert rewards.failures() == {"holistic": 0}

    def test_a_wrong_key_ends_the_run(self, make, server):
        server.script = [Reply(status=401)] * 9
        rewards = make("holistic", **judged(server))
        with pytest.raises(UserError, match="judge fake: HTTP 401"):
            rewards.submit(samples("a", "b")).result()


# ---- settings ------------------------------------------------------------------------------------


def test_parse_weights():
    assert parse_weights("rouge=1, length = 0.5,mine") == {"rouge": 1, "length": 0.5, "mine": 1}
    assert parse_weights("a=-1,b=0") == {"a": -1, "b": 0}


@pytest.mark.parametrize(
    ("functions", "message"),
    [
        ("rouge=much", "'rouge=much' is not NAME=WEIGHT"),
        ("rouge=nan", "'rouge=nan' is not NAME=WEIGHT"),
        ("=1", "'=1' is not NAME=WEIGHT"),
        ("rouge=1e300", "'rouge=1e300' is not NAME=WEIGHT"),
        ("rouge=1,rouge=2", "rouge is named twice"),
        ("", "'' rewards nothing"),
        ("rouge=0", "'rouge=0' rewards nothing"),
        ("rogue=1", "unknown 'rogue'; there are length, .*holistic, checklist, mcq, count"),
        ("holistic", "needs judge.model=NAME"),
    ],
)
def test_functions_that_cannot_be_used(make, functions, message):
    with pytest.raises(UserError, match=message):
        make(functions)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (None, "no such file"),
        ("x = 1", "defines no REWARDS"),
        ("REWARDS = {}", "defines no REWARDS"),
        ("REWARDS = {'mine': 3}", "REWARDS\\['mine'\\] is not a function"),
        ("REWARDS = {'rouge': print}", "rouge is a shipped reward; choose another name"),
        ("x = 1\nx / 0", ":2: ZeroDivisionError: division by zero; correct this file"),
        ("x = 1\nraise SystemExit(3)", ":2: RuntimeError: SystemExit ends the process; correct"),
        ("import os\nos._exit(3)", "died while loading it \\(exit status 3\\); correct this file"),
        ("x = (", "SyntaxError: .* correct this file"),
        ("REWARDS = {'format': print}", "format is a shipped reward; choose another name"),
    ],
)
def test_files_that_cannot_be_used(make, tmp_path, code, message):
    path = tmp_path / "mine.py"
    if code is not None:
        path.write_text(textwrap.dedent(code))
    with pytest.raises(UserError, match=message) as caught:
        make("rouge", file=str(path))
    assert "mine.py" in str(caught.value)


@pytest.mark.parametrize("changes", [{"timeout": 0.0}, {"workers": 0}, {"retries": -1}])
def test_settings_out_of_range(changes):
    (name,) = changes
    with pytest.raises(UserError, match=f"^{name} is"):
        RewardConfig(**changes)


def test_settings_on_the_command_line():
    words = ["--config.functions=rouge", "--config.length_low=5", "--config.judge.wait=3"]
    config, _ = settings.Schema(RewardConfig).parse(words)
    assert (config.length_low, config.judge.wait) == (5, 3.0)
    described = settings.Schema(RewardConfig).help_text()
    for field in ("length_high", "judge.base_url", "file"):
        assert field in described


# ---- of a batch ----------------------------------------------------------------------------------

B, G, N = 6, 2, 4


@pytest.fixture
def completions(tokenizer):
    """Words of which a row and a sample can be told."""
    tokens = np.zeros((B, G, N), np.int32)
    lengths = np.zeros((B, G), np.int32)
    for row, g in np.ndindex(B, G):
        ids = tokenizer.encode(f" {row}{g}")
        tokens[row, g, : len(ids)] = ids
        lengths[row, g] = len(ids)
    return Completions(tokens, lengths, lengths % 2 == 0, np.zeros((B, G, N), np.float32))


def value(sample):
    return [int(sample.completion), int(sample.metadata["number"])]


def entries():
    made = list(FakeSource("1-6").entries)
    made[2] = None
    return made


def expected():
    rewards = np.array([[[10 * row + g, row] for g in range(G)] for row in range(B)], np.float32)
    rewards[2] = np.nan
    return rewards


def score(rewards, completions, tokenizer):
    one = BatchRewards(rewards, tokenizer, entries(), N)
    for part in range(2):
        rows = slice(part, B, 2)
        one.submit(rows, Completions(*(leaf[rows] for leaf in completions)))
    return one.result()


def test_parts_are_put_together_and_empty_rows_have_none(completions, tokenizer):
    rewards = fake.Rewards(value)
    np.testing.assert_array_equal(score(rewards, completions, tokenizer), expected())
    assert len(rewards.seen) == 5 * G
    reasons = {sample.metadata["finish_reason"] for sample in rewards.seen}
    assert reasons <= {"stop", "length"}


class Stop(Exception):
    """What a check raises."""


def test_waiting_for_rewards_can_be_ended(completions, tokenizer, make, monkeypatch):
    def check():
        if time.monotonic() > begun + 0.5:
            raise Stop

    one = BatchRewards(make("asleep"), tokenizer, entries(), N)
    monkeypatch.setattr(module, "completion_texts", lambda *_: [["stuck"] * G] * B)
    one.submit(slice(0, B), completions)
    begun = time.monotonic()
    with pytest.raises(Stop):
        one.result(check)
    assert 0.5 <= time.monotonic() - begun < 2


def test_several_processes_wait_alike(completions, tokenizer, monkeypatch):
    def check():
        raise Stop

    monkeypatch.setattr(module.jax, "process_count", lambda: 2)
    monkeypatch.setattr(
        module.multihost_utils, "process_allgather", lambda mine: np.stack([mine] * 2)
    )
    late = module.concurrent.futures.Future()
    threading.Timer(0.5, late.set_result, [np.zeros((3 * G, 2), np.float32)]).start()
    rewards = fake.Rewards(value)
    monkeypatch.setattr(rewards, "submit", lambda inputs: late)
    one = BatchRewards(rewards, tokenizer, [*FakeSource("1-6").entries], N)
    one.submit(slice(0, B), completions)
    assert one.result(check).shape == (B, G, 2)


@pytest.mark.parametrize("count", [2, 3, 8])
def test_processes_share_the_rows(completions, tokenizer, monkeypatch, count):
    """Each row is scored by one of them, and then all have the same."""
    own, seen = [], []
    monkeypatch.setattr(module.jax, "process_count", lambda: count)
    for gathered in (False, True):
        for process in range(count):
            monkeypatch.setattr(module.jax, "process_index", lambda process=process: process)

            def allgather(mine):
                if mine.dtype == bool:  # whether a reward was refused
                    return np.stack([mine] * count)
                own.append(mine)
                return np.stack(own[:count]) if gathered else np.stack([mine] * count)  # noqa: B023

            monkeypatch.setattr(module.multihost_utils, "process_allgather", allgather)
            rewards = fake.Rewards(value)
            result = score(rewards, completions, tokenizer)
            if gathered:
                np.testing.assert_array_equal(result, expected())
            else:
                seen += [sample.metadata["number"] for sample in rewards.seen]
    assert sorted(seen) == sorted([0, 1, 3, 4, 5] * G)


@pytest.mark.parametrize("process", [0, 1])
def test_a_refusal_in_one_process_is_raised_in_all(completions, tokenizer, monkeypatch, process):
    def refused(sample):
        raise UserError("the key is refused")

    monkeypatch.setattr(module.jax, "process_count", lambda: 2)
    monkeypatch.setattr(module.jax, "process_index", lambda: process)
    flags = np.array([True, False])
    monkeypatch.setattr(module.multihost_utils, "process_allgather", lambda mine: flags)
    rewards = fake.Rewards(value if process else refused)
    with pytest.raises(UserError, match="another process" if process else "the key is refused"):
        score(rewards, completions, tokenizer)


def test_texts(completions, tokenizer):
    texts = completion_texts(completions, tokenizer)
    assert texts == [[f"{row}{g}" for g in range(G)] for row in range(B)]
