"""The figures of a run, to files that a later run goes on with: JSON Lines, CSV, TensorBoard, W&B.

OUTPUT/metrics.jsonl   a line a logged step and a line an evaluation: {"step": 20, "loss": ...}
OUTPUT/metrics.csv     the same as a table with a column for each figure
OUTPUT/samples.jsonl   captions made while training: {"step": 20, "clip": ..., "caption": ...}; the
                       other tables of texts of a kind of run likewise, each in a file of its name
OUTPUT/tensorboard/    the same for TensorBoard, captions as text
"""

import csv
import io
import json
import tempfile
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path

from etils import epath

from ugc_jax.errors import UserError
from ugc_jax.train.checkpoint import is_remote

COLUMNS = (  # of SFT
    "loss", "accuracy", "grad_norm", "learning_rate", "tokens_per_second",
    "examples_per_second", "data_wait", "mfu", "memory_gb", "eval_loss", "eval_accuracy",
)  # fmt: skip


class MetricsWriter:
    """Writes what a run reports; only one process makes one. UserError where the disk refuses."""

    def __init__(
        self,
        output: epath.PathLike,
        step: int,
        config: dict,
        wandb_project: str | None = None,
        columns: Sequence[str] = COLUMNS,
        tables: Sequence[str] = ("samples",),
    ):
        """step: the run goes on after it; what an earlier run wrote of later steps is taken out.

        output: a local folder or an etils path; there, files are copied by `publish`.
        config: the run's settings, for W&B. wandb_project: None is without W&B. columns: of the
        CSV, besides the step. tables: names of the tables of texts.
        """
        from tensorboardX import SummaryWriter

        self._output = epath.Path(output)
        self._remote = is_remote(output)
        self._folder = Path(tempfile.mkdtemp()) if self._remote else Path(output)
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._metrics = self._open("metrics.jsonl", step)
            self._texts = {name: self._open(f"{name}.jsonl", step) for name in tables}
            self._table = self._open("metrics.csv", step)
            self._columns = self._header(columns)
            self._board = SummaryWriter(str(self._folder / "tensorboard"), purge_step=step + 1)
        except OSError as error:
            raise self._refused(error) from None
        self._wandb = None if wandb_project is None else _start_wandb(wandb_project, output, config)

    def metrics(self, step: int, values: dict[str, float]):
        """Report figures of a step; those whose value is None are left out."""
        values = {name: value for name, value in values.items() if value is not None}
        record = {"step": step} | values
        try:
            _line(self._metrics, record)
            self._row(record.get(name, "") for name in self._columns)
            for name, value in values.items():
                self._board.add_scalar(name, value, step)
            self._board.flush()
        except OSError as error:
            raise self._refused(error) from None
        if self._wandb is not None:
            self._wandb.log(values, step=step)

    def texts(self, table: str, step: int, rows: list[dict]):
        """Add rows, of whatever columns, to a table of texts after a step."""
        try:
            for row in rows:
                _line(self._texts[table], {"step": step} | row)
            text = _markdown(rows)
            self._board.add_text(table, text, step)
            self._board.flush()
        except OSError as error:
            raise self._refused(error) from None
        if self._wandb is not None:
            self._wandb.log({table: text}, step=step)

    def publish(self):
        """Copy the files to an output that is not on this machine."""
        if self._remote:
            for path in filter(Path.is_file, self._folder.rglob("*")):
                target = self._output / str(path.relative_to(self._folder))
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(path.read_bytes())

    def close(self):
        """Finish all files."""
        self._board.close()
        for file in (self._metrics, *self._texts.values(), self._table):
            file.close()
        self.publish()
        if self._wandb is not None:
            self._wandb.finish()

    def _open(self, name: str, step: int) -> io.TextIOBase:
        """The file to append to, without lines of steps after `step` or half-written ones."""
        path, stored = self._folder / name, self._output / name
        text = stored.read_text() if stored.exists() else ""
        whole = text.split("\n")[:-1]
        kept = "".join(f"{line}\n" for line in whole if _step_of(line) <= step)
        if kept != text or self._remote:
            path.write_text(kept)
        return path.open("a", buffering=1, encoding="utf-8", newline="")

    def _header(self, columns: Sequence[str]) -> tuple[str, ...]:
        """The table's columns: those an earlier run began it with, and new ones after them."""
        path = self._folder / "metrics.csv"
        with path.open(encoding="utf-8", newline="") as file:
            header, *rows = list(csv.reader(file)) or [[]]
        whole = tuple(dict.fromkeys((*header, "step", *columns)))
        if len(whole) > len(header):
            self._table.truncate(0)
            self._row(whole)
            for row in rows:
                self._row(row + [""] * (len(whole) - len(row)))
        return whole

    def _row(self, values: Iterable):
        csv.writer(self._table, lineterminator="\n").writerow(values)

    def _refused(self, error: OSError) -> UserError:
        return UserError(
            f"{self._folder}: metrics cannot be written ({error}); "
            "free the disk, then run again to go on from the last checkpoint"
        )


def _line(file: io.TextIOBase, record: dict):
    file.write(json.dumps(record, ensure_ascii=False) + "\n")


def _markdown(rows: list[dict]) -> str:
    """A table of rows of the same columns."""

    def line(values: Iterable) -> str:
        cells = (str(value).replace("|", "\\|").replace("\n", "<br>") for value in values)
        return f"| {' | '.join(cells)} |"

    return "\n".join(
        [line(rows[0]), line("---" for _ in rows[0]), *(line(row.values()) for row in rows)]
    )


def _step_of(line: str) -> int:
    """The step of a line of JSON or CSV; -1 for the header."""
    if line.startswith("{"):
        return json.loads(line)["step"]
    first = line.partition(",")[0]
    return int(first) if first.isdigit() else -1


def _start_wandb(project: str, output: epath.PathLike, config: dict):
    """A W&B run that a later run with the same output goes on with."""
    try:
        import wandb
    except ImportError:
        raise UserError("loop.wandb asks for W&B; pip install wandb, or leave it out") from None
    name = epath.Path(output).name
    run_id = f"{name}-{zlib.crc32(str(epath.Path(output).absolute()).encode()):08x}"
    return wandb.init(project=project, name=name, id=run_id, resume="allow", config=config)
