"""Clips of the world, and a run of `label` on them."""

from pathlib import Path

import pytest
from label_job import KEYS, Job

from ugc_jax import files
from ugc_jax.toy import world
from ugc_jax.toy.world import WorldSettings


@pytest.fixture(scope="session")
def clips(tmp_path_factory) -> Path:
    """A manifest of 40 clips, all with sound."""
    folder = tmp_path_factory.mktemp("labels")
    (folder / "train").mkdir()
    rows = [world.write_example("train", n, WorldSettings(seconds=1.0), folder) for n in range(40)]
    files.write_text(folder / "train.jsonl", files.to_lines(rows))
    return folder / "train.jsonl"


@pytest.fixture(autouse=True)
def _no_keys(monkeypatch):
    for name in KEYS:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def job(clips, tmp_path):
    """A function: teacher, kind, name of the output -> Job."""

    def make(teacher, kind: str = "gemini", name: str = "run") -> Job:
        return Job(teacher, clips, tmp_path / name / "train.jsonl", kind)

    return make
