"""ugc_jax.watch.hub: which process is lost, by what the processes of a run report."""

import pytest

from ugc_jax.watch.hub import RESTART, Fault, Members, Report, Verdict

STEP = Report(7, "step 3", 0.5, 45.0)
WAITING = STEP._replace(count=8, what="step 4")


@pytest.fixture
def members():
    """Three processes that have joined at time 0 and reported at 1."""
    members = Members(3, silence=45.0)
    for process in range(3):
        members.join(process, f"host-{process}, pid {process}", 0.0)
        members.report(process, STEP, 1.0)
    return members


def alive(members, processes, until: float):
    """These processes report every second, at the same point."""
    for process in processes:
        members.report(process, STEP._replace(age=until - 0.5), until)


def test_all_is_well(members):
    assert members.verdict(1.0) is None
    assert members.verdict(40.0) is None


def test_one_that_died_is_told_before_those_that_it_takes_along(members):
    members.close(2, 2.0)
    members.fail(0, Fault("connection closed by peer", "step 3", True, RESTART), 2.1)
    members.fail(1, Fault("a bug of its own", "step 3", False, 2), 2.2)
    assert members.verdict(2.5) is None  # another may still say more
    assert members.verdict(3.2) == Verdict("process 2 (host-2, pid 2) died during step 3")


def test_several_that_died(members):
    members.close(2, 2.0)
    members.close(0, 2.1)
    assert members.verdict(3.2).text == "processes 0, 2 died during step 3"


def test_a_failure_is_told_with_its_status(members):
    members.fail(0, Fault("all-gather failed", "step 3", True, RESTART), 2.0)
    members.fail(1, Fault("records/0: record 7 is damaged", "step 3", False, 2), 2.1)
    members.close(1, 2.2)
    said = "process 1 (host-1, pid 1) failed during step 3: records/0: record 7 is damaged"
    assert members.verdict(3.5) == Verdict(said, 2)


def test_a_failed_operation_names_the_silent_process(members):
    members.fail(0, Fault("all-gather failed", "step 3", True, RESTART), 2.0)
    members.fail(1, Fault("all-gather failed", "step 3", True, RESTART), 2.0)
    assert members.verdict(6.5) is None
    assert members.verdict(7.5).text.startswith("process 2 (host-2, pid 2) does not answer")


def test_a_failed_operation_without_a_culprit(members):
    members.fail(1, Fault("out of memory", "step 3", True, RESTART), 2.0)
    alive(members, (0, 2), 7.0)
    said = "process 1 (host-1, pid 1) failed during step 3: out of memory"
    assert members.verdict(7.5) == Verdict(said)


def test_one_that_is_silent(members):
    for process in (0, 1):
        members.report(process, WAITING._replace(age=1.0), 45.0)
    assert members.verdict(45.0) is None
    text = members.verdict(46.0).text
    assert text.startswith("process 2 (host-2, pid 2) does not answer since 45 s (stopped, or ")
    assert text.endswith("last during step 3")


def test_one_that_is_silent_where_all_wait(members):
    alive(members, (0, 1), 45.6)
    text = members.verdict(45.6).text
    assert text.startswith("process 2 (host-2, pid 2) does not answer since 45 s")


def test_one_that_hangs_holds_the_others(members):
    for process in (0, 1):
        members.report(process, WAITING._replace(age=50.0), 60.0)
    members.report(2, STEP._replace(age=44.0), 60.0)
    assert members.verdict(60.5) is None  # the slowest has time left
    members.report(2, STEP._replace(age=46.0), 62.0)
    assert members.verdict(62.0).text == (
        "process 2 (host-2, pid 2) hangs since 46 s during step 3; the others wait in step 4"
    )


def test_one_that_compiles_has_time(members):
    for process in (0, 1):
        members.report(process, WAITING._replace(age=100.0), 110.0)
    members.report(2, STEP._replace(age=101.0, allowed=1800.0), 110.0)
    assert members.verdict(110.0) is None


def test_all_hang(members):
    for process in range(3):
        members.report(process, STEP._replace(age=50.0), 60.0)
    assert members.verdict(60.0).text == "no process goes on since 50 s, all during step 3"


def test_one_that_does_not_come():
    members = Members(3, silence=45.0)
    members.join(1, "host", 10.0)
    members.report(1, STEP, 50.0)
    assert members.verdict(54.0) is None
    members.report(1, STEP, 55.0)
    assert members.verdict(55.0).text == "processes 0, 2 did not come; see the log there"


def test_one_that_is_done_may_be_silent(members):
    for process in range(3):
        assert not members.done
        members.finish(process)
        members.close(process, 5.0)
    assert members.done
    assert members.verdict(500.0) is None
