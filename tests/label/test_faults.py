"""Faults of every kind and kills: the result of an undisturbed run, nothing asked or paid twice."""

import random
import time
from collections import Counter

import pytest
from label_job import Job, known

from ugc_jax import files
from ugc_jax.toy.teacher import COUNTS, FAULTS, Teacher

PATIENT = ("--retries", "8", "--unusable", "3", "--timeout", "5")


@pytest.fixture(scope="module")
def undisturbed(clips, tmp_path_factory):
    """The files of a run without faults, and its tokens."""
    with Teacher(known(clips), seed=1) as teacher:
        done = Job(teacher, clips, tmp_path_factory.mktemp("undisturbed") / "train.jsonl")
        assert done.run() == 0
    return done


def assert_same_files(done, expected):
    """The rows of two runs are equal, byte by byte but for the folder of the clips."""
    for name in ("train.jsonl", "rejected.jsonl"):
        assert done.output.with_name(name).read_bytes() == (
            expected.output.with_name(name).read_bytes()
        )


def assert_counted(teacher, totals: dict):
    """Tokens and cost are those that the server counts."""
    given, sound, made = teacher.tokens
    assert (totals["tokens_in"], totals["tokens_out"]) == (given, made)
    assert totals["cost"] == pytest.approx((given - sound + 3 * sound + 2 * made) / 1e6)


@pytest.mark.parametrize("kind", ["gemini", "openai"])
def test_faults_of_every_kind(job, clips, undisturbed, kind):
    with Teacher(known(clips), seed=1, faults=0.25, late=6) as teacher:
        done = job(teacher, kind)
        teacher.clips.know_stills(4, 112)
        assert done.run(*PATIENT, "--teacher.stills", "4") == 0
        wait_for(lambda: teacher.open == 0)
        seen = Counter(one.outcome for one in teacher.requests)
        assert set(FAULTS) <= set(seen)
        assert set(teacher.answers().values()) == {1}
        if kind == "gemini":
            assert_counted(teacher, done.totals())
            assert_same_files(done, undisturbed)
        else:
            assert_counted(teacher, done.totals())
            ours = [row["solution"] for row in done.rows()]
            assert ours == [row["solution"] for row in undisturbed.rows()]


def test_killed_while_requests_are_open(job, clips, undisturbed):
    """Five kills, when all answers so far have arrived and others are open: nothing is lost."""
    with Teacher(known(clips), seed=1, faults=0.2, late=6, delay=0.05) as teacher:
        done, total = job(teacher), undisturbed.totals()["requests"]
        for kill in range(5):
            process = done.start(*PATIENT)
            wait_for(lambda n=kill: len(teacher.answers()) > total * (n + 1) / 7, process)
            teacher.hold.set()
            wait_for(lambda: teacher.open > 0, process)
            time.sleep(0.2)  # who has not met the hold has answered
            wait_for(lambda: kept(done) == counted(teacher), process, 20)
            process.kill()
            process.wait()
            teacher.hold.clear()
            wait_for(lambda: teacher.open == 0)
        process = done.start(*PATIENT)
        assert process.wait(60) == 0, process.stderr.read()
        assert teacher.gone >= 5
        assert set(teacher.answers().values()) == {1}
        assert_counted(teacher, done.totals())
        assert_same_files(done, undisturbed)


def kept(done) -> int:
    """Replies in the journal of a run."""
    journal = done.output.with_name("train.jsonl.answers.jsonl")
    return journal.read_bytes().count(b'{"answered": ')


def counted(teacher) -> int:
    """Replies that the server counts."""
    return sum(one.outcome in ("answered", *COUNTS) for one in teacher.requests)


def test_killed_at_random_moments(job, clips, undisturbed):
    """An answer that was on its way is asked for again, and the totals say that it may be."""
    moments = random.Random(5)
    with Teacher(known(clips), seed=1, delay=0.02) as teacher:
        done = job(teacher)
        for _ in range(5):
            before = len(teacher.requests)
            process = done.start()
            wait_for(lambda n=before: len(teacher.requests) > n + moments.randrange(8), process)
            time.sleep(moments.uniform(0, 0.05))
            process.kill()
            process.wait()
        assert done.start().wait(60) == 0
        assert_same_files(done, undisturbed)
        totals, answers = done.totals(), teacher.answers()
        twice = sum(answers.values()) - len(answers)
        assert twice <= totals["unknown"]
        assert teacher.tokens[0] - totals["tokens_in"] <= totals["unknown"] * 1000
        assert totals["tokens_in"] == undisturbed.totals()["tokens_in"]
        asked_again = done.start()
        assert asked_again.wait(60) == 0
        assert teacher.answers() == answers  # all were on disk


def wait_for(holds, process=None, seconds: float = 60):
    """Wait until a condition holds, while a process runs."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        assert process is None or process.poll() is None, process.stderr.read()
        time.sleep(0.01)


def test_a_half_written_line_is_removed(job, clips, undisturbed):
    with Teacher(known(clips), seed=1) as teacher:
        done = job(teacher)
        assert done.run() == 0
        journal = done.output.with_name("train.jsonl.answers.jsonl")
        lines = journal.read_bytes().splitlines(keepends=True)
        journal.write_bytes(b"".join(lines[:-1]) + lines[-1][:20])
        before = len(teacher.requests)
        assert done.run() == 0
        assert len(teacher.requests) == before + 1  # of the answer that was cut
        assert done.totals()["unknown"] == 1
        assert_same_files(done, undisturbed)
        assert all(line.error is None for line in files.read_lines(journal, ""))
