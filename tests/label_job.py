"""A run of `label`, asked of the toy's teacher."""

import functools
import os
import subprocess
import sys
from pathlib import Path

from ugc_jax import cli, files
from ugc_jax.toy.teacher import Clips

KEYS = ("GEMINI_API_KEY", "GOOGLE_API_KEY", "OPENAI_API_KEY", "OPENAI_BASE_URL")
ROOT = Path(__file__).resolve().parents[1]


@functools.cache
def known(manifest: Path) -> Clips:
    """What a Teacher knows of clips that do not change; they are read once."""
    return Clips(manifest)


class Job:
    """The command line of a run; further flags may be added."""

    def __init__(self, teacher, clips: Path, output: Path, kind: str = "gemini"):
        url = teacher.url if kind == "gemini" else f"{teacher.url}/v1"
        self.output = output
        self.words = [
            "label", str(clips.parent / "train"), "--output", str(output),
            "--teacher.kind", kind, "--model", "toy", "--base_url", url,
            "--price_in", "1", "--price_out", "2", "--teacher.price_sound", "3",
            "--min_words", "8", "--backoff", "0.02", "--engine.workers", "1",
        ]  # fmt: skip

    def run(self, *more: str) -> int:
        """Run in this process."""
        return cli.run([*self.words, *more])

    def start(self, *more: str) -> subprocess.Popen:
        """Start in a process of its own."""
        env = {name: value for name, value in os.environ.items() if name not in KEYS}
        env["PYTHONPATH"] = str(ROOT)
        command = [sys.executable, "-m", "ugc_jax.cli", *self.words, *more]
        return subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True)

    def rows(self, name: str | None = None) -> list[dict]:
        """The rows of the output, or of a file beside it."""
        path = self.output if name is None else self.output.with_name(name)
        return [line.value for line in files.read_lines(path, "")]

    def totals(self) -> dict:
        """The totals of the run."""
        return files.read_json(self.output.with_name(f"{self.output.name}.totals.json"), "")
