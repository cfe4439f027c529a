"""Writes the metrics of a run to files that a resumed run continues: JSON Lines, TensorBoard, W&B.

OUTPUT/metrics.jsonl   a line a logged step and a line an evaluation: {"step": 20, "loss": ...}
OUTPUT/samples.jsonl   generated captions: {"step": 20, "clip": ..., "caption": ...}; each other
                       table of texts likewise, in a file of its name
OUTPUT/tensorboard/    the same for TensorBoard, captions as text, by the names of TAGS
"""

import contextlib
import io
import re
import tempfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from etils import epath

from ugc_jax import files
from ugc_jax.errors import UserError, environment_failure
from ugc_jax.train.checkpoint import is_remote

COLUMNS = (  # of SFT
    "loss", "accuracy", "grad_norm", "learning_rate", "tokens_per_second",
    "examples_per_second", "data_wait", "mfu", "memory_gb", "eval_loss", "eval_accuracy",
)  # fmt: skip

# Name in metrics.jsonl, or of a table of texts -> its tag in TensorBoard and W&B, by the first
# pattern that matches all of it.
TAGS = (
    (r"eval_(.+)", r"eval/\1"),  # eval_loss, eval_reward, eval_rewards/NAME, ...
    (r"samples", "eval/samples"),
    (r"(rewards/.+)", r"rollout/\1"),  # rewards/NAME/mean, .../std, .../failed
    (r"(reward|reward_std|zero_std_groups|left_out|draws|replaced|truncated)", r"rollout/\1"),
    (r"(completions|completion_tokens|completion_tokens_min|completion_tokens_max)", r"rollout/\1"),
    (r"(rollout_seconds|reward_seconds|generated_tokens_per_second)", r"rollout/\1"),
    (r"(.+)", r"train/\1"),  # loss, grad_norm, learning_rate, kl, tokens_per_second, ...
)


def tag(name: str) -> str:
    """The name of a metric in TensorBoard and W&B, by TAGS."""
    matches = ((re.fullmatch(pattern, name), form) for pattern, form in TAGS)
    return next(match.expand(form) for match, form in matches if match)


class MetricsWriter:
    """Writes the metrics of a run, in one process only. Raises UserError where the disk refuses."""

    def __init__(
        self,
        output: epath.PathLike,
        step: int,
        config: dict,
        wandb_project: str | None = None,
        tables: Sequence[str] = ("samples",),
    ):
        """step: the run continues after it; lines of later steps by an earlier run are removed.

        output: a local folder or an etils path, to which `publish` copies the files.
        config: the run's settings, for W&B. wandb_project: None: no W&B. tables: names of the
        tables of texts.
        """
        from tensorboardX import SummaryWriter

        self._output = epath.Path(output)
        self._remote = is_remote(output)
        self._folder = Path(tempfile.mkdtemp()) if self._remote else Path(output)
        with self._disk_errors():
            self._folder.mkdir(parents=True, exist_ok=True)
            self._metrics = self._open("metrics.jsonl", step)
            self._texts = {name: self._open(f"{name}.jsonl", step) for name in tables}
            self._board = SummaryWriter(str(self._folder / "tensorboard"), purge_step=step + 1)
        self._wandb = None if wandb_project is None else _start_wandb(wandb_project, output, config)

    def metrics(self, step: int, values: dict[str, float]):
        """Report metrics of a step; those whose value is None are left out."""
        values = {name: value for name, value in values.items() if value is not None}
        tagged = {tag(name): value for name, value in values.items()}
        with self._disk_errors():
            _line(self._metrics, {"step": step} | values)
            for name, value in tagged.items():
                self._board.add_scalar(name, value, step)
            self._board.flush()
        if self._wandb is not None:
            self._wandb.log(tagged, step=step)

    def texts(self, table: str, step: int, rows: list[dict]):
        """Add rows, all of the same columns, to a table of texts after a step."""
        text = _markdown(rows)
        with self._disk_errors():
            for row in rows:
                _line(self._texts[table], {"step": step} | row)
            self._board.add_text(tag(table), text, step)
            self._board.flush()
        if self._wandb is not None:
            self._wandb.log({tag(table): text}, step=step)

    def publish(self):
        """Copy the files to a remote output."""
        if not self._remote:
            return
        # Each remote file system has errors of its own.
        with _errors(self._output, Exception, "make it writable"):
            for path in filter(Path.is_file, self._folder.rglob("*")):
                target = self._output / str(path.relative_to(self._folder))
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(path.read_bytes())

    def close(self):
        """Finish all files."""
        with self._disk_errors():
            self._board.close()
            for file in (self._metrics, *self._texts.values()):
                file.close()
        self.publish()
        if self._wandb is not None:
            self._wandb.finish()

    def _open(self, name: str, step: int) -> io.TextIOBase:
        """Open a file to append to, without its lines of steps after `step` and incomplete ones."""
        path, stored = self._folder / name, self._output / name
        text = files.read_text(stored, "move it away") if stored.exists() else ""
        lines = [line for line in files.parse_lines(text) if line.whole and line.error is None]
        kept = "".join(f"{line.text}\n" for line in lines if line.value["step"] <= step)
        if kept != text or self._remote:
            files.write_text(path, kept)
        return path.open("a", buffering=1, encoding="utf-8", newline="")

    def _disk_errors(self) -> contextlib.AbstractContextManager:
        return _errors(self._folder, OSError, "free disk space")


@contextlib.contextmanager
def _errors(folder: epath.PathLike, kind: type[Exception], remedy: str) -> Iterator[None]:
    """Raise errors of a kind inside the block as a UserError or EnvironmentFailure of one line."""
    try:
        yield
    except kind as error:
        reason = " ".join(str(error).split())
        fault = UserError(
            f"{folder}: metrics cannot be written ({reason:.200}); {remedy}, then run again to "
            "resume from the last checkpoint"
        )
        raise environment_failure(error, folder) or fault from None


def _line(file: io.TextIOBase, record: dict):
    file.write(files.to_json(record) + "\n")


def _markdown(rows: list[dict]) -> str:
    """Return a Markdown table of rows of the same columns."""

    def line(values: Iterable) -> str:
        cells = (str(value).replace("|", "\\|").replace("\n", "<br>") for value in values)
        return f"| {' | '.join(cells)} |"

    return "\n".join(
        [line(rows[0]), line("---" for _ in rows[0]), *(line(row.values()) for row in rows)]
    )


def _start_wandb(project: str, output: epath.PathLike, config: dict):
    """Start a W&B run, or continue that of an earlier run with the same output."""
    try:
        import wandb
    except ImportError:
        raise UserError("loop.wandb asks for W&B; pip install wandb, or leave it out") from None
    name = epath.Path(output).name
    run_id = f"{name}-{zlib.crc32(str(epath.Path(output).absolute()).encode()):08x}"
    return wandb.init(project=project, name=name, id=run_id, resume="allow", config=config)
