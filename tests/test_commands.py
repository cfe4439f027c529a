"""Command lines in texts are understood by the jobs: of today's texts, and those of 0.1.0."""

import ast
import re
import shlex
from pathlib import Path

import pytest

from ugc_jax import cli
from ugc_jax.errors import UserError

ROOT = Path(__file__).resolve().parents[1]
TEXTS = [
    ROOT / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted(ROOT.glob("configs/*.py")),
]


def commands(text: str) -> list[str]:
    """The command lines of a text: lines and code spans that begin with `ugc-jax JOB`."""
    joined = re.sub(r"\\\n\s*", " ", text)
    found = re.findall(r"^\s*(ugc-jax .+)$", joined, re.MULTILINE)
    found += re.findall(r"`(ugc-jax [^`]+)`", joined)
    jobs = rf"ugc-jax ({'|'.join(cli.JOBS)})\b"
    return [line for line in found if re.match(jobs, line)]


def parse(line: str):
    """The config and the arguments of a command line."""
    _, job, *words = shlex.split(line, comments=True)
    words = [word for word in words if word != "--help"]
    return cli.load_job(job).SETTINGS.parse(words)


def text_of(path: Path) -> str:
    text = path.read_text()
    return ast.get_docstring(ast.parse(text)) if path.suffix == ".py" else text


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.name)
def test_commands_of_todays_texts(path):
    found = commands(text_of(path))
    assert found
    for line in found:
        if " --" in line:  # not the name of a job in prose
            parse(line)


# README, quickstart and configs of 0.1.0.
OLD = r"""
ugc-jax inspect --config.checkpoint=$checkpoint --config.preset=upstream clips/
ugc-jax caption --config.checkpoint=$checkpoint --config.output=out.jsonl clips/
ugc-jax caption --config=configs/caption_upstream.py --config.checkpoint=c --config.token_ids=true clip.mp4
ugc-jax caption --config=configs/caption_upstream.py:greedy --config.checkpoint=DIR clip.mp4
ugc-jax caption --config.checkpoint=c --config.output=sale.jsonl --config.question="What is for sale here?" --config.fps=1 --config.temperature=0.2 --config.max_new_tokens=128 "clips/*.mp4"
ugc-jax extract --config.preset=upstream --config.output=records/mine mine.jsonl
ugc-jax plan --config=configs/sft_3b.py --config.data.train=records/mine --config.topology=v5e:4x4
ugc-jax plan --config=configs/sft_3b.py:lora --config.topology=v5e:2x4
ugc-jax sft --config=configs/sft_3b.py --config.data.train=records/mine --config.output=runs/mine
ugc-jax sft --config=configs/sft_3b.py --config.compute.attention=cudnn
ugc-jax sft --config=configs/sft_3b_20k.py
ugc-jax sft --config=configs/sft_3b.py --config.data.packing=false --config.loop.sample_tokens=64 --config.loop.samples=2 --config.loop.wandb=PROJECT
ugc-jax caption --config.checkpoint=runs/mine/model --config.preset=upstream clips/
ugc-jax plan --config=configs/grpo_3b.py --config.topology=v5e:4x4
ugc-jax plan --config=configs/sft_3b.py --config.topology=v5e:4x4 --config.clip.frames=16 --config.clip.height=224
ugc-jax grpo --config=configs/grpo_3b.py --config.checkpoint=runs/mine --config.output=runs/grpo
ugc-jax grpo --config=configs/grpo_3b.py:lora --config.rollout.data=-1 --config.rollout.tensor=2 --config.rollout.max_new_tokens=64 --config.rollout.temperature=0.7 --config.rollout.seed=1 --config.loop.eval_prompts=8
ugc-jax grpo --config=configs/grpo_3b.py --config.rewards.functions=rouge=1,length=0.5 --config.rewards.judge.base_url=http://host/v1 --config.rewards.judge.model=m
ugc-jax evaluate --config.qa=qa --config.task=final_caption --config.predictions=captions.jsonl --config.judge.model=gpt-4o-2024-08-06 --config.output=results/mine.json
ugc-jax evaluate --config.qa=qa --config.ask.checkpoint=runs/mine/model --config.ask.videos=clips --config.ask.preset=upstream --config.judge.model=m --config.judge.repeats=3 --config.judge.prompt=FILE --config.output=results/mine.json
ugc-jax evaluate --config=configs/evaluate_upstream.py:answers --config.qa=qa --config.task=background,objects --config.predictions=answers --config.output=result.json
ugc-jax compare results/base.json results/mine.json
ugc-jax report --config.output=report.html --config.videos=clips results/mine.json results/base.json
ugc-jax init --config.size=tiny --config.output=start
ugc-jax world --config.output=world
ugc-jax world --config.output=mute --config.train=0 --config.mute=true
ugc-jax extract --config=configs/world.py --config.output=records world/test.jsonl
ugc-jax extract --config.preset=upstream --config.workers=1 --config.format=png --config.mel=float32 --config.output=r world/test.jsonl
ugc-jax caption --config=configs/world.py:caption --config.checkpoint=c --config.output=o.jsonl --config.report=o.json -- world/test
ugc-jax sft --config=configs/tiny.py:runs/quickstart
ugc-jax grpo --config=configs/grpo_tiny.py:runs/quickstart
ugc-jax evaluate --config.qa=world/test.jsonl --config.predictions=grpo.jsonl --config.name=GRPO --config.output=grpo.json
ugc-jax inspect --config.checkpoint=grpo/model --config.max_new_tokens=64 --config.dtype=float32 --config.json=true -- clip.mp4
ugc-jax caption --config.checkpoint=grpo/model --config.dtype=bfloat16 --config.max_new_tokens=64 -- clip.mp4
ugc-jax bench --config.size=tiny --config.batch_size=2 --config.frames=2 --config.dtype=bfloat16
ugc-jax convert --config.checkpoint=c --config.output=o --config.to=orbax --config.dtype=bfloat16
"""  # noqa: E501


@pytest.mark.parametrize("line", OLD.strip().splitlines())
def test_commands_of_version_0_1(line, monkeypatch):
    monkeypatch.chdir(ROOT)  # of the configs' paths
    assert parse(line) == parse(line.replace("--config.", "--"))  # the same in the new spelling


@pytest.mark.parametrize(
    ("line", "new"),
    [
        ("ugc-jax caption --config.data=4 clips/", "--mesh.data"),
        ("ugc-jax caption --config.tensor=2 clips/", "--mesh.tensor"),
        ("ugc-jax caption --config.max_tokens=2000 clips/", "--clip.max_tokens"),
        ("ugc-jax inspect --config.max_tokens=2000 clips/", "--clip.max_tokens"),
    ],
)
def test_lines_with_a_new_spelling_are_in_the_table(line, new):
    with pytest.raises(UserError, match=f"another name now; write {new}"):
        parse(line)
    (flag,) = re.findall(r"--config\.\w+", line)
    table = (ROOT / "docs/command_line.md").read_text()
    assert re.search(rf"\| `{re.escape(flag)}=N` \| `{re.escape(new)} N`", table)
