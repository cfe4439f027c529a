"""Lose processes of a distributed run at random times, and check that nothing else is lost.

    bash launch/quickstart.sh
    python launch/kill_pod.py runs/quickstart                 # sft, 12 faults, 4 processes here
    python launch/kill_pod.py runs/quickstart --job grpo --kills 30

The job of the tiny recipe runs once to its end, in several processes on this machine
(launch/hosts.sh). Then it runs in another folder; at random times a process is killed or stopped,
or a file of records becomes unreadable, and the job is started again. Each time the others must end
within the bound with a line that names the process, and no checkpoint may be lost. At the end the
metrics of every step and every byte of the exported model must be those of the first run. A copy of
the run after half of the faults goes on with half the processes, for sft: its metrics must be those
within 1e-5 (a sampled token of grpo may be another one after the last bit of a sum).
A process is not stopped before they all know each other: until then they wait 270 s for one.
Exit status 1 if anything differs; the logs of the last start are in OUTPUT/hosts. Further words are
settings of the job.
"""

import argparse
import atexit
import contextlib
import hashlib
import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LOGS = ROOT / "runs" / "hosts"
BOUND = 60.0  # seconds from a fault to the end of all that can end
MEASURED = ("_per_second", "_seconds", "data_wait", "mfu", "memory_gb")  # end of names
SAID = {
    "kill": "died during",
    "stop": "does not answer since",
    "unreadable": "failed during",
}


def start(args: argparse.Namespace, output: Path, processes: int) -> subprocess.Popen:
    """Start the job, or go on; its output goes to OUTPUT.log."""
    config = "tiny" if args.job == "sft" else "grpo_tiny"
    settings = {
        "output": output, "loop.steps": args.steps, "loop.log_every": 1, "loop.save_every": 5,
        "loop.eval_every": 5, "data.workers": 0, "loop.keep": 1000,
    }  # fmt: skip
    words = [f"--config={ROOT}/configs/{config}.py:{args.quickstart}"]
    words += [f"--{name}={value}" for name, value in settings.items()]
    script = ["bash", str(ROOT / "launch/hosts.sh"), ",".join(["localhost"] * processes)]
    environment = os.environ | {
        "EXTRA": "none", "PYTHON": sys.executable, "RETRIES": "0", "GRACE": str(int(BOUND)),
        "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT),
    }  # fmt: skip
    with open(f"{output}.log", "a") as log:
        return subprocess.Popen(
            [*script, args.job, *words, *args.words], stdout=log, stderr=log, env=environment
        )


def finish(process: subprocess.Popen, output: Path) -> dict:
    """Wait for the job; returns the metrics of its steps and the hash of its model."""
    if status := process.wait():
        sys.exit(f"the job ended with status {status}; see {output}.log")
    lines = map(json.loads, (output / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    metrics = [
        {name: value for name, value in line.items() if not name.endswith(MEASURED)}
        for line in lines
    ]
    digest = hashlib.sha256()
    for file in sorted((output / "model").rglob("*.safetensors")):
        digest.update(file.read_bytes())
    return {"metrics": metrics, "model": digest.hexdigest()}


def checkpoints(output: Path) -> set[int]:
    """Return the steps of the complete checkpoints."""
    names = (folder.name for folder in output.glob("checkpoints/*"))
    return {int(name) for name in names if name.isdigit()}


def process_ids(processes: int) -> list[int]:
    """Return the ids of the processes of the run that has just been started."""
    deadline = time.monotonic() + 60
    files = [LOGS / f"host-{number}.pid" for number in range(processes)]
    while not all(file.exists() for file in files):
        if time.monotonic() > deadline:
            sys.exit(f"the processes do not start; see {LOGS}")
        time.sleep(0.1)
    time.sleep(0.5)
    return [int(file.read_text()) for file in files]


def wait_for_work(processes: int, launcher: subprocess.Popen):
    """Wait until all processes have said what they train on: they watch each other then."""
    logs = [LOGS / f"host-{number}.log" for number in range(processes)]
    while launcher.poll() is None:
        if all(" I " in log.read_text(errors="replace") for log in logs if log.exists()):
            return
        time.sleep(0.2)


def runs(pid: int) -> bool:
    """Whether a process is there."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, 0)
        return True
    return False


@contextlib.contextmanager
def unreadable(file: Path) -> Iterator[None]:
    """The content of a file is not what it was, in the block; also for those who have it open."""
    content = file.read_bytes()
    with file.open("r+b") as stream:
        stream.write(bytes(len(content)))
    try:
        yield
    finally:
        with file.open("r+b") as stream:
            stream.write(content)


def lose(args: argparse.Namespace, output: Path, seconds: float, times: random.Random) -> str:
    """Start the job and lose a process at a random time.

    Returns what happened, in a line; "" if the job ended before.
    """
    how = times.choice(tuple(SAID))
    victim, moment = times.randrange(args.processes), times.uniform(0, seconds)
    shard = times.choice(sorted((args.quickstart / "records").rglob("*.array_record-*")))
    before = checkpoints(output)
    for file in LOGS.glob("host-*"):
        file.unlink()
    process = start(args, output, args.processes)
    pids = process_ids(args.processes)
    if how == "stop":
        wait_for_work(args.processes, process)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(moment)
        return ""
    with unreadable(shard) if how == "unreadable" else contextlib.nullcontext():
        if how != "unreadable":
            os.kill(pids[victim], signal.SIGKILL if how == "kill" else signal.SIGSTOP)
        lost = time.monotonic()
        left = [pid for number, pid in enumerate(pids) if number != victim or how == "unreadable"]
        while any(map(runs, left)) and process.poll() is None:
            time.sleep(0.1)
            if time.monotonic() - lost > BOUND and how != "unreadable":
                os.kill(process.pid, signal.SIGTERM)
                sys.exit(f"{how} of process {victim}: not all ended in {BOUND:.0f} s; see {LOGS}")
        took = time.monotonic() - lost
        if how == "stop":
            os.kill(pids[victim], signal.SIGKILL)
        status = process.wait()
    if status == 0 and how == "unreadable":
        return ""  # nobody read that file any more
    if not before <= (now := checkpoints(output)):
        sys.exit(f"{how} of process {victim}: checkpoints {sorted(before - now)} are lost")
    lines = []
    for number in range(args.processes):
        log = (LOGS / f"host-{number}.log").read_text(errors="replace")
        if "stack trace" in log:
            sys.exit(f"{how} of process {victim}: process {number} ended by an abort; see {LOGS}")
        if number != victim or how == "unreadable":
            lines += [line for line in log.splitlines() if SAID[how] in line]
    place = f"after step {max(now, default=0)}"
    text = lines[0] if lines else " E (before they watched each other)"
    said = text.partition(" E ")[2].partition("; run again")[0]
    return f"{how:<10} at {moment:5.1f} s, {place}: all ended after {took:4.1f} s: {said:.150}"


def differs(one: dict, other: dict, rel: float) -> str:
    """Return where the metrics of two runs differ by more than this; "" if nowhere."""
    if len(one["metrics"]) != len(other["metrics"]):
        return f"{len(one['metrics'])} lines of metrics, not {len(other['metrics'])}"
    for a, b in zip(one["metrics"], other["metrics"], strict=True):
        for name in a.keys() | b.keys():
            if not math.isclose(a.get(name, math.nan), b.get(name, math.nan), rel_tol=rel):
                return f"step {a['step']}: {name} {a.get(name)}, not {b.get(name)}"
    return ""


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("quickstart", type=Path, help="folder of the tiny model and its records")
    parser.add_argument("--output", type=Path, default=Path("runs/kill_pod"))
    parser.add_argument("--job", choices=("sft", "grpo"), default="sft")
    parser.add_argument("--kills", type=int, default=12)
    parser.add_argument("--processes", type=int, default=4)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    args, args.words = parser.parse_known_args()
    args.quickstart, folder = args.quickstart.resolve(), args.output.resolve()
    if folder.exists():
        sys.exit(f"{folder}: exists already; delete it, or choose another --output")
    folder.mkdir(parents=True)
    atexit.register(shutil.copytree, LOGS, folder / "hosts")

    begun = time.monotonic()
    whole = finish(start(args, folder / "whole", args.processes), folder / "whole")
    seconds = time.monotonic() - begun
    print(f"{args.steps} steps without a fault: {seconds:.0f} s", flush=True)

    times, lost, done = random.Random(args.seed), folder / "lost", 0
    while done < args.kills:
        begun = time.monotonic()
        if said := lose(args, lost, seconds, times):
            done += 1
            print(f"{done}: {said}", flush=True)
            if done == max(1, args.kills // 2):
                lost.mkdir(exist_ok=True)
                shutil.copytree(lost, folder / "other")
        elif not (lost / "model").exists():
            sys.exit(f"the job ended without a fault; see {lost}.log")
        else:  # the first run has compiled what the others load
            seconds = min(seconds, time.monotonic() - begun)
            shutil.rmtree(lost)
    found = finish(start(args, lost, args.processes), lost)
    if found != whole:
        sys.exit(f"the result is another one: {differs(found, whole, 0) or 'the model'}")
    print(f"{args.kills} faults; the run equals the one without faults to the bit", flush=True)
    if args.job == "sft":
        half = max(1, args.processes // 2)
        found = finish(start(args, folder / "other", half), folder / "other")
        if difference := differs(found, whole, 1e-5):
            sys.exit(f"with {half} processes the result is another one: {difference}")
        print(f"with {half} processes after half of the faults, it equals it within 1e-5")


if __name__ == "__main__":
    main()
