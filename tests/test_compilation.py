"""The compilation cache: a second process loads what the first one has compiled."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from ugc_jax import compilation
from ugc_jax.errors import UserError

# Prints the counts of hits and misses, and the result.
PROGRAM = """
import logging, sys, jax, jax.numpy as jnp
from jax import monitoring
from ugc_jax.compilation import keep_compiled, report_use
logging.basicConfig(level="INFO", stream=sys.stdout, format="log: %(message)s")
events = []
monitoring.register_event_listener(lambda name, **_: events.append(name.rpartition("/")[2]))
keep_compiled(sys.argv[1], jax.devices()[0])
result = jax.jit(lambda x: jnp.sin(x) @ x)(jnp.ones((8, 8)))
total = float(result.sum())
print(events.count("cache_hits"), events.count("cache_misses"), total)
report_use()
"""


def start(folder: str, **environment: str) -> subprocess.Popen:
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("JAX_")}
    env = inherited | {"JAX_PLATFORMS": "cpu"} | environment
    command = [sys.executable, "-c", PROGRAM, folder]
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True)


def counts(process: subprocess.Popen) -> tuple[int, int, float]:
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    line, *log = out.splitlines()
    hits, misses, result = line.split()
    text = f"log: compilation cache: {hits} programs loaded, {misses} compiled and kept"
    log = [one for one in log if "compilation cache:" in one]
    assert log == ([] if hits == misses == "0" else [text])
    return int(hits), int(misses), float(result)


def test_a_second_process_compiles_nothing(tmp_path):
    first = counts(start("auto", XDG_CACHE_HOME=str(tmp_path)))
    second = counts(start("auto", XDG_CACHE_HOME=str(tmp_path)))
    assert (first[0], second[1]) == (0, 0)
    assert second[0] == first[1] > 0
    assert first[2] == second[2]
    (folder,) = (tmp_path / "ugc_jax" / "compiled").iterdir()
    assert folder.name.startswith(f"{jax.lib.__version__}-cpu_")


def test_processes_share_a_folder(tmp_path):
    together = [start(str(tmp_path)) for _ in range(3)]
    assert len({counts(process)[2] for process in together}) == 1
    assert counts(start(str(tmp_path)))[1] == 0


def test_off_and_what_jax_is_told(tmp_path):
    told = str(tmp_path / "told")
    assert counts(start("off", XDG_CACHE_HOME=str(tmp_path)))[:2] == (0, 0)
    assert counts(start("off", JAX_COMPILATION_CACHE_DIR=told))[:2] == (0, 0)
    counts(start("auto", JAX_COMPILATION_CACHE_DIR=told, XDG_CACHE_HOME=str(tmp_path)))
    assert not (tmp_path / "ugc_jax").exists()


def test_a_folder_that_cannot_be_used(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    folder = str(tmp_path / "file" / "below")
    device = jax.devices()[0]
    with pytest.raises(UserError, match=r"^compute\.compilation_cache: .*below cannot be written"):
        compilation.keep_compiled(folder, device)
    before = jax.config.jax_compilation_cache_dir
    monkeypatch.setenv("XDG_CACHE_HOME", folder)
    try:
        jax.config.update("jax_compilation_cache_dir", None)
        compilation.keep_compiled("auto", device)  # works without
        assert jax.config.jax_compilation_cache_dir is None
    finally:
        jax.config.update("jax_compilation_cache_dir", before)


def test_another_cpu_has_another_folder(monkeypatch):
    device = jax.devices()[0]
    one = compilation.default_folder(device)
    monkeypatch.setattr(compilation, "_cpu_features", lambda: "flags: sse4")
    other = compilation.default_folder(device)
    assert one.parent == other.parent != Path()
    assert one != other
