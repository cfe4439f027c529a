"""launch/kill_pod.py: what it calls a difference. (train/test_faults.py is its like.)"""

import importlib.util
from pathlib import Path

import pytest

FILE = Path(__file__).resolve().parents[1] / "launch/kill_pod.py"
spec = importlib.util.spec_from_file_location("kill_pod", FILE)
kill_pod = importlib.util.module_from_spec(spec)
spec.loader.exec_module(kill_pod)

RUN = {"metrics": [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0}]}


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (RUN["metrics"], ""),
        ([{"step": 1, "loss": 2.000001}, {"step": 2, "loss": 1.0}], ""),
        ([{"step": 1, "loss": 2.1}, {"step": 2, "loss": 1.0}], "step 1: loss 2.1, not 2.0"),
        ([{"step": 1, "loss": 2.0}, {"step": 2}], "step 2: loss None, not 1.0"),
        ([{"step": 1, "loss": 2.0}], "1 lines of metrics, not 2"),
    ],
)
def test_a_difference(lines, said):
    assert kill_pod.differs({"metrics": lines}, RUN, 1e-5) == said


def test_a_file_is_unreadable_for_a_while(tmp_path):
    file = tmp_path / "shard"
    file.write_bytes(b"records")
    with file.open("rb") as before, kill_pod.unreadable(file):
        assert before.read() == bytes(7)  # also for who has it open
    assert file.read_bytes() == b"records"


def test_only_whole_checkpoints_count(tmp_path):
    for name in ("5", "10", "15.orbax-checkpoint-tmp"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    assert kill_pod.checkpoints(tmp_path) == {5, 10}
