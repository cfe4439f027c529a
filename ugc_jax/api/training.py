"""sft and grpo as functions: keyword options and data in, a Run out."""

import dataclasses
import functools
import os
import signal
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from etils import epath

from ugc_jax import files, progress
from ugc_jax.api import rows
from ugc_jax.errors import UserError, require_extra
from ugc_jax.jobs import grpo as grpo_job
from ugc_jax.jobs import sft as sft_job
from ugc_jax.jobs.extract import ExtractConfig
from ugc_jax.rl.rewards.runner import RewardConfig
from ugc_jax.rl.settings import GrpoConfig
from ugc_jax.settings import Schema
from ugc_jax.train.checkpoint import is_remote
from ugc_jax.train.run import resolve_weights
from ugc_jax.train.settings import SftConfig, TrainConfig

if TYPE_CHECKING:
    from ugc_jax.generate.captioner import Captioner

# What a call trains on: extracted folders as data.train takes them, a manifest, a
# `datasets.Dataset`, or rows.
Data = str | os.PathLike | Iterable[Mapping[str, Any]]
# A function, {name: function}, or a shipped one as rewards.functions names it ("length",
# "length=0.5"), or one of these with its weight.
Reward = (
    Callable | Mapping[str, Callable] | str | tuple[Callable | Mapping[str, Callable] | str, float]
)


class Series(NamedTuple):
    """A metric over a run.

    steps: i64[n]. values: f64[n].
    """

    steps: np.ndarray
    values: np.ndarray


@dataclasses.dataclass(frozen=True)
class Run:
    """A finished run of `sft` or `grpo`; everything is in its folder.

    config: the settings used. output: its folder. metrics: name -> Series, as in metrics.jsonl;
    eval_loss and the like are of the evaluations. tables: name -> rows, as in the files of texts:
    "samples" of an evaluation, and "completions" of grpo with their rewards.
    """

    config: SftConfig | GrpoConfig
    metrics: Mapping[str, Series] = dataclasses.field(repr=False)
    tables: Mapping[str, list[dict]] = dataclasses.field(repr=False)

    @property
    def output(self) -> Path | epath.Path:
        """The folder of the run; an etils path if it is remote."""
        kind = epath.Path if is_remote(self.config.output) else Path
        return kind(self.config.output)

    @property
    def model(self) -> Path | epath.Path:
        """The folder of the trained model, a Hugging Face checkpoint with an adapter merged."""
        return self.output / "model"

    @property
    def adapter(self) -> Path | epath.Path | None:
        """The folder of the adapter in peft's format, None without one."""
        return self.output / "adapter" if self.config.lora.rank else None

    def captioner(self, **options) -> "Captioner":
        """Load the model. Options and errors: as of `Captioner.from_pretrained`."""
        from ugc_jax.generate.captioner import Captioner

        return Captioner.from_pretrained(self.model, **options)

    @classmethod
    def read(cls, config: SftConfig | GrpoConfig) -> "Run":
        """Read what a run has written. Raises UserError if a file of it is damaged."""
        run = cls(config, {}, {})
        metrics, tables = {}, {}
        for line in _lines(run.output / "metrics.jsonl"):
            step = line.pop("step")
            for name, value in line.items():
                metrics.setdefault(name, []).append((step, value))
        for name in ("samples", "completions"):
            if (path := run.output / f"{name}.jsonl").exists():
                tables[name] = _lines(path)
        return cls(config, {name: _series(points) for name, points in metrics.items()}, tables)


def sft(
    train: Data | None = None,
    *,
    output: str | os.PathLike | None = None,
    checkpoint: str | os.PathLike | None = None,
    eval: Data | None = None,
    config: str | os.PathLike | SftConfig | None = None,
    extract: Mapping[str, Any] | ExtractConfig | None = None,
    **options,
) -> Run:
    """Fine-tune a checkpoint on clips and their captions, as the job `ugc-jax sft` does.

    Examples:
        >>> run = ugc_jax.sft(
        ...     [{"path": "clip.mp4", "caption": "A red ball falls."}],
        ...     checkpoint="tiny",
        ...     output="runs/mine",
        ...     steps=2,
        ...     batch_size=1,
        ...     optimizer={"learning_rate": 1e-3},
        ...     loop={"log_every": 1},
        ...     extract={"fps": 1},
        ... )
        >>> steps, losses = run.metrics["loss"]
        >>> steps.tolist(), losses.shape
        ([1, 2], (2,))
        >>> print(run.model)
        runs/mine/model

    train, eval: what to train and to evaluate on: a list of rows in a form of a manifest
      ({"videos": [...], "messages": [...]}, a path and a caption, ...), a `datasets.Dataset` of
      them, the path of a manifest (.jsonl, .json, .csv, .tsv), or folders that `ugc-jax extract`
      made, as data.train names them.
    output: folder of the run. A further call with the same one continues a run that was stopped,
      and returns at once after its last step.
    checkpoint: the initial weights: a directory, a run's output, or a hub id.
    config: a config as --config takes it ("sft_3b:lora", a file), or an SftConfig; options replace
      its values.
    extract: of rows: options of the job extract, such as {"preset": "upstream", "fps": 1, "media":
      FOLDER}. Their records are kept in OUTPUT/records and extracted once; the content of a clip is
      not looked at again.
    options: settings of the job by their names there, short ones (learning_rate=1e-5, steps=100),
      or section by section (optimizer={"learning_rate": 1e-5} or OptimizerConfig(...)).

    Progress is shown as by the job, unless the program has set up logging. Worker processes do not
    run the calling script. Ctrl-C and SIGTERM save the state and raise KeyboardInterrupt and
    SystemExit (status 143); a second Ctrl-C does not wait.

    Raises, at the call, TypeError for an unknown option, for a value and for data of another type;
    UserError for a value out of range, and as the job.
    """
    require_extra("train", "sft")
    options = _merge(options, output=output, checkpoint=checkpoint)
    with progress.shown():
        settings = _settings(sft_job.SETTINGS, config, options, extract, train=train, eval=eval)
        _end(sft_job.main(settings, []))
    return Run.read(settings)


def grpo(
    train: Data | None = None,
    *,
    rewards: Sequence[Reward] | Mapping[str, Any] | RewardConfig | None = None,
    output: str | os.PathLike | None = None,
    checkpoint: str | os.PathLike | None = None,
    eval: Data | None = None,
    config: str | os.PathLike | GrpoConfig | None = None,
    extract: Mapping[str, Any] | ExtractConfig | None = None,
    **options,
) -> Run:
    """Train a captioner by rewards of the captions that it samples, as the job `ugc-jax grpo` does.

    Examples:
        >>> def brief(prompt, completion, reference, metadata):
        ...     return 1 / (1 + len(completion.split()))
        >>> run = ugc_jax.grpo(
        ...     [{"path": "clip.mp4"}],
        ...     rewards=[brief, "repetition=0.5"],
        ...     checkpoint="tiny",
        ...     output="runs/brief",
        ...     steps=1,
        ...     batch_size=1,
        ...     samples=2,
        ...     max_new_tokens=4,
        ...     grpo={"mask_truncated": False},
        ...     extract={"fps": 1},
        ... )
        >>> len(run.tables["completions"]), run.metrics["rewards/brief/mean"].values.shape
        (2, (1,))

    rewards: functions `(prompt, completion, reference, metadata) -> float`, also async ones, and
      shipped ones by name, each perhaps with a weight: [brief, (other, 0.5), "length=0.5"]. The
      name of a function names its metrics; {"name": function} gives another one, and one to what
      has none. Or the settings of the section: {"functions": [...],
      "timeout": 10}. Functions are called as those of rewards.file (docs/rewards.md): in processes
      of their own, to which cloudpickle copies them with what they refer to, so that a call that
      fails, hangs or ends its process loses one sample. What they change, they change there.

    Other arguments, signals and errors: as of `sft`. Captions of rows are only references.
    """
    require_extra("train", "grpo")
    options = _merge(options, output=output, checkpoint=checkpoint)
    own, options = _rewards(rewards, options)
    with progress.shown():
        check = functools.partial(grpo_job.check_rewards, functions=own)
        data = {"train": train, "eval": eval}
        settings = _settings(grpo_job.SETTINGS, config, options, extract, check, **data)
        _end(grpo_job.run_grpo(settings, own))
    return Run.read(settings)


def _merge(options: dict[str, Any], **arguments) -> dict[str, Any]:
    """Options, and the arguments that are not None."""
    return options | {name: value for name, value in arguments.items() if value is not None}


def _settings(
    schema: Schema,
    config,
    options: dict[str, Any],
    how: Mapping[str, Any] | ExtractConfig | None,
    check: Callable[[Any], None] = lambda settings: None,
    **data,
) -> TrainConfig:
    """Return the settings of a run whose data are extracted. data: its train and eval.

    check: raises for settings with which a run could not begin; called before data are extracted.
    """
    given = {name: value for name, value in data.items() if value is not None}
    to_extract = {name: value for name, value in given.items() if not rows.is_extracted(value)}
    extraction = rows.extraction(how)
    paths = {name: name if name in to_extract else given[name] for name in given}
    settings = schema.from_options(options | paths, config)
    if not to_extract:
        if how is not None:
            raise UserError("extract is for data given as rows or a manifest; leave it out")
        return settings
    if settings.distributed:
        raise UserError(
            "distributed: each process would extract the rows; run ugc-jax extract first, and name "
            "its folder"
        )
    resolve_weights(settings.checkpoint, settings.revision)  # told before hours of extraction, too
    check(settings)
    folders = {
        name: rows.records_of(value, name, settings.output, extraction)
        for name, value in to_extract.items()
    }
    return dataclasses.replace(settings, data=dataclasses.replace(settings.data, **folders))


def _rewards(rewards, options: dict[str, Any]) -> tuple[dict[str, Callable], dict[str, Any]]:
    """Return the own functions of `rewards` by name, and the options with its other settings.

    Raises TypeError for what is no reward, and for a function without a name.
    """
    if rewards is None:
        return {}, options
    if isinstance(rewards, RewardConfig):
        return {}, options | {"rewards": rewards}
    settings = dict(rewards) if isinstance(rewards, Mapping) else {"functions": rewards}
    functions = settings.get("functions")
    if isinstance(functions, str | None):  # as rewards.functions takes it
        return {}, options | {"rewards": settings}
    if not isinstance(functions, Sequence):
        raise TypeError(f"rewards: expected a list of functions and names, got {functions!r:.60}")
    own: dict[str, Callable] = {}
    words = []
    for one in functions:
        function, weight = one if isinstance(one, tuple) and len(one) == 2 else (one, None)
        if weight is not None and not isinstance(weight, int | float):
            raise TypeError(f"rewards: expected (function, weight), got {one!r:.60}")
        for name in _own_functions(function, own):
            words.append(name if weight is None else f"{name}={float(weight)!r}")
    return own, options | {"rewards": settings | {"functions": ",".join(words)}}


def _own_functions(function, own: dict[str, Callable]) -> list[str]:
    """Add a function, or {name: function}, to `own`; return the names of what is given."""
    if isinstance(function, str):
        return [function]
    named = function
    if not isinstance(named, Mapping):
        named = {getattr(function, "__name__", ""): function}
    for name, one in named.items():
        if not callable(one):
            raise TypeError(f"rewards: expected a function or a name, got {one!r:.60}")
        if not isinstance(name, str) or not name.isidentifier():
            raise TypeError(
                f'rewards: {one!r:.60} has no name for the metrics; give {{"name": function}}'
            )
        if own.setdefault(name, one) is not one:
            raise TypeError(f"rewards: two functions have the name {name}; rename one")
    return [*named]


def _end(status: int):
    """Raise what a run that a signal has stopped ends with."""
    if status == 128 + signal.SIGINT:
        raise KeyboardInterrupt
    if status:
        raise SystemExit(status)


def _lines(path: Path | epath.Path) -> list[dict]:
    return [line.value for line in files.read_lines(path, "run again") if line.error is None]


def _series(points: list[tuple[int, float]]) -> Series:
    steps, values = zip(*points, strict=True)
    return Series(np.array(steps, np.int64), np.array(values, np.float64))
