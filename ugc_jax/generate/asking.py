"""Several questions asked of the same clips by one model: a JSON Lines file of answers each."""

import dataclasses
import logging
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Protocol

from ugc_jax.data.find import find_clips
from ugc_jax.data.presets import ClipSettings, resolve
from ugc_jax.errors import UserError
from ugc_jax.generate.captioner import Captioner
from ugc_jax.generate.results import Results, Totals, record_all
from ugc_jax.generate.settings import AskConfig, SamplingConfig
from ugc_jax.settings import part

logger = logging.getLogger(__name__)


class Question(Protocol):
    """What is asked about some clips, such as a task of the benchmark."""

    question: str
    ids: Collection[str]


def ask(config: AskConfig, questions: Mapping[str, Question], folder: Path) -> Path:
    """Ask each question of its clips; the answers go to folder/<name>.jsonl.

    A file that is there is gone on with, as by `caption`: answers stay, errors are tried again. A
    clip that is not in `videos` gets no line. Returns `folder`. Raises UserError for a config that
    cannot be used and for a folder without any of the clips.
    """
    if config.videos is None:
        raise UserError("ask.videos is needed with ask.checkpoint: the folder of the clips")
    clip, sampling = resolve(part(ClipSettings, config)), part(SamplingConfig, config)
    videos = {Path(video).stem: video for video in find_clips([config.videos])}
    asked = {
        name: [videos[one] for one in question.ids if one in videos]
        for name, question in questions.items()
    }
    _say_missing(config, questions, asked)
    totals, captioner = Totals(), None
    for name, clips in asked.items():
        own = dataclasses.replace(clip, question=config.question or questions[name].question)
        with Results(folder / f"{name}.jsonl", clips) as results:
            todo = results.missing(clips)
            totals.skipped += len(clips) - len(todo)
            if not todo:
                continue
            captioner = captioner or Captioner.from_pretrained(
                config.checkpoint, dtype=config.dtype, revision=config.revision
            )
            stream = captioner.stream(todo, own, sampling, config.batch_size, config.workers)
            record_all(stream, len(todo), results, totals, desc=name)
    logger.info("answers in %s: %s", folder, totals)
    return folder


def _say_missing(config: AskConfig, questions: Mapping[str, Question], asked: Mapping[str, list]):
    if not any(asked.values()):
        raise UserError(
            f"{config.videos}: holds none of the clips asked about; give the folder of the clips, "
            "named by their ids"
        )
    for name, question in questions.items():
        missing = len(question.ids) - len(asked[name])
        if missing:
            total = len(question.ids)
            logger.warning("%s: %d of %d clips are not in %s", name, missing, total, config.videos)
