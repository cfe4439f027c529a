"""Writes the metrics of a run to files that a resumed run continues: JSON Lines, TensorBoard, W&B.

OUTPUT/metrics.jsonl   a line a logged step and a line an evaluation: {"step": 20, "loss": ...}
OUTPUT/samples.jsonl   generated captions: {"step": 20, "clip": ..., "caption": ...}; each other
                       table of texts likewise, in a file of its name
OUTPUT/tensorboard/    the same for TensorBoard, captions as text, by the names of TAGS
"""

import contextlib
import functools
import io
import re
import tempfile
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from etils import epath

from ugc_jax import files
from ugc_jax.errors import UserError, environment_failure
from ugc_jax.train.checkpoint import is_remote

COLUMNS = (  # of SFT
    "loss", "accuracy", "grad_norm", "learning_rate", "tokens_per_second",
    "examples_per_second", "data_wait", "mfu", "memory_gb", "eval_loss", "eval_accuracy",
)  # fmt: skip

_OFFLINE = "set WANDB_MODE=offline, or leave it out"
# Name in metrics.jsonl, or of a table of texts -> its tag in TensorBoard and W&B, by the first
# pattern that matches all of it.
TAGS = (
    (r"(goodput/.+)", r"\1"),  # seconds by kind, over restarts
    (r"eval_(.+)", r"eval/\1"),  # eval_loss, eval_reward, eval_rewards/NAME, ...
    (r"samples", "eval/samples"),
    (r"(rewards/.+)", r"rollout/\1"),  # rewards/NAME/mean, .../std, .../failed
    (r"(reward|reward_std|zero_std_groups|left_out|skipped|draws|replaced)", r"rollout/\1"),
    (
        r"(truncated|completions|completion_tokens|completion_tokens_min|completion_tokens_max)",
        r"rollout/\1",
    ),
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
        evaluated: bool = True,
    ):
        """step: the run continues after it; lines of later steps by an earlier run are removed.

        evaluated: False: also those of an evaluation of `step`, which is made again.

        output: a local folder or an etils path, to which `publish` copies the files.
        config: the run's settings, for W&B. wandb_project: None: no W&B. tables: names of the
        tables of texts.
        """
        self._output = epath.Path(output)
        self._remote = is_remote(output)
        self._folder = Path(tempfile.mkdtemp()) if self._remote else Path(output)
        with self._disk_errors():
            self._folder.mkdir(parents=True, exist_ok=True)
            kept = functools.partial(_is_before, step, evaluated)
            self._metrics = self._open("metrics.jsonl", kept)
            samples = functools.partial(_is_before, step if evaluated else step - 1, True)
            self._texts = {
                name: self._open(f"{name}.jsonl", samples if name == "samples" else kept)
                for name in tables
            }
            self._board = _Board(self._folder / "tensorboard", step + 1)
        self._wandb = None if wandb_project is None else _start_wandb(wandb_project, output, config)

    def metrics(self, step: int, values: dict[str, float]):
        """Report metrics of a step; those whose value is None are left out."""
        values = {name: value for name, value in values.items() if value is not None}
        tagged = {tag(name): value for name, value in values.items()}
        with self._disk_errors():
            _line(self._metrics, {"step": step} | values)
            self._board.scalars(tagged, step)
        self._log(tagged, step)

    def scalars(self, step: int, values: dict[str, float]):
        """Report values of a step that are in another file already: to TensorBoard and W&B."""
        tagged = {tag(name): value for name, value in values.items()}
        with self._disk_errors():
            self._board.scalars(tagged, step)
        self._log(tagged, step)

    def texts(self, table: str, step: int, rows: list[dict]):
        """Add rows, all of the same columns, to a table of texts after a step."""
        text = _markdown(rows)
        with self._disk_errors():
            for row in rows:
                _line(self._texts[table], {"step": step} | row)
            self._board.text(tag(table), text, step)
        self._log({tag(table): text}, step)

    def _log(self, values: dict, step: int):
        if self._wandb is not None:
            with _errors("loop.wandb", Exception, _OFFLINE):
                self._wandb.log(values, step=step)

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
        """Finish all files and W&B's run, also if one fails; raises what the first failure was."""
        open_files = self._board, self._metrics, *self._texts.values()
        ends = [(file.close, self._disk_errors()) for file in open_files]
        ends.append((self.publish, contextlib.nullcontext()))
        if self._wandb is not None:
            ends.append((self._wandb.finish, _errors("loop.wandb", Exception, _OFFLINE)))
        failures = []
        for end, errors in ends:
            try:
                with errors:
                    end()
            except Exception as error:
                failures.append(error)
        if failures:
            raise failures[0]

    def _open(self, name: str, is_kept: Callable[[dict], bool]) -> io.TextIOBase:
        """Open a file to append to, with only those of its whole lines that are kept."""
        path, stored = self._folder / name, self._output / name
        text = files.read_text(stored, "move it away") if stored.exists() else ""
        lines = [line for line in files.parse_lines(text) if line.whole and line.error is None]
        kept = "".join(f"{line.text}\n" for line in lines if is_kept(line.value))
        if kept != text or self._remote:
            files.write_text(path, kept)
        return path.open("a", buffering=1, encoding="utf-8", newline="")

    def _disk_errors(self) -> contextlib.AbstractContextManager:
        return _errors(self._folder, OSError, "free disk space")


class _Board:
    """An event file of TensorBoard, written at once.

    tensorboardX's own SummaryWriter writes in a thread, which a full disk ends with a traceback;
    whoever writes then waits for it for ever.
    """

    def __init__(self, folder: Path, step: int):
        """step: TensorBoard forgets what earlier files have of this step and later ones."""
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog

        self._event = Event
        folder.mkdir(parents=True, exist_ok=True)
        self._file = EventsWriter(str(folder / "events"))
        self._write(step, session_log=SessionLog(status=SessionLog.START))

    def scalars(self, values: dict[str, float], step: int):
        from tensorboardX.summary import scalar

        for name, value in values.items():
            self._write(step, summary=scalar(name, value))
        self._file.flush()

    def text(self, name: str, text: str, step: int):
        from tensorboardX.summary import text as summary

        self._write(step, summary=summary(name, text))
        self._file.flush()

    def close(self):
        self._file.close()

    def _write(self, step: int, **content):
        self._file.write_event(self._event(wall_time=time.time(), step=step, **content))


def _is_before(step: int, evaluated: bool, line: dict) -> bool:
    """Whether a line is of a step up to `step` and, if not `evaluated`, of no evaluation of it."""
    is_evaluation = any(name.startswith("eval_") for name in line)
    return line["step"] < step or (line["step"] == step and (evaluated or not is_evaluation))


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
    try:
        return wandb.init(project=project, name=name, id=run_id, resume="allow", config=config)
    except Exception as error:  # of its own: no key, no network, ...
        reason = " ".join(str(error).split())
        raise UserError(
            f"loop.wandb={project}: W&B cannot be started ({reason:.200}); run `wandb login`, set "
            "WANDB_MODE=offline, or leave it out"
        ) from None
