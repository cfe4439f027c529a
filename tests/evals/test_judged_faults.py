"""A run over a judge that fails one request in five, killed three times, loses and repeats nothing.

What is killed is a process of its own; the server counts what it was asked and what it answered.
"""

import json
import random
import re
import subprocess
import sys
import time

import pytest
from fake_judge import FakeJudge, Reply

from ugc_jax.evals.judged import EvalJudgeConfig, JudgedTasks

pytest.importorskip("openai")

TASKS = ("final_caption", "objects")
ITEMS = [(f"clip{n}", f"Reference {n}.", f"Caption {n}.") for n in range(100)]
SETTINGS = {
    "model": "fake", "concurrency": 8, "timeout": 0.4, "backoff": 0.01, "retries": 20,
    "malformed": 10,
}  # fmt: skip
SCRIPT = """
import json, sys
from ugc_jax.evals.judged import EvalJudgeConfig, JudgedTasks
settings, tasks, items = json.loads(sys.argv[1])
with JudgedTasks(EvalJudgeConfig(**settings), tasks) as judge:
    print(json.dumps([judge.judge(task, items) for task in tasks]))
"""
FAULTS = (
    Reply(status=429, headers={"Retry-After": "0.02"}),
    Reply(status=500),
    Reply(text="A good caption, 4 of 5."),
    Reply(text='{"rating": 4}'),
    Reply(text='{"visual": 9, "audio": 0, "details": -1, "matched": 3, "total": 2}'),
    Reply(delay=0.6),  # past the time-out
    Reply(hang_up=True),
)


def name(question):
    """Which of all questions it is."""
    task = "objects" if '"matched"' in question else "final_caption"
    return f"{task} {re.search(r'Caption [0-9]+', question)[0]}"


def answer(question):
    """An answer that the question alone decides, and that tells which question it was."""
    rng = random.Random(name(question))
    ratings = {column: rng.randint(1, 5) for column in ("visual", "audio", "details")}
    return ratings | {"matched": rng.randint(0, 4), "total": 4, "reason": name(question)}


@pytest.fixture
def server():
    server, rng = FakeJudge(answer), random.Random(0)
    server.delay = 0.02
    server.script = [rng.choice(FAULTS) if rng.random() < 0.2 else Reply() for _ in range(9999)]
    yield server
    server.stop()


def unkilled():
    """What a run gets in one go of a server without a fault."""
    server = FakeJudge(answer)
    with JudgedTasks(EvalJudgeConfig(**SETTINGS, base_url=server.url), TASKS) as judge:
        found = [judge.judge(task, ITEMS) for task in TASKS]
    server.stop()
    return json.loads(json.dumps(found))


def recorded(cache):
    """The questions whose answers are in the cache."""
    lines = cache.read_bytes().splitlines(keepends=True) if cache.exists() else []
    return [json.loads(line)["answer"]["reason"] for line in lines if line.endswith(b"\n")]


def test_killed_three_times(server, tmp_path):
    cache = tmp_path / "judge.jsonl"
    settings = SETTINGS | {"base_url": server.url, "cache": str(cache)}
    command = [sys.executable, "-c", SCRIPT, json.dumps([settings, TASKS, ITEMS])]
    kept = []  # at each kill: (requests so far, the questions that are answered for good)
    for goal in (20, 95, 160):  # early, at the end of the first task, in the second
        run = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        while len(recorded(cache)) < goal:
            assert run.poll() is None
            time.sleep(0.005)
        run.kill()
        run.wait()
        kept.append((len(server.requests), recorded(cache)))
        assert goal <= len(kept[-1][1]) < len(TASKS) * len(ITEMS)
    last = subprocess.run(command, stdout=subprocess.PIPE, check=True)

    assert json.loads(last.stdout) == unkilled()
    asked = [name(question) for question in server.questions]
    for requests, questions in kept:
        assert not set(asked[requests:]).intersection(questions)
    assert len(set(asked)) == len(recorded(cache)) == len(TASKS) * len(ITEMS)
    assert len(asked) > 1.15 * len(set(asked))  # there were faults indeed
