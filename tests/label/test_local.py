"""ugc_jax.label.local: our own engine as the teacher."""

import asyncio
import json

import pytest

from ugc_jax import cli
from ugc_jax.generate.captioner import Caption
from ugc_jax.generate.settings import EngineConfig, SamplingConfig
from ugc_jax.label import material
from ugc_jax.label.local import LocalTeacher
from ugc_jax.label.material import Wanted
from ugc_jax.label.teacher import CUT_OFF, Kind, Question, Trouble
from ugc_jax.media.clip import probe
from ugc_jax.media.presets import ClipSettings


class FakeEngine:
    """Answers with what the file holds; notes its batches."""

    def __init__(self):
        self.batches = []

    def answer(self, questions, clip, sampling, engine):
        self.batches.append((len(questions), sampling.seed))
        for path, texts in questions.items():
            source = probe(path)
            for text in texts:
                caption = json.dumps({"kind": source.kind, "sound": source.has_audio, "text": text})
                if text == "fails":
                    yield text, Caption(path, error=f"{path}: it does not decode")
                else:
                    reason = "length" if text == "long" else "stop"
                    facts = dict(prompt_tokens=7, new_tokens=3, finish_reason=reason)
                    yield text, Caption(path, caption, **facts)


@pytest.fixture
def ask(clips):
    """A function: (stage, text, sample) of questions -> the replies, and the engine."""
    read = material.read(str(clips.parent / "train/000000.mp4"), Wanted())

    def run(*questions):
        engine = FakeEngine()

        async def all_():
            sampling = SamplingConfig().resolve()
            how = ClipSettings(), sampling, EngineConfig()
            teacher = LocalTeacher(lambda: engine, "weights-1", *how)
            asked = [
                teacher.ask(Question(read.digest, read, stage, text, sample))
                for stage, text, sample in questions
            ]
            replies = await asyncio.gather(*asked, return_exceptions=True)
            await teacher.close()
            return replies

        return asyncio.run(all_()), engine

    return run


def test_each_stage_gets_its_part_in_a_batch_of_its_own(ask):
    replies, engine = ask(
        ("sound", "a", 0), ("picture", "b", 0), ("sound", "c", 0), ("both", "d", 1)
    )
    said = [json.loads(reply.text) for reply in replies]
    assert said == [
        {"kind": "audio", "sound": True, "text": "a"},
        {"kind": "video", "sound": False, "text": "b"},
        {"kind": "audio", "sound": True, "text": "c"},
        {"kind": "video", "sound": True, "text": "d"},
    ]
    assert len(engine.batches) == 3
    assert engine.batches[-1][1] == engine.batches[0][1] + 1  # a second sample has another seed
    assert {(reply.version, reply.tokens.given, reply.tokens.made) for reply in replies} == {
        ("weights-1", 7, 3)
    }


def test_what_the_engine_cannot_answer(ask):
    (failed, long), _ = ask(("sound", "fails", 0), ("sound", "long", 0))
    assert isinstance(failed, Trouble)
    assert (failed.kind, failed.reason) == (Kind.REFUSED, "it does not decode")
    assert long.fault == CUT_OFF


def test_a_checkpoint_that_writes_no_json_rejects_its_clips(clips, tmp_path):
    """A random checkpoint through the whole job."""
    assert cli.run(["init", "--output", str(tmp_path / "tiny")]) == 0
    for name, text in (("sound", "Hear."), ("picture", "See."), ("both", "Tell. {drafts}")):
        (tmp_path / f"{name}.txt").write_text(text)
    words = [
        "label",
        "--prompts",
        str(tmp_path),
        str(clips.parent / "train/000000.mp4"),
        "--teacher.kind",
        "local",
    ]
    words += ["--model", str(tmp_path / "tiny"), "--output", str(tmp_path / "train.jsonl")]
    words += ["--teacher.max_tokens", "4", "--unusable", "0", "--engine.workers", "1"]
    # The limit of time is of servers: the checkpoint takes longer to load.
    assert cli.run([*words, "--clip.fps", "1", "--timeout", "0.01"]) == 0
    (row,) = [json.loads(line) for line in (tmp_path / "rejected.jsonl").open()]
    assert row["reason"].startswith(("no complete JSON object (pass ", "cut off at the limit"))
    totals = json.loads((tmp_path / "train.jsonl.totals.json").read_text())
    assert totals["tokens_in"] > 0
    assert totals["cost"] == 0
