"""The file that `ugc-jax evaluate` writes and that `compare` and `report` read.

    {"version", "name", "benchmark", "created", "ugc_jax", "sources", "judge", "average",
     "tasks": {task: {"score", its columns, "n", "failed", "interval", ...}},
     "unscored": {task: why}, "faults": {...}, "clips": {task: [{"id", "score", ...}, ...]}}

Scores are percent, but those of the OCR task, which are fractions, as they were published.
`summary.summarize` says what a task holds, `evaluate.score_task` what a clip does.
"""

import math
from collections.abc import Iterable
from pathlib import Path

from ugc_jax import files
from ugc_jax.errors import UserError

VERSION = 1
ANOTHER = "choose another output"


def columns(task: dict) -> list[str]:
    """The names of the columns beside the score of a task of a result."""
    return list(task.get("intervals") or {})


def check_output(path: str | Path, inputs: Iterable[str | Path | None] = ()):
    """Make sure, before the work, that a result can be written.

    Its folder is made. Raises UserError if that cannot be, if the file is one of `inputs`, and if
    it exists and was not written by `write_result`.
    """
    path = Path(path)
    if not path.name:
        raise UserError("output is no file; give one, such as result.json")
    taken = {Path(one).resolve() for one in inputs if one is not None}
    if path.resolve() in taken:
        raise UserError(f"{path}: is read by this job and would be lost; choose another output")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        probe = path.with_name(f"{path.name}.new")
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error}); {ANOTHER}") from None
    if path.exists():
        remedy = "choose another output, or delete it"
        if not _has_version(files.read_json(path, remedy, object)):
            raise UserError(f"{path}: exists and is no result; {remedy}")


def write_result(path: str | Path, result: dict):
    """Write a result as JSON, whole or not at all. UserError if the disk refuses."""
    files.write_json(path, result, ANOTHER)


def read_result(path: str | Path) -> dict:
    """A result of `ugc-jax evaluate`. UserError for any other file."""
    remedy = (
        "make a result by ugc-jax evaluate with --config.output=FILE (of a released score file "
        "with --config.scores=FILE)"
    )
    result = files.read_json(path, remedy, object)
    if not _is_result(result):
        raise UserError(f"{path}: not a result of ugc-jax evaluate; {remedy}")
    if result["version"] != VERSION:
        raise UserError(
            f"{path}: has version {result['version']}, not {VERSION}; evaluate again with this one"
        )
    return result


def _has_version(content: object) -> bool:
    """It was written by `write_result`."""
    return isinstance(content, dict) and "version" in content


def _is_result(result: object) -> bool:
    """It has the parts that its readers take for granted."""
    if not _has_version(result) or not isinstance(result.get("name"), str):
        return False
    tasks, clips = result.get("tasks"), result.get("clips")
    return (
        isinstance(tasks, dict)
        and isinstance(clips, dict)
        and all(_is_task(task, clips.get(name)) for name, task in tasks.items())
    )


def _is_task(task: object, clips: object) -> bool:
    return (
        isinstance(task, dict)
        and {"score", "n", "failed", "interval", "intervals"} <= task.keys()
        and isinstance(clips, list)
        and all(_is_clip(clip, ["score", *columns(task)]) for clip in clips)
    )


def _is_clip(clip: object, names: list[str]) -> bool:
    if not isinstance(clip, dict) or not isinstance(clip.get("id"), str):
        return False
    if not all(isinstance(clip.get(key, ""), str) for key in ("reference", "prediction")):
        return False
    scores = [clip[name] for name in names if name in clip]
    return all(isinstance(score, int | float) and math.isfinite(score) for score in scores)
