"""ugc_jax.train.start: what may differ when a run goes on. (The states: test_sft.py.)"""

import contextlib
import json

import pytest

from ugc_jax.errors import UserError
from ugc_jax.models.lora import LoraConfig
from ugc_jax.models.qwen2_5_omni.config import mid, tiny
from ugc_jax.train.start import begin_from, check_settings, join_processes, settings_of

BEFORE = {
    "master": "float32",
    "trainable": {"vision": False},
    "lora": {"rank": 0, "alpha": 16.0},
    "optimizer": {"name": "adamw", "learning_rate": 1e-5},
    "loop": {"steps": 10},
}


def changed(key: str, value) -> dict:
    section, _, name = key.rpartition(".")
    if not section:
        return BEFORE | {name: value}
    return BEFORE | {section: BEFORE[section] | {name: value}}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("master", "bfloat16"),
        ("trainable.vision", True),
        ("lora.rank", 4),
        ("optimizer.name", "adafactor"),
    ],
)
def test_what_a_checkpoint_does_not_fit_is_refused(key, value):
    with pytest.raises(UserError) as told:
        check_settings(BEFORE, changed(key, value), "run/checkpoints/5")
    assert str(told.value).startswith(f"run/checkpoints/5: {key} was ")
    assert str(told.value).endswith("set it back, or choose another output")


def test_another_model_is_told():
    config = LoraConfig()  # any
    before, now = settings_of(config, tiny()), settings_of(config, mid())
    with pytest.raises(UserError, match=r"is of another model \(model\..* was .* give the checkp"):
        check_settings(before, now, "run/checkpoints/5")
    check_settings(json.loads(json.dumps(before)), before, "run/checkpoints/5")


@pytest.mark.parametrize(
    ("key", "value"), [("optimizer.learning_rate", 1e-6), ("loop.steps", 20), ("loop.keep", 3)]
)
def test_other_changes_are_told(key, value, caplog):
    with caplog.at_level("INFO", logger="ugc_jax"):
        check_settings(BEFORE, changed(key, value), "run/checkpoints/5")
    (record,) = caplog.records
    assert f"{key} was " in record.message
    assert record.message.endswith(f"is {value}")


@pytest.mark.parametrize(("before", "now", "fits"), [(0.1, 0.2, True), (0.1, 0, False)])
def test_a_reference_stays_or_stays_away(before, now, fits):
    old, new = {"grpo": {"beta": before}}, {"grpo": {"beta": now}}
    with contextlib.nullcontext() if fits else pytest.raises(UserError, match=r"grpo\.beta was"):
        check_settings(old, new, "run/checkpoints/5")


def test_a_run_stands_for_its_model(tmp_path):
    assert begin_from(str(tmp_path)) == tmp_path
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(UserError, match=f"^{tmp_path}: a run that has not come to its end; run it"):
        begin_from(str(tmp_path))
    (tmp_path / "model").mkdir()
    assert begin_from(str(tmp_path)) == tmp_path / "model"


def test_no_change_is_not_told(caplog):
    with caplog.at_level("INFO", logger="ugc_jax"):
        check_settings(BEFORE, BEFORE, "run/checkpoints/5")
    assert not caplog.records


def test_processes_that_nobody_started_are_told():
    with pytest.raises(UserError, match=r"^distributed: the other processes are not found \(.*\);"):
        join_processes()
