"""What a benchmark by caption is, and how its file becomes a task of `evaluate`."""

import logging
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from ugc_jax.errors import UserError
from ugc_jax.evals.benchmarks.columns import find_file, parse_mapping, read_rows
from ugc_jax.evals.tasks import Form, Sample, Task, clip_id
from ugc_jax.media.presets import QUESTION

logger = logging.getLogger(__name__)


class Figure(NamedTuple):
    """Published scores of a model, as printed, by "score" and the columns. source: arXiv id."""

    model: str
    scores: Mapping[str, str]
    source: str


class Kind(NamedTuple):
    """How benchmarks of one kind are read and judged.

    fields: of a row. read: rows {field: value} -> samples; raises ValueError with the row's number.
    form: of the task, apart from what the benchmark itself tells.
    """

    fields: tuple[str, ...]
    read: Callable[[list[dict]], list[Sample]]
    form: Form


class Benchmark(NamedTuple):
    """One benchmark.

    task: the name of its task in results. title: for people. columns: {field: its published column,
    None if no paper names it}. file: its published name, None if unknown. videos, samples: their
    published numbers, None if unknown. judge: what the papers ask. figures: published scores, which
    compare with those of the same judge only.
    """

    task: str
    title: str
    kind: Kind
    columns: Mapping[str, str | None]
    judge: str
    figures: tuple[Figure, ...]
    file: str | None = None
    videos: int | None = None
    samples: int | None = None

    def load(self, path: str | Path, words: Iterable[str] = ()) -> Task:
        """The task of the benchmark.

        path: its folder or file. words: FIELD=COLUMN of columns that are not as published. Raises
        UserError for a mapping or a file that cannot be used, with the row of the first fault.
        """
        mapping = parse_mapping(words, self.kind.fields, self.title)
        columns = {field: self.columns.get(field) for field in self.kind.fields} | mapping
        path = find_file(Path(path), self.file, self.title)
        rows = read_rows(path, columns, self.title)
        try:
            samples = self.kind.read(rows)
        except ValueError as error:
            raise UserError(f"{path}: {error}; correct it, or map other columns (--map)") from None
        task = Task(self.task, self.form, QUESTION, tuple(samples))
        for what, count, published in (
            ("videos", len(task.ids), self.videos),
            ("samples", len(samples), self.samples),
        ):
            if published not in (None, count):
                logger.warning("%s: %d %s, not the published %d", path, count, what, published)
        return task

    @property
    def form(self) -> Form:
        """The form of its task, with the published figures among its notes."""

        def facts(samples, scored) -> dict:
            found = self.kind.form.facts(samples, scored)
            return found | {"notes": [*found.get("notes", []), self.published()]}

        return self.kind.form._replace(file=self.file or "", benchmark=self.title, facts=facts)

    def published(self) -> str:
        """The published figures in a line, and whose judge they are of."""
        names = ("score", *self.kind.form.columns)
        rows = []
        for figure in self.figures:
            printed = (f"{n} {figure.scores[n]}" for n in names if n in figure.scores)
            rows.append(f"{figure.model} {', '.join(printed)} (arXiv {figure.source})")
        return f"published, judged by {self.judge}: {'; '.join(rows)}"


def video_of(row: Mapping, number: int) -> str:
    """The id of a row's video, from its id or its file. Raises ValueError."""
    value = row["video"]
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"row {number}: video is {value!r:.40}, not an id or a path")
    return clip_id(value.strip())


def text_of(row: Mapping, field: str, number: int) -> str:
    """A field of a row that is a text. Raises ValueError."""
    value = row[field]
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"row {number}: {field} is {value!r:.40}, not a text")
    return value.strip()
