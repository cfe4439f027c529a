"""ugc_jax.train.run: what may differ when a run goes on. (Whole runs: tests/jobs/test_sft.py.)"""

import contextlib
import json

import pytest

from ugc_jax.errors import UserError
from ugc_jax.models.lora import LoraConfig
from ugc_jax.models.qwen2_5_omni.config import mid, tiny
from ugc_jax.rl.settings import GrpoConfig
from ugc_jax.train.run import check_settings, resolve_weights, stored_settings
from ugc_jax.train.settings import TrainConfig

BEFORE = {
    "master": "float32",
    "trainable": {"vision": False},
    "lora": {"rank": 0, "alpha": 16.0},
    "optimizer": {"name": "adamw", "learning_rate": 1e-5},
    "loop": {"steps": 10},
}


def check(before, now):
    check_settings(before, now, "run/checkpoints/5", TrainConfig.FIXED, TrainConfig.FIXED_ZERO)


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
        ("optimizer.mu_dtype", "bfloat16"),
    ],
)
def test_what_a_checkpoint_does_not_fit_is_refused(key, value):
    with pytest.raises(UserError) as told:
        check(BEFORE, changed(key, value))
    assert str(told.value).startswith(f"run/checkpoints/5: {key} was ")
    assert str(told.value).endswith("set it back, or choose another output")


def test_another_model_is_told():
    config = LoraConfig()  # any
    before, now = stored_settings(config, tiny()), stored_settings(config, mid())
    with pytest.raises(UserError, match=r"is of another model \(model\..* was .* give the checkp"):
        check(before, now)
    check(json.loads(json.dumps(before)), before)


@pytest.mark.parametrize(
    ("key", "value"), [("optimizer.learning_rate", 1e-6), ("loop.steps", 20), ("loop.keep", 3)]
)
def test_other_changes_are_told(key, value, caplog):
    with caplog.at_level("INFO", logger="ugc_jax"):
        check(BEFORE, changed(key, value))
    (record,) = caplog.records
    assert f"{key} was " in record.message
    assert record.message.endswith(f"is {value}")


@pytest.mark.parametrize(("before", "now", "fits"), [(0.1, 0.2, True), (0.1, 0, False)])
def test_a_reference_stays_or_stays_away(before, now, fits):
    old, new = {"grpo": {"beta": before}}, {"grpo": {"beta": now}}
    with contextlib.nullcontext() if fits else pytest.raises(UserError, match=r"grpo\.beta was"):
        check_settings(old, new, "run/checkpoints/5", GrpoConfig.FIXED, GrpoConfig.FIXED_ZERO)


def test_a_run_stands_for_its_model(tmp_path):
    assert resolve_weights(str(tmp_path)) == tmp_path
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(UserError, match=f"^{tmp_path}: a run that has not come to its end; run it"):
        resolve_weights(str(tmp_path))
    (tmp_path / "model").mkdir()
    assert resolve_weights(str(tmp_path)) == tmp_path / "model"


def test_no_change_is_not_told(caplog):
    with caplog.at_level("INFO", logger="ugc_jax"):
        check(BEFORE, BEFORE)
    assert not caplog.records
