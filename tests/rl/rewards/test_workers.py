"""A user's reward functions in processes: whatever they do, they lose one sample at most.

The functions of OWN misbehave for the completion "bad" and give 1 for every other.
"""

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest

from ugc_jax.errors import UserError
from ugc_jax.rl.rewards import runner
from ugc_jax.rl.rewards.process import number
from ugc_jax.rl.rewards.runner import RewardConfig, RewardInput, Rewards

OWN = """
import asyncio, decimal, fractions, functools, os, re, signal, subprocess, sys, threading, time

class Odd(BaseException):
    pass

class Unspeakable(Exception):
    def __str__(self):
        raise Odd

class Scalar:
    def __init__(self, value):
        self.value = value
    def __float__(self):
        return self.value

def throw(error):
    raise error

def deep():
    return deep() + 1

def fork():
    if os.fork() == 0:  # keeps this process's sockets
        time.sleep(30)
        os._exit(0)
    os._exit(1)

async def nothing():
    return 1.0

async def cancelled():
    task = asyncio.create_task(asyncio.sleep(9))
    task.cancel()
    await task

async def cancels_itself():
    asyncio.current_task().cancel()
    await asyncio.sleep(9)

async def exits_in_a_task():
    await asyncio.create_task(asyncio.to_thread(lambda: None))
    async def leave():
        sys.exit(3)
    await asyncio.create_task(leave())

async def cancels_all():
    me = asyncio.current_task()
    [task.cancel() for task in asyncio.all_tasks()]
    await asyncio.sleep(1)

async def stops_the_loop():
    asyncio.get_running_loop().stop()
    await asyncio.sleep(0.1)
    raise ValueError

async def stubborn():
    while True:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            pass

async def block(what):
    what()

def backtrack():
    re.fullmatch(r"(\\w+\\s?)*\\.", "word " * 12 + "wordwordword!")

RAISES = {
    "exception": lambda: throw(ValueError("no\\nnumber")),
    "exit": lambda: sys.exit(3),
    "interrupt": lambda: throw(KeyboardInterrupt()),
    "cancel": lambda: throw(asyncio.CancelledError()),
    "generator": lambda: throw(GeneratorExit()),
    "stop": lambda: throw(StopIteration()),
    "base": lambda: throw(Odd()),
    "group": lambda: throw(ExceptionGroup("all", [ValueError(), OSError()])),
    "base_group": lambda: throw(BaseExceptionGroup("all", [Odd()])),
    "unspeakable": lambda: throw(Unspeakable()),
    "memory": lambda: throw(MemoryError()),
    "handles": lambda: throw(OSError(24, "Too many open files")),
    "recursion": deep,
}
RETURNS = {
    "none": None, "text": "0.5", "bytes": b"1", "list": [1.0], "nan": float("nan"),
    "inf": float("inf"), "1e300": 1e300, "just_too_large": 3.41e38, "int": 10**400,
    "complex": 1j, "decimal": decimal.Decimal("nan"), "fraction": fractions.Fraction(10**400, 3),
    "infinite_scalar": Scalar(float("inf")), "no_float": Scalar("1"), "coroutine": nothing,
    "set": {1.0},
}
DIES = {
    "exits": lambda: os._exit(3),
    "segfault": lambda: os.kill(os.getpid(), signal.SIGSEGV),
    "killed": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "nameless": lambda: os.kill(os.getpid(), 40),
    "closes": lambda: os.closerange(3, 100),
    "forks": fork,
}
HANGS = {
    "sleeps": lambda: time.sleep(1000),
    "backtracks": backtrack,
    "stopped": lambda: os.kill(os.getpid(), signal.SIGSTOP),
    "child": lambda: subprocess.run(["sleep", "1000"]),
}
ASYNC = {
    "cancelled": cancelled, "cancels_itself": cancels_itself, "exits_in_a_task": exits_in_a_task,
    "stops_the_loop": stops_the_loop, "stubborn": stubborn,
    "asleep": lambda: asyncio.sleep(1000), "generator_function": lambda: (yield),
    "cancels_all": cancels_all,
}

def value(function):
    value = function()
    return value

def misbehave(prompt, completion, reference, metadata):
    if completion != "bad":
        return 1.0
    kind, name = metadata["kind"], metadata["name"]
    if kind == "returns":
        value = RETURNS[name]
        return value() if callable(value) else value
    return {"raises": RAISES, "dies": DIES, "hangs": HANGS}[kind][name]()

async def misbehave_later(prompt, completion, reference, metadata):
    await asyncio.sleep(0.1)
    if completion != "bad":
        await asyncio.sleep(0.2)
        return 1.0
    if metadata["kind"] == "async":
        return await ASYNC[metadata["name"]]()
    return misbehave(prompt, completion, reference, metadata)

def noisy(prompt, completion, reference, metadata):
    print('{"id": 0, "value": 7}', flush=True)
    sys.stdout.write("x" * 100000)
    os.write(1, b'{"id": 1, "value": 7}\\n')
    os.write(2, b"noise")
    subprocess.run("echo noise; cat", shell=True)
    return 1.0 if sys.stdin.read() == "" else 0.0

def spoils(prompt, completion, reference, metadata):
    words = metadata["words"]
    words.append("more")
    metadata.clear()
    return len(words)

class Object:
    def __call__(self, prompt, completion, reference, metadata):
        return len(completion)

class AsyncObject:
    async def __call__(self, prompt, completion, reference, metadata):
        return len(completion)

def weighted(factor, prompt, completion, reference, metadata):
    return factor * len(completion)

async def weighted_later(factor, prompt, completion, reference, metadata):
    return factor * len(completion)

def runs_a_loop(prompt, completion, reference, metadata):
    return asyncio.run(nothing())

loaded = 0

def process(prompt, completion, reference, metadata):
    global loaded
    loaded += 1
    return loaded

REWARDS = {
    "misbehave": misbehave, "misbehave_later": misbehave_later, "noisy": noisy, "spoils": spoils,
    "object": Object(), "async_object": AsyncObject(), "lambda": lambda *_: True,
    "partial": functools.partial(weighted, 2),
    "async_partial": functools.partial(weighted_later, 3),
    "runs_a_loop": runs_a_loop, "process": process, "built_in": max,
    "pid": lambda *_: os.getpid(),
    "jax": lambda *_: __import__("jax").numpy.float32(0.5),
}
"""

namespace: dict = {}
exec(compile(OWN, "own", "exec"), namespace)  # for the names of the cases


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    path = tmp_path_factory.mktemp("rewards") / "own.py"
    path.write_text(OWN)
    return str(path)


def start(functions, **changes):
    settings = dict(timeout=1, retries=0, backoff=0.01, workers=2) | changes
    return Rewards(RewardConfig(functions=functions, **settings))


@pytest.fixture
def make(own):
    """`make(functions, **settings)` -> Rewards with the functions of OWN."""
    made = []

    def make(functions, **changes):
        made.append(start(functions, **dict(file=own) | changes))
        return made[-1]

    yield make
    for rewards in made:
        rewards.close()


@pytest.fixture(scope="module")
def misbehaving(own):
    """Rewards by each of the two functions; as they stay the same, all that happens is survived."""
    both = {name: start(name, file=own) for name in ("misbehave", "misbehave_later")}
    yield both
    for rewards in both.values():
        rewards.close()


def samples(*completions, **metadata):
    return [RewardInput("What is it?", text, "A cat.", metadata) for text in completions]


def cases(*kinds):
    tables = {name: namespace[name.upper()] for name in kinds}
    return [(kind, name) for kind, table in tables.items() for name in table]


def scores(rewards, kind, name):
    """The reward of a bad sample, and that of three good ones, all at once."""
    found = rewards.submit(samples("good", "bad", "fine", "well", kind=kind, name=name)).result()
    assert found[[0, 2, 3]].tolist() == [[1]] * 3
    return found[1, 0]


BAD = [("misbehave", *case) for case in cases("raises", "returns", "dies", "hangs")]
BAD += [("misbehave_later", *case) for case in cases("raises", "returns", "dies", "hangs", "async")]


@pytest.mark.parametrize(("function", "kind", "name"), BAD)
def test_a_sample_is_lost_and_counted(misbehaving, caplog, function, kind, name):
    rewards = misbehaving[function]
    rewards._logged.clear()
    assert np.isnan(scores(rewards, kind, name))
    assert rewards.failures() == {function: 1}
    (message,) = caplog.messages
    assert message.startswith(f"reward {function} fails: ")
    assert "\n" not in message


def test_what_failed_is_named(misbehaving, caplog):
    rewards = misbehaving["misbehave"]
    for kind, name, line in [
        ("raises", "exception", "no number (ValueError)"),
        ("raises", "exit", "3 (SystemExit)"),
        ("raises", "cancel", " (CancelledError)"),
        ("returns", "1e300", "returned a float too large for float32 (ValueError)"),
        ("returns", "text", "returned a str, not a number (TypeError)"),
        ("returns", "coroutine", "returned a coroutine; define the function with async def"),
        ("dies", "segfault", "its process died (SIGSEGV) (ProcessDied)"),
        ("hangs", "sleeps", "took longer than 1 s (TimeoutError)"),
    ]:
        rewards._logged.clear()
        scores(rewards, kind, name)
        assert line in caplog.messages[-1]


def test_a_passing_failure_is_retried(make, tmp_path):
    path = tmp_path / "moody.py"
    path.write_text("""
import os, pathlib
def moody(prompt, completion, reference, metadata):
    with open(metadata["log"], "a") as log:
        log.write("x")
    if os.path.getsize(metadata["log"]) < 3:
        os._exit(1)
    return 5
REWARDS = {"moody": moody}
""")
    rewards = make("moody", file=str(path), retries=2)
    assert rewards.submit(samples("a", log=str(tmp_path / "log"))).result() == 5
    assert rewards.failures() == {"moody": 0}


@pytest.mark.parametrize(
    ("value", "expected"),
    [(True, 1), (3, 3), (3.4e38, 3.4e38), (np.float16(0.5), 0.5), (np.array(2), 2), (-0.0, 0)]
    + [(np.array([[0.5]]), 0.5), (np.array([2], object), 2)],
)
def test_numbers(value, expected):
    assert number(value) == expected
    assert type(number(value)) is float


def test_numbers_of_other_libraries():
    jnp, torch = pytest.importorskip("jax.numpy"), pytest.importorskip("torch")
    assert number(jnp.bfloat16(0.5)) == number(torch.tensor(0.5)) == 0.5
    for wrong in (
        jnp.ones(3), torch.ones(3), torch.tensor(1j), np.complex64(1), np.ones(2), np.array("1"),
        np.array("1", object), np.ma.masked, np.datetime64(1, "ns"), np.array([]),
        np.array(1j), np.float64(1e39), np.float64("nan"), np.datetime64(3, "s"),
    ):  # fmt: skip
        with pytest.raises((TypeError, ValueError, RuntimeError)):
            number(wrong)


def test_callables_of_all_kinds(make):
    names = "object,async_object,lambda,partial,async_partial,runs_a_loop"
    found = make(names).submit(samples("abc")).result()
    np.testing.assert_array_equal(found, [[3, 3, 1, 6, 9, 1]])


def test_noise_breaks_nothing(make, capfd):
    rewards = make("noisy", timeout=20)
    np.testing.assert_array_equal(rewards.submit(samples(*"abc")).result(), np.ones((3, 1)))
    assert capfd.readouterr().out == ""


def test_metadata_are_a_copy(make):
    rewards, metadata = make("spoils"), {"words": ["a"]}
    inputs = [RewardInput("", text, None, metadata) for text in "abcdef"]
    np.testing.assert_array_equal(rewards.submit(inputs).result(), np.full((6, 1), 2))
    assert metadata == {"words": ["a"]}


def test_texts_arrive_as_they_are(make, tmp_path):
    path = tmp_path / "same.py"
    text = "é\n\u2028 猫\ud800\0" + "x" * 300_000
    path.write_text(f"REWARDS = {{'same': lambda p, c, r, m: c == p == {text!r}}}")
    assert make("same", file=str(path)).submit([RewardInput(text, text, None, {})]).result() == 1


def test_a_jax_function_runs_on_the_cpu(make):
    assert make("jax", timeout=60).submit(samples("a")).result() == 0.5


def test_format_by_a_pattern_that_backtracks(caplog):
    config = RewardConfig(
        functions="format", format_pattern=r"(\w+\s?)*\.", timeout=1, retries=2, length_low=1
    )
    rewards = Rewards(config)
    begun = time.monotonic()
    texts = samples("Fine.", "word " * 12 + "wordwordword!", "No?", finish_reason="stop")
    found = rewards.submit(texts).result()[:, 0]
    np.testing.assert_array_equal(found, [1, np.nan, 0])
    assert rewards.failures() == {"format": 1}
    assert time.monotonic() - begun < 10  # no retries
    rewards.close()


def test_another_process_that_cannot_load_the_file(make, tmp_path):
    """What was fine at the start of the run is a failure later, not the end of the run."""
    path = tmp_path / "changing.py"
    path.write_text("import os\nREWARDS = {'r': lambda p, c, r, m: os._exit(1) if c == 'x' else 1}")
    rewards = make("r", file=str(path), workers=1)
    path.write_text("REWARDS = nothing")
    np.testing.assert_array_equal(
        rewards.submit(samples("a", "x", "b")).result()[:2], [[1], [np.nan]]
    )
    assert rewards.failures()["r"] >= 1


def test_a_user_error_ends_the_run(make, tmp_path):
    path = tmp_path / "refuses.py"
    path.write_text(
        textwrap.dedent("""
        from ugc_jax.errors import UserError
        def refuse(*_):
            raise UserError("key: refused; give another")
        REWARDS = {"refuse": refuse}
    """)
    )
    with pytest.raises(UserError, match="^key: refused; give another$"):
        make("refuse", file=str(path)).submit(samples("a")).result()


def test_an_inner_cancellation_of_a_judge_is_a_failure(monkeypatch):
    async def cancelled(*_):
        task = asyncio.create_task(asyncio.sleep(9))
        task.cancel()
        await task

    rewards = Rewards(RewardConfig(functions="rouge"))
    monkeypatch.setattr(rewards, "_functions", [runner._Function("rouge", cancelled)])
    pending = [rewards.submit(samples("a", "a", "b")) for _ in range(2)]
    assert all(np.isnan(one.result()).all() for one in pending)
    assert rewards.failures() == {"rouge": 6}
    rewards.close()


# ---- processes -----------------------------------------------------------------------------------


def gone(*pids) -> bool:
    deadline = time.monotonic() + 10
    while any(map(alive, pids)):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def alive(pid) -> bool:
    try:
        return Path(f"/proc/{int(pid)}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_only_names_are_imported(make):
    """Nothing of the user's file runs in this process."""
    rewards = make("pid,process", workers=1)
    found = rewards.submit(samples("a", "b", "c")).result()
    assert len(set(found[:, 0])) == 1
    assert found[0, 0] != os.getpid()
    np.testing.assert_array_equal(found[:, 1], [1, 2, 3])  # its state is kept


def test_close_ends_the_processes(make):
    rewards = make("pid,misbehave,misbehave_later")
    pid = rewards.submit(samples("a")).result()[0, 0]
    workers = [worker._process.pid for worker in rewards._own._live]
    assert int(pid) in workers
    assert len(workers) > 1
    rewards.submit(samples("bad", kind="hangs", name="child"))
    time.sleep(0.3)
    begun = time.monotonic()
    rewards.close()
    assert time.monotonic() - begun < 2
    assert gone(*workers)
    assert not rewards._thread.is_alive()


def test_a_file_without_use_leaves_no_process(make):
    rewards = make("length")
    time.sleep(0.2)
    assert all(worker.ended for worker in rewards._own._live)
    assert rewards.submit(samples("a")).result().shape == (1, 1)


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel of Linux does it")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_processes_end_with_the_run(tmp_path, number):
    (own := tmp_path / "own.py").write_text("""
import os, pathlib, subprocess, time
def note(prompt, completion, reference, metadata):
    child = subprocess.Popen(["sleep", "1000"])
    pathlib.Path(metadata["folder"], f"{os.getpid()} {child.pid}").touch()
    while True:
        pass
async def note_later(*arguments):
    return note(*arguments)
REWARDS = {"note": note, "note_later": note_later}
""")
    (folder := tmp_path / "pids").mkdir()
    script = f"""
from ugc_jax.rl.rewards.runner import *
rewards = Rewards(RewardConfig(functions="note,note_later", file={str(own)!r}))
one, two = (RewardInput("", text, None, {{"folder": {str(folder)!r}}}) for text in "ab")
rewards.submit([one, two]).result()
"""
    run = subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while len(list(folder.iterdir())) < 3:
        assert time.monotonic() < deadline
        assert run.poll() is None
        time.sleep(0.05)
    run.send_signal(number)
    run.wait(20)
    pids = [pid for file in folder.iterdir() for pid in file.name.split()]
    assert gone(*pids)


# ---- functions of the program --------------------------------------------------------------------


def test_functions_of_the_program_are_called_as_those_of_a_file():
    """Of a script or a notebook: copied with what they refer to, limited and killed alike."""
    calls, scale = [], 0.5

    def halves(prompt, completion, reference, metadata):
        calls.append(completion)  # of the copy
        return scale * len(completion) + len(calls) * 0

    def misbehaves(prompt, completion, reference, metadata):
        match completion:
            case "hang":
                time.sleep(60)
            case "exit":
                os._exit(3)
            case "text":
                return "1.0"
            case "nan":
                return float("nan")
        return 1.0

    async def later(prompt, completion, reference, metadata):
        await asyncio.sleep(0)
        return float(metadata["mark"])

    functions = {one.__name__: one for one in (halves, misbehaves, later)}
    config = RewardConfig(functions="halves,misbehaves,later", timeout=1, retries=0, workers=2)
    rewards = Rewards(config, own=functions)
    try:
        words = ["good", "hang", "exit", "text", "nan", "fine"]
        found = rewards.submit(samples(*words, mark=7)).result()
        failures = rewards.failures()
    finally:
        rewards.close()
    assert found[:, 0].tolist() == [0.5 * len(word) for word in words]
    np.testing.assert_array_equal(found[:, 1], [1, *[np.nan] * 4, 1])
    assert found[:, 2].tolist() == [7] * 6
    assert failures == {"halves": 0, "misbehaves": 4, "later": 0}
    assert calls == []
