"""Score files: a judge's ratings of captions, such as the released ones.

    {"evaluations": {ID: {"visual_score": 4, "audio_score": 3, "details_score": 4}, ...},
     "overall_visual_average": 2.9, ...}       the released form
or the plain {ID: {"visual": 4, "audio": 3, "details": 4}, ...}, with ratings from 1 to 5.

The released script counted a failed call as 0; here it is a failure.
"""

import math
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from ugc_jax import files
from ugc_jax.errors import UserError
from ugc_jax.evals.prompts import RUBRICS
from ugc_jax.evals.tasks import clip_id

# The protocol of the released score files (from the released script), and of any others.
RELEASED = {"judge": "gpt-4o-2024-08-06", "temperature": 1.0, "prompt": "released"}
UNKNOWN = dict.fromkeys(RELEASED)
TAKEN_FOR = (
    "the file has the released format, so the judge is assumed to be gpt-4o-2024-08-06 at "
    "temperature 1"
)


class Scores(NamedTuple):
    """A score file.

    samples: {"id", "score" and the task's columns in percent, or "failure": "judge" and "note"}.
    notes: for readers of the result: that the file has the released form; where the averages in it
    differ from those of the samples. protocol: RELEASED for the released form, else UNKNOWN.
    """

    samples: list[dict]
    notes: list[str]
    protocol: dict


def read_scores(path: str | Path, task: str = "final_caption") -> Scores:
    """The ratings of a caption task in a score file.

    A rating that is 0, missing, out of range or not a number makes its clip a failure. Raises
    UserError for a file that is not a score file or has no usable rating, and for a repeated id.
    """
    columns = RUBRICS[task].columns if task in RUBRICS else ()
    if not columns:
        rated = ", ".join(name for name, rubric in RUBRICS.items() if rubric.columns)
        raise UserError(f"{path}: a score file cannot be read for {task}, only for {rated}")
    content = _read(path)
    rows = content.get("evaluations", content)
    rows = rows if isinstance(rows, dict) else {}
    averages = {key for key in content if key.startswith("overall_")}
    clips = _by_clip(path, {key: row for key, row in rows.items() if key not in averages})
    samples = [_sample(one, row, columns) for one, row in clips.items()]
    if not any("score" in sample for sample in samples):
        example = ", ".join(f'"{column}": 4' for column in columns)
        raise UserError(
            f"{path}: has no usable ratings; give {{ID: {{{example}}}, ...}} with numbers from 1 "
            "to 5"
        )
    notes = _notes(content, samples, columns)
    if "evaluations" in content and averages:
        return Scores(samples, [TAKEN_FOR, *notes], RELEASED)
    return Scores(samples, notes, UNKNOWN)


def _by_clip(path: str | Path, rows: dict[str, object]) -> dict[str, object]:
    """Clip id -> row; the keys of `rows` are ids or file names."""
    clips = {}
    for key, row in rows.items():
        one = clip_id(key)
        if one in clips:
            raise UserError(f"{path}: has the clip {one!r} twice; keep one of them")
        clips[one] = row
    return clips


def _read(path: str | Path) -> dict:
    """The JSON object in a file. Raises UserError if any object in it has a key twice."""

    def unique(pairs: list[tuple]) -> dict:
        for key, count in Counter(key for key, _ in pairs).items():
            if count > 1:
                raise UserError(f"{path}: has {key!r} twice; keep one of them")
        return dict(pairs)

    return files.read_json(path, "give a score file, {ID: ratings, ...}", object_pairs_hook=unique)


def _sample(one: str, row: object, columns: tuple[str, ...]) -> dict:
    """A sample of `Scores`."""
    row = row if isinstance(row, dict) else {}
    ratings = {column: row.get(f"{column}_score", row.get(column)) for column in columns}
    bad = [f"{column} is {value!r:.40}" for column, value in ratings.items() if not _usable(value)]
    if bad:
        note = f"{', '.join(bad)}: not a rating from 1 to 5"
        return {"id": one, "failure": "judge", "note": note}
    percent = {column: value / 5 * 100 for column, value in ratings.items()}
    return {"id": one, "score": sum(percent.values()) / len(percent)} | percent


def _usable(rating: object) -> bool:
    is_number = isinstance(rating, int | float) and not isinstance(rating, bool)
    return is_number and 1 <= rating <= 5


def _notes(content: dict, samples: list[dict], columns: tuple[str, ...]) -> list[str]:
    """Differences between the averages in the file, which count failures as 0, and the samples'."""
    scored = [sample for sample in samples if "score" in sample]
    stated = {"score": content.get("overall_average_percent")}
    for column in columns:
        average = content.get(f"overall_{column}_average")
        stated[column] = average / 5 * 100 if isinstance(average, int | float) else None
    notes = []
    for name, average in stated.items():
        mean = math.fsum(sample[name] for sample in scored) / len(scored)
        if isinstance(average, int | float) and abs(average - mean) >= 0.005:
            notes.append(f"{name}: the score file states {average:.2f}, its clips give {mean:.2f}")
    return notes
