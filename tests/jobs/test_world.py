"""ugc_jax.jobs.world: the manifests and clips of the offline world."""

import dataclasses
import json

import pytest

from ugc_jax.errors import UserError
from ugc_jax.jobs.world import SETTINGS, WorldConfig, main
from ugc_jax.toy import world


def test_job_writes_manifests_and_keeps_clips(tmp_path):
    folder = tmp_path / "world"
    config = WorldConfig(output=str(folder), train=5, test=2, workers=2)
    assert main(config, []) == 0
    rows = [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]
    assert [row["videos"] for row in rows] == [[f"train/{n:06d}.mp4"] for n in range(5)]
    assert [row["attributes"] for row in rows] == [
        world.make_clip("train", number)[1] for number in range(5)
    ]
    question, answer = rows[0]["messages"]
    assert question == {"role": "user", "content": f"<video>{world.QUESTION}"}
    assert world.check(answer["content"], rows[0]["attributes"])["text"]
    files = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert len(files) == 5 + 2 + 3
    (folder / "test" / "000001.mp4").unlink()
    kept = (folder / "train" / "000000.mp4").stat().st_mtime_ns
    assert main(config, []) == 0
    assert {path: path.read_bytes() for path in files} == files
    assert (folder / "train" / "000000.mp4").stat().st_mtime_ns == kept
    with pytest.raises(UserError, match=r"world.json: .* seed 0, not 1; choose another output"):
        main(dataclasses.replace(config, world=world.WorldSettings(seed=1)), [])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("seed=-1", r"^world\.seed is -1; use 0 or more"),
        ("seconds=0.5", r"^world\.seconds is 0.5; use 1 or more"),
        ("size=99", r"^world\.size is 99; use an even number"),
        ("train=-1", "^train is -1; use 0 or more"),
        ("workers=0", "^workers is 0; use 1 or more"),
    ],
)
def test_settings_that_give_no_clips_are_refused(tmp_path, change, message):
    with pytest.raises(UserError, match=message):
        main(*SETTINGS.parse([f"--output={tmp_path / 'world'}", f"--config.{change}"]))
    assert not (tmp_path / "world").exists()
