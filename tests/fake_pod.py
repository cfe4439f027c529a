"""A toy GRPO run as one of several processes, of which one is lost: `python fake_pod.py JSON`.

JSON: {"folder": of the run, "steps": the last one, "hang": loop.hang_seconds, "fault": null or
{"process", "how": "kill", "stop" or "unreadable", "kind": of train.phases, "step"}}. It comes
in work of that kind at that step or later; then its time is in the file FOLDER.fault.
"""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import fake_rl
import fake_training
import jax
from fake_records import FakeSource

from ugc_jax import cli, sharding
from ugc_jax.errors import UserError
from ugc_jax.train.phases import Phases
from ugc_jax.train.run import together


def arm(fault: dict, folder: str):
    """Let the fault come in this process."""
    change, fired = Phases._change, []

    def watched(self, done):
        before = self._stack[-1]
        change(self, done)
        # The writing of a checkpoint begins when the loop goes on.
        kind = before if fault["kind"] == "checkpoint" else self._stack[-1]
        if fired or kind != fault["kind"] or self.step < fault["step"]:
            return
        fired.append(True)
        Path(f"{folder}.fault").write_text(repr(time.time()))
        if fault["how"] == "unreadable":
            FakeSource.__getitem__ = unreadable
        else:
            os.kill(os.getpid(), signal.SIGKILL if fault["how"] == "kill" else signal.SIGSTOP)

    Phases._change = watched


def unreadable(source, number):
    raise UserError(f"{source.name}: record {number} is damaged; extract it again")


def main(text: str) -> int:
    words = json.loads(text)
    cli.set_up_logging()
    fake_rl.patch(setattr)
    config = fake_rl.settings(
        words["folder"], steps=words["steps"], hang_seconds=words["hang"], keep=20, **fake_rl.HARD
    )
    config = dataclasses.replace(config, distributed=True)
    with together(config) as process, tempfile.TemporaryDirectory() as temporary:
        if (fault := words["fault"]) and fault["process"] == jax.process_index():
            arm(fault, words["folder"])
        tokenizer = fake_rl.make_tokenizer(temporary)
        mesh = sharding.make_mesh(2, 2, 1)
        rewards = fake_rl.Coarse()
        return fake_rl.train(config, mesh, tokenizer, rewards, phases=process.phases).status


@dataclasses.dataclass
class Pod:
    """The processes of a run. logs: their stderr, once they have ended."""

    processes: list[subprocess.Popen]
    logs: list[str] = dataclasses.field(default_factory=list)

    def wait(self, seconds: float, without: int | None = None):
        """Wait for all processes but one; the one is killed then, and its log is read, too."""
        end = time.monotonic() + seconds
        try:
            for number, process in enumerate(self.processes):
                if number != without:
                    process.wait(max(0.0, end - time.monotonic()))
        finally:
            for process in self.processes:
                process.kill()
            self.logs = [process.communicate()[1] for process in self.processes]

    @property
    def statuses(self) -> list[int]:
        return [process.returncode for process in self.processes]


def start(folder: Path, steps: int, processes: int, fault: dict | None = None, hang=8.0) -> Pod:
    """Start, or go on, with four devices in all."""
    text = json.dumps({"folder": str(folder), "steps": steps, "hang": hang, "fault": fault})
    port = fake_training.free_port()
    here = Path(__file__).parent
    flags = os.environ.get("XLA_FLAGS", "")
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(here.parent), str(here)]),
        "XLA_FLAGS": f"{flags} --xla_force_host_platform_device_count={4 // processes}",
        "UGC_JAX_PROCESSES": str(processes),
        "JAX_COORDINATOR_ADDRESS": f"localhost:{port}",
    }
    words = [sys.executable, __file__, text]
    return Pod(
        [
            subprocess.Popen(
                words,
                env=environment | {"UGC_JAX_PROCESS": str(number)},
                stderr=subprocess.PIPE,
                text=True,
            )
            for number in range(processes)
        ]
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
