"""Label clips by a teacher: captions with provenance, to train from.

Each clip has three passes: its sound alone, its picture alone, then both with the two drafts. A
caption counts if it is whole, in the language, of the length, without repetition, no refusal, and
says nothing against the single passes (and a second caption, --compare_with sample), and if a
checkpoint finds its words supported by sound and picture (--explain_with). What fails is asked once
more with the reason, then goes to rejected.jsonl with it.

The output is the train format (videos, messages, solution) with a column label: teacher, version
of the model, hash of the prompts, temperature, cost, checks, and the answers of all passes. Answers
are on disk before they are counted: run the same command again to go on. --dry_run estimates tokens
and cost and asks nothing; --max_cost stops before it is exceeded.
"""

import dataclasses
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from ugc_jax.data.workers import ReadingConfig
from ugc_jax.errors import UserError
from ugc_jax.generate.settings import EngineConfig, SamplingConfig
from ugc_jax.judge.client import JudgeConfig
from ugc_jax.label.settings import AskingConfig, TeacherConfig, VerifyConfig
from ugc_jax.media.find import find_clips
from ugc_jax.media.presets import QUESTION, ClipSettings
from ugc_jax.models.compute import ComputeConfig
from ugc_jax.settings import Schema, check_minimum, short_names

if TYPE_CHECKING:
    from ugc_jax.label.run import Places
    from ugc_jax.label.support import Supporter

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LabelConfig:
    """Settings of label."""

    output: str  # JSON Lines file of the rows, to write or continue
    rejected: str | None = None  # file of the rejected clips; none: rejected.jsonl beside output
    # folder with sound.txt, picture.txt, both.txt or again.txt in place of our prompts
    prompts: str | None = None
    dry_run: bool = False  # print clips, requests, tokens and cost, and ask nothing
    max_cost: float | None = None  # stop before the answers cost more, in the unit of the prices
    teacher: TeacherConfig = TeacherConfig()
    second: TeacherConfig = TeacherConfig()
    asking: AskingConfig = AskingConfig()
    verify: VerifyConfig = VerifyConfig()
    # an LLM that finds contradictions and compares captions; without judge.model rules do
    judge: JudgeConfig = JudgeConfig()
    # of the teacher local; clip.question is what the rows of every teacher ask
    clip: ClipSettings = ClipSettings()
    engine: EngineConfig = EngineConfig()
    compute: ComputeConfig = ComputeConfig()

    def __post_init__(self):
        check_minimum(self, max_cost=0)
        if self.verify.compare_with == "teacher" and self.second.kind is None:
            raise UserError("verify.compare_with teacher needs second.kind and second.model")
        if self.verify.compare_with != "teacher" and self.second.kind is not None:
            raise UserError("second.kind needs --compare_with teacher")
        both = self.teacher, self.second
        priced = (*both, self.judge)
        if self.max_cost is not None and not any(one.price_in or one.price_out for one in priced):
            raise UserError(
                "max_cost needs teacher.price_in and teacher.price_out: without prices all answers "
                "cost 0, and nothing stops"
            )
        for name in ("stills", "side"):
            if all(one.kind == "openai" and one.picture == "stills" for one in both):
                first, second = (getattr(one, name) for one in both)
                if first != second:
                    raise UserError(
                        f"second.{name} is {second}, teacher.{name} is {first}: both teachers get "
                        "the same stills; give one number"
                    )
        if self.verify.compare_with == "sample" and self.teacher.temperature == 0:
            raise UserError("verify.compare_with sample needs teacher.temperature above 0")


SETTINGS = Schema(
    LabelConfig,
    short={
        **{name: f"teacher.{name}" for name in ("model", "base_url", "price_in", "price_out")},
        "question": "clip.question",
        **short_names(asking=AskingConfig, verify=VerifyConfig),
    },
)


def main(config: LabelConfig, words: list[str]) -> int:
    """Exit status 0, or 1 while clips are open or wait for another try."""
    from ugc_jax.label import prompts
    from ugc_jax.label.estimate import estimate
    from ugc_jax.label.run import Places, Plan, run

    if config.teacher.kind is None:
        raise UserError("teacher.kind is missing: gemini, openai or local")
    clips = find_clips(words)
    output = Path(config.output)
    if output.suffix != ".jsonl":
        raise UserError(f"{output}: rows are JSON Lines; name a file that ends with .jsonl")
    places = Places(output, Path(config.rejected or output.with_name("rejected.jsonl")))
    judge = config.judge
    if judge.model is not None and judge.cache is None:
        judge = dataclasses.replace(judge, cache=str(places.beside("judge.jsonl")))
    plan = Plan(
        prompts=prompts.load(config.prompts),
        question=config.clip.question or QUESTION,
        teacher=config.teacher,
        second=config.second if config.second.kind is not None else None,
        asking=config.asking,
        verify=config.verify,
        judge=judge if judge.model is not None else None,
        reading=ReadingConfig(
            workers=config.engine.workers,
            clip_timeout=config.engine.clip_timeout,
            clip_memory=config.engine.clip_memory,
        ),
        max_cost=config.max_cost,
        support=None if config.dry_run else make_supporter(config, places),
    )
    if config.dry_run:
        found = estimate(plan, places, clips)
        for line in found.unreadable:
            logger.warning("%s", line)
        print(found)
        return 0

    def make(teacher: TeacherConfig, asking: AskingConfig, schemas: dict):
        return make_teacher(teacher, asking, schemas, config)

    summary = run(plan, places, clips, make)
    reasons = "".join(f"\n  {count} {reason}" for reason, count in summary.reasons.most_common())
    print(
        f"{summary.labelled} of {summary.clips} clips labelled, {summary.rejected} rejected"
        f"{f' ({summary.retried} are tried again by a further run)' if summary.retried else ''}"
        f"{f', {summary.open} open' if summary.open else ''}"
        f"{f'; why: {places.rejected}' if summary.rejected else ''}{reasons}",
        file=sys.stderr,
    )
    if summary.is_out_of_budget:
        logger.warning(
            "stopped before max_cost %g would be exceeded; raise it, and run again to go on",
            config.max_cost,
        )
    return 1 if summary.open or summary.retried or summary.is_out_of_budget else 0


def make_supporter(config: LabelConfig, places: "Places") -> "Supporter | None":
    """Return what explains captions by verify.explain_with, if it is set.

    Clips are shown as the checkpoint was trained with them; `clip` and `engine` say otherwise.
    """
    if config.verify.explain_with is None:
        return None
    from ugc_jax.generate.captioner import Captioner
    from ugc_jax.hf.hub import resolve_checkpoint
    from ugc_jax.hf.trained import weights_digest
    from ugc_jax.label.support import Supporter

    directory = resolve_checkpoint(config.verify.explain_with, None)

    def load() -> Captioner:
        return Captioner.from_pretrained(directory, **dataclasses.asdict(config.compute))

    clip, engine = (
        {name: value for name, value in vars(section).items() if value is not None}
        for section in (config.clip, config.engine)
    )
    version, cache = weights_digest(directory)[:16], places.beside("evidence.jsonl")
    return Supporter(load, version, cache, clip, engine)


def make_teacher(teacher: TeacherConfig, asking: AskingConfig, schemas: dict, config: LabelConfig):
    """Return the teacher of a config. Raises UserError for one that cannot be used."""
    if teacher.kind == "gemini":
        from ugc_jax.label.gemini import GeminiTeacher

        return GeminiTeacher(teacher, asking, schemas)
    if teacher.kind == "openai":
        from ugc_jax.label.openai_server import OpenAITeacher

        return OpenAITeacher(teacher, asking, schemas)
    return _local(teacher, config)


def _local(teacher: TeacherConfig, config: LabelConfig):
    from ugc_jax.generate.captioner import Captioner
    from ugc_jax.generate.defaults import Defaults
    from ugc_jax.hf.hub import resolve_checkpoint
    from ugc_jax.hf.trained import weights_digest
    from ugc_jax.label.local import LocalTeacher

    directory = resolve_checkpoint(teacher.model, None)
    sampling = SamplingConfig(
        temperature=teacher.temperature, max_new_tokens=min(teacher.max_tokens, 4096)
    )
    # Not the settings that a captioner was trained with: the questions are others.
    clip, sampling = Defaults(teacher.model).apply(config.clip, sampling)

    def load() -> Captioner:
        return Captioner.from_pretrained(directory, **dataclasses.asdict(config.compute))

    return LocalTeacher(load, weights_digest(directory)[:16], clip, sampling, config.engine)
