"""The teacher local: our own engine with any checkpoint, such as Qwen/Qwen2.5-Omni-7B.

Questions that come within a moment are answered as one batch of a stage. The engine gets files with
the parts of the clip that the stage may have.
"""

import dataclasses
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from ugc_jax.generate.settings import EngineConfig, SamplingConfig
from ugc_jax.label.gathering import Gathering
from ugc_jax.label.material import write_part
from ugc_jax.label.teacher import CUT_OFF, Kind, Question, Reply, Tokens, Trouble
from ugc_jax.media.presets import ClipSettings
from ugc_jax.media.streams import Part


class Engine(Protocol):
    """What answers, such as a `generate.captioner.Captioner`."""

    def answer(
        self,
        questions: Mapping[str, Sequence[str]],
        clip: ClipSettings,
        sampling: SamplingConfig,
        engine: EngineConfig,
    ) -> Iterator[tuple]:
        """Yield (question, caption); see `Captioner.answer`."""


class LocalTeacher:
    """Asks a model in this process; bound to the event loop on which it is first used."""

    def __init__(
        self,
        load: Callable[[], Engine],
        version: str,
        clip: ClipSettings,
        sampling: SamplingConfig,
        engine: EngineConfig,
    ):
        """load: called once, before the first answer. version: of the weights, for the rows.

        clip, sampling: resolved.
        """
        self._load, self._version = load, version
        self._clip, self._sampling, self._settings = clip, sampling, engine
        self._engine: Engine | None = None
        self._gathering = Gathering(self._answer, _alike)

    async def ask(self, question: Question) -> Reply:
        """As `teacher.Teacher.ask`."""
        return await self._gathering.ask(question)

    async def close(self):
        """Answer nothing more."""
        await self._gathering.close()

    def _answer(self, batch: Sequence[Question]) -> list[Reply | Trouble]:
        """Answer questions of one stage and sample, in a thread."""
        if self._engine is None:
            self._engine = self._load()
        sampling = dataclasses.replace(self._sampling, seed=self._sampling.seed + batch[0].sample)
        with tempfile.TemporaryDirectory(prefix="ugc-jax-label-") as folder:
            keys: list[tuple[str, str]] = []
            questions: dict[str, list[str]] = {}
            for question in batch:
                # By the clip's digest: the numbers that are drawn depend on the name.
                path = str(write_part(Path(folder, question.clip), _media(question)))
                text = "\n\n".join(filter(None, [question.text, question.reminder]))
                keys.append((path, text))
                if text not in questions.setdefault(path, []):
                    questions[path].append(text)
            found: dict[tuple[str, str], Reply | Trouble] = {}
            answers = self._engine.answer(questions, self._clip, sampling, self._settings)
            for text, caption in answers:
                found[caption.video, text] = self._reply(caption)
        lost = Trouble(Kind.REFUSED, "the engine gave no answer")
        return [found.get(key, lost) for key in keys]

    def _reply(self, caption) -> Reply | Trouble:
        if caption.error is not None:
            return Trouble(Kind.REFUSED, caption.error.partition(": ")[2])
        fault = CUT_OFF if caption.finish_reason == "length" else None
        tokens = Tokens(caption.prompt_tokens, caption.new_tokens)
        return Reply(caption.caption, self._version, tokens, fault)


def _alike(one: Question, other: Question) -> bool:
    return (one.stage, one.sample) == (other.stage, other.sample)


def _media(question: Question) -> Part:
    """Return what may be heard and seen in the stage, and nothing else of the clip."""
    material = question.material
    part = {"sound": material.sound, "picture": material.picture, "both": material.both}
    return part[question.stage]
