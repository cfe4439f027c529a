"""launch/data_life.py: people with known error rates, and what their captions state."""

import json
import runpy
from pathlib import Path

import pytest

from ugc_jax.toy import world

PARTS = runpy.run_path(str(Path(__file__).resolve().parents[1] / "launch" / "data_life.py"))


@pytest.fixture(scope="module")
def truth():
    return {f"{number}.mp4": world.make_clip("test", number)[1] for number in range(200)}


def person(truth, name):
    someone = object.__new__(PARTS["Person"])
    someone.name, someone.truth = name, truth
    return someone


@pytest.mark.parametrize("errors", [0.0, 0.1, 0.2])
def test_people_err_at_their_rate(truth, errors):
    someone = person(truth, "ben")
    said = {clip: someone.values(clip, errors)["both"]["caption"] for clip in truth}
    assert PARTS["wrong_share"](said, truth) == pytest.approx(errors, abs=0.03)
    assert said == {clip: someone.values(clip, errors)["both"]["caption"] for clip in truth}
    other = person(truth, "cem")
    assert errors == 0 or said != {
        clip: other.values(clip, errors)["both"]["caption"] for clip in truth
    }


def test_a_persons_stages_say_the_same(truth):
    someone = person(truth, "ben")
    for clip in list(truth)[:50]:
        said = someone.values(clip, 0.3)
        stated = world.parse_caption(said["both"]["caption"])
        assert said["sound"]["music"] == (stated["sound"] == "music")
        assert said["picture"]["objects"][0]["color"] == stated["colour"]


def said(folder, task):
    return (folder / f"answers/{task}.jsonl").read_text().splitlines()


def test_answers_from_captions(truth, tmp_path):
    names = list(truth)[:20]
    rows = [
        {"video": f"clips/{name}", "caption": world.write_caption(truth[name], 0)} for name in names
    ]
    rows.append({"video": "clips/broken.mp4", "error": "cannot be read"})
    path = tmp_path / "captions.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    PARTS["answers"](path, tmp_path / "answers")
    for name, line in zip(names, said(tmp_path, "bgm"), strict=False):
        expected = "Yes" if truth[name]["sound"] == "music" else "No"
        assert json.loads(line) == {"video_id": Path(name).stem, "prediction": expected}
    for name, line in zip(names, said(tmp_path, "ocr"), strict=False):
        text = truth[name]["text"]
        expected = [] if text == world.NO_TEXT else [text]
        assert json.loads(json.loads(line)["prediction"]) == {"ocr": expected}
