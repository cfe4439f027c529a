"""launch/select_half.py: reposts, a random half, and the differences over seeds."""

import json
import runpy
from pathlib import Path

import numpy as np
import pytest
from clips import random_scene, write_clip
from fake_results import world

from ugc_jax import files
from ugc_jax.media.clip import probe, read_pictures, resize
from ugc_jax.media.sound import read_sound

PARTS = runpy.run_path(str(Path(__file__).resolve().parents[1] / "launch" / "select_half.py"))


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def manifest(tmp_path):
    rows = []
    for number in range(4):
        write_clip(tmp_path / f"{number}.mp4", scene=random_scene(number), seconds=2.0)
        rows.append({"videos": [f"{number}.mp4"], "caption": f"Clip {number}."})
    files.write_text(tmp_path / "train.jsonl", files.to_lines(rows))
    return tmp_path / "train.jsonl"


def test_reposts_show_and_sound_like_their_clips_and_are_other_files(manifest, tmp_path):
    PARTS["make_pool"](manifest, tmp_path / "pool.jsonl", 0.5)
    first, again = lines(tmp_path / "pool.jsonl")[:4], lines(tmp_path / "pool.jsonl")[4:]
    assert first == lines(manifest)
    assert len(again) == 2
    for row in again:
        original = next(one for one in first if one["caption"] == row["caption"])
        sources = [probe(tmp_path / one["videos"][0]) for one in (original, row)]
        assert sources[0].frames == sources[1].frames
        size = sources[0].height, sources[0].width
        a, b = (
            read_pictures(one, np.arange(4), size, lambda frame, size: resize(frame, *size))[0]
            for one in sources
        )
        assert 0 < np.abs(np.stack(a).astype(int) - np.stack(b)).mean() < 8
        heard = [read_sound(one, 0.0, None, 60.0).waveform for one in sources]
        shortest = min(map(len, heard))
        assert np.corrcoef(*(one[:shortest] for one in heard))[0, 1] > 0.95


def test_a_random_half_is_of_the_size_of_the_selected_one(tmp_path):
    rows = [{"videos": [f"{number}.mp4"]} for number in range(10)]
    files.write_text(tmp_path / "all.jsonl", files.to_lines(rows))
    files.write_text(tmp_path / "selected.jsonl", files.to_lines(rows[:5]))
    paths = tmp_path / "all.jsonl", tmp_path / "selected.jsonl"
    chosen = []
    for seed in (0, 0, 1):
        PARTS["choose_random"](*paths, tmp_path / "random.jsonl", seed)
        chosen.append([row["videos"][0] for row in lines(tmp_path / "random.jsonl")])
    assert chosen[0] == chosen[1] != chosen[2]
    assert all(len(set(one)) == 5 for one in chosen)


def test_differences_with_intervals(tmp_path, capsys):
    for seed, wrong in ((0, {"selected": 0, "random": 2}), (1, {"selected": 1, "random": 0})):
        for name, count in wrong.items():
            one = world(name, [["shape", "text"][:count]] * 20)
            files.write_json(tmp_path / f"seed{seed}/{name}.json", one)
    PARTS["compare"](tmp_path)
    said = [line.split() for line in capsys.readouterr().out.splitlines()[1:]]
    assert said == [
        ["seed0", "+20.00", "+20.00", "to", "+20.00", "(100.0", "and", "80.0)"],
        ["seed1", "-10.00", "-10.00", "to", "-10.00", "(90.0", "and", "100.0)"],
        ["all", "seeds", "+5.00", "+5.00", "to", "+5.00"],
    ]
