"""Records -> batches: Grain's workers execute the plan, step by step.

    plan.step(n) -> rows of this process -> records (decode) -> examples (lay out) -> collate

Every process makes the same plan and loads its own rows of each step. To resume a run only the
number of the next step is needed; the number of processes and workers may change.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from etils import epath

from ugc_jax.data import grain_workers
from ugc_jax.data.batching import Batch, collate_rows
from ugc_jax.data.example import Example, build_example
from ugc_jax.data.hiding import hide_some
from ugc_jax.data.planning import (
    DataConfig,
    DataPlan,
    ExampleSet,
    make_plan,
    parse_mixture,
    prompt_set,
    training_set,
    weighted,
)
from ugc_jax.data.prompt import ChatTokenizer
from ugc_jax.data.records import IndexEntry, RecordSource
from ugc_jax.data.removed import REMOVED
from ugc_jax.data.shown import shown_clip
from ugc_jax.errors import UserError
from ugc_jax.media.presets import ClipSettings
from ugc_jax.models.qwen2_5_omni.config import OmniConfig

if TYPE_CHECKING:
    import grain  # of the extra `train`

Length = tuple[int | None, float]  # of a plan: steps, or without them epochs


def training(
    data: DataConfig,
    tokenizer: ChatTokenizer,
    model: OmniConfig,
    rows: Sequence[int],
    steps: int | None = None,
    epochs: float = 1.0,
    packing: bool = True,
    hide_media: float = 0.0,
) -> "Pipeline":
    """Return the batches of a training run over the folders of `data.train`.

    rows: the rows of the global batch that this process feeds. steps: of the run; None: as many as
    `epochs` take. packing: as `make_plan` takes it. hide_media: share of the examples whose sound,
    picture or both are hidden (`hiding.hide_some`). Raises UserError for a folder that cannot be
    read or has nothing to train on.
    """
    sources, sets = _mixture(data, training_set, tokenizer, model)
    planner = functools.partial(make_plan, sets, data, packing=packing)
    plan = planner(steps, epochs)
    loader = Loader(sources, plan, tokenizer, model, rows, hide_media=hide_media)
    return Pipeline(plan, loader, data, planner, (steps, epochs))


def prompt_batches(
    data: DataConfig,
    tokenizer: ChatTokenizer,
    model: OmniConfig,
    rows: Sequence[int],
    steps: int | None = None,
    epochs: float = 1.0,
    further: int = 0,
    most: int | None = None,
) -> "Pipeline":
    """As `training`, but batches of prompts, one a row, that end where the answer begins.

    Their answers are left out and may be absent. further: batches that a step may draw besides its
    own: the plan has steps * (1 + further) batches, all of one shape, so that their rows can
    replace each other. most: use only the first prompts of each folder, so many.
    """
    sources, sets = _mixture(data, prompt_set, tokenizer, model, most)

    def planner(steps: int | None, epochs: float, ends: Sequence[float] = ()) -> DataPlan:
        plan = make_plan(sets, data, steps, epochs, packing=False, ends=ends)
        if not further:
            return plan
        return make_plan(sets, data, len(plan) * (1 + further), packing=False, one_shape=True)

    plan = planner(steps, epochs)
    loader = Loader(sources, plan, tokenizer, model, rows, answers=False)
    return Pipeline(plan, loader, data, planner, (steps, epochs))


def _mixture(
    data: DataConfig,
    make_set: Callable[..., ExampleSet],
    tokenizer: ChatTokenizer,
    model: OmniConfig,
    most: int | None = None,
) -> tuple[list[RecordSource], list[ExampleSet]]:
    """Open the folders of `data.train`; `make_set` selects from their first `most` entries."""
    folders, weights = zip(*parse_mixture(data.train), strict=True)
    cache = {"cache": data.cache} if data.cache else {}
    sources = [RecordSource(folder, **cache) for folder in folders]
    sets = [
        make_set(folder, source.entries[:most], data, tokenizer, model)
        for folder, source in zip(folders, sources, strict=True)
    ]
    return sources, weighted(sets, weights)


def evaluation(
    data: DataConfig,
    tokenizer: ChatTokenizer,
    model: OmniConfig,
    rows: Sequence[int],
    packing: bool = True,
) -> "Pipeline":
    """Return one pass over `data.eval`, unshuffled, read by a thread of this process."""
    if data.eval is None:
        raise UserError("data.eval: name an extracted folder to evaluate on")
    data = dataclasses.replace(data, train=data.eval, shuffle=False, workers=0)
    return training(data, tokenizer, model, rows, packing=packing)


def prompt_evaluation(
    data: DataConfig, tokenizer: ChatTokenizer, model: OmniConfig, rows: Sequence[int], most: int
) -> "Pipeline":
    """Return one pass over the first `most` prompts of each folder of `data.eval`."""
    data = dataclasses.replace(data, train=data.eval, shuffle=False, workers=0)
    return prompt_batches(data, tokenizer, model, rows, most=most)


class Pipeline:
    """Batches of a plan, for this process; it may be iterated over more than once.

    plan: of the whole run, the same in all processes; `len(plan)` steps. data: its settings.
    loader: makes a step's batch in the calling thread. planner: makes the plan again, as
    `make_plan(sets, data, steps, epochs, ends=...)`. length: its (steps, epochs).
    """

    def __init__(
        self,
        plan: DataPlan,
        loader: "Loader",
        data: DataConfig,
        planner: Callable[..., DataPlan],
        length: Length,
    ):
        self.plan, self.loader, self.data = plan, loader, data
        self._planner, self._length = planner, length

    def __len__(self) -> int:
        return len(self.plan)

    def __iter__(self) -> "BatchIterator":
        return BatchIterator(self)

    def continue_after(self, step: int, ends: Sequence[float]):
        """Plan again, so that the plan goes on after the first `step` steps of another one.

        ends: of the other plan (`DataPlan.ends_before`). Raises UserError if this plan is shorter.
        """
        if self.plan.ends_before(step) == tuple(ends):
            return
        plan = self._planner(*self._length, ends=ends)
        if plan.ends_before(step) != tuple(ends):
            raise UserError(
                f"data: the checkpoint is at step {step}, beyond the last full one of these "
                "settings; raise loop.steps or loop.epochs, or choose another output"
            )
        self.plan, self.loader = plan, dataclasses.replace(self.loader, plan=plan)

    def ends_of(self, length: Length | None, step: int) -> tuple[float, ...]:
        """Return `ends_before(step)` of the plan of another length; None: of this plan."""
        plan = self.plan if length in (None, self._length) else self._planner(*length)
        return plan.ends_before(step)

    def entries(self, step: int) -> list[IndexEntry | None]:
        """Return the entry in each row of a step, of all processes; None for an empty row.

        For rows of one example each. No record is opened.
        """
        sources = self.loader.sources
        rows = self.plan.step(step).rows
        return [sources[row[0][0]].entries[row[0][1]] if row else None for row in rows]

    def shown_clip(self) -> ClipSettings:
        """Return the clip settings, system prompt and question of the examples."""
        return shown_clip(self.loader.sources, self.plan.items)

    def from_step(self, step: int) -> "grain.IterDataset":
        """Return Grain's dataset of the steps from `step` on."""
        import grain

        workers = min(self.data.workers, len(self.plan) - step)
        load = grain_workers.Stored(self.loader) if workers else self.loader
        batches = grain.MapDataset.range(step, len(self.plan)).map(load)
        ahead = 0 if workers else self.data.read_ahead
        batches = batches.to_iter_dataset(
            grain.ReadOptions(num_threads=min(ahead, 1), prefetch_buffer_size=ahead)
        )
        if not workers:
            return batches
        return grain_workers.prefetched(batches, workers, self.data.read_ahead)


class BatchIterator(Iterator[Batch]):
    """Batches (numpy, this process's rows) in the order of the plan, from any step on.

    The state is the number of the next step; Grain's own state depends on the number of workers.
    """

    def __init__(self, pipeline: Pipeline):
        import grain  # noqa: F401  not first in a thread that reads ahead: records._import_parser

        self._pipeline, self._step, self._batches = pipeline, 0, None
        self._taken = 0  # batches of these

    def __next__(self) -> Batch:
        """Return the next batch.

        Raises UserError for a record that cannot be read, for workers that died or have no shared
        memory, and if what workers do cannot be written to the temporary folder.
        """
        if self._step >= len(self._pipeline):
            self.close()
            raise StopIteration
        try:
            if self._batches is None:
                self._batches, self._taken = iter(self._pipeline.from_step(self._step)), 0
            with grain_workers.starting(self._taken, self._pipeline.data.workers):
                batch = next(self._batches)
        except (OSError, RuntimeError) as error:
            if self._pipeline.data.workers and (fault := grain_workers.failure(error, self._step)):
                raise UserError(f"data: {fault}") from error
            raise
        self._step, self._taken = self._step + 1, self._taken + 1
        return grain_workers.copied(batch) if self._pipeline.data.workers else batch

    def get_state(self) -> dict:
        """Return the position in the data, for JSON: the next step and the plan's fingerprint.

        Also, if there are any, the epochs at which earlier steps have empty rows ("ends").
        """
        plan = self._pipeline.plan
        ends = plan.ends_before(self._step)
        return {"step": self._step, "data": plan.fingerprint} | (
            {"ends": list(ends)} if ends else {}
        )

    def set_state(self, state: dict, length: Length | None = None) -> None:
        """Continue from a state. The plan is made again if its own is another one before it.

        length: the (steps, epochs) with which the plan of a state without "ends" was made; None:
        those of this plan. Raises UserError for a state of other data, or of another order, and if
        this plan is shorter.
        """
        if state["data"] != self._pipeline.plan.fingerprint:
            fault = f"data: the checkpoint is at step {state['step']} of other data"
            if shrunk := _with_removals(self._pipeline.data.train):
                raise UserError(
                    f"{fault}: records were removed from {', '.join(shrunk)}; begin a new run with "
                    "another output, from weights that may have seen them or from earlier ones"
                )
            raise UserError(
                f"{fault} or in another order; give the folders and data.* of its run, or begin a "
                "new run from its weights"
            )
        ends = state.get("ends") or self._pipeline.ends_of(length, state["step"])
        self._pipeline.continue_after(state["step"], ends)
        self.close()
        self._step = state["step"]

    def close(self) -> None:
        """Stop the workers. The iterator can still be used; it starts new ones."""
        if self._batches is not None:
            batches, self._batches = self._batches, None
            if self._pipeline.data.workers:
                grain_workers.close(batches)
            else:
                batches.close()


def _with_removals(mixture: str) -> list[str]:
    """Return the folders of a mixture from which records were removed."""
    folders = (folder for folder, _ in parse_mixture(mixture))
    return [folder for folder in folders if (epath.Path(folder) / REMOVED).exists()]


@dataclasses.dataclass(frozen=True)
class Loader:
    """Step number -> Batch of this process's rows. It is pickled to the workers.

    answers: false leaves the last answer of each example out. hide_media: as of `training`.
    """

    sources: Sequence[RecordSource]
    plan: DataPlan
    tokenizer: ChatTokenizer
    model: OmniConfig
    rows: Sequence[int]
    answers: bool = True
    hide_media: float = 0.0

    def __call__(self, number: int) -> Batch:
        step = self.plan.step(number)
        for source, records in self._items(step.rows).items():
            self.sources[source].fetch(records)
        rows = [[self._example(*item) for item in step.rows[row]] for row in self.rows]
        batch = collate_rows(rows, step.key, len(rows), self.model)
        if self.hide_media:
            hide_some(batch, self.hide_media, number, self.rows, self.model)
        return batch

    def _items(self, rows: list[list[tuple[int, int]]]) -> dict[int, list[int]]:
        """Return the records of this process's rows by their data sets."""
        found: dict[int, list[int]] = {}
        for row in self.rows:
            for source, record in rows[row]:
                found.setdefault(source, []).append(record)
        return found

    def _example(self, source: int, number: int) -> Example:
        entry, media = self.sources[source][number]
        messages = entry.messages if self.answers else entry.prompt
        return build_example(
            messages, media, self.tokenizer, self.model, generation_prompt=not self.answers
        )


# ---- prompts without their answers ---------------------------------------------------------------


class RecordPrompt(NamedTuple):
    """A record's prompt. answer: of the record, None without."""

    entry: IndexEntry
    example: Example
    answer: str | None


def prompts(
    source: RecordSource, numbers: Sequence[int], tokenizer: ChatTokenizer, model: OmniConfig
) -> list[RecordPrompt]:
    """Read the prompts of records, without their last answer: for sample captions."""
    out = []
    for number in numbers:
        entry, media = source[number]
        example = build_example(entry.prompt, media, tokenizer, model)
        out.append(RecordPrompt(entry, example, entry.answer))
    return out
