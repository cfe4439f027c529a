"""The file that `ugc-jax evaluate` writes and that `compare` and `report` read.

    {"version", "name", "benchmark", "created", "ugc_jax", "sources", "judge", "average",
     "tasks": {task: {"score", its columns, "n", "failed", "interval", ...}},
     "unscored": {task: why}, "faults": {...}, "clips": {task: [{"id", "score", ...}, ...]}}

Scores are in percent, except those of the OCR task, which are fractions, as published. For the
content of a task see `summary.summarize`, for that of a clip `evaluate.score_task`.
"""

import math
from collections.abc import Iterable
from pathlib import Path

from ugc_jax import files
from ugc_jax.errors import UserError

VERSION = 1
ANOTHER = "choose another output"


def column_names(task: dict) -> list[str]:
    """The columns of a task in a result, without the score."""
    return list(task.get("intervals") or {})


def check_result_path(path: str | Path, inputs: Iterable[str | Path | None] = ()):
    """Check, before the work, that a result can be written; create its folder.

    Raises UserError if it cannot be written, if the file is one of `inputs`, or if it exists and
    was not written by `write_result`.
    """
    path = Path(path)
    if not path.name:
        raise UserError("output is not a file name; give one, such as result.json")
    taken = {Path(one).resolve() for one in inputs if one is not None}
    if path.resolve() in taken:
        raise UserError(f"{path}: is an input of this job; {ANOTHER}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        probe = path.with_name(f"{path.name}.new")
        probe.touch()
        probe.unlink(missing_ok=True)  # another process may probe, too
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error}); {ANOTHER}") from None
    if path.exists():
        remedy = f"{ANOTHER}, or delete it"
        content = files.read_json(path, remedy, object)
        if not isinstance(content, dict) or "version" not in content:
            raise UserError(f"{path}: exists and is not a result; {remedy}")


def write_result(path: str | Path, result: dict):
    """Write a result as JSON, atomically. Raises UserError if it cannot be written."""
    files.write_json(path, result, ANOTHER)


def read_result(path: str | Path) -> dict:
    """A result of `ugc-jax evaluate`. Raises UserError for any other file."""
    remedy = (
        "make one with ugc-jax evaluate --output FILE (of a released score file with --scores FILE)"
    )
    return check_result(files.read_json(path, remedy, object), path, remedy)


def check_result(result: object, path: str | Path, remedy: str = "evaluate again") -> dict:
    """Return a result. path: where it is from. Raises UserError for anything else."""
    if not _is_result(result):
        raise UserError(f"{path}: not a result of ugc-jax evaluate; {remedy}")
    if result["version"] != VERSION:
        raise UserError(
            f"{path}: has version {result['version']}, not {VERSION}; evaluate again with this one"
        )
    for name, task in result["tasks"].items():
        if not _is_protocol(task.get("protocol")):
            raise UserError(
                f"{path}: tasks.{name}.protocol is {task['protocol']!r:.40}, not an object of "
                f"texts and numbers; {remedy}"
            )
    return result


def _is_protocol(value: object) -> bool:
    """True for what a task of a result has as its protocol; None: nothing is noted."""
    values = value.values() if isinstance(value, dict) else () if value is None else [[]]
    return all(one is None or isinstance(one, str | int | float) for one in values)


def _is_result(content: object) -> bool:
    """True if it has all parts that compare and report use."""
    match content:
        case {"version": _, "name": str(), "tasks": dict(tasks), "clips": dict(clips)}:
            return all(_is_task(task, clips.get(name)) for name, task in tasks.items())
    return False


def _is_task(task: object, clips: object) -> bool:
    match task, clips:
        case {"score": _, "n": _, "failed": _, "interval": _, "intervals": _}, list():
            return all(_is_clip(clip, ["score", *column_names(task)]) for clip in clips)
    return False


def _is_clip(clip: object, names: list[str]) -> bool:
    match clip:
        case {"id": str()}:
            scores = [clip[name] for name in names if name in clip]
            texts = [clip.get(key, "") for key in ("reference", "prediction")]
            return all(isinstance(text, str) for text in texts) and all(
                isinstance(score, int | float) and math.isfinite(score) for score in scores
            )
    return False
