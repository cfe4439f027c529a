"""ugc_jax.evals.judged: captions put to a judge over HTTP, and what becomes of them."""

import dataclasses
import json
import logging
import math
import os
import random
import re
import signal
import statistics
import subprocess
import sys
import time

import pytest
from fake_judge import FakeJudge, Reply

from ugc_jax import settings
from ugc_jax.errors import UserError
from ugc_jax.evals import judged as module
from ugc_jax.evals.judged import JudgedTasks, JudgingConfig, noise
from ugc_jax.jobs.evaluate import SETTINGS as SETTINGS_OF_THE_JOB
from ugc_jax.judge.client import JudgeConfig

pytest.importorskip("openai")

ITEMS = [(f"clip{n}", f"Reference {n}.", f"Caption {n}.") for n in range(6)]
MANY = [(f"clip{n}", f"Reference {n}.", f"Caption {n}.") for n in range(999)]
GOOD = {"visual": 5, "audio": 3, "details": 4, "reason": " No sound. "}


@pytest.fixture
def server():
    server = FakeJudge(lambda question: GOOD)
    yield server
    server.stop()


@pytest.fixture
def config(server):
    return JudgeConfig(model="fake", base_url=server.url, backoff=0.01, malformed=1, retries=1)


def judge(config, items=ITEMS, task="final_caption", **judging):
    """(samples, noise, the judge's record)."""
    with JudgedTasks(config, [task], JudgingConfig(**judging)) as tasks:
        samples, spread, _ = tasks.judge(task, items)
        return samples, spread, tasks.record()


def replaced(config, **changes):
    return dataclasses.replace(config, **changes)


def number(question):
    """Of the caption in a question."""
    return int(re.search(r"Caption (\d+)\.", question)[1])


def told(caplog):
    return [r.getMessage() for r in caplog.records if r.name == module.__name__]


def test_samples(server, config):
    samples, spread, record = judge(config)
    assert samples[2] == {
        "id": "clip2", "score": 80, "visual": 100, "audio": 60, "details": 80,
        "reference": "Reference 2.", "prediction": "Caption 2.", "note": "No sound.",
    }  # fmt: skip
    assert [sample["id"] for sample in samples] == [item[0] for item in ITEMS]
    assert spread is None
    assert json.loads(json.dumps(record)) == record
    usage = record.pop("usage")
    assert record == {"model": "fake", "temperature": 0.0, "prompt": "ugc_jax", "repeats": 1}
    assert (usage["answered"], usage["requests"], usage["tokens_in"]) == (6, 6, 600)


def test_all_tasks_of_a_run_share_a_judge(server, config, caplog):
    caplog.set_level("INFO")
    answers = {"background": {"consistent": "no"}, "objects": {"matched": 1, "total": 2}}
    with JudgedTasks(replaced(config, price_in=2.0, price_out=50.0), answers) as tasks:
        for task, score in (("background", 0), ("objects", 50)):
            server.answer = lambda question, task=task: answers[task]
            samples = tasks.judge(task, ITEMS).samples
            assert [sample["score"] for sample in samples] == [score] * 6
        assert tasks.record()["usage"]["answered"] == 12
        wording = tasks.protocol("objects").pop("prompt")
        assert tasks.protocol("objects") == {
            "judge": "fake", "temperature": 0.0, "prompt": wording,
        }  # fmt: skip
        assert re.fullmatch(r"own wording \w{12}", wording)
        assert tasks.protocol("background")["prompt"] != wording
        assert tasks.judge("objects", []) == ([], None, 0)
    (line,) = told(caplog)
    assert line == (
        "judge fake: 12 answers and 0 from the cache, 0 failed; 12 requests; tokens of all "
        "answers: 1200 in, 120 out, cost 0.01, of it 0.01 in this run"
    )


def test_a_wording_of_the_users(server, config, tmp_path):
    path = tmp_path / "mine.txt"
    path.write_text('Rate "{caption}" by "{reference}": {"visual": N, ...}')
    samples, _, record = judge(config, ITEMS[:1], prompt=str(path))
    assert samples[0]["score"] == 80
    (request,) = server.requests
    assert [message["content"] for message in request["messages"]] == [
        'Rate "Caption 0." by "Reference 0.": {"visual": N, ...}'
    ]
    assert re.fullmatch(r"mine\.txt \(\w{12}\)", record["prompt"])
    path.write_text("{caption}")
    with pytest.raises(UserError, match=r"mine\.txt: has no \{reference\}"):
        JudgedTasks(config, ["final_caption"], JudgingConfig(prompt=str(path)))
    assert len(server.requests) == 1


def test_failures_are_no_zeros_and_said_once(server, config, caplog):
    def answer(question):
        bad = {1: "Very good.", 2: GOOD | {"audio": 0}, 3: {"visual": 3}}
        return bad.get(number(question), GOOD)

    server.answer = answer
    samples, _, record = judge(config)
    assert [sample.get("failure") for sample in samples] == [None, *["judge"] * 3, None, None]
    assert samples[1].keys() == {"id", "failure", "reference", "prediction", "note"}
    assert "no JSON object: 'Very good.'" in samples[1]["note"]
    assert "audio is 0, not a whole number from 1 to 5" in samples[2]["note"]
    assert record["usage"]["failed"] == 3
    (line,) = told(caplog)
    assert line.startswith("final_caption: 3 of 6 questions to the judge have no usable answer (3 ")
    assert line.endswith("run again to ask them again")


def test_repeats(server, config):
    """Of three answers to a caption the mean, whichever of them come to nothing."""
    ratings = {0: [1, 3, 5], 1: [2, 2, 2], 2: [4, None, 4], 3: [None] * 3, 4: [None, 5, None]}
    left = {clip: list(said) for clip, said in ratings.items()}

    def answer(question):
        said = left[number(question)].pop(0)
        return {name: said for name in ("visual", "audio", "details")} if said else {"none": 0}

    server.answer = answer
    one = replaced(config, malformed=0, concurrency=1)
    samples, spread, record = judge(one, ITEMS[:5], repeats=3)
    assert [sample.get("score") for sample in samples] == [60, 40, 80, None, 100]
    # variances 40^2, 0, 0 of the clips that were judged twice or more
    assert spread == pytest.approx(40 / 3)
    assert record["repeats"] == 3
    asked = [number(question) for question in server.questions]
    assert asked == [0, 1, 2, 3, 4] * 3  # all captions once, before any of them twice


def test_unanswered(server, config):
    """All questions count, whether or not the caption has another answer."""
    left = {0: [{}], 1: [{}, {}]}

    def answer(question):
        replies = left.get(number(question))
        return replies.pop() if replies else GOOD

    server.answer = answer
    with JudgedTasks(
        replaced(config, malformed=0), ["final_caption"], JudgingConfig(repeats=2)
    ) as tasks:
        samples, _, unanswered = tasks.judge("final_caption", ITEMS)
    assert unanswered == 3
    assert [sample.get("score") for sample in samples] == [80, None, 80, 80, 80, 80]


def test_reasons_can_be_encoded(server, config):
    server.answer = lambda question: GOOD | {"reason": "Fine \ud83d."}
    samples, _, _ = judge(config, ITEMS[:1])
    assert samples[0]["note"] == "Fine �."


def test_noise():
    """The formula against what happens when captions are judged over and over."""
    rng = random.Random(0)
    clips = [(rng.uniform(20, 100), rng.choice([0, 5, 20])) for _ in range(40)]

    def judging(clip):
        return rng.gauss(*clip)

    scores = [statistics.fmean(map(judging, clips)) for _ in range(2000)]
    estimates = [noise([[judging(clip) for _ in range(3)] for clip in clips]) for _ in range(50)]
    assert statistics.fmean(estimates) == pytest.approx(statistics.stdev(scores), rel=0.05)
    assert noise([[60.0], [40.0], []]) is None
    assert noise([[60.0], [40.0, 60.0]]) == pytest.approx(math.sqrt(200))


def test_a_second_run_is_free_and_asks_what_failed(server, config, tmp_path):
    config = replaced(config, cache=str(tmp_path / "judge.jsonl"))
    server.answer = lambda question: {} if number(question) == 3 else GOOD
    first, _, _ = judge(config)
    server.answer = lambda question: GOOD
    server.requests.clear()
    second, _, record = judge(config)
    assert [number(question) for question in server.questions] == [3]
    assert (record["usage"]["cached"], record["usage"]["answered"]) == (5, 1)
    assert [one for one in second if one["id"] != "clip3"] == [s for s in first if "score" in s]
    judge(config, repeats=2)
    assert len(server.questions) == 1 + 6  # the second askings alone


def test_the_cost_of_cached_answers_lasts(server, config, tmp_path):
    config = replaced(config, cache=str(tmp_path / "judge.jsonl"), price_in=1e6)
    keys = ("answered", "cached", "tokens_in", "tokens_out", "cost", "spent")

    def usage(items):
        usage = judge(config, items)[-1]["usage"]
        return tuple(usage[key] for key in keys)

    server.script = [Reply(text="Very good.")]  # paid for, too
    assert usage(ITEMS[:1]) == (1, 0, 200, 20, 200, 200)
    assert usage(ITEMS[:1] * 2 + ITEMS[1:2]) == (1, 2, 300, 30, 300, 100)  # each answer once


def test_a_server_that_is_away_is_said_once(server, config, caplog, tmp_path):
    config = replaced(config, cache=str(tmp_path / "judge.jsonl"), wait=0.2 / 60)
    judge(config, ITEMS[:2])
    server.stop()
    caplog.clear()
    samples, _, record = judge(config, MANY)
    server.start()
    assert [sample.get("score") for sample in samples[:3]] == [80, 80, None]
    assert sum(sample.get("failure") == "judge" for sample in samples) == 997
    assert record["usage"]["requests"] < 200
    (line,) = told(caplog)
    assert "997 of 999 questions" in line
    assert "not asked, as the judge was given up" in line
    assert f"{server.url} cannot be reached for" in line
    away = [r for r in caplog.records if "waiting for it" in r.getMessage()]
    assert len(away) == 1


def test_a_judge_that_never_answers_in_form_is_given_up(server, config):
    """As with a wording that asks for other keys: that would be paid 999 times."""
    server.answer = lambda question: {"rating": 4}
    samples, _, _ = judge(replaced(config, concurrency=4), MANY)
    assert all(sample["failure"] == "judge" for sample in samples)
    assert 2 * 20 <= len(server.requests) <= 2 * 24


def test_a_users_mistake_ends_the_run_at_once(server, config, caplog):
    server.script = [Reply(delay=0.05 * (n % 2), status=401) for n in range(99)]
    with pytest.raises(UserError, match="judge fake: HTTP 401") as caught:
        judge(config, MANY)
    assert "\n" not in str(caught.value)
    assert len(server.requests) <= config.concurrency
    with pytest.raises(UserError, match=r"judge\.model"):
        JudgedTasks(JudgeConfig(), ["objects"])
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING]


@pytest.mark.skipif(
    signal.getsignal(signal.SIGINT) is not signal.default_int_handler, reason="SIGINT is taken"
)
def test_ctrl_c_leaves_the_cache_whole(server, config, caplog, tmp_path):
    cache = tmp_path / "judge.jsonl"
    config = replaced(config, cache=str(cache), concurrency=2)

    def answer(question):
        if number(question) == 3:
            os.kill(os.getpid(), signal.SIGINT)
            server.delay = 0.2
        return GOOD

    server.answer = answer
    with pytest.raises(KeyboardInterrupt):
        judge(config)
    known = len(cache.read_text().splitlines())
    assert 1 <= known <= 4
    server.answer, server.delay = lambda question: GOOD, 0.0
    samples, _, record = judge(config)
    assert [sample["score"] for sample in samples] == [80] * 6
    assert (record["usage"]["cached"], record["usage"]["answered"]) == (known, 6 - known)
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING]


def test_settings():
    for word, message in (
        ("judge.repeats=0", r"^judging\.repeats is 0; use 1 or more"),
        ("judge.concurrency=0", r"^judge\.concurrency is 0"),
    ):
        with pytest.raises(UserError, match=message):
            SETTINGS_OF_THE_JOB.parse(["--output=o", f"--config.{word}"])
    comments = settings.field_help(JudgingConfig)
    assert all(comments.values())
    for task in module.RUBRICS:
        assert task in comments["prompt"]


# ---- killed runs ---------------------------------------------------------------------------------

TASKS = ("final_caption", "objects")
LARGE = [(f"clip{n}", f"Reference {n}.", f"Caption {n}.") for n in range(60)]
SETTINGS = {
    "model": "fake", "concurrency": 8, "timeout": 0.4, "backoff": 0.01, "retries": 20,
    "malformed": 10,
}  # fmt: skip
SCRIPT = """
import json, sys
from ugc_jax.evals.judged import JudgedTasks
from ugc_jax.judge.client import JudgeConfig
settings, tasks, items = json.loads(sys.argv[1])
with JudgedTasks(JudgeConfig(**settings), tasks) as judge:
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


def name_of(question):
    """Which of all questions it is."""
    task = "objects" if '"matched"' in question else "final_caption"
    return f"{task} {re.search(r'Caption [0-9]+', question)[0]}"


def answer(question):
    """An answer that the question alone decides, and that tells which question it was."""
    rng = random.Random(name_of(question))
    ratings = {column: rng.randint(1, 5) for column in ("visual", "audio", "details")}
    return ratings | {"matched": rng.randint(0, 4), "total": 4, "reason": name_of(question)}


@pytest.fixture
def faulty_server():
    server, rng = FakeJudge(answer), random.Random(0)
    server.delay = 0.02
    server.script = [rng.choice(FAULTS) if rng.random() < 0.2 else Reply() for _ in range(9999)]
    yield server
    server.stop()


def unkilled():
    """The result of a run in one go on a server without a fault."""
    server = FakeJudge(answer)
    with JudgedTasks(JudgeConfig(**SETTINGS, base_url=server.url), TASKS) as judge:
        found = [judge.judge(task, LARGE) for task in TASKS]
    server.stop()
    return json.loads(json.dumps(found))


def recorded(cache):
    """The questions whose answers are in the cache."""
    lines = cache.read_bytes().splitlines(keepends=True) if cache.exists() else []
    return [json.loads(line)["answer"]["reason"] for line in lines if line.endswith(b"\n")]


def test_killed_three_times(faulty_server, tmp_path):
    """A run over a judge that fails one request in five, killed three times, loses and repeats
    nothing. Each run is a process; the server counts questions and answers."""
    server = faulty_server
    cache = tmp_path / "judge.jsonl"
    settings = SETTINGS | {"base_url": server.url, "cache": str(cache)}
    command = [sys.executable, "-c", SCRIPT, json.dumps([settings, TASKS, LARGE])]
    kept = []  # at each kill: (requests so far, the questions that are answered for good)
    for goal in (12, 57, 96):  # early, at the end of the first task, in the second
        run = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        while len(recorded(cache)) < goal:
            assert run.poll() is None
            time.sleep(0.005)
        run.kill()
        run.wait()
        kept.append((len(server.requests), recorded(cache)))
        assert goal <= len(kept[-1][1]) < len(TASKS) * len(LARGE)
    last = subprocess.run(command, stdout=subprocess.PIPE, check=True)

    assert json.loads(last.stdout) == unkilled()
    asked = [name_of(question) for question in server.questions]
    for requests, questions in kept:
        assert not set(asked[requests:]).intersection(questions)
    assert len(set(asked)) == len(recorded(cache)) == len(TASKS) * len(LARGE)
    assert len(asked) > 1.15 * len(set(asked))  # there were faults indeed
