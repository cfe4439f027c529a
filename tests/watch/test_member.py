"""ugc_jax.watch.member and hub.Hub: real processes over loopback, without jax."""

import os
import signal
import subprocess
import sys
import time

import pytest

from ugc_jax.watch.hub import Hub

SILENCE = 4.0
PROGRAM = """
import logging, sys, time
from ugc_jax.watch.hub import Report
from ugc_jax.watch.member import Member

port, token, number, how = int(sys.argv[1]), sys.argv[2], int(sys.argv[3]), sys.argv[4]
logging.basicConfig(format="%(message)s")
allowed = 1.0 if how == "hang" else 60.0
count = 3 if how == "hang" else 4
begun = time.monotonic()
where = lambda: Report(count, f"step {count}", time.monotonic() - begun, allowed)
member = Member(("localhost", port), token, number, where, 4.0)
member.at_end.append(lambda text: print("hook:", text.split()[0], flush=True))
print("ready", flush=True)
if how == "fail":
    member.fail("no such clip", "step 4", 2)
if how == "done":
    member.finish()
    sys.exit(0)
time.sleep(60)
"""


@pytest.fixture
def start():
    """`start(how)`: a process that joins the hub; the first `hub` is of two."""
    started = []

    def start(hub: Hub, number: int, how: str = "wait") -> subprocess.Popen:
        port, token = hub.address
        words = [sys.executable, "-c", PROGRAM, str(port), token, str(number), how]
        process = subprocess.Popen(
            words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ
        )
        started.append(process)
        assert process.stdout.readline() == "ready\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.mark.parametrize(
    ("how", "status", "said"),
    [
        ("kill", 75, "died during step 4; run again to go on from the last checkpoint\n"),
        ("stop", 75, "does not answer since 4 s (stopped, or the machine is lost), last during"),
        ("fail", 2, "failed during step 4: no such clip\n"),
        ("hang", 75, "s during step 3; the others wait in step 4; run again to go on"),
    ],
)
def test_all_end_and_name_the_one(start, how, status, said):
    hub = Hub(2, SILENCE)
    one = start(hub, 0)
    other = start(hub, 1, how)
    time.sleep(1.2)  # a report has come
    if how in ("kill", "stop"):
        other.send_signal(signal.SIGKILL if how == "kill" else signal.SIGSTOP)
    out, errors = one.communicate(timeout=20)
    assert one.returncode == status
    assert f"process 1 ({os.uname().nodename}, pid {other.pid})" in errors
    assert said in errors
    assert out == "hook: process\n"
    if how in ("fail", "hang"):
        assert other.communicate(timeout=20)[1] == errors
        assert other.returncode == status


def test_nobody_ends_before_all_are_done(start):
    hub = Hub(2, SILENCE)
    one = start(hub, 0, "done")
    with pytest.raises(subprocess.TimeoutExpired):
        one.wait(1.5)
    other = start(hub, 1, "done")
    assert [one.wait(10), other.wait(10)] == [0, 0]
    assert hub.ended.wait(10)


def test_a_stranger_is_refused(start):
    hub = Hub(1, SILENCE)
    stranger = start(Hub(1, SILENCE), 0)  # of another run
    port, _ = hub.address
    words = [sys.executable, "-c", PROGRAM, str(port), "wrong", "0", "wait"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=30)
    assert done.returncode == 75
    assert "the coordinator on localhost has ended" in done.stderr
    assert stranger.poll() is None
