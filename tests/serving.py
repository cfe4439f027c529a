"""A running `ugc-jax serve` for tests: its process, and bodies of requests."""

import base64
import contextlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import httpx2

NAME = "tiny"
# Clips that a CPU answers quickly.
SMALL = ["--frames", "4", "--min_pixels", "784", "--max_pixels", "12544"]
SMALL += ["--batch_size", "8", "--workers", "1"]


class Served(NamedTuple):
    """address: http://HOST:PORT. log: of the server."""

    address: str
    process: subprocess.Popen
    log: Path

    def post(self, body: dict | bytes, path: str = "/v1/chat/completions", **options):
        """Send a body as JSON; returns the answer."""
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        headers = {"Content-Type": "application/json", **options.pop("headers", {})}
        return httpx2.post(
            self.address + path, content=content, headers=headers, timeout=120, **options
        )

    def get(self, path: str, **options):
        return httpx2.get(self.address + path, timeout=60, **options)


@contextlib.contextmanager
def running(
    checkpoint: Path, folder: Path, *flags: str, environment: dict | None = None
) -> Iterator[Served]:
    """Yield a server that accepts requests. folder: for its log."""
    words = [sys.executable, "-m", "ugc_jax.cli", "serve", "--checkpoint", str(checkpoint)]
    words += ["--name", NAME, "--port", "0", *SMALL, *flags]
    log = folder / "serve.log"
    # As a user has it: one CPU device.
    environment = os.environ | {"XLA_FLAGS": "", "OMP_NUM_THREADS": "1"} | (environment or {})
    with log.open("w") as errors:
        process = subprocess.Popen(
            words, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment
        )
    try:
        line = process.stdout.readline()
        assert (found := re.match(r"(https?://\S+)/v1 ", line)), line + log.read_text()
        yield Served(found[1], process, log)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def data_url(content: bytes | Path, kind: str = "video/mp4") -> str:
    """The bytes, or those of a file, as a data URL."""
    content = content.read_bytes() if isinstance(content, Path) else content
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def body(*content: dict | str, **fields) -> dict:
    """The body of a request with one message of some parts: texts, or parts as they are."""
    parts = [{"type": "text", "text": one} if isinstance(one, str) else one for one in content]
    return {
        "model": NAME,
        "messages": [{"role": "user", "content": parts}],
        "max_tokens": 8,
        **fields,
    }


def video(url: str) -> dict:
    return {"type": "video_url", "video_url": {"url": url}}


def image(url: str) -> dict:
    return {"type": "image_url", "image_url": {"url": url}}
