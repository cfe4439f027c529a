"""ugc_jax.extras: the table is pyproject.toml's, and captioning needs none of it."""

import re
import subprocess
import sys
import textwrap
import tomllib
from pathlib import Path

import pytest

from ugc_jax import cli, extras
from ugc_jax.errors import EnvironmentFailure, environment_failure, require_extra

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
DECLARED = PROJECT["optional-dependencies"]
ACCELERATORS = {"tpu", "cuda12", "cuda13"}
SITE = {"docs"}  # for those who write the documentation; no job needs it
GROUPS = {"all", "test"}  # of other extras
# Libraries that only the extras name; flax itself needs optax and orbax-checkpoint, jax scipy.
COME_ANYWAY = {"optax", "orbax", "scipy", "absl"}
ABSENT = (
    {
        module.partition(".")[0]
        for extra in extras.EXTRAS.values()
        for module in extra.libraries.values()
    }
    - COME_ANYWAY
    - {"google"}
)  # a namespace that protobuf has, too
# Runs the command line where the libraries of all extras are not installed.
BLOCKED = f"""
import sys
from importlib.machinery import PathFinder

class Finder(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name.partition(".")[0] in {sorted(ABSENT)} or name.startswith("google.genai"):
            return None
        return PathFinder.find_spec(name, path, target)

sys.meta_path[:] = [
    Finder if finder is PathFinder else finder
    for finder in sys.meta_path
    if "editable" not in str(finder).lower()
]
"""


def names(requirements: list[str]) -> set[str]:
    return {re.match(r"[\w.-]+", one)[0] for one in requirements}


def run_without_extras(code: str) -> subprocess.CompletedProcess:
    code = BLOCKED + textwrap.dedent(code)
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=300
    )


def test_the_table_is_that_of_pyproject():
    assert set(DECLARED) - ACCELERATORS - SITE - GROUPS == set(extras.EXTRAS)
    for name, extra in extras.EXTRAS.items():
        assert set(extra.libraries) == names(DECLARED[name]), name
        assert not set(extra.libraries) & (names(PROJECT["dependencies"]) - {"etils"}), name


def test_the_groups_name_extras_that_exist():
    for group in GROUPS:
        (own,) = (one for one in DECLARED[group] if one.startswith("ugc_jax["))
        assert set(own[8:-1].split(",")) <= set(extras.EXTRAS) | SITE


def test_the_packages_that_the_project_promises_are_declared():
    promised = {
        "jax", "flax", "optax", "orbax-checkpoint", "grain", "tensorflow-datasets",
        "transformers", "librosa", "ml-collections",
    }  # fmt: skip
    assert promised <= names(PROJECT["dependencies"] + sum(DECLARED.values(), []))


def test_jobs_name_extras_that_exist():
    assert {job.extra for job in cli.JOBS.values()} - {""} <= set(extras.EXTRAS) | SITE


def test_what_is_installed_is_told_from_what_is_not(monkeypatch):
    assert extras.missing("train") == []
    entry = extras.Extra("", {"A-b": "nowhere", "C": "google.nowhere", "D": "tqdm.std"})
    monkeypatch.setitem(extras.EXTRAS, "train", entry)
    assert extras.missing("train") == ["A-b", "C"]
    line = r"^sft needs A-b, C, not installed; pip install 'ugc_jax\[train\]'$"
    with pytest.raises(EnvironmentFailure, match=line):
        require_extra("train", "sft")


def test_a_missing_library_is_named_with_its_extra():
    error = ModuleNotFoundError("No module named 'array_record'", name="array_record.python")
    expected = "the library array_record.python is not installed; pip install 'ugc_jax[train]'"
    assert str(environment_failure(error)) == expected
    assert extras.extra_of("google.genai.types") == "gemini"
    assert extras.extra_of("numpy") is None


def test_a_library_that_fsspec_lacks_is_named_with_its_extra(monkeypatch):
    monkeypatch.setattr("ugc_jax.extras._is_there", lambda module: module != "s3fs")
    error = ImportError("Install s3fs to access S3")
    expected = "the library s3fs is not installed; pip install 'ugc_jax[s3]'"
    assert str(environment_failure(error)) == expected


def test_captions_without_any_extra(tiny_checkpoint, clips, tmp_path):
    output = tmp_path / "out.jsonl"
    words = ["caption", "--checkpoint", str(tiny_checkpoint), "--output", str(output)]
    words += ["--max_new_tokens", "4", "--max_pixels", "3136", str(clips / "a.mp4")]
    done = run_without_extras(f"from ugc_jax.cli import run; sys.exit(run({words}))")
    assert done.returncode == 0, done.stderr
    assert '"caption"' in output.read_text()


def test_functions_of_python_name_the_extra_that_they_need():
    done = run_without_extras("""
        import ugc_jax
        for name in ("sft", "grpo", "evaluate", "compare"):
            try:
                getattr(ugc_jax, name)([])
            except Exception as error:
                print(type(error).__name__, error)
        """)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    for line, extra in zip(lines, ("train", "train", "eval", "eval"), strict=True):
        assert line.startswith("EnvironmentFailure ")
        assert line.endswith(f"not installed; pip install 'ugc_jax[{extra}]'")


def test_every_help_without_any_extra_and_a_line_from_each_job_that_needs_one():
    done = run_without_extras("""
        from ugc_jax import cli
        from ugc_jax.errors import EnvironmentFailure
        for name, job in cli.JOBS.items():
            cli.run([name, "--help"])
        cli.run(["completion", "bash"])
        words = {
            "extract": ["--output", "out", "m.jsonl"], "select": ["--count=1", "--output=o", "l"],
            "sft": ["--config", "sft_3b"], "grpo": ["--config", "grpo_3b"], "compare": ["a", "b"],
            "calibrate": ["a", "b"],
            "plan": ["--config", "sft_3b", "--topology", "v5e:4x4"], "report": ["--output=o", "a"],
            "label": ["--output", "o", "a.mp4"], "evaluate": ["--output=o"],
            "annotate": ["--output", "o", "a"], "serve": ["--checkpoint", "a"],
        }
        assert words.keys() == {name for name, job in cli.JOBS.items() if job.extra}
        for name, rest in words.items():
            try:
                cli.run([name, *rest])
            except EnvironmentFailure as error:
                print(f"LINE {name}: {error}")
        """)
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if line.startswith("LINE ")]
    for name, job in cli.JOBS.items():
        if job.extra:
            (line,) = (one for one in lines if one.startswith(f"LINE {name}: "))
            assert f"{name} needs " in line
            assert line.endswith(f"not installed; pip install 'ugc_jax[{job.extra}]'")
