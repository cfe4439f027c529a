"""The pool of workers: what becomes of each item, and that no process is left behind."""

import gc
import logging
import mmap
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from concurrent.futures import CancelledError
from pathlib import Path

import numpy as np
import pytest

from ugc_jax.data.workers import Outcome, Pool, ReadingConfig, ReadingFailure, allow
from ugc_jax.errors import EnvironmentFailure, UnreadableFile, UserError

ONE, TWO = ReadingConfig(workers=1), ReadingConfig(workers=2)


def act(item):
    """Do what the item says, in a worker."""
    name, _, argument = str(item).partition(" ")
    match name:
        case "pid":
            time.sleep(float(argument or 0))
            return os.getpid()
        case "signal":
            os.kill(os.getpid(), int(argument))
        case "once":  # damages the process, which the next item finds out
            if Path(argument).exists():
                return "read again"
            Path(argument).touch()
            os.kill(os.getpid(), signal.SIGSEGV)
        case "exit":
            os._exit(int(argument))
        case "sleep":
            time.sleep(float(argument))
            return item
        case "stop":  # also what is not Python: nothing of this process runs
            os.kill(os.getpid(), signal.SIGSTOP)
        case "long":
            allow(float(argument))
            time.sleep(1.5)
            return item
        case "refuse":
            raise UserError(f"{argument}: no; try another")
        case "missing":
            raise UnreadableFile(f"{argument}: no such file")
        case "divide":
            return 1 / 0
        case "forget":
            raise MemoryError
        case "take":  # so many GB
            return np.zeros(int(float(argument) * 2**30), np.uint8)[:1]
        case "hide":  # as FFmpeg hides a lack of memory, behind an error of its own
            try:
                return np.zeros(int(float(argument) * 2**30), np.uint8)[:1]
            except MemoryError:
                raise EnvironmentFailure("out of memory") from None
        case "log":
            logging.getLogger("ugc_jax.media").info("seen %s", argument)
            logging.getLogger("ugc_jax.media").debug("not asked for")
            return item
        case "modules":
            return sorted({"jax", "torch", "librosa", "tensorflow", "grain"} & set(sys.modules))
        case "environment":
            return {name: os.environ.get(name) for name in argument.split()}


def read(items, config=ONE, ahead=4, function=act):
    with Pool(function, config) as pool:
        return list(pool.read(items, ahead))


def alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def gone(*processes: int) -> bool:
    """Whether the processes end within some seconds."""
    deadline = time.monotonic() + 20
    while any(map(alive, processes)):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


class Big:
    """Arrays of all kinds, and the number of copies that a transfer makes of them."""

    @staticmethod
    def make(_):
        frames = np.arange(3 << 20, dtype=np.uint8).reshape(4, -1, 3)
        return {"frames": frames, "turned": frames[::2].T, "none": np.zeros((0, 5), np.float32)}


class TestResults:
    def test_all_in_order_by_several_processes(self):
        items = [f"pid {0.05 * (number % 3)}" for number in range(9)]
        outcomes = read(items, TWO)
        assert [outcome.item for outcome in outcomes] == items
        processes = {outcome.value for outcome in outcomes}
        assert len(processes) == 2
        assert os.getpid() not in processes
        assert all(outcome.seconds < 1 for outcome in outcomes)
        assert outcomes[2].seconds >= 0.1

    def test_reading_ahead_is_bounded(self):
        taken = 0

        def items():
            nonlocal taken
            for taken in range(1, 31):
                yield f"sleep {0.002 * (taken % 3)}"

        with Pool(act, TWO) as pool:
            for used, _ in enumerate(pool.read(items(), ahead=6)):
                assert taken <= used + 6
        assert (taken, used) == (30, 29)

    def test_it_goes_on_while_nobody_looks(self, tmp_path):
        with Pool(touch, TWO) as pool:
            outcomes = pool.read([tmp_path / str(number) for number in range(8)], ahead=5)
            next(outcomes)
            deadline = time.monotonic() + 20
            while len(list(tmp_path.iterdir())) < 5:
                assert time.monotonic() < deadline
                time.sleep(0.02)

    def test_arrays_arrive_as_they_are_and_can_be_written(self):
        ((_, value, _),) = read([None], function=Big.make)
        expected = Big.make(None)
        assert value.keys() == expected.keys()
        for name, array in expected.items():
            np.testing.assert_array_equal(value[name], array)
            assert value[name].dtype == array.dtype
            assert value[name].flags.writeable

    def test_nothing_to_read_starts_nothing(self):
        assert read([]) == []

    def test_log_records_arrive(self, caplog):
        caplog.set_level("INFO", logger="ugc_jax")
        read(["log a", "log b"])
        assert [record.getMessage() for record in caplog.records] == ["seen a", "seen b"]
        assert caplog.records[0].name == "ugc_jax.media"

    def test_workers_import_no_jax_and_use_one_thread(self, monkeypatch):
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
        found, variables = read(["modules", "environment OMP_NUM_THREADS"])
        assert found.value == []
        assert variables.value == {"OMP_NUM_THREADS": "1"}


def touch(path):
    path.touch()


class TestFailures:
    @pytest.mark.parametrize(
        ("item", "kind", "message"),
        [
            (f"signal {signal.SIGSEGV:d}", "died", "the process that read it died (SIGSEGV); copy"),
            (f"signal {signal.SIGABRT:d}", "died", "the process that read it died (SIGABRT); copy"),
            (
                f"signal {signal.SIGKILL:d}",
                "died",
                "the process that read it died (SIGKILL); run again with fewer workers if memory "
                "is short",
            ),
            ("exit 3", "died", "the process that read it died (exit status 3); copy or encode it"),
            ("sleep 60", "time", "not read within 1 s; raise clip_timeout, or encode it again"),
            ("stop", "time", "not read within 1 s; raise clip_timeout, or encode it again"),
            (
                "take 1.5",
                "memory",
                "reading it takes more than 1 GB of memory; raise clip_memory, or encode it again",
            ),
            ("divide", "unexpected", "unexpected ZeroDivisionError: division by zero"),
        ],
    )
    def test_one_item_is_lost_and_the_others_are_read(self, item, kind, message):
        config = ReadingConfig(workers=1, clip_timeout=1, clip_memory=1)
        items = ["sleep 0", item, "pid"]
        before, lost, after = read(items, config)
        assert before.value == "sleep 0"
        assert type(lost) is Outcome
        assert isinstance(lost.value, ReadingFailure)
        assert isinstance(lost.value, UnreadableFile)  # another try may succeed
        assert lost.value.kind == kind
        assert str(lost.value).startswith(f"{item}: {message}")
        assert isinstance(after.value, int)

    def test_many_in_several_processes(self):
        bad = {3: f"signal {signal.SIGSEGV:d}", 7: "exit 1", 8: "divide", 9: "refuse x"}
        items = [bad.get(number, f"sleep 0.0{number}") for number in range(12)]
        outcomes = read(items, TWO, ahead=6)
        assert [outcome.item for outcome in outcomes] == items
        for number, outcome in enumerate(outcomes):
            assert isinstance(outcome.value, UserError) == (number in bad)

    def test_a_user_error_is_the_items(self):
        refused, missing, good = read(["refuse a.mp4", "missing b.mp4", "pid"])
        assert type(refused.value) is UserError
        assert str(refused.value) == "a.mp4: no; try another"
        assert type(missing.value) is UnreadableFile
        assert isinstance(good.value, int)

    def test_an_item_is_not_blamed_for_the_one_before_it(self, tmp_path):
        """A heap that is damaged by one clip may kill the process at the next one."""
        first, second = read(["sleep 0", f"once {tmp_path / 'dead'}"])
        assert (first.value, second.value) == ("sleep 0", "read again")

    def test_the_length_of_a_clip_is_allowed(self):
        config = ReadingConfig(workers=1, clip_timeout=0.5)
        long, short = read(["long 20", "long 0.5"], config)
        assert long.value == "long 20"
        assert str(short.value).startswith("long 0.5: not read within 1 s; raise clip_timeout")
        allow(5)  # and in no worker it does nothing

    def test_a_stopped_parent_gives_its_workers_their_time(self):
        """Time in which the machine or this process stands still is not the clip's."""
        code = """
            import os, signal, sys, threading
            sys.path.insert(0, sys.argv[1])
            from test_workers import act
            from ugc_jax.data.workers import Pool, ReadingConfig
            with Pool(act, ReadingConfig(workers=1, clip_timeout=2)) as pool:
                outcomes = pool.read(["sleep 0", "sleep 1"], ahead=1)
                next(outcomes)
                print("begun", flush=True)
                print(next(outcomes).value)
            """
        command = [sys.executable, "-c", textwrap.dedent(code), str(Path(__file__).parent)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout.readline() == "begun\n"
            time.sleep(0.2)
            process.send_signal(signal.SIGSTOP)
            time.sleep(3)
            process.send_signal(signal.SIGCONT)
            assert process.stdout.read() == "sleep 1\n"

    def test_names(self):
        with Pool(act, ONE, name=lambda item: f"row {item}") as pool:
            (outcome,) = pool.read(["exit 1"], ahead=1)
        assert str(outcome.value).startswith("row exit 1: the process")

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            (dict(workers=0), "workers is 0; use 1 or more"),
            (dict(clip_memory=0.5), "clip_memory is 0.5; use 1 or more"),
            (dict(clip_timeout=0.0), "clip_timeout is 0; use a positive number"),
        ],
    )
    def test_limits_that_are_none(self, settings, message):
        with pytest.raises(UserError, match=message):
            ReadingConfig(**settings)


class Unloadable:
    def __reduce__(self):
        return __import__, ("nowhere.part",)


class Deadly:
    """Kills the process that loads it."""

    def __reduce__(self):
        return os._exit, (7,)


class TestEnvironment:
    """Its failures are no item's."""

    def test_of_the_function(self):
        with pytest.raises(EnvironmentFailure, match=r"^the library nowhere does not load"):
            read(["pid"], function=Unloadable())
        line = r"^a process that reads clips died at its start \(exit status 7\); free memory"
        with pytest.raises(EnvironmentFailure, match=line):
            read(["pid"], function=Deadly())

    def test_no_handles(self, no_handles):
        with no_handles(), pytest.raises(EnvironmentFailure, match="^too many open files; raise"):
            read(["pid"])

    def test_of_an_item(self):
        """Not by the limit of a worker, which is the item's failure."""
        with pytest.raises(EnvironmentFailure, match="^out of memory"):
            read(["pid", "hide 2"], ReadingConfig(workers=1, clip_memory=1))

    def test_memory_of_the_machine(self):
        """The same request, where a limit of the whole process is the reason."""
        code = """
            import resource, sys
            sys.path.insert(0, sys.argv[1])
            from test_workers import act, read
            from ugc_jax.data.workers import ReadingConfig
            from ugc_jax.errors import EnvironmentFailure
            resource.setrlimit(resource.RLIMIT_DATA, (1 << 30, 1 << 30))
            try:
                read(["take 2"], ReadingConfig(workers=1))
            except EnvironmentFailure as error:
                print(error)
            """
        command = [sys.executable, "-c", textwrap.dedent(code), str(Path(__file__).parent)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert done.stdout.startswith("out of memory; free memory or lower workers")

    def test_no_thread_for_lack_of_memory_is_not_blamed_on_the_machine(self):
        thread, good = read(["thread", "sleep 0"], ReadingConfig(workers=1, clip_memory=1),
                            function=fill)  # fmt: skip
        assert thread.value.kind == "memory"
        assert good.value == "sleep 0"


def fill(item):
    """Take all memory, and then start a thread."""
    if item != "thread":
        return item
    blocks, size = [], 1 << 30
    while size > 1 << 16:
        try:
            blocks.append(mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))
        except OSError:
            size //= 2
    threading.Thread(target=int).start()


class TestLifetime:
    def test_workers_end_with_the_pool_whatever_they_do(self):
        with Pool(act, TWO) as pool:
            outcomes = pool.read(["pid 0", "pid 0.3", "sleep 60", "stop"], ahead=4)
            processes = [next(outcomes).value, next(outcomes).value]
        assert len(set(processes)) == 2
        assert gone(*processes)

    def test_a_generator_that_is_dropped_ends_them(self):
        def values():
            with Pool(act, ONE) as pool:
                for outcome in pool.read(["pid", "sleep 60"], ahead=2):
                    yield outcome.value

        generator = values()
        process = next(generator)
        assert alive(process)
        del generator
        gc.collect()
        assert gone(process)

    def test_threads_end_with_the_pool(self):
        before = threading.active_count()
        for _ in range(3):
            read(["pid", "sleep 0"], TWO)
        deadline = time.monotonic() + 20
        while threading.active_count() > before:
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def test_two_pools_at_once_and_from_another_thread(self):
        found = []
        thread = threading.Thread(target=lambda: found.extend(read(["pid", "sleep 0"])))
        with Pool(act, ONE) as one, Pool(act, ONE) as other:
            thread.start()
            pairs = list(zip(one.read(["pid"] * 3, 2), other.read(["pid"] * 3, 2), strict=True))
        thread.join()
        processes = {outcome.value for pair in pairs for outcome in pair}
        assert len(processes) == 2
        assert found[0].value not in processes

    def run_script(self, body: str, tmp_path) -> subprocess.Popen:
        """Start a script that reads in two workers, without a guard of its main module."""
        script = tmp_path / "script.py"
        script.write_text(
            f"import signal, sys; sys.path.append({str(Path(__file__).parent)!r})\n"
            # A job in the background, such as this suite's may be, ignores Ctrl-C.
            "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
            "print('script', flush=True)\n"
            "from test_workers import act\n"
            "from ugc_jax.data.workers import Pool, ReadingConfig\n"
            "pool = Pool(act, ReadingConfig(workers=2))\n" + textwrap.dedent(body)
        )
        # Files of the user's with names of the standard library's are not imported, either.
        (tmp_path / "queue.py").write_text("raise SystemExit('mine')")
        return subprocess.Popen(
            [sys.executable, "-P", str(script)], cwd=tmp_path, stdout=subprocess.PIPE, text=True
        )

    def test_an_unguarded_script_runs_once_and_may_leave_its_pool_open(self, tmp_path):
        body = """
            outcomes = pool.read(["pid", "pid", "sleep 60", "stop"], ahead=4)
            print(next(outcomes).value, next(outcomes).value)
            """
        with self.run_script(body, tmp_path) as process:
            begin, processes = process.stdout.read().splitlines()
        assert begin == "script"
        assert process.returncode == 0
        assert gone(*map(int, processes.split()))

    @pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
    def test_workers_end_with_a_parent_that_is_killed(self, tmp_path, number):
        """The one that waits and the one that hangs."""
        body = """
            outcomes = pool.read(["pid 0.2", "pid 0.2", "stop"], ahead=3)
            print(next(outcomes).value, next(outcomes).value, flush=True)
            next(outcomes)
            """
        with self.run_script(body, tmp_path) as process:
            assert process.stdout.readline() == "script\n"
            processes = process.stdout.readline()
            time.sleep(0.3)
            process.send_signal(number)
        assert len(set(processes.split())) == 2
        assert gone(*map(int, processes.split()))

    def test_ctrl_c_is_for_the_parent(self, tmp_path):
        body = """
            try:
                for outcome in pool.read(["pid", "pid", "sleep 60"], ahead=3):
                    print(outcome.value, flush=True)
            except KeyboardInterrupt:
                pool.close()
                print("interrupted")
            """
        with self.run_script(body, tmp_path) as process:
            assert process.stdout.readline() == "script\n"
            processes = {int(process.stdout.readline()) for _ in range(2)}
            for one in processes:
                assert os.getpgid(one) != os.getpgid(process.pid)
                os.kill(one, signal.SIGINT)  # not even this
            time.sleep(0.2)
            assert any(map(alive, processes))
            process.send_signal(signal.SIGINT)
            assert process.stdout.read() == "interrupted\n"
        assert gone(*processes)


@pytest.mark.parametrize("memory", [0.5, float("nan"), float("inf"), 1e300])
def test_a_memory_limit_that_is_none(memory):
    with pytest.raises(UserError, match="^clip_memory is"):
        ReadingConfig(clip_memory=memory)


# ---- single items --------------------------------------------------------------------------------


def test_an_item_that_nobody_waits_for(tmp_path):
    """A cancelled item is not begun, or its worker is ended; others are read as ever."""
    with Pool(act, ONE) as pool:
        first = pool.submit("pid").result(30).value
        read, waits, after = (pool.submit(one) for one in ("sleep 60", "sleep 50", "pid"))
        while not pool._busy:
            time.sleep(0.01)
        start = time.monotonic()
        pool.cancel(waits)
        pool.cancel(read)
        assert after.result(30).value != first  # of another process
        assert time.monotonic() - start < 20
        with pytest.raises(CancelledError):
            read.result(1)
        assert waits.cancelled()
        pool.cancel(after)  # is done: nothing happens
        assert pool.submit("pid").result(30).value == after.result().value
        assert not pool._busy
        assert not pool._cancelled
