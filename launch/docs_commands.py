"""Run the commands of README.md and docs/ as a reader would: does each of them work?

    python launch/docs_commands.py                       # in this environment, from this clone
    python launch/docs_commands.py docs/records.md       # one page
    python launch/docs_commands.py --fresh clone         # a clone of HEAD and a venv of its own
    python launch/docs_commands.py --fresh wheel         # a venv with the wheel, and no sources
    python launch/docs_commands.py --list                # what would be run, and what not, and why

Commands are the lines of shell blocks, of indented blocks and code spans; a page's Python blocks
are one script. Each page has a folder of its own with files of the names that the pages use
(docs_folder.py), a hub, a judge and a teacher on this machine, and a tiny random model in place of
each checkpoint. What cannot be run has its reason in NEEDS, what is run with further flags has them
in MORE. The table goes to --output as JSON, a row as soon as it is there; exit status 1 if a
command failed.
"""

import argparse
import ast
import contextlib
import dataclasses
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import docs_folder

ROOT = Path(__file__).resolve().parents[1]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
SECONDS = 600  # the time limit of a command, on a busy machine, too
SLOW_SECONDS = 900  # of those that --long adds
PROGRAMS = (
    "ugc-jax", "python", "python3", "bash", "pip", "curl", "hf", "export", "vllm", "vllm/bin/pip",
    "sbatch", "kill", "touch", "echo",
)  # fmt: skip
ASSIGNMENT = re.compile(r"[A-Za-z_]\w*=\S+$|export ")

# What is not run, by the first pattern that is found in it. "long": --long runs it.
NEEDS = (
    (r"^ugc-jax JOB|\[,ID|\[ARGUMENT|\b(CLIPS|MODEL|MANIFEST)\b", "is a form, not a command"),
    (r"caption --mesh.tensor 4$", "is a part of a command"),
    (r"^(kill|touch) ", "needs a run of several processes that is under way"),
    (r"\bgs://", "needs a bucket"),
    (r"some_team/their_clips", "needs a data set on the hub"),
    (r"^hf auth", "needs a token of the hub"),
    (r"launch/(tpu_vm|tpu_queued|gke)\.sh|^sbatch|launch/hosts\.sh gpu", "needs a cluster"),
    (r"teacher.kind local", "needs weights that answer in JSON; tests/label/test_local.py runs it"),
    (r"--which adapter", "needs a LoRA run; tests/jobs/test_push.py sends one"),
    (r"accelerator_check", "needs an accelerator; tests/test_accelerator_check.py runs it"),
    (r"postgresql://", "needs a Postgres server; tests/web and tests/annotate have one"),
    (r"^vllm|vllm_python|^python -m venv vllm|torch\.library", "needs vLLM"),
    (r"^pip install|^python3? -m venv", "installs packages, as --fresh does"),
    (r"^ugc-jax plan .*-(24|80)gb", "needs a GPU"),
    (r"^ugc-jax plan", "needs minutes of the TPU compiler; tests/plan compile these plans"),
    (r"data_bench.*sft_3b", "needs the records of sft_3b"),
    (r"launch/paper\.sh --data", "needs the released rows and videos"),
    (r"launch/test\.sh", "is the suite"),
    (r"-m pytest", "is a part of the suite; that it selects tests is checked"),
    (r"quickstart\.sh( my_clip|$)|(quickstart_seeds|data_life|select_half)\.sh", "long"),
    (r"paper\.sh --toy", "long"),
    (r"quickstart\.sh --fast", "makes an environment of its own, as --fresh clone does"),
    (r"annotate_load|kill_(pod|resume)|(grpo|rollout)_bench|evidence_check", "long"),
    (r"bench .*--work mixed|--size 3b|load_test\.py|fuzz_media|schema_check", "long"),
)  # fmt: skip
# Flags that are added to a command, as all models are tiny here and the machine is a CPU.
STEPS = "--steps 2 --batch_size 1 --loop.accumulate 1 --attention xla --dtype float32"
MORE = (
    (r"^ugc-jax sft --config sft_", STEPS),
    (r"^ugc-jax grpo --config grpo_3b", f"{STEPS} --samples 2 --max_new_tokens 8"
     " --grpo.mask_truncated=false --rollout.mesh.tensor 1 --rollout.parts 1"),
    (r"^ugc-jax grpo --config grpo_tiny", "--steps 2"),
    (r"^ugc-jax label ", "--min_words 4 --language none"),
    (r"--preset timechat", "--max_new_tokens 64"),
    # Random weights do not end their captions.
    (r"^ugc-jax caption (?!.*--max_new_tokens)|--ask\.checkpoint", "--max_new_tokens 32"),
    (r"^curl ", "--fail-with-body --silent --show-error"),
)  # fmt: skip
# What stands for something of the reader's, or counts what is fewer here.
NAMES = (
    (r"\bCLIP\b(\.\.\.)?", "clip.mp4"),
    (r"train-\.\.\.", "train-*"),
    (r"/home/me/clips", "FOLDER/clips"),
    (r"select (.*)--count 1000", r"select \1--count 4"),
)


@dataclasses.dataclass
class Command:
    """A command of a page. kind: shell or python. line: where it begins."""

    page: str
    line: int
    kind: str
    text: str

    @property
    def reason(self) -> str:
        """Why it is not run, or ""."""
        found = (reason for pattern, reason in NEEDS if re.search(pattern, self.text))
        return next(found, "")

    @property
    def more(self) -> str:
        """The flags that are added to it."""
        return next((flags for pattern, flags in MORE if re.search(pattern, self.text)), "")

    @property
    def is_server(self) -> bool:
        ends = re.search(r"--(export|backup|help)\b", self.text)
        return bool(re.match(r"ugc-jax (serve|annotate)\b", self.text)) and not ends

    @property
    def takes_sources(self) -> bool:
        return bool(re.search(r"launch/|-m pytest", self.text))


# ---- the pages -----------------------------------------------------------------------------------


def commands(path: Path) -> list[Command]:
    """The commands of a page in their order. Raises ValueError for a block of an unknown kind."""
    page = path.relative_to(ROOT).as_posix()
    found, scripts, prose = [], [], []
    for line, language, text in blocks(path.read_text("utf-8")):
        if language == "prose":
            prose.append((line, text))
        elif language == "python":
            scripts.append((line, text))
        elif language == "bash":
            found += [Command(page, line + n, "shell", one) for n, one in split(text)]
    for start, text in prose:
        for match in re.finditer(r"`([^`\n]+)`", text):
            if is_command(match[1]):
                line = start + text.count("\n", 0, match.start())
                found.append(Command(page, line, "shell", match[1]))
    runnable = [one for one in scripts if not Command(page, one[0], "python", one[1]).reason]
    for line, text in scripts:
        if (line, text) not in runnable:
            found.append(Command(page, line, "python", text))
    if runnable:
        script = "\n".join(text for _, text in runnable)
        found.append(Command(page, runnable[0][0], "python", script))
    return sorted(found, key=lambda one: one.line)


def is_command(span: str) -> bool:
    """Whether a code span of the prose is a command that can be typed as it is."""
    return bool(
        re.match(r"ugc-jax [a-z]+ .*--\w", span) and "..." not in span and "JOB" not in span
        or re.match(r"(python|bash) (-m pytest|launch/)\S*", span) and "NAME" not in span
    )  # fmt: skip


def blocks(text: str) -> Iterator[tuple[int, str, str]]:
    """(line, language, text) of the code and the prose of a page: bash, python, other, prose."""
    lines, start, at = text.splitlines(), 0, 0
    prose: list[str] = []

    def end_prose() -> Iterator[tuple[int, str, str]]:
        if prose:
            yield start + 1, "prose", "\n".join(prose)
            prose.clear()

    while at < len(lines):
        if fence := re.match(r"```(\S*)", lines[at]):
            end = lines.index("```", at + 1)
            yield from end_prose()
            language = fence[1] if fence[1] in ("bash", "python") else "other"
            yield at + 2, language, "\n".join(lines[at + 1 : end])
            at = start = end + 1
        elif lines[at].startswith("    ") and (at == 0 or not lines[at - 1].strip()):
            end = at
            while end < len(lines) and (not lines[end].strip() or lines[end].startswith("    ")):
                end += 1
            block = "\n".join(line[4:] for line in lines[at:end]).rstrip()
            yield from end_prose()
            yield at + 1, language_of(block), block
            at = start = end
        else:
            prose.append(lines[at])
            at += 1
    yield from end_prose()


def language_of(block: str) -> str:
    """bash or python of an indented block. Raises ValueError if it is neither."""
    if block.split()[0] in PROGRAMS:
        return "bash"
    try:
        ast.parse(block)
    except SyntaxError:
        remedy = "fence it with its language"
        raise ValueError(f"neither a command nor Python; {remedy}: {block!r:.80}") from None
    return "python"


def split(block: str) -> Iterator[tuple[int, str]]:
    """(number of its first line, command) of a shell block; comments are left out."""
    begun, first = "", 0
    for number, line in enumerate(block.splitlines()):
        if not begun and (not line.strip() or line.lstrip().startswith("#")):
            continue
        first = first if begun else number
        begun += f"{line}\n"
        try:
            words = shlex.split(begun, comments=True)
        except ValueError:  # an open quotation
            continue
        if line.endswith("\\"):
            continue
        if words[0] not in PROGRAMS and not ASSIGNMENT.match(words[0]) and "=" not in words[0]:
            raise ValueError(f"{words[0]!r} is no known program; name it in PROGRAMS")
        text = re.sub(r"\\\n\s*", "", begun).strip()
        yield first, re.sub(r"\s+#\s.*$", "", text)
        begun = ""


# ---- running -------------------------------------------------------------------------------------


@dataclasses.dataclass
class Row:
    """What became of a command. state: works, failed, skipped."""

    page: str
    line: int
    command: str
    state: str
    note: str = ""  # the flags that were added, the reason, the end of what it printed
    seconds: float = 0.0


class Runner:
    """Runs pages in folders below `folder`, with the programs of the environment `bin`."""

    def __init__(self, folder: Path, bin: Path, sources: Path | None, long: bool):
        self.folder, self.bin, self.sources, self.long = folder, bin, sources, long
        self.stock = folder / "stock"
        self.environment = {
            "PATH": f"{bin}:{os.environ['PATH']}",
            "HOME": str(folder / "home"),
            "LANG": "C.UTF-8",
            "JAX_PLATFORMS": "cpu",
            "TF_CPP_MIN_LOG_LEVEL": "2",
            **{key: os.environ[key] for key in ("PYTHONPATH", "TMPDIR") if key in os.environ},
        }
        (folder / "home").mkdir(parents=True, exist_ok=True)
        docs_folder.fill(self.stock, self.job, self.environment)

    def job(self, line: str):
        """Run a line of `ugc-jax` to prepare the folder. Exits with its output if it fails."""
        done = self._shell(f"ugc-jax {line}", self.stock, self.environment, SECONDS)
        if done.returncode:
            sys.exit(f"ugc-jax {line}: status {done.returncode}\n{done.stdout[-2000:]}")

    def page(self, path: Path) -> Iterator[Row]:
        """Run the commands of a page, and yield a row for each."""
        folder = self.folder / path.stem
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(self.stock, folder, symlinks=True)
        if self.sources:
            (folder / "launch").symlink_to(self.sources / "launch")
        prelude, made, serving = [], set(), contextlib.ExitStack()
        with serving, docs_folder.services(folder) as variables:
            environment = self.environment | variables
            for command in commands(path):
                if command.kind == "shell" and ASSIGNMENT.match(command.text):
                    prelude.append(command.text)
                    continue
                short = command.text if command.kind == "shell" else "the page's Python"
                row = Row(command.page, command.line, short, "works")
                begun = time.monotonic()
                self._clear(folder, command.text, made)
                if command.is_server and not self._reason(command):
                    serving.close()  # ends the one before
                self._run(row, command, folder, environment, "\n".join(prelude), serving)
                row.seconds = round(time.monotonic() - begun, 1)
                yield row

    def _reason(self, command: Command) -> str:
        if command.takes_sources and self.sources is None:
            return "needs the sources"
        if command.reason == "long":
            return "" if self.long else "takes minutes; --long runs it"
        return command.reason

    def _run(self, row, command, folder, environment, prelude, serving):
        """Run a command and fill its row."""
        reason = self._reason(command)
        if "-m pytest" in command.text and self.sources:
            text = f"{command.text.partition('`')[0]} --collect-only -q --slow"
            done = self._shell(text, self.sources, environment, SECONDS)
            row.note = reason
            if done.returncode:
                row.state, row.note = "failed", done.stdout[-600:]
            return
        if reason:
            row.state, row.note = "skipped", reason
            return
        for pattern, name in NAMES:
            name = name.replace("FOLDER", str(folder))
            command.text = re.sub(pattern, name, command.text)
        if command.kind == "python":
            script = folder / "page_script.py"
            script.write_text(command.text, "utf-8")
            text = f"python {script.name}"
        else:
            text = f"{command.text} {command.more}".strip()
            row.note = f"with {command.more}" if command.more else ""
        where = folder
        if re.match("bash launch/", text):
            where = self.sources
        limit = SLOW_SECONDS if command.reason == "long" else SECONDS
        with docs_folder.beside(command.text, folder) as variables:
            environment = environment | variables
            if command.is_server:
                fault = self._serve(f"{prelude}\n{text}", where, environment, serving)
            else:
                done = self._shell(f"{prelude}\n{text}", where, environment, limit)
                fault = f"status {done.returncode}: {done.stdout}" if done.returncode else ""
        if fault:
            row.state, row.note = "failed", fault[-1500:]

    def _clear(self, folder: Path, text: str, made: set[str]):
        """Remove the file or folder of the stock that a command is to write anew."""
        key = "export" if " --export " in text else "output"
        found = re.search(rf"--{key}[ =](\S+)", text)
        if not found or found[1] in made or not (self.stock / found[1]).exists():
            return
        if re.match("ugc-jax annotate (?!.*--export)", text):
            return  # a project goes on
        made.add(found[1])
        path = folder / found[1]
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)

    def _shell(self, text, where, environment, limit) -> subprocess.CompletedProcess:
        """Run a line of bash to its end, or to its time limit (status 124)."""
        with tempfile.TemporaryFile("w+") as printed:
            process = self._start(text, where, environment, printed)
            try:
                status = process.wait(limit)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                status = 124
            printed.seek(0)
            return subprocess.CompletedProcess(text, status, printed.read())

    def _start(self, text, where, environment, printed) -> subprocess.Popen:
        process = subprocess.Popen(
            ["bash", "-c", f"set -e\n{text}"], cwd=where, env=environment, stdout=printed,
            stderr=subprocess.STDOUT, stdin=subprocess.PIPE, text=True, start_new_session=True,
        )  # fmt: skip
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write("a password of this page\n")  # where one is asked for
            process.stdin.close()
        return process

    def _serve(self, text, where, environment, serving) -> str:
        """Start a server, ask for its page, and leave it running in `serving`. Returns a fault."""
        log = where / "server.log"
        with open(log, "w") as printed:
            process = self._start(f"exec {text.strip()}", where, environment, printed)

        def stop():
            if process.poll() is None:
                process.send_signal(signal.SIGINT)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(60)
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()

        end = time.monotonic() + SECONDS
        while time.monotonic() < end:
            said = log.read_text()
            if process.poll() is not None:
                # Such as `--account`, which makes an account and ends.
                return "" if process.returncode == 0 else f"status {process.returncode}: {said}"
            if found := re.search(r"(https?)://[\w.\[\]:]+?:(\d+)", said):
                serving.callback(stop)
                return docs_folder.fault_of(f"{found[1]}://127.0.0.1:{found[2]}/")
            time.sleep(0.2)
        stop()
        return f"no address within {SECONDS} s: {said}"


# ---- fresh environments --------------------------------------------------------------------------


def fresh(kind: str, folder: Path) -> tuple[Path, Path | None]:
    """Make a clone of HEAD, or a wheel of it, installed into a venv. Returns (bin, clone or None).

    The venv has what `all` has and the data sets of Hugging Face, a clone's also what tests need.
    """

    def run(*words: str | Path, **more):
        print(f"$ {shlex.join(map(str, words))}", flush=True)
        subprocess.run([*map(str, words)], check=True, **more)

    clone, venv = folder / "clone", folder / "venv"
    run("git", "clone", "-q", ROOT, clone)
    run(sys.executable, "-m", "venv", venv)
    pip = [venv / "bin/python", "-m", "pip", "install", "-q", "--disable-pip-version-check"]
    if kind == "clone":
        run(*pip, "--editable", f"{clone}[all,datasets,test]")
        return venv / "bin", clone
    run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder, cwd=clone)
    (wheel,) = folder.glob("*.whl")
    run(*pip, f"{wheel}[all,datasets]")
    shutil.rmtree(clone)
    return venv / "bin", None


# ---- the table -----------------------------------------------------------------------------------


def show(rows: list[Row]) -> str:
    """A line for each command, and the counts."""
    lines = []
    for row in rows:
        note = row.note if row.state != "failed" else f"\n{row.note}"
        command = re.sub(r"\s+", " ", row.command)
        lines.append(f"{row.state:<8}{row.page}:{row.line}  {command:.100}  {note}")
    states = [row.state for row in rows]
    counts = ", ".join(f"{states.count(one)} {one}" for one in ("works", "failed", "skipped"))
    return "\n".join([*lines, f"{len(rows)} commands: {counts}"])


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("pages", nargs="*", type=Path, help="pages, from the project folder")
    parser.add_argument("--fresh", choices=("clone", "wheel"))
    parser.add_argument("--folder", type=Path, help="where to work; a temporary one by default")
    parser.add_argument("--output", type=Path, help="JSON file for the table")
    parser.add_argument("--long", action="store_true", help="also what takes minutes")
    parser.add_argument("--list", action="store_true", help="run nothing")
    args = parser.parse_args()
    pages = [ROOT / path for path in args.pages] or PAGES
    if missing := [page for page in pages if not page.is_file()]:
        parser.error(f"{missing[0]}: no such page; name one of the project, as docs/faq.md")
    if args.list:
        found = [one for page in pages for one in commands(page)]
        rows = [
            Row(one.page, one.line, one.text, "skipped" if one.reason else "works", one.reason)
            for one in found
        ]
        print(show(rows))
        return 0
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="ugc_jax-docs-") as temporary:
        folder = (args.folder or Path(temporary)).absolute()
        bin, sources = Path(sys.executable).parent, ROOT
        if args.fresh:
            os.environ.pop("PYTHONPATH", None)
            bin, sources = fresh(args.fresh, folder)
        runner = Runner(folder, bin, sources, args.long)
        for page in pages:
            for row in runner.page(page):
                rows.append(row)
                print(show([row]).rpartition("\n")[0], f" ({row.seconds} s)", flush=True)
                if args.output:
                    table = [dataclasses.asdict(one) for one in rows]
                    args.output.write_text(json.dumps(table, indent=1) + "\n", "utf-8")
    failed = [row for row in rows if row.state == "failed"]
    print(show(failed) if failed else "", show(rows).rpartition("\n")[2], sep="\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
