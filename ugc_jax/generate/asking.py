"""One model answers several questions about the same clips: a JSON Lines file a question.

It goes from clip to clip (`Captioner.answer`): each is read and encoded once, for all its questions
that have no answer yet.
"""

import contextlib
import dataclasses
import logging
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Protocol

import jax

from ugc_jax.compilation import report_use
from ugc_jax.errors import UserError
from ugc_jax.generate.captioner import Caption, Captioner
from ugc_jax.generate.defaults import Defaults
from ugc_jax.generate.results import Results, Totals, record_settings, results_settings
from ugc_jax.generate.settings import AskConfig, EngineConfig, SamplingConfig
from ugc_jax.generate.shares import Parts, Share
from ugc_jax.hf.config import load_config
from ugc_jax.hf.hub import resolve_checkpoint
from ugc_jax.hf.trained import weights_digest
from ugc_jax.media.find import find_by_id
from ugc_jax.media.presets import ClipSettings
from ugc_jax.models.compute import ComputeConfig
from ugc_jax.progress import progress

logger = logging.getLogger(__name__)

NOTE = ".asked.json"  # in the folder of answers: the model and the settings
PARTS = ".parts"  # there, too: of the processes that share the clips


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
    share: Share | None = None,
) -> dict | None:
    """Answer each question about its clips; the answers go to folder/<name>.jsonl.

    clip.question, if there is one, replaces all questions. An existing file is continued, as by
    `caption`: answers stay, errors are tried again. A clip that is not in `videos` gets no line, a
    question without any clip gets no file. Returns the model and the settings, which are written to
    the folder, too. Raises UserError for a config that cannot be used, a folder without any of the
    clips, and for existing answers of another model or of other settings.

    share: of one of several processes, which answers about its clips. Returns None if the answers
    are for another process to go on with: the one that gave the last of them, or, if none was left
    to give, process 0.
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
    parts = Parts(folder / PARTS, share)
    totals = Totals()
    with contextlib.ExitStack() as closed, contextlib.ExitStack() as opened:
        with parts.locked():
            exists = any(file.stat().st_size for file in folder.glob("*.jsonl"))
            exists = exists or any(parts.of(folder / f"{name}.jsonl") for name in asked)
            how = record_settings(folder / NOTE, how, folder if exists else None)
            files = {
                name: opened.enter_context(Results(folder / f"{name}.jsonl", clips, parts=parts))
                for name, clips in asked.items()
            }
        # The files of all questions are closed under one lock: of processes that end together, one
        # alone then finds all answers.
        opened.callback(lambda: closed.enter_context(parts.locked()))
        mine = {name: share.of(clips) if share else clips for name, clips in asked.items()}
        todo = {name: files[name].missing(clips) for name, clips in mine.items()}
        totals.skipped = sum(len(clips) - len(todo[name]) for name, clips in mine.items())
        if any(todo.values()):
            captioner = Captioner.from_pretrained(
                directory, load=False, **dataclasses.asdict(compute)
            )
            # clip -> question -> the names of what asks it
            questions: dict[str, dict[str, list[str]]] = {}
            for name, clips in todo.items():
                for video in clips:
                    questions.setdefault(video, {}).setdefault(texts[name], []).append(name)
            by_clip = {video: list(names) for video, names in questions.items()}
            answers = captioner.answer(by_clip, clip, sampling, engine)
            _record(answers, questions, files, totals)
            totals.programs = sum(captioner.engine.programs().values())
            report_use()
    logger.info("answers in %s: %s", folder, totals)
    waiting = sum(file.waiting for file in files.values())
    if waiting:
        logger.info(
            "%s: %d answers are still the other processes', the last of which goes on; if one was "
            "killed, start again", folder, waiting,
        )  # fmt: skip
    elif share is None or share.number == 0 or any(todo.values()):
        return how
    return None


def _record(
    answers: Iterable[tuple[str, Caption]],
    questions: Mapping[str, Mapping[str, list[str]]],
    files: Mapping[str, Results],
    totals: Totals,
):
    """Write each answer to the files of its question; log each error once."""

    def rate() -> str:
        return f"{totals.tokens_per_second:.1f} tokens/s"

    total, told = sum(map(len, questions.values())), set()
    for question, answer in progress(answers, total, "answer", "answering", rate):
        record = answer.record()
        for name in questions[answer.video][question]:
            files[name].write(record)
            totals.count(record)
        if answer.error is not None and answer.error not in told:
            told.add(answer.error)
            logger.warning("%s", answer.error)


def _clips(config: AskConfig, questions: Mapping[str, Question]) -> dict[str, list[str]]:
    """Return the clips of each question that has any."""
    videos = find_by_id(config.videos, "ask.videos")
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
