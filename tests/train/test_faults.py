"""Processes of a distributed run that are lost: who says it, how soon, and how the run goes on.

Real loop, checkpoints, data and watch; a toy policy (fake_rl.py). launch/kill_pod.py does the same
to the job, at random times.
"""

import itertools
import json
import shutil
import time

import pytest
from fake_pod import start

HANG = 8.0  # loop.hang_seconds
STEPS = 26
SAID = {"kill": "died during", "stop": "does not answer since", "unreadable": "failed during"}
FAULTS = list(itertools.product(SAID, ("step", "evaluation", "checkpoint", "rollout")))


def records(folder, name="metrics.jsonl") -> list[dict]:
    lines = map(json.loads, (folder / name).read_text().splitlines())
    return [{k: v for k, v in one.items() if not k.endswith(MEASURED)} for one in lines]


MEASURED = ("_seconds", "_per_second", "data_wait", "mfu", "memory_gb")


def latest(folder) -> int:
    names = (one.name for one in folder.glob("checkpoints/*"))
    return max((int(name) for name in names if name.isdigit()), default=0)


def lose(folder, how: str, kind: str, victim: int, steps: int, processes: int):
    """Start the run, let a process be lost, and check how the others end."""
    before = latest(folder)
    fault = {"process": victim, "how": how, "kind": kind, "step": before + 2}
    pod = start(folder, steps, processes, fault, HANG)
    pod.wait(240, without=victim if how == "stop" else None)
    ended = time.time()
    others = [number for number in range(processes) if number != victim]
    lost = ended - float(folder.with_name(f"{folder.name}.fault").read_text())
    print(f"{how:<10} {kind:<10} process {victim}: the others ended after {lost:.1f} s")
    assert lost < HANG + 15, "not in time"
    text = "\n".join(pod.logs)
    for number in others:
        assert pod.statuses[number] == (2 if how == "unreadable" else 75), text
        said, *more = [line for line in pod.logs[number].splitlines() if " E " in line[:12]]
        assert not more, pod.logs[number]
        assert f"process {victim} (" in said
        assert SAID[how] in said
    assert "stack trace" not in text
    assert "Traceback" not in text
    if how == "unreadable":
        assert pod.statuses[victim] == 2
        assert "is damaged; extract it again" in text
        assert "failed during the start" not in text
    assert latest(folder) >= before, "a checkpoint is lost"


def finish(folder, steps: int, processes: int):
    pod = start(folder, steps, processes)
    pod.wait(240)
    assert pod.statuses == [0] * processes, "\n".join(pod.logs)


def test_the_first_process_dies(tmp_path):
    """The one beside which jax's service runs; two processes, to be quick."""
    lose(tmp_path / "run", "kill", "step", 0, 4, 2)


@pytest.mark.slow
def test_twelve_faults(tmp_path):
    whole, run, other = tmp_path / "whole", tmp_path / "run", tmp_path / "other"
    finish(whole, STEPS, 4)
    for number, (how, kind) in enumerate(FAULTS):
        lose(run, how, kind, (number + number // 4) % 4, STEPS, 4)
        if number == 5:
            shutil.copytree(run, other)
    finish(run, STEPS, 4)
    for name in ("metrics.jsonl", "completions.jsonl", "samples.jsonl"):
        assert records(run, name) == records(whole, name)
    finish(other, STEPS, 2)
    for one, expected in zip(records(other), records(whole), strict=True):
        assert one == pytest.approx(expected, rel=1e-5)
    content = json.loads((run / "goodput.json").read_text())
    assert content["restarts"] == len(FAULTS)
    assert content["by"]["lost"] > 0
    assert content["attempts"][-1]["end"] == "finished"
