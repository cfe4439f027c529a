"""The file that `ugc-jax evaluate` writes and that `compare` and `report` read.

    {"version", "name", "benchmark", "created", "ugc_jax", "sources", "judge", "average",
     "tasks": {task: {"score", its columns, "n", "failed", "interval", ...}},
     "unscored": {task: why}, "faults": {...}, "clips": {task: [{"id", "score", ...}, ...]}}

Scores are percent, but those of the OCR task, which are fractions, as they were published.
`summary.summarize` says what a task holds, `scoring.score_task` what a clip does.
"""

import json
import os
from pathlib import Path

from ugc_jax.errors import UserError

VERSION = 1

# What `summary.summarize` puts beside a task's score that is no column of it.
FACTS = (
    "score", "unit", "n", "failed", "failures", "floor", "interval", "intervals", "noise",
    "metric", "protocol", "majority", "recall", "confusion", "flags", "notes",
)  # fmt: skip


def columns(task: dict) -> list[str]:
    """The names of the columns beside the score of a task of a result."""
    return [name for name in task if name not in FACTS]


def write_result(path: str | Path, result: dict):
    """Write a result as JSON, whole or not at all. UserError if the disk refuses."""
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        new = path.with_name(f"{path.name}.new")
        text = json.dumps(result, indent=1, ensure_ascii=False, allow_nan=False)
        new.write_text(text + "\n", encoding="utf-8", errors="backslashreplace")
        os.replace(new, path)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error}); choose another output") from None


def read_result(path: str | Path) -> dict:
    """A result of `ugc-jax evaluate`. UserError for any other file."""
    try:
        result = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except ValueError:  # UnicodeDecodeError, too
        result = None
    if not _is_result(result):
        raise UserError(
            f"{path}: not a result of ugc-jax evaluate; make one with --config.output=FILE "
            "(of a released score file with --config.scores=FILE)"
        )
    if result["version"] != VERSION:
        raise UserError(
            f"{path}: has version {result['version']}, not {VERSION}; evaluate again with this one"
        )
    return result


def _is_result(result: object) -> bool:
    """It has the parts that its readers take for granted."""
    if not isinstance(result, dict) or "version" not in result:
        return False
    tasks, clips = result.get("tasks"), result.get("clips")
    if not isinstance(tasks, dict) or not isinstance(clips, dict):
        return False
    return isinstance(result.get("name"), str) and all(
        isinstance(task, dict)
        and {"score", "n", "failed", "interval"} <= task.keys()
        and isinstance(clips.get(name), list)
        and all(isinstance(clip, dict) and "id" in clip for clip in clips[name])
        for name, task in tasks.items()
    )
