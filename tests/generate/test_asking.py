"""ugc_jax.generate.asking: every question of a clip, one model, files that are gone on with."""

import dataclasses
import json
import shutil
from collections import Counter
from typing import NamedTuple

import jax
import pytest
from hooks import hooked_workers
from safetensors.numpy import load_file, save_file

from ugc_jax.data.example import load_example
from ugc_jax.errors import UserError
from ugc_jax.generate.asking import ask
from ugc_jax.generate.captioner import Captioner
from ugc_jax.generate.settings import AskConfig, EngineConfig, SamplingConfig
from ugc_jax.jobs.evaluate import SETTINGS
from ugc_jax.media.presets import ClipSettings, resolve
from ugc_jax.models.compute import ComputeConfig

CLIP = ClipSettings(frames=4, min_pixels=784, max_pixels=12544)
SMALL = CLIP, SamplingConfig(max_new_tokens=4), EngineConfig(batch_size=2)


class Asked(NamedTuple):
    question: str
    ids: tuple[str, ...]


@pytest.fixture
def captioner(tiny_captioner, monkeypatch):
    """The compiled captioner; returns a list of the {clip: questions} that it gets."""
    asked, answer = [], tiny_captioner.answer

    def listen(questions, *args):
        asked.append(questions)
        return answer(questions, *args)

    monkeypatch.setattr(tiny_captioner, "answer", listen)
    monkeypatch.setattr(Captioner, "from_pretrained", lambda *args, **kwargs: tiny_captioner)
    return asked


@pytest.fixture
def config(tiny_checkpoint, clips):
    return AskConfig(checkpoint=str(tiny_checkpoint), videos=str(clips))


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_each_question_of_its_clips_and_again(config, captioner, clips, tmp_path, caplog):
    questions = {
        "tone": Asked("Which tone?", ("a", "b", "nowhere")),
        "ocr": Asked("Which text?", ("a", "broken")),
    }
    folder = tmp_path / "answers"
    how = ask(config, questions, folder, *SMALL)
    assert (how["checkpoint"], how["questions"]["tone"]) == (config.checkpoint, "Which tone?")
    a, b, broken = (str(clips / f"{name}.mp4") for name in ("a", "b", "broken"))
    both = ["Which tone?", "Which text?"]
    assert captioner == [{a: both, b: both[:1], broken: both[1:]}]
    assert sorted(row["video"] for row in lines(folder / "tone.jsonl")) == [a, b]
    assert "1 of 3 clips are not in" in caplog.text
    by_video = {row["video"]: row for row in lines(folder / "ocr.jsonl")}
    assert "error" in by_video[broken]
    assert "caption" in by_video[a]
    # again: answers stay, the error is tried again
    captioner.clear()
    ask(config, questions, folder, *SMALL)
    assert captioner == [{broken: ["Which text?"]}]
    assert len(lines(folder / "ocr.jsonl")) == 2


def test_own_question(config, captioner, clips, tmp_path):
    clip = dataclasses.replace(CLIP, question="What?")
    ask(config, {"tone": Asked("Which tone?", ("a",))}, tmp_path, clip, *SMALL[1:])
    assert captioner == [{str(clips / "a.mp4"): ["What?"]}]


def test_a_question_without_clips_is_left_out(config, captioner, clips, tmp_path):
    questions = {"tone": Asked("?", ("nowhere",)), "ocr": Asked("Which text?", ("a",))}
    ask(config, questions, tmp_path, *SMALL)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".asked.json", "ocr.jsonl"]


def test_answers_of_others_are_not_gone_on_with(config, captioner, clips, tmp_path):
    tone = {"tone": Asked("Which tone?", ("a",))}
    ask(config, tone, tmp_path, *SMALL)
    copy = shutil.copytree(config.checkpoint, tmp_path / "y")
    tensors = load_file(copy / "model.safetensors")
    save_file({name: value + 1 for name, value in tensors.items()}, copy / "model.safetensors")
    other = dataclasses.replace(config, checkpoint=str(copy))
    for change, given, settings in (
        ("checkpoint", other, SMALL),
        ("frames", config, (dataclasses.replace(CLIP, frames=6), *SMALL[1:])),
        ("temperature", config, (CLIP, SamplingConfig(max_new_tokens=4, temperature=0.5))),
        ("questions", config, (dataclasses.replace(CLIP, question="?"), SMALL[1])),
        ("dtype", config, (*SMALL, ComputeConfig(dtype="bfloat16"))),
    ):
        with pytest.raises(UserError, match=change) as caught:
            ask(given, tone, tmp_path, *settings)
        assert "another output" in str(caught.value)
    # another question is no other way of asking
    ask(config, {"ocr": Asked("Which text?", ("a",))}, tmp_path, *SMALL)
    ask(config, tone, tmp_path, *SMALL)


def test_a_start_that_failed_binds_nobody(config, captioner, clips, tmp_path, monkeypatch):
    tone = {"tone": Asked("Which tone?", ("a",))}
    with monkeypatch.context() as patch:
        patch.setattr(Captioner, "from_pretrained", refuse)
        with pytest.raises(UserError, match="no such"):
            ask(dataclasses.replace(config, checkpoint="typo"), tone, tmp_path)
    assert ask(config, tone, tmp_path, *SMALL)["checkpoint"] == config.checkpoint
    assert len(lines(tmp_path / "tone.jsonl")) == 1


LONG = "Which tone has the voice, and which the music?"


@pytest.mark.parametrize("tight", [False, True])
def test_a_clip_is_read_and_encoded_once(
    tight, config, tiny_captioner, clips, tmp_path, monkeypatch
):
    """Its answers are those of each question alone.

    tight: max_tokens leaves a long question fewer frames; these are encoded for it, not read anew.
    """
    monkeypatch.setattr(Captioner, "from_pretrained", lambda *args, **kwargs: tiny_captioner)
    log, names = tmp_path / "read", ("a", "b", "silent", "broken")
    actions = {f"{name}.mp4": f"open({str(log)!r}, 'a').write('{name} ')" for name in (*names, "c")}
    monkeypatch.syspath_prepend(hooked_workers(tmp_path / "hook", actions))
    encoded, encode = Counter(), tiny_captioner.engine.encode

    def count(params, batch):
        encoded["clips"] += int((batch.media["vision"].coords >= 0).any(axis=(1, 2, 3, 4)).sum())
        return encode(params, batch)

    monkeypatch.setattr(tiny_captioner.engine, "encode", count)
    clip, rest = dataclasses.replace(CLIP, min_pixels=9408), SMALL[1:]
    if tight:
        short = resolve(dataclasses.replace(clip, question="Which tone?"))
        rest_of = tiny_captioner.tokenizer, tiny_captioner.config
        _, info = load_example(clips / "a.mp4", short, *rest_of)
        clip = dataclasses.replace(clip, max_tokens=info.prompt_tokens + 2)
    questions = {
        "tone": Asked("Which tone?", names),
        "ocr": Asked("Which text?", names[1:]),
        "long": Asked(LONG, names),
        "again": Asked("Which tone?", names[:1]),
    }
    ask(config, questions, tmp_path / "together", clip, *rest)
    assert Counter(log.read_text().split()) == Counter(names)
    assert encoded["clips"] == (5 if tight else 3)  # the silent one has room
    for name, question in questions.items():
        ask(config, {name: question}, tmp_path / name, clip, *rest)
        together, alone = (
            {row["video"]: {k: v for k, v in row.items() if k != "seconds"} for row in lines(path)}
            for path in (tmp_path / "together" / f"{name}.jsonl", tmp_path / name / f"{name}.jsonl")
        )
        assert together == alone
        assert len(together) == len(question.ids)


def test_an_error_is_logged_once(config, captioner, tmp_path, caplog):
    questions = {name: Asked(f"{name}?", ("a", "broken")) for name in ("tone", "ocr")}
    ask(config, questions, tmp_path, *SMALL)
    assert caplog.text.count("broken.mp4: ") == 1
    assert all("error" in str(lines(tmp_path / f"{name}.jsonl")) for name in questions)


def test_exhausted_memory_loses_no_question(config, tiny_captioner, tmp_path, monkeypatch):
    """First the clips of a group are divided, then the questions of a clip."""
    monkeypatch.setattr(Captioner, "from_pretrained", lambda *args, **kwargs: tiny_captioner)
    questions = {name: Asked(f"The {name}?", ("a", "b")) for name in ("tone", "ocr", "bgm")}
    ask(config, questions, tmp_path / "whole", *SMALL)
    sizes, prefill = [], tiny_captioner.engine.prefill

    def short(params, batch, media=None, shared=None):
        sizes.append(len(batch.tokens))
        if len(batch.tokens) > 2:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")
        return prefill(params, batch, media, shared)

    monkeypatch.setattr(tiny_captioner.engine, "prefill", short)
    ask(config, questions, tmp_path / "short", *SMALL)
    assert max(sizes) > 2
    for name in questions:
        whole, halved = (
            {row["video"]: row["caption"] for row in lines(tmp_path / run / f"{name}.jsonl")}
            for run in ("whole", "short")
        )
        assert whole == halved


def refuse(checkpoint, **_):
    raise UserError(f"{checkpoint}: no such directory")


def test_mistakes(config, clips, tmp_path):
    for half in ("ask.checkpoint=x", f"ask.videos={clips}"):
        with pytest.raises(UserError, match=r"^ask\.(checkpoint needs ask\.v|videos needs ask\.c)"):
            SETTINGS.parse(["--output=o", f"--{half}"])
    with pytest.raises(UserError, match=r"^sampling\.top_p is 2\.0; use a number"):
        SETTINGS.parse(["--output=o", "--config.ask.top_p=2.0"])
    with pytest.raises(UserError, match="none of the clips"):
        ask(config, {"tone": Asked("?", ("nowhere",))}, tmp_path)
    with pytest.raises(UserError, match="not a folder"):
        ask(dataclasses.replace(config, videos=str(clips / "x")), {}, tmp_path)
    shutil.copytree(clips, tmp_path / "twice")
    shutil.copy(clips / "a.mp4", tmp_path / "twice" / "below" / "a.mp4")
    with pytest.raises(UserError, match="the same id"):
        ask(dataclasses.replace(config, videos=str(tmp_path / "twice")), {}, tmp_path)
