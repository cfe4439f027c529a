"""The scripts that start a job on many hosts, with programs in PATH that pretend to be a cloud."""

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

LAUNCH = Path(__file__).resolve().parents[1] / "launch"

# Notes its arguments; two hosts; `ssh` runs the command here as the host it names would.
GCLOUD = """#!/usr/bin/env bash
echo "$@" >>"$CALLS"
case "$4" in
describe) echo 2 ;;
scp) cp "$6" ugc_jax.tar.gz ;;
ssh)
    for word in "$@"; do
        case $word in
        --worker=all) exec touch "$STOP" ;;
        --worker=*) export HOST="${word#*=}" ;;
        --command=*) command="${word#*=}" ;;
        esac
    done
    mkdir -p "host-$HOST" && cp ugc_jax.tar.gz "host-$HOST" && cd "host-$HOST"
    exec bash -c "$command" ;;
esac
"""
SRUN = """#!/usr/bin/env bash
echo "$JAX_LOCAL_DEVICE_IDS" "$@" >>"$CALLS"
"""
# In place of launch/venv.sh: the Python of the environment says what it was asked to run.
VENV = """root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
python="$root/python"
install() { echo "install $*"; }
"""
PYTHON = """#!/usr/bin/env bash
printf '<%s>' "$@"
echo
while [ -n "${WAIT:-}" ] && [ ! -f "$STOP" ]; do sleep 0.05; done
exit "${STATUS:-0}"
"""


def program(path: Path, text: str):
    path.write_text(text)
    path.chmod(0o755)


@pytest.fixture
def project(tmp_path, monkeypatch) -> Path:
    """A project with the real scripts, whose surroundings are the above."""
    project, tools = tmp_path / "project", tmp_path / "bin"
    shutil.copytree(LAUNCH, project / "launch")
    (project / "launch" / "venv.sh").write_text(VENV)
    tools.mkdir()
    program(project / "python", PYTHON)
    program(tools / "gcloud", GCLOUD)
    program(tools / "srun", SRUN)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    monkeypatch.setenv("CALLS", str(tmp_path / "calls"))
    monkeypatch.setenv("STOP", str(tmp_path / "stop"))
    monkeypatch.chdir(tmp_path)
    return project


def run(*words, **env):
    return subprocess.run(
        ["bash", *map(str, words)], env=os.environ | env, capture_output=True, text=True, timeout=60
    )


TPU_JOB = ("slice", "us-west4-a", "sft", "--config=a b.py", "--config.output=gs://bucket/run")


def test_every_host_of_a_slice_runs_the_job(project):
    done = run(project / "launch/tpu_vm.sh", *TPU_JOB)
    assert done.returncode == 0, done.stderr
    words = ("-m", "ugc_jax.cli", "sft", "--distributed", *TPU_JOB[3:])
    told = "".join(f"<{word}>" for word in words)
    for host in (0, 1):
        log = (project / f"runs/tpu_vm/slice/host-{host}.log").read_text()
        assert told in log
        assert "install package --editable" in log
        assert f"host-{host}/ugc_jax[train,gcs,tpu]" in log
    assert told in done.stdout
    calls = Path(os.environ["CALLS"]).read_text().splitlines()
    assert all("--zone=us-west4-a" in call for call in calls if call.startswith("compute"))


def test_a_host_that_fails_is_named(project):
    done = run(project / "launch/tpu_vm.sh", *TPU_JOB, STATUS="3", SETUP="echo prepared")
    assert done.returncode == 3
    assert "host 1 ended with status 3; see" in done.stderr
    assert "prepared" in (project / "runs/tpu_vm/slice/host-1.log").read_text()


def test_a_signal_stops_all_hosts_and_waits_for_them(project):
    env = os.environ | {"WAIT": "1", "STATUS": "143"}
    words = ["bash", str(project / "launch/tpu_vm.sh"), *TPU_JOB]
    process = subprocess.Popen(words, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    logs = [project / f"runs/tpu_vm/slice/host-{host}.log" for host in (0, 1)]
    deadline = time.monotonic() + 30
    while not all(log.exists() and "ugc_jax.cli" in log.read_text() for log in logs):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 143
    assert b"stopping the job on all hosts" in errors
    assert "--worker=all --command=pkill -TERM" in Path(os.environ["CALLS"]).read_text()


def test_slurm_runs_one_process_a_node(project, monkeypatch):
    slurm = dict(SLURM_JOB_ID="7", SLURM_JOB_NUM_NODES="2", SLURM_GPUS_ON_NODE="4")
    slurm["SLURM_CPUS_PER_TASK"] = "9"
    slurm["SLURM_SUBMIT_DIR"] = str(project)
    done = run(project / "launch/slurm.sbatch", "sft", "--config=a.py", **slurm)
    assert done.returncode == 0, done.stderr
    assert f"install package --editable {project}[train,cuda12]" in done.stdout
    call = Path(os.environ["CALLS"]).read_text()
    assert call.startswith("0,1,2,3 --cpus-per-task=9 --kill-on-bad-exit=1")
    assert f"--output={project}/runs/slurm/7/host-%n.log" in call
    assert call.endswith("python -m ugc_jax.cli sft --distributed --config=a.py\n")


def test_wrong_use(project, tmp_path):
    for script in ("tpu_vm.sh", "slurm.sbatch"):
        done = run(project / "launch" / script)
        assert done.returncode == 2
        assert "usage:" in done.stderr
    done = run(project / "launch/slurm.sbatch", "sft", SLURM_SUBMIT_DIR=str(tmp_path))
    assert done.returncode == 2
    assert "not the project's folder" in done.stderr
