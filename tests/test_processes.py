"""ugc_jax.processes: a worker's start and its end (more in data/test_workers, rl/rewards)."""

import os
import signal
import subprocess
import sys

import pytest

from ugc_jax import processes

WORKER = """
import os, signal, socket, sys
from ugc_jax import processes
processes.end_with_the_parent(group=True)
connection = socket.socket(fileno=int(sys.argv[1]))
connection.sendall(f"{os.getpgrp()} {os.environ.get('SAYS')}".encode())
signal.pause()
"""


@pytest.fixture
def worker(tmp_path, monkeypatch):
    (tmp_path / "some_worker.py").write_text(WORKER)
    monkeypatch.syspath_prepend(str(tmp_path))
    process, connection = processes.start("some_worker", {**os.environ, "SAYS": "hi"})
    yield process, connection
    process.kill()
    process.wait()


def test_a_worker_leads_a_group_and_imports_as_its_parent(worker):
    process, connection = worker
    assert connection.recv(99).decode() == f"{process.pid} hi"


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel of Linux does it")
def test_a_worker_ends_with_its_stdin(worker):
    process, connection = worker
    connection.recv(99)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.2)
    process.stdin.close()
    assert process.wait(10) == -signal.SIGKILL


def test_status():
    assert processes.status(3) == "exit status 3"
    assert processes.status(-signal.SIGSEGV) == "SIGSEGV"
    assert processes.status(-40) == "signal 40"


SCRIPT = """
import multiprocessing
from ugc_jax import processes

print("run")
with processes.without_script():
    process = multiprocessing.get_context("spawn").Process(target=print, args=("worker",))
    process.start()
process.join()
print(bool(__file__), __spec__)
"""


def test_spawned_processes_do_not_run_the_script(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, "-u", script], capture_output=True, text=True, check=True
    )
    assert done.stdout == "run\nworker\nTrue None\n"
