"""ugc_jax.watch.join: processes that are not there. (That are: test_member.py.)"""

import pytest

from ugc_jax.errors import UserError
from ugc_jax.watch.hub import Report
from ugc_jax.watch.join import join_processes

NOWHERE = Report(0, "the start", 0.0, 1.0)


def test_processes_that_nobody_started_are_told():
    with pytest.raises(UserError, match=r"^distributed: the other processes are not found \(.*\);"):
        join_processes(lambda: NOWHERE, 10.0)


def test_a_number_of_processes_that_is_none_is_told(monkeypatch):
    monkeypatch.setenv("UGC_JAX_PROCESSES", "many")
    with pytest.raises(UserError, match=r"^distributed: .* \(invalid literal .*'many'\);"):
        join_processes(lambda: NOWHERE, 10.0)
