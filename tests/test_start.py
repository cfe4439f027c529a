"""ugc_jax.train.start: what may differ when a run goes on. (The states: test_sft.py.)"""

import pytest

from ugc_jax.errors import UserError
from ugc_jax.train.start import check_settings, join_processes

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


@pytest.mark.parametrize(
    ("key", "value"), [("optimizer.learning_rate", 1e-6), ("loop.steps", 20), ("loop.keep", 3)]
)
def test_other_changes_are_told(key, value, caplog):
    with caplog.at_level("INFO", logger="ugc_jax"):
        check_settings(BEFORE, changed(key, value), "run/checkpoints/5")
    (record,) = caplog.records
    assert f"{key} was " in record.message
    assert record.message.endswith(f"is {value}")


def test_no_change_is_not_told(caplog):
    with caplog.at_level("INFO", logger="ugc_jax"):
        check_settings(BEFORE, BEFORE, "run/checkpoints/5")
    assert not caplog.records


def test_processes_that_nobody_started_are_told():
    with pytest.raises(UserError, match=r"^distributed: the other processes are not found \(.*\);"):
        join_processes()
