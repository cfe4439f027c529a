"""ugc_jax.jobs.completion: the scripts complete in real shells."""

import os
import pty
import select
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from ugc_jax import cli, settings
from ugc_jax.errors import UserError
from ugc_jax.jobs import completion

JOBS = [name for name in cli.JOBS if name != "completion"]
CONFIGS = ["caption_upstream", "evaluate_upstream", "grpo_3b", "grpo_tiny", "sft_3b"]
# Sourced by zsh after the script: a completion writes its matches to a file, and zsh exits.
ZSH_MATCHES = r"""
compadd() {
    builtin compadd "$@"
    local status_=$? hits
    if [[ "${@[1,(i)(-|--)]}" != *-(O|A|D)\ * ]]; then
        typeset -a hits
        builtin compadd -A hits "$@"
        [[ -z $hits ]] || print -rl -- $hits >>~/.matches
    fi
    return status_
}
comppostfuncs=(exit)
setopt no_auto_list
"""


@pytest.fixture(scope="module")
def scripts(tmp_path_factory) -> Path:
    """A folder with the script of each shell."""
    folder = tmp_path_factory.mktemp("completion")
    (folder / "bash").write_text(completion._bash())
    (folder / "zsh").write_text(completion._zsh())
    return folder


def bash(scripts, words: list[str]) -> list[str]:
    """What bash offers for the last of the words; they are split at = as readline splits them."""
    code = f"""
source {scripts}/bash
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1))
_ugc_jax
printf '%s\\n' "${{COMPREPLY[@]}}"
"""
    run = ["bash", "--norc", "-uc", code, "bash", "ugc-jax", *words]
    result = subprocess.run(run, capture_output=True, text=True, check=True, cwd=scripts)
    assert result.stderr == ""
    return result.stdout.split()


def interactive(shell: str, cwd: Path, setup: str, keys: str):
    """Type keys into an interactive shell, which must end by itself within 20 seconds."""
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    file = cwd / ".setup"
    file.write_text(setup)
    env = dict(HOME=str(cwd), PATH=os.environ["PATH"], TERM="xterm", LC_ALL="C.UTF-8")
    argv = ["zsh", "-f", "-i"] if shell == "zsh" else ["bash", "--norc", "--noprofile", "-i"]
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(cwd)
        os.execvpe(argv[0], argv, env)
    os.write(terminal, f" source {file}\n{keys}".encode())
    end, shown = time.monotonic() + 20, b""
    try:
        while select.select([terminal], [], [], max(0, end - time.monotonic()))[0]:
            shown += os.read(terminal, 4096)
        os.kill(pid, signal.SIGKILL)
        pytest.fail(f"{shell} still runs: {shown.decode()}")
    except OSError:  # the shell has exited, and with it the terminal
        pass
    finally:
        os.waitpid(pid, 0)
        os.close(terminal)


def typed(shell: str, scripts: Path, cwd: Path, keys: str) -> list[str]:
    """The arguments of ugc-jax, which is a function here, after keys of which some are TAB."""
    if shell == "zsh":  # as its help says: in a folder of $fpath
        (cwd / ".zfunc").mkdir()
        (cwd / ".zfunc/_ugc-jax").symlink_to(scripts / "zsh")
        setup = "fpath=(~/.zfunc $fpath); autoload -Uz compinit; compinit -u -D\n"
    else:
        setup = f"source {scripts}/bash\n"
    setup += "ugc-jax() { printf '%s\\n' \"$@\" >~/.arguments; exit; }\n"
    interactive(shell, cwd, setup, f"ugc-jax {keys}\n")
    return (cwd / ".arguments").read_text().splitlines()


def zsh(scripts: Path, cwd: Path, words: str) -> list[str]:
    """What zsh offers when TAB is pressed after the words."""
    setup = f"autoload -Uz compinit; compinit -u -D; source {scripts}/zsh\n{ZSH_MATCHES}"
    interactive("zsh", cwd, setup, f"ugc-jax {words}\t")
    return (cwd / ".matches").read_text().split()


def flags(job: str) -> set[str]:
    return {f"--{name}" for name in cli.load_job(job).SETTINGS.flags()}


def test_every_job_is_completed():
    assert list(completion._JOBS) == JOBS
    assert set(completion._TAKE_FILES) == {name for name in JOBS if cli.JOBS[name].arguments}
    for name, module in completion._JOBS.items():
        assert module is cli.load_job(name)


def test_the_command_prints_the_script(capsys, scripts):
    for shell in ("bash", "zsh"):
        assert cli.run(["completion", shell]) == 0
        assert capsys.readouterr().out == (scripts / shell).read_text()
    for words in (["fish"], ["bash", "zsh"]):
        with pytest.raises(UserError, match="name one of bash, zsh"):
            cli.run(["completion", *words])


def test_bash_jobs(scripts):
    assert bash(scripts, [""]) == [*JOBS, "completion", "--help", "--version"]
    assert bash(scripts, ["ca"]) == ["caption", "calibrate"]
    assert bash(scripts, ["-v", "in"]) == ["init", "inspect"]
    assert bash(scripts, ["completion", ""]) == ["bash", "zsh"]
    assert bash(scripts, ["captoin", "--"]) == ["--help", "--version"]


@pytest.mark.parametrize("job", JOBS)
def test_bash_flags_of_each_job(scripts, job):
    assert set(bash(scripts, [job, "--"])) == flags(job) | {"--help", "--config"}


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["caption", "--temp"], ["--temperature"]),
        (["caption", "--sampling.temp"], ["--sampling.temperature"]),
        (["caption", "--max-new"], ["--max_new_tokens"]),
        (["caption", "--config.max-new"], ["--max_new_tokens"]),
        (["caption", "--dtype", ""], ["auto", "float32", "bfloat16"]),
        (["caption", "--dtype", "="], ["auto", "float32", "bfloat16"]),
        (["caption", "--compute.dtype", "=", "f"], ["float32"]),
        (["caption", "--config.dtype", "=", "b"], ["bfloat16"]),
        (["sft", "--export-dtype", ""], []),
        (["sft", "--loop.export-dtype", ""], ["float32", "bfloat16"]),
        (["caption", "--audio", "="], ["true", "false"]),
        (["caption", "--audio", "--temp"], ["--temperature"]),
        (["caption", "clip.mp4", "--checkpoint", "a", "--temp"], ["--temperature"]),
        (["caption", "--temperature", "0.2", "--top-k"], ["--top_k"]),
        (["caption", "--", "--temp"], []),
        (["caption", "--nothing"], []),
    ],
    ids=" ".join,
)
def test_bash_flags_and_values(scripts, words, expected):
    assert bash(scripts, words) == expected


def test_bash_configs_and_files_are_offered_together(scripts):
    names = settings.config_names()
    assert set(CONFIGS) < set(names)
    found = bash(scripts, ["sft", "--config", ""])
    assert sorted(found) == sorted([*names, "bash", "zsh"])  # the latter are the files there
    assert bash(scripts, ["sft", "--config", "=", "grpo"]) == ["grpo_3b", "grpo_7b", "grpo_tiny"]


def test_bash_flags_where_a_job_takes_no_files(scripts):
    assert set(bash(scripts, ["sft", ""])) == flags("sft") | {"--help", "--config"}
    assert bash(scripts, ["caption", ""]) == []  # files, by -o default


@pytest.mark.parametrize("shell", ["bash", "zsh"])
@pytest.mark.parametrize(
    ("keys", "arguments"),
    [
        ("cap\t--check\tru\t", "caption --checkpoint runs/"),
        ("caption --check\tru\tta\t", "caption --checkpoint runs/table.txt"),
        ("caption m\t", "caption my_clip.mp4"),
        ("caption --max-new-t\t4 m\t", "caption --max_new_tokens 4 my_clip.mp4"),
        ("caption --compute.dt\tbf\t", "caption --compute.dtype bfloat16"),
        ("caption --dtype=bf\tm\t", "caption --dtype bfloat16 my_clip.mp4"),
        ("caption --audio m\t", "caption --audio my_clip.mp4"),
        ("caption --audio=f\tm\t", "caption --audio false my_clip.mp4"),
        ("caption -- m\t", "caption -- my_clip.mp4"),
        ("sft --config gr\tti\t", "sft --config grpo_tiny"),
        ("sft --config o\t", "sft --config own.py"),
        ("-q completion b\t", "-q completion bash"),
    ],
)
def test_keys_in_a_terminal(shell, scripts, tmp_path, keys, arguments):
    (tmp_path / "runs").mkdir()
    for name in ("runs/table.txt", "runs/tiny.txt", "my_clip.mp4", "own.py"):
        (tmp_path / name).touch()
    words = " ".join(typed(shell, scripts, tmp_path, keys)).replace("=", " ")
    # zsh puts = between a flag and its value, and takes / away from a folder's name.
    assert words in (arguments, arguments.removesuffix("/"))


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_names_with_spaces(shell, scripts, tmp_path):
    (tmp_path / "my clip.mp4").touch()
    assert typed(shell, scripts, tmp_path, "caption my\t") == ["caption", "my clip.mp4"]


@pytest.mark.parametrize("job", JOBS)
def test_zsh_flags_of_each_job(scripts, tmp_path, job):
    assert set(zsh(scripts, tmp_path, f"{job} --")) == flags(job) | {"--help", "--config"}


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("", {*JOBS, "completion"}),
        ("caption --dtype ", {"auto", "float32", "bfloat16"}),
        ("caption --audio=", {"true", "false"}),
        ("sft --config ", set(settings.config_names())),
        ("completion ", {"bash", "zsh"}),
    ],
)
def test_zsh_jobs_values_and_configs(scripts, tmp_path, words, expected):
    assert set(zsh(scripts, tmp_path, words)) == expected
