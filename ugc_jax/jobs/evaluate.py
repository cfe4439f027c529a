"""Score captions and answers on UGC-VideoCap, other benchmarks, or the offline world.

The texts to score come from a file of any model's predictions (`predictions`) or from a model that
answers every question first (`ask.checkpoint` and `ask.videos`); a file of a judge's scores, such
as the released ones, replaces the judge (`scores`). A line of predictions is {"video_id": "x",
"caption": "..."}, or a line of `ugc-jax caption`; scores are {"x": {"visual": 4, "audio": 3,
"details": 4}, ...}.

Tasks: voice_source, tone, bgm, ocr, background, objects, audio_caption, visual_caption and
final_caption, of which the last five need an LLM judge (`judge.model`); world, with its manifest as
qa.

benchmark=NAME scores captions on another benchmark, whose files benchmark_data names: events that
captions miss or make up (video-salmonn-2), or questions that a text-only judge answers from the
caption alone (daily-omni, worldsense). Predictions are a caption a video, as above.

With `explain.checkpoint` and `explain.videos`, that model says of the words of captions, whoever
wrote them, what share is heard, seen, both or unsupported (docs/evidence.md).

Failures are counted by kind, never as zeros: no prediction, an empty one, one that is no text (NaN,
false, ...), thinking without an end, a refusal, a negation or several options instead of one, no
usable answer of the judge. Answers of model and judge are stored beside the output: a further run
asks only questions that have no answer yet.

With --distributed, several processes (hosts) that a script of launch/ starts share the clips, and
the one that gives the last answer scores them all.
"""

import contextlib
import dataclasses
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from ugc_jax.errors import UserError
from ugc_jax.evals import evaluate, structured, tasks
from ugc_jax.evals.benchmarks.table import BENCHMARKS, Name
from ugc_jax.evals.judged import JudgingConfig
from ugc_jax.evals.predictions import Predictions
from ugc_jax.evals.results import check_result_path, write_result
from ugc_jax.evals.summary import result_table
from ugc_jax.evals.tasks import Form, Task
from ugc_jax.generate.settings import (
    MOVED,
    AskConfig,
    EngineConfig,
    ExplainConfig,
    SamplingConfig,
)
from ugc_jax.judge.client import JudgeConfig
from ugc_jax.media.presets import ClipSettings
from ugc_jax.models.compute import ComputeConfig
from ugc_jax.settings import Schema, short_names
from ugc_jax.toy import task as world

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Settings of evaluate."""

    output: str  # JSON file for the result, which compare and report read
    # folder of the benchmark's qa files, one of them, or the manifest of a world (test.jsonl)
    qa: str | None = None
    task: str = "all"  # one, several separated by commas, or all
    benchmark: Name | None = None  # a benchmark by caption; none: UGC-VideoCap, of which qa is
    benchmark_data: str | None = None  # its file, or the folder of it
    # columns of its file that are not as published: FIELD=COLUMN, several separated by commas;
    # fields: video, events; or video, question, choices, answer
    map: tuple[str, ...] = ()
    # file of the task's predictions; for several tasks a folder with TASK.jsonl or TASK.json
    predictions: str | None = None
    # column of the predictions' text; none: the one of predict, predict_ocr, prediction, caption
    # and response that has a text
    field: str | None = None
    scores: str | None = None  # file of a judge's scores of captions, used instead of a judge
    ocr_normalisation: Literal["raw", "cleaned"] = "raw"  # of texts; scores of both are published
    distributed: bool = False  # one of several processes (hosts) that share the clips to ask about
    name: str | None = None  # of the model, for tables; none: that of the file or the checkpoint
    judge: JudgeConfig = JudgeConfig()
    judging: JudgingConfig = JudgingConfig()
    ask: AskConfig = AskConfig()
    explain: ExplainConfig = ExplainConfig()
    # of the model that answers first; clip.question replaces the questions of the tasks
    clip: ClipSettings = ClipSettings()
    sampling: SamplingConfig = SamplingConfig()
    engine: EngineConfig = EngineConfig()
    compute: ComputeConfig = ComputeConfig()

    def __post_init__(self):
        if self.judging.prompt is not None and self.judge.model is None:
            raise UserError("judging.prompt needs judge.model, the name of the judge")
        if self.judging.form != "holistic" and self.judge.model is None:
            raise UserError("judging.form needs judge.model, the name of the judge")
        self._check_benchmark()
        if self.distributed and self.ask.checkpoint is None:
            raise UserError("distributed needs ask.checkpoint: the model that the processes ask")
        for name in ("clip", "sampling", "engine", "compute"):
            section = getattr(self, name)
            explains = name in ("engine", "compute") and self.explain.checkpoint is not None
            if self.ask.checkpoint is None and not explains and section != type(section)():
                raise UserError(
                    f"settings of {name} need ask.checkpoint: the model that they are for"
                )

    def _check_benchmark(self):
        """Raise UserError for settings that are of the other kind of benchmark."""
        if self.benchmark is None:
            for name in ("benchmark_data", "map"):
                if getattr(self, name):
                    raise UserError(f"{name} needs benchmark=NAME, the benchmark that it is of")
            return
        if self.benchmark_data is None:
            raise UserError(f"benchmark={self.benchmark} needs benchmark_data=DIR, its files")
        others = {
            "qa": self.qa, "scores": self.scores, "task": self.task != "all",
            "judging.form": self.judging.form != "holistic",
            "ocr_normalisation": self.ocr_normalisation != "raw",
        }  # fmt: skip
        for name, is_given in others.items():
            if is_given:
                raise UserError(f"{name} is of UGC-VideoCap, not of benchmark={self.benchmark}")


_OF_THE_MODEL = short_names(
    clip=ClipSettings, sampling=SamplingConfig, engine=EngineConfig, compute=ComputeConfig
)
SETTINGS = Schema(
    EvaluateConfig,
    # Also the names of earlier versions, as ask.preset for clip.preset.
    short={
        **{name: key for name, key in _OF_THE_MODEL.items() if name != "max_tokens"},
        **{f"ask.{name}": key for name, key in _OF_THE_MODEL.items()},
        "judge.prompt": "judging.prompt",
        "judge.form": "judging.form",
        "judge.units": "judging.units",
        "judge.repeats": "judging.repeats",
    },
    moved=MOVED,
)


def main(config: EvaluateConfig, args: list[str]) -> int:
    """Exit status 0, or 1 when nothing has a score."""
    with contextlib.ExitStack() as held:
        result = score(config, held)
        if result is None:
            return 0
        write_result(config.output, result)
    print(result_table(result))
    logger.info("%s: the result; ugc-jax report makes a page of it", config.output)
    return 0 if any(task["n"] for task in result["tasks"].values()) else 1


def score(config: EvaluateConfig, held: contextlib.ExitStack) -> dict | None:
    """Return the result, which is not written yet; answers are stored beside config.output.

    None if another process has to score (`asking.ask`). held: what keeps others from scoring until
    the result is written. Raises UserError if a file cannot be used, or nothing can be scored.
    """
    output, ask, scores = Path(config.output), config.ask, config.scores
    forms = tasks.FORMS | {"ocr": tasks.ocr_form(config.ocr_normalisation)} | world.TASKS
    evaluation = evaluate.Evaluation.create(
        config.name,
        config.qa,
        config.predictions,
        scores,
        ask.checkpoint,
        config.judge.model,
        config.benchmark_data,
    )
    check_result_path(output, evaluation.sources.values())
    task = "final_caption" if scores and config.task == "all" else config.task
    names = tasks.task_names(task, forms)
    benchmark = {} if config.qa is None else tasks.load_tasks(config.qa, names, forms)
    if config.benchmark is not None:
        chosen = BENCHMARKS[config.benchmark]
        loaded = chosen.load(config.benchmark_data, config.map)
        benchmark = {chosen.task: loaded}
        forms = {chosen.task: loaded.form}
    texts: dict[str, Predictions] = {}
    if config.predictions is not None:
        texts = evaluate.read_all(config.predictions, benchmark, config.field, forms)
    files = _files_to_explain(config, benchmark, texts)
    if scores is not None:
        result = evaluate.take_scores(evaluation, scores, names, benchmark, texts)
        return _with_evidence(result, config, forms, files)
    scored = structured.as_units(benchmark, config.judging.form)
    needed = [
        task for name, task in scored.items() if ask.checkpoint or structured.base_of(name) in texts
    ]
    with evaluate.judge_for(config.judge, config.judging, needed, output) as judge:
        if ask.checkpoint is not None:
            from ugc_jax.generate import asking, shares  # import jax, as nothing else here does

            folder = evaluate.beside(output, "answers")
            how = config.clip, config.sampling, config.engine, config.compute
            share = shares.find_share() if config.distributed else None
            evaluation.asked = asking.ask(ask, benchmark, folder, *how, share)
            if evaluation.asked is None:
                return None
            if share is not None:
                lock = evaluate.beside(output, "lock")
                held.enter_context(shares.locked(lock))
                held.callback(lock.unlink)
            texts = evaluate.read_all(folder, benchmark, forms=forms)
        texts = {
            name: texts[base] for name in scored if (base := structured.base_of(name)) in texts
        }
        result = evaluate.score_all(evaluation, scored, texts, judge)
    return _with_evidence(result, config, forms, files)


def _files_to_explain(
    config: EvaluateConfig, benchmark: Mapping[str, Task], texts: Mapping[str, Predictions]
) -> dict[str, str]:
    """Return the files of the clips whose captions are to be explained, by their ids.

    Raises UserError, before a model is asked or a judge is paid, if nothing can be explained.
    """
    if config.explain.checkpoint is None:
        return {}
    from ugc_jax.generate import judging_words  # takes long to import

    given = benchmark if config.ask.checkpoint is not None else texts
    tasks = [task for name, task in benchmark.items() if task.form.is_caption and name in given]
    if not tasks:
        raise UserError(
            "explain.checkpoint: there are no captions to explain; give the qa and the predictions "
            "of a task of captions, such as final_caption, or leave it out"
        )
    ids = list(dict.fromkeys(one for task in tasks for one in task.ids))
    return judging_words.find_files(config.explain, ids)


def _with_evidence(
    result: dict, config: EvaluateConfig, forms: Mapping[str, Form], files: Mapping[str, str]
) -> dict:
    """Return the result, to which evidence is added if it is to be."""
    if config.explain.checkpoint is None:
        return result
    from ugc_jax.generate import judging_words

    base = {name: structured.base_of(name) for name in result["tasks"]}
    tasks = [name for name, of in base.items() if forms[of].is_caption]
    questions = (result["asked"] or {}).get("questions", {})
    judging_words.add_evidence(
        result,
        tasks,
        files,
        config.explain,
        config.clip,
        config.sampling,
        config.engine,
        config.compute,
        {name: questions[base[name]] for name in tasks if base[name] in questions},
    )
    return result
