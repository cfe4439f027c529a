"""One model answers several questions about the same clips: a JSON Lines file a question."""

import dataclasses
import logging
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Protocol

from ugc_jax import files
from ugc_jax.errors import UserError
from ugc_jax.generate.captioner import Captioner
from ugc_jax.generate.results import Results, Totals, record_all
from ugc_jax.generate.settings import AskConfig, SamplingConfig
from ugc_jax.media.find import find_clips
from ugc_jax.media.presets import ClipSettings, resolve
from ugc_jax.settings import flatten, part

logger = logging.getLogger(__name__)

NOTE = ".asked.json"  # in the folder of answers: the model and the settings


class Question(Protocol):
    """A question about some clips, such as a task of the benchmark."""

    question: str
    ids: Collection[str]


def ask(config: AskConfig, questions: Mapping[str, Question], folder: Path) -> dict:
    """Answer each question about its clips; the answers go to folder/<name>.jsonl.

    An existing file is continued, as by `caption`: answers stay, errors are tried again. A clip
    that is not in `videos` gets no line, a question without any clip gets no file. Returns the
    model and the settings, which are written to the folder, too. Raises UserError for a config that
    cannot be used, a folder without any of the clips, and for existing answers of another model or
    of other settings.
    """
    clip, sampling = resolve(part(ClipSettings, config)), part(SamplingConfig, config)
    asked = _clips(config, questions)
    texts = {name: config.question or questions[name].question for name in asked}
    how = _record_settings(folder, config, clip, sampling, texts)
    totals, captioner = Totals(), None
    for name, clips in asked.items():
        own = dataclasses.replace(clip, question=texts[name])
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


def _record_settings(
    folder: Path,
    config: AskConfig,
    clip: ClipSettings,
    sampling: SamplingConfig,
    texts: Mapping[str, str],
) -> dict:
    """Write the model and the settings to the folder; UserError if it has answers of others."""
    how = {
        "checkpoint": config.checkpoint,
        "revision": config.revision,
        "dtype": config.dtype,
        "clip": dataclasses.asdict(dataclasses.replace(clip, question=None)),
        "sampling": dataclasses.asdict(sampling),
        "questions": dict(texts),
    }
    note = folder / NOTE
    if note.exists() and any(file.stat().st_size for file in folder.glob("*.jsonl")):
        before = files.read_json(note, f"delete {folder}")
        old = flatten(before)
        for key, value in flatten(how).items():
            if old.get(key, value) != value:
                raise UserError(
                    f"{note}: the existing answers have {key} {old[key]!r:.60}, not {value!r:.60}; "
                    f"choose another output, or delete {folder}"
                )
        how["questions"] = before.get("questions", {}) | how["questions"]
    files.write_json(note, how, "choose another output", indent=2)
    return how
