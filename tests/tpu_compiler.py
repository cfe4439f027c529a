"""The real TPU compiler (libtpu), which needs no TPU."""

import importlib.util
import os
import subprocess

import pytest

has_compiler = importlib.util.find_spec("libtpu") is not None
needs_compiler = pytest.mark.skipif(
    not has_compiler, reason="the TPU compiler (libtpu) is not installed"
)


def run(command: list[str]) -> subprocess.CompletedProcess:
    """Run a command that compiles for TPUs, with its output as text.

    It is a process of its own, as the compiler's library sets up the whole process for TPUs, and
    has none of the tests' XLA_FLAGS, which are of CPUs: the library ends it at one that it does not
    know.
    """
    env = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    return subprocess.run(command, capture_output=True, text=True, env=env)
