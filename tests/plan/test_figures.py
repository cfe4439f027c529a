"""The figures of `plan` in the docs are those of docs/figures/plans.json, which plan wrote."""

import importlib.metadata
import importlib.util
import json
import re
from pathlib import Path

import pytest
import tpu_compiler

from ugc_jax import cli

ROOT = Path(__file__).resolve().parents[2]


def module(name: str):
    """A module of launch/, which is no package."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "launch" / f"{name}.py")
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


figures = module("plans")
PLANS = figures.plans()


@pytest.mark.parametrize("page", sorted(figures.TABLES))
def test_tables_are_those_of_the_file(page):
    text = (ROOT / "docs" / page).read_text("utf-8")
    for table in figures.TABLES[page]:
        assert table() in text


@pytest.mark.parametrize("page", sorted(figures.SENTENCES))
def test_sentences_are_those_of_the_file(page):
    text = " ".join((ROOT / "docs" / page).read_text("utf-8").split())
    assert figures.SENTENCES[page]() in text


def test_the_file_is_of_its_commands():
    assert list(PLANS) == [one for one in figures.COMMANDS if one in PLANS]
    for command in PLANS:
        cli.load_job("plan").SETTINGS.parse(command.split())


def test_slices_that_are_chosen_hold_the_config():
    """`auto` in launch/slices.sh, and docs/pods.md: the plan of that slice fits."""
    text = (ROOT / "launch" / "slices.sh").read_text("utf-8")
    cases = re.findall(r"^ +((?:sft|grpo)_[^)]*)\) echo (\S+) ;;", text, re.MULTILINE)
    chosen = {name.strip(): one for names, one in cases for name in names.split("|")}
    assert len(chosen) == 9
    assert chosen == figures.CHOSEN
    plans = {name: PLANS.get(f"--config {name} --topology {one}") for name, one in chosen.items()}
    assert None not in plans.values()
    assert all(plan["fits"] for plan in plans.values())


def test_operations_of_the_paper_are_those_of_plan():
    """launch/paper.py estimates hours with them."""
    paper = module("paper")
    checked = []
    for words, plan in PLANS.items():
        name = words.split()[1]
        known = {"model_flops", "programs"} & plan.keys()
        if name not in paper.WORK or not known or "--batch_size" in words:
            continue
        checked.append(name)
        work, rows = paper.WORK[name]
        assert figures.step_flops(plan)[0] / 1e12 == pytest.approx(work, rel=1e-3)
        assert plan["rows"] == rows
    assert {"sft_3b", "sft_3b:lora", "grpo_3b", "grpo_3b:lora"} <= set(checked)
    programs = PLANS["--config grpo_3b:lora --topology v5e:4x4"]["programs"]
    flops = sum(one["flops"] for one in programs[1:5])
    assert flops / 16 / 1e12 == pytest.approx(paper.QUESTION_TFLOP["3b"], rel=0.05)


@pytest.mark.slow
@tpu_compiler.needs_compiler
@pytest.mark.parametrize("command", PLANS)
def test_plans_made_again(command, monkeypatch):
    """One to ten minutes each. Another compiler may need another tenth of the memory."""
    monkeypatch.delenv("XLA_FLAGS")  # see tpu_compiler.run
    kept = PLANS[command]
    same = importlib.metadata.version("libtpu") == kept["libtpu"]
    if kept["chip"].startswith("v6") and not same:
        pytest.skip(f"made with libtpu {kept['libtpu']} (docs/planning.md)")
    made = figures.planned(command)
    assert made is not None
    print(json.dumps(made, indent=1))
    for name, value in kept.items():
        if isinstance(value, float | int) and not isinstance(value, bool):
            assert made[name] == pytest.approx(value, rel=0.02 if same else 0.1), name
    assert made["fits"] == kept["fits"]
