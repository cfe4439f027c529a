"""The runs below a folder, and which of them had certain records: known from their settings.

Reads small JSON files alone; neither jax nor Orbax is imported.
"""

import os
from pathlib import Path
from typing import NamedTuple

from ugc_jax import files
from ugc_jax.data.planning import parse_mixture
from ugc_jax.errors import UserError

_TEXTS = ("samples.jsonl", "completions.jsonl")  # of a run; their lines name clips


class UsedBy(NamedTuple):
    """A run that had records, or began with the weights of one that had.

    folder: of the run. step: of its last checkpoint. why: "data.train", "data.eval", or the run
    whose weights it began with. has_model: whether it has exported weights.
    """

    folder: Path
    step: int
    why: str
    has_model: bool

    def describe(self) -> str:
        """Describe it in one line."""
        weights = f", exported weights in {self.folder / 'model'}" if self.has_model else ""
        return f"{self.folder}: {self.why}, step {self.step}{weights}"


def runs_with(records: list[str], below: str) -> tuple[list[UsedBy], int]:
    """Return the runs below a folder that had the folders of records, and the number looked at.

    A run's own paths may be relative to where it was started: a relative path counts as these
    records if their absolute path ends with it. Raises UserError for a remote folder.
    """
    if "://" in below:
        raise UserError(f"runs: {below}: runs are looked for on a disk; name the folder of a copy")
    stored = sorted(Path(below).rglob("checkpoints"))
    runs = {}
    for checkpoints in stored:
        steps = [int(step.name) for step in checkpoints.glob("[0-9]*") if step.name.isdigit()]
        for step in sorted(steps, reverse=True):
            try:
                content = files.read_json(checkpoints / str(step) / "config" / "metadata", "")
            except UserError:  # not a run's, or a checkpoint that is being written
                continue
            runs[checkpoints.parent] = step, content
            break
    found: dict[Path, UsedBy] = {}
    for folder, (step, content) in runs.items():
        if why := _mentions(content.get("data"), records):
            found[folder] = UsedBy(folder, step, why, (folder / "model").is_dir())
    grown = True
    while grown:  # a run may have begun with the weights of another
        grown = False
        for folder, (step, content) in runs.items():
            start = str(content.get("checkpoint") or "")
            first = next((one for one in found if start and _is_below(start, one)), None)
            if folder not in found and first is not None:
                why = f"began with the weights of {first}"
                found[folder] = UsedBy(folder, step, why, (folder / "model").is_dir())
                grown = True
    return sorted(found.values()), len(runs)


def texts_with(folder: Path, names: list[str]) -> list[Path]:
    """Return the tables of texts of a run that name one of these records."""
    quoted = [files.to_json(name) for name in names]
    found = []
    for name in _TEXTS:
        path = folder / name
        if path.is_file():
            with path.open(encoding="utf-8", errors="replace") as file:
                if any(one in line for line in file for one in quoted):
                    found.append(path)
    return found


def _mentions(data: object, records: list[str]) -> str:
    """Return the settings of a run's data that name one of the folders of records; "" if none."""
    data = data if isinstance(data, dict) else {}
    found = []
    for field in ("train", "eval"):
        try:
            folders = [folder for folder, _ in parse_mixture(str(data.get(field) or ""))]
        except UserError:
            continue
        if any(_is_same(folder, one) for folder in folders for one in records):
            found.append(f"data.{field}")
    return " and ".join(found)


def _is_same(named: str, records: str) -> bool:
    """Whether a run's path is the folder of records."""
    if "://" in named or "://" in records:
        return named.rstrip("/") == records.rstrip("/")
    if os.path.realpath(named) == os.path.realpath(records):
        return True
    parts = Path(os.path.normpath(named)).parts
    return (
        not os.path.isabs(named) and Path(os.path.realpath(records)).parts[-len(parts) :] == parts
    )


def _is_below(named: str, run: Path) -> bool:
    """Whether a run's `checkpoint` is another run or its exported weights."""
    named = named.rstrip("/")
    return any(_is_same(named, str(place)) for place in (run, run / "model", run / "adapter"))
