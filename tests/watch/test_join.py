"""ugc_jax.watch.join: processes that are not there. (That are: test_member.py.)"""

import os
import subprocess
import sys

import pytest
from fake_training import free_port

from ugc_jax.errors import UserError
from ugc_jax.watch.hub import RESTART, Report
from ugc_jax.watch.join import join_processes

NOWHERE = Report(0, "the start", 0.0, 1.0)


def test_processes_that_nobody_started_are_told():
    with pytest.raises(UserError, match=r"^distributed: the other processes are not found \(.*\);"):
        join_processes(lambda: NOWHERE, 10.0)


def test_a_number_of_processes_that_is_none_is_told(monkeypatch):
    monkeypatch.setenv("UGC_JAX_PROCESSES", "many")
    with pytest.raises(UserError, match=r"^distributed: .* \(invalid literal .*'many'\);"):
        join_processes(lambda: NOWHERE, 10.0)


def test_one_that_does_not_come_ends_the_others_with_a_line():
    """jax would abort in C++. Another start may find it, and no launcher ends for good."""
    code = """
from ugc_jax import cli
from ugc_jax.watch import join
from ugc_jax.watch.hub import Report
cli.set_up_logging()
join._COME = 1.0
join.join_processes(lambda: Report(0, "the start", 0.0, 1.0), 10.0)
"""
    told = {
        "UGC_JAX_PROCESSES": "2",
        "UGC_JAX_PROCESS": "0",
        "JAX_COORDINATOR_ADDRESS": f"localhost:{free_port()}",
    }
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | told,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == RESTART, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if " E " in line]
    assert "not all processes came within 1 s; see the log of each, and run again" in line
    assert "stack trace" not in done.stderr
