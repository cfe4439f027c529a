"""One model answers several questions about the same clips: a JSON Lines file a question."""

import dataclasses
import logging
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Protocol

import jax

from ugc_jax.errors import UserError
from ugc_jax.generate.captioner import Captioner
from ugc_jax.generate.defaults import Defaults
from ugc_jax.generate.results import Results, Totals, record_all, record_settings, results_settings
from ugc_jax.generate.settings import AskConfig, EngineConfig, SamplingConfig
from ugc_jax.hf.config import load_config
from ugc_jax.hf.hub import resolve_checkpoint
from ugc_jax.hf.trained import weights_digest
from ugc_jax.media.find import find_clips
from ugc_jax.media.presets import ClipSettings
from ugc_jax.models.compute import ComputeConfig

logger = logging.getLogger(__name__)

NOTE = ".asked.json"  # in the folder of answers: the model and the settings


class Question(Protocol):
    """A question about some clips, such as a task of the benchmark."""

    question: str
    ids: Collection[str]


def ask(
    config: AskConfig,
    questions: Mapping[str, Question],
    folder: Path,
    clip: ClipSettings = ClipSettings(),  # noqa: B008 (frozen)
    sampling: SamplingConfig = SamplingConfig(),  # noqa: B008
    engine: EngineConfig = EngineConfig(),  # noqa: B008
    compute: ComputeConfig = ComputeConfig(),  # noqa: B008
) -> dict:
    """Answer each question about its clips; the answers go to folder/<name>.jsonl.

    clip.question, if there is one, replaces all questions. An existing file is continued, as by
    `caption`: answers stay, errors are tried again. A clip that is not in `videos` gets no line, a
    question without any clip gets no file. Returns the model and the settings, which are written to
    the folder, too. Raises UserError for a config that cannot be used, a folder without any of the
    clips, and for existing answers of another model or of other settings.
    """
    asked = _clips(config, questions)
    directory = resolve_checkpoint(config.checkpoint, config.revision)
    defaults = Defaults.of(config.checkpoint, directory)
    texts = {name: clip.question or questions[name].question for name in asked}
    # The questions are the benchmark's; they are not compared with that of training.
    if defaults.trained is not None:
        same = dataclasses.replace(defaults.trained.clip, question=clip.question or "")
        defaults = defaults._replace(trained=defaults.trained._replace(clip=same))
    defaults.report(dataclasses.replace(clip, question=clip.question or ""), sampling)
    clip, sampling = defaults.apply(clip, sampling)
    resolved = compute.resolve(jax.devices()[0], load_config(directory).text.head_dim)
    source = config.checkpoint, config.revision, weights_digest(directory)
    without_question = dataclasses.replace(clip, question=None)
    how = results_settings(*source, resolved, without_question, sampling) | {"questions": texts}
    exists = any(file.stat().st_size for file in folder.glob("*.jsonl"))
    how = record_settings(folder / NOTE, how, folder if exists else None)
    totals, captioner = Totals(), None
    for name, clips in asked.items():
        own = dataclasses.replace(clip, question=texts[name])
        with Results(folder / f"{name}.jsonl", clips) as results:
            todo = results.missing(clips)
            totals.skipped += len(clips) - len(todo)
            if not todo:
                continue
            captioner = captioner or Captioner.from_pretrained(
                directory, **dataclasses.asdict(compute)
            )
            stream = captioner.run(todo, own, sampling, engine)
            record_all(stream, len(todo), results, totals, desc=name)
            totals.programs = sum(captioner.engine.programs().values())
    logger.info("answers in %s: %s", folder, totals)
    return how


def _clips(config: AskConfig, questions: Mapping[str, Question]) -> dict[str, list[str]]:
    """Return the clips of each question that has any."""
    if not Path(config.videos).is_dir():
        raise UserError(
            f"ask.videos: {config.videos} is not a folder; give the folder of the clips"
        )
    videos: dict[str, str] = {}
    for video in find_clips([config.videos]):
        other = videos.setdefault(Path(video).stem, video)
        if other != video:
            raise UserError(f"{video}: has the same id as {other}; remove one of them")
    asked = {}
    for name, question in questions.items():
        clips = [videos[one] for one in question.ids if one in videos]
        missing, total = len(question.ids) - len(clips), len(question.ids)
        if missing:
            logger.warning("%s: %d of %d clips are not in %s", name, missing, total, config.videos)
        if clips:
            asked[name] = clips
    if not asked:
        raise UserError(
            f"{config.videos}: holds none of the clips of the questions; give the folder of the "
            "clips, named by their ids"
        )
    return asked
