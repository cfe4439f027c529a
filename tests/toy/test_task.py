"""ugc_jax.toy.task: the world as a task of evaluate."""

import json
import logging

import pytest

from ugc_jax.errors import UserError
from ugc_jax.evals import tasks
from ugc_jax.toy import task, world

FORMS = tasks.FORMS | task.TASKS


@pytest.mark.parametrize("names", [("world",), tasks.TASKS])
def test_the_manifest_of_a_world(tmp_path, caplog, names):
    attributes = {name: values[0] for name, values in world.VALUES.items()}
    rows = [
        {"videos": [f"test/{n:06}.mp4"], "messages": [], "attributes": attributes} for n in range(2)
    ]
    manifest = tmp_path / "any name.jsonl"
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with caplog.at_level(logging.WARNING):
        (found,) = tasks.load_tasks(manifest, names, FORMS).values()
    assert (found.name, found.form, found.question) == ("world", task.FORM, world.QUESTION)
    assert found.samples[1] == tasks.Sample("000001", attributes)
    assert found.form.columns == ("visual", "audio", "text", "cross", "all_right")
    assert not caplog.text
    with pytest.raises(UserError, match="is of the task world, not of tone"):
        tasks.load_tasks(manifest, ("tone",), FORMS)


def test_scores():
    attributes = {name: values[0] for name, values in world.VALUES.items()}
    caption = world.write_caption(attributes, 0)
    names = ("score", *world.GROUPS, "all_right")
    assert task.caption_scores(caption, attributes) == dict.fromkeys(names, 100.0)
    assert task.caption_scores("Nothing.", attributes) == dict.fromkeys(names, 0.0)
    wrong = attributes | {"pitch": world.VALUES["pitch"][1]}
    scores = task.caption_scores(caption, wrong)
    assert scores["score"] == pytest.approx(90)
    assert scores["audio"] == pytest.approx(200 / 3)
    assert (scores["visual"], scores["all_right"]) == (100, 0)
