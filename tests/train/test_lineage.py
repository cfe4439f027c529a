"""ugc_jax.train.lineage: what is kept of how weights came about, and what is not."""

import json

import pytest

from ugc_jax.cli import load_job
from ugc_jax.hf.card import card, own_text, write_card
from ugc_jax.hf.trained import Trained, read_trained, write_trained
from ugc_jax.media.presets import ClipSettings, resolve
from ugc_jax.train.lineage import lineage

TERMS = (
    "---\nlicense: other\nlicense_name: some-terms\nlicense_link: https://x.org/terms\n---\n# B\n"
)


def settings(job: str, folder, *words):
    """Settings of a run whose paths are all below `folder`."""
    paths = ["--output", f"{folder}/secret/run", "--train", f"{folder}/secret/records"]
    config, _ = load_job(job).SETTINGS.parse([*paths, "--batch_size", "1", *words])
    return config


@pytest.fixture
def records(tmp_path):
    folder = tmp_path / "secret" / "records"
    folder.mkdir(parents=True)
    (folder / "extraction.json").write_text('{"card": {"license": "cc0"}}')
    rows = [{"extra": {"source": "https://a.org/1"}}, {"extra": {"license": "mit"}}]
    (folder / "index.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))


@pytest.fixture
def weights(tmp_path):
    folder = tmp_path / "snapshot"
    folder.mkdir()
    (folder / "README.md").write_text(TERMS)
    return folder


def test_a_first_training(tmp_path, records, weights):
    found = lineage(settings("sft", tmp_path, "--checkpoint", "org/base", "--steps", "7"), weights)
    assert found["kind"] == "sft"
    terms = {
        "license": "other",
        "license_name": "some-terms",
        "license_link": "https://x.org/terms",
    }
    assert found["base"] == {"model": "org/base", "name": "org/base", "license": terms}
    assert found["before"] == []
    assert found["data"] == [
        {
            "name": "records",
            "records": 2,
            "sources": {"a.org": 1},
            "licenses": {"cc0": 1, "mit": 1},
        }
    ]
    assert found["settings"]["loop.steps"] == 7
    assert found["settings"]["optimizer.learning_rate"] == 1e-5
    assert "secret" not in json.dumps(found)
    assert str(tmp_path) not in json.dumps(found)


def test_a_second_training_has_the_base_of_the_first(tmp_path, records, weights):
    first = lineage(settings("sft", tmp_path, "--checkpoint", "org/base"), weights)
    (tmp_path / "model").mkdir()
    write_trained(tmp_path / "model", Trained(resolve(ClipSettings()), {}, first))
    config = settings("grpo", tmp_path, "--checkpoint", str(tmp_path / "model"))
    found = lineage(config, tmp_path / "model")
    assert found["kind"] == "grpo"
    assert found["base"] == first["base"]
    assert found["before"] == [{"kind": "sft", "data": ["records"]}]
    assert str(tmp_path) not in json.dumps(found)


def test_data_that_cannot_be_read_and_a_local_base_are_names(tmp_path, weights):
    config = settings("sft", tmp_path, "--checkpoint", f"{weights}/")
    found = lineage(config, weights)
    assert found["data"] == [{"name": "records"}]
    assert (found["base"]["model"], found["base"]["name"]) == (None, "snapshot")


def test_the_card_of_a_local_base_without_a_known_licence(tmp_path):
    training = {
        "kind": "sft",
        "base": {"model": None, "name": "mine|`x", "license": {}},
        "data": [],
    }
    write_trained(tmp_path, Trained(resolve(ClipSettings()), {}, training))
    assert read_trained(tmp_path).training == training
    text = card(tmp_path, "ann/mine")
    head, _, body = text.removeprefix("---\n").partition("---\n")
    assert "license" not in head
    assert "base_model" not in head
    assert (
        "under the licence of a local checkpoint (`mine|x`), from which they were trained." in body
    )
    write_card(tmp_path, own="Hello.\n")
    assert own_text(tmp_path) == "Hello.\n"
    write_card(tmp_path, "ann/mine", own="not this")
    assert (tmp_path / "README.md").read_text() == text + "Hello.\n"


def test_a_card_without_anything_known(tmp_path):
    text = card(tmp_path, "ann/mine")
    assert "A captioner of short videos from picture and sound. Made with ugc_jax" in text
    assert "another licence that is not known here" in text
