"""A running `ugc-jax annotate` for tests: its process, people who log in, clips."""

import contextlib
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2
from clips import write_clip

PASSWORD = "correct horse battery"


def write_clips(folder: Path, count: int) -> Path:
    """A folder of equal short clips with sound: clip-1.mp4, clip-2.mp4, ..."""
    folder.mkdir(parents=True, exist_ok=True)
    write_clip(folder / "clip-1.mp4", seconds=2.0, fps=10, size=(160, 120))
    for number in range(2, count + 1):
        shutil.copy(folder / "clip-1.mp4", folder / f"clip-{number}.mp4")
    return folder


def command(clips: Path, output: Path, *flags: str, **options) -> subprocess.CompletedProcess:
    """Run `ugc-jax annotate` to its end."""
    words = [sys.executable, "-m", "ugc_jax.cli", "annotate", str(clips), "--output", str(output)]
    return subprocess.run([*words, *flags], capture_output=True, text=True, **options)


def add_account(clips: Path, output: Path, name: str, role: str, *flags: str):
    added = command(clips, output, "--account", f"{name}:{role}", *flags, input=f"{PASSWORD}\n")
    assert added.returncode == 0, added.stderr


@contextlib.contextmanager
def running(
    clips: Path, output: Path, *flags: str, prepared: bool = True
) -> Iterator[tuple[str, subprocess.Popen]]:
    """Yield (address, process) of a server; prepared: wait until all clips have their media."""
    words = [sys.executable, "-m", "ugc_jax.cli", "annotate", str(clips), "--output", str(output)]
    log = output.parent / f"{output.name}.log"
    with log.open("w") as errors:
        server = subprocess.Popen(
            [*words, "--port", "0", "--workers", "1", *flags], stdout=subprocess.PIPE,
            stderr=errors, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"},
        )  # fmt: skip
    try:
        line = server.stdout.readline()
        assert (found := re.match(r"(https?://\S+)/ ", line)), line + log.read_text()
        end = time.monotonic() + 60
        while prepared and "are prepared" not in log.read_text():
            assert time.monotonic() < end, log.read_text()
            if output.joinpath("media").is_dir() and not _waits(output, len(list(clips.iterdir()))):
                break
            time.sleep(0.1)
        yield found[1], server
    finally:
        server.kill()
        server.wait()
        server.stdout.close()


def _waits(output: Path, count: int) -> bool:
    return len([one for one in output.joinpath("media").iterdir() if one.name.isdigit()]) < count


class Person:
    """A client with a cookie, and the token that its pages have."""

    def __init__(self, address: str, name: str | None = None, **options):
        self.address = address
        self.client = httpx2.Client(base_url=address, timeout=60, **options)
        self.csrf = ""
        if name is not None:
            assert self.log_in(name).status_code == 303

    def log_in(self, name: str, password: str = PASSWORD) -> httpx2.Response:
        self.get("/login")
        answer = self.form("/login", name=name, password=password)
        self.get("/")
        return answer

    def get(self, path: str, **options) -> httpx2.Response:
        answer = self.client.get(path, **options)
        if found := re.search(r'name="csrf" content="(\w+)"', answer.text):
            self.csrf = found[1]
        return answer

    def form(self, path: str, **fields) -> httpx2.Response:
        return self.client.post(path, data={"csrf": self.csrf, **fields})

    def api(self, path: str, body: dict, **options) -> httpx2.Response:
        headers = {"X-CSRF-Token": self.csrf, **options.pop("headers", {})}
        return self.client.post(f"/api{path}", json=body, headers=headers, **options)

    def next(self) -> int | None:
        """The work that `Take the next clip` leads to."""
        found = re.fullmatch(r"/works/(\d+)", self.form("/next").headers["location"])
        return int(found[1]) if found else None

    def save(self, work: int, stage: str, base: int, value: dict, kind: str = "autosave"):
        body = {"base": base, "value": value, "seconds": {}, "kind": kind}
        return self.api(f"/works/{work}/{stage}", body)

    def annotate(self, values: dict) -> int | None:
        """Do the next clip; None if there is none."""
        if (work := self.next()) is None:
            return None
        for stage, value in values.items():
            assert self.get(f"/works/{work}/{stage}").status_code == 200
            answer = self.save(work, stage, 0, value, "submit")
            assert answer.status_code == 200, answer.text
        return work
