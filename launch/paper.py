"""The steps of paper.sh: the released rows -> records -> SFT -> GRPO -> scores -> a page.

Until --go it uses only Python's own library, so that a dry run needs no installation. A step is one
or several jobs of ugc-jax, each of which continues where it was stopped; a finished step leaves a
file in RUN/done with a digest of its commands and of the steps that it builds on.
"""

import argparse
import functools
import hashlib
import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from math import ceil, prod
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
ROWS_FROM = "https://github.com/WPR001/UGC_VideoCaptioner"  # MIT
CLIPS_FROM = "openinterx/UGC-VideoCap"  # a data set of the hub
BASE = {"3b": "Qwen/Qwen2.5-Omni-3B", "7b": "Qwen/Qwen2.5-Omni-7B"}

# Rows of the training files. The released ones are sft_1k and grpo_1k.
ROWS = {"sft_1k": 1000, "sft_10k": 10_000, "sft_20k": 20_000, "grpo_1k": 1073}
UNRELEASED = ("sft_10k", "sft_20k")
TOY_ROWS = {"sft_1k": 100, "sft_10k": 200, "sft_20k": 400, "grpo_1k": 100}
TOY_TEST = 20
TOY_LENGTH = {"sft": {"loop.epochs": 6}, "grpo": {"loop.steps": 4}}
# The tasks of the paper's table 2 -> their numbers of questions.
TASKS = {
    "voice_source": 669, "tone": 999, "ocr": 826, "background": 311, "objects": 997,
    "final_caption": 999,
}  # fmt: skip
# Scored at a time -> their judge's config: captions were judged at temperature 1, answers at 0.
OPTIONS, ANSWERS, CAPTION = "voice_source,tone,ocr", "background,objects", "final_caption"
JUDGED = {ANSWERS: "evaluate_upstream:answers", CAPTION: "evaluate_upstream"}

# TFLOP of a step and its rows, as `ugc-jax plan --config NAME` reports them for typical clips.
WORK = {
    "sft_3b": (1686, 16),
    "sft_3b:lora": (1328, 16),
    "grpo_3b": (4218, 16),
    "grpo_3b:lora": (3649, 16),
    "sft_7b": (3329, 16),
    "sft_7b:lora": (2466, 16),
    "grpo_7b": (8917, 16),
    "grpo_7b:lora": (7497, 16),
}
# of one question about one clip: encoders and prefill, of the same plan
QUESTION_TFLOP = {"3b": 31, "7b": 56}
EPOCHS = {"sft_1k": 3, "sft_10k": 2, "sft_20k": 2, "grpo_1k": 1}
# Shares of the peak that are assumed, slow and fast, as none is measured on these chips. A sampled
# token reads all weights for few operations, so GRPO and answering stay far from the peak.
MFU = {"sft": (0.2, 0.4), "grpo": (0.08, 0.2), "evaluate": (0.05, 0.2)}
CLIPS_PER_CORE = (0.5, 1.0)  # clips a second that a core extracts, measured
TFLOPS = {  # bfloat16 peak of a chip, as in ugc_jax/plan/chips.py
    "v4": 275, "v5e": 197, "v5p": 459, "v6e": 918, "a100": 312, "h100": 989, "h200": 989,
    "b200": 2250,
}  # fmt: skip


class Step(NamedTuple):
    """jobs: of ugc-jax, with their words. do: a function that runs after them.

    needs: steps that it builds on. inputs: files whose content the digest includes.
    on: "chips", "1 chip" or "cores". hours: of the slow and the fast estimate, None if negligible.
    always: run each time, as it is quick.
    """

    name: str
    text: str
    jobs: tuple[tuple[str, ...], ...] = ()
    needs: tuple[str, ...] = ()
    on: str = "cores"
    hours: tuple[float, float] | None = None
    inputs: tuple[Path, ...] = ()
    do: Callable[[], None] | None = None
    always: bool = False


class Variant(NamedTuple):
    """sft, grpo: training files; None without that stage."""

    sft: str | None
    grpo: str | None

    @property
    def models(self) -> dict[str, str]:
        """Name of each model's folder -> its title in tables, in their order; base first."""
        size = self.sft and self.sft.removeprefix("sft_")
        models = {"base": "base"}
        if self.sft:
            models[self.sft] = f"{size} SFT"
        if self.grpo:
            name = "+".join(filter(None, (self.sft, self.grpo)))
            models[name] = f"{size} SFT + 1k RL" if self.sft else "1k RL"
        return models


VARIANTS = {
    "": Variant("sft_1k", "grpo_1k"),
    "rl_only": Variant(None, "grpo_1k"),
    "sft_10k": Variant("sft_10k", None),
    "sft_20k": Variant("sft_20k", None),
}


def options(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="bash launch/paper.sh",
        allow_abbrev=False,
        description="The paper (arXiv 2507.11336) as one run. Without --go, nothing runs.",
        epilog="docs/paper.md explains the steps.",
    )
    add = parser.add_argument
    add("--go", action="store_true", help="run the steps that are not finished")
    kinds = parser.add_mutually_exclusive_group()
    for name, text in (
        ("rl_only", "GRPO on the base model, without SFT"),
        ("sft_10k", "SFT on sft_10k.jsonl, without GRPO; your own rows, as none are released"),
        ("sft_20k", "the same with sft_20k.jsonl"),
    ):
        flag = "--" + name.replace("_", "-")
        kinds.add_argument(flag, dest="variant", action="store_const", const=name, help=text)
    add("--data", type=Path, help="folder with the released rows (default: a clone of theirs)")
    add("--videos", type=Path, help="folder with the videos, by id (default: those on the hub)")
    add("--run", type=Path, help="folder of the results (default: runs/paper)")
    add("--chips", default="v6e:2x4", help="for the estimate: v6e:2x4, v5e:4x4, h100:8, ...")
    add("--lora", action="store_true", help="train adapters instead of the decoder")
    add("--size", choices=tuple(BASE), default="3b", help="of the model; the paper's is 3b")
    add("--checkpoint", help="initial model (default: Qwen2.5-Omni of that size)")
    add("--rows", type=int, help="only the first ROWS rows of each file, for a trial")
    add("--allow-missing", action="store_true", help="go on if many videos are missing")
    add("--launcher", default="", help="command that runs sft and grpo, on several hosts")
    text = "further flags of extract, sft, grpo or evaluate, such as --set sft='--steps 9'"
    add("--set", action="append", default=[], metavar="JOB=FLAGS", help=text)
    add("--toy", action="store_true", help="synthetic clips and a tiny model: minutes on two cores")
    args = parser.parse_args(words)
    if args.rows is not None and args.rows < 1:
        parser.error(f"--rows is {args.rows}; give 1 or more")
    args.further = {"extract": (), "sft": (), "grpo": (), "evaluate": ()}
    for job, equals, flags in (one.partition("=") for one in args.set):
        if job not in args.further or not equals:
            parser.error(f"--set {job}: write JOB=FLAGS, of {', '.join(args.further)}")
        args.further[job] += tuple(shlex.split(flags))
    for name in ("data", "videos", "run"):
        if "gs:" in str(getattr(args, name)):
            parser.error(f"--{name} {getattr(args, name)}: give a local or mounted folder")
    if args.toy and args.size != "3b":
        parser.error("--toy makes its own model; leave out --size")
    for name in ("data", "videos", "rows", "lora", "checkpoint"):
        if args.toy and getattr(args, name):
            parser.error(f"--toy makes its own clips and model; leave out --{name}")
    for name in ("data", "videos"):
        if (folder := getattr(args, name)) is not None and not folder.is_dir():
            parser.error(f"--{name} {folder}: is no folder")
    chip, _, sizes = args.chips.partition(":")
    if chip not in TFLOPS or not all(n.isdigit() and int(n) for n in sizes.split("x")):
        parser.error(f"--chips {args.chips}: give one of {', '.join(TFLOPS)} and a size: v6e:2x4")
    args.chip, args.count = chip, prod(map(int, sizes.split("x")))
    args.run = (args.run or ROOT / "runs" / ("paper_toy" if args.toy else "paper")).absolute()
    args.clips = args.run / "world/test" if args.toy else args.videos or args.run / "release/clips"
    args.start = str(args.run / "start") if args.toy else args.checkpoint or BASE[args.size]
    args.variant = VARIANTS[args.variant or ""]
    return args


# ---- the steps -----------------------------------------------------------------------------------


def steps_of(args: argparse.Namespace) -> dict[str, Step]:
    """Name -> step, in their order."""
    names = [name for name in args.variant if name]
    steps = []
    if args.toy:
        most = max(TOY_ROWS.values())
        world = {"output": args.run / "world", "train": most, "test": TOY_TEST}
        model = {"size": "tiny", "output": args.start}
        jobs = command("world", world), command("init", model, "--overwrite")
        steps.append(Step("world", f"{most} synthetic clips, a tiny random model", jobs))
    text = "manifests" if args.toy else "manifests and questions; overlaps are checked"
    steps.append(Step("data", text, do=lambda: prepare(args, names), always=True))
    steps += [records(args, name) for name in names]
    steps += [*training(args), *scoring(args)]
    return {step.name: step for step in steps}


def command(job: str, settings: dict, *words: str) -> tuple[str, ...]:
    """The words of a job of ugc-jax; settings of None are left out."""
    flags = [(f"--{name}", str(value)) for name, value in settings.items() if value is not None]
    return (job, *chain.from_iterable(flags), *words)


def records(args, name: str) -> Step:
    manifest, count = args.run / "data" / f"{name}.jsonl", rows_of(args, name)
    settings = {"config": "world"} if args.toy else {"preset": "upstream"}
    settings["output"] = args.run / "records" / name
    job = command("extract", settings, *args.further["extract"], "--", str(manifest))
    text = f"frames and sound of {count:,} clips"
    hours = tuple(count / rate / (os.cpu_count() or 1) / 3600 for rate in CLIPS_PER_CORE)
    return Step(f"records {name}", text, (job,), hours=hours, inputs=(manifest,))


def training(args) -> Iterator[Step]:
    start, before, kind = args.start, (), "adapter" if args.lora else "decoder"
    for job, name in zip(("sft", "grpo"), args.variant, strict=True):
        if name is None:
            continue
        output = args.run / list(args.variant.models)[-1 if job == "grpo" else 1]
        config, rows = f"{job}_{args.size}{':lora' if args.lora else ''}", rows_of(args, name)
        settings = {"checkpoint": start, "output": output}
        settings["data.train"] = args.run / "records" / name
        if args.toy:
            config = {"sft": "tiny", "grpo": "grpo_tiny"}[job]
            settings |= {"data.eval": "none"} | TOY_LENGTH[job]
        else:
            settings["loop.epochs"] = EPOCHS[name]
        words = command(job, {"config": config} | settings, *args.further[job])
        hours = None
        if not args.toy:
            tflop, batch = WORK[config]
            hours = hours_of(args, ceil(rows * EPOCHS[name] / batch) * tflop, args.count, job)
        text = f"{job.upper()} of the {kind} on {rows:,} rows"
        needs = (*before, f"records {name}")
        yield Step(output.name, text, (words,), needs, "cores" if args.toy else "chips", hours)
        start, before = str(output), (output.name,)


def scoring(args) -> Iterator[Step]:
    """The steps that ask and score each model, and the report."""
    run, parts = args.run, parts_of(args)
    count = sum(questions(args, part) for part in parts)
    hours = None if args.toy else hours_of(args, count * QUESTION_TFLOP[args.size], 1, "evaluate")
    inputs = run / "world/test.jsonl" if args.toy else run / "data/qa"
    for name, title in args.variant.models.items():
        jobs, outputs = [], []
        for part in parts:
            outputs.append(run / "results/parts" / f"{name}.{part.partition(',')[0]}.json")
            settings = {"config": JUDGED.get(part), "preset": "upstream"}
            if args.toy:
                # The trained models know the settings of their clips.
                settings = {"config": "world" if name == "base" else None, "max_new_tokens": 64}
            settings |= {
                "qa": inputs,
                "task": part,
                "ask.checkpoint": args.start if name == "base" else run / name / "model",
                "ask.videos": args.clips,
                "name": title,
                "output": outputs[-1],
            }
            jobs.append(command("evaluate", settings, *args.further["evaluate"]))
        result = run / "results" / f"{name}.json"
        yield Step(
            f"scores {name}",
            f"{count:,} answers of {title}",
            tuple(jobs),
            needs=(name,) if name != "base" else ("world",) if args.toy else (),
            on="cores" if args.toy else "1 chip",
            hours=hours,
            inputs=tuple(sorted(inputs.glob("*"))),
            do=functools.partial(join, outputs, result, args.toy),
        )
    results = [run / "results" / f"{name}.json" for name in reversed(args.variant.models)]
    others = sorted(set((run / "results").glob("*.json")) - set(results))  # of other variants
    compare = command("compare", {"output": run / "compare.json"}, "--", *map(str, results))
    page = {"output": run / "report.html", "videos": args.clips}
    report = command("report", page, "--", *map(str, results + others))
    needs = tuple(f"scores {name}" for name in args.variant.models)
    yield Step("report", "comparison; page with the published table", (compare, report), needs)


def hours_of(args, tflop: float, chips: int, job: str) -> tuple[float, float]:
    """Hours of so many operations, slow and fast."""
    return tuple(tflop / (TFLOPS[args.chip] * chips * share) / 3600 for share in MFU[job])


def rows_of(args, name: str) -> int:
    rows = (TOY_ROWS if args.toy else ROWS)[name]
    return min(rows, args.rows or rows)


def lacking_rows(args) -> str | None:
    """A training file that is neither released nor in the folder of the rows; None without one."""
    name = f"{args.variant.sft}.jsonl"
    if args.variant.sft not in UNRELEASED or (args.data and any(args.data.rglob(name))):
        return None
    return name


def parts_of(args) -> list[str]:
    """The tasks that are scored, of one judge's settings each."""
    if args.toy:
        return ["world"]
    return [OPTIONS, *JUDGED] if judge_is_given(args) else [OPTIONS]


def questions(args, tasks: str) -> int:
    if args.toy:
        return TOY_TEST
    return sum(min(TASKS[task], args.rows or TASKS[task]) for task in tasks.split(","))


def judge_is_given(args) -> bool:
    """Whether there is a judge: a key of OpenAI's, or the flags of another server."""
    flags = args.further["evaluate"]
    return "OPENAI_API_KEY" in os.environ or any("judge." in word for word in flags)


# ---- running -------------------------------------------------------------------------------------


def prepare(args, names: list[str]):
    import paper_data  # needs the package

    run = args.run
    if args.toy:
        toy = {name: TOY_ROWS[name] for name in names}
        paper_data.prepare_toy(run / "data", run / "world", toy)
        return
    source = args.data or paper_data.fetch_rows(run / "release/rows")
    if args.videos is None:
        paper_data.fetch_clips(args.clips)
    how = args.rows, args.allow_missing
    paper_data.prepare(run / "data", source, args.clips, names, list(TASKS), *how)


def join(parts: list[Path], output: Path, toy: bool):
    """Make one result of those of several tasks, so that the paper's average can be computed."""
    from ugc_jax.evals.results import read_result, write_result
    from ugc_jax.evals.summary import average

    whole, *others = map(read_result, parts)
    for other in others:
        for field in ("tasks", "clips", "unscored"):
            whole[field] |= other[field]
        whole["judge"] = other["judge"] or whole["judge"]
    for task in () if toy else TASKS:
        if task not in whole["tasks"]:
            whole["unscored"].setdefault(task, "it needs a judge: set OPENAI_API_KEY")
    whole["average"] = average(whole["tasks"])
    write_result(output, whole)


def digest(step: Step, steps: dict[str, Step]) -> str:
    """Of a step's commands and input files, and of the steps that it needs."""
    needs = [digest(steps[name], steps) for name in step.needs]
    files = [path.read_text() if path.exists() else None for path in step.inputs]
    return hashlib.sha256(json.dumps([step.jobs, needs, files]).encode()).hexdigest()


def stamp(step: Step, args) -> Path:
    return args.run / "done" / step.name.replace(" ", "_")


def is_done(step: Step, steps: dict[str, Step], args) -> bool:
    path = stamp(step, args)
    return path.exists() and path.read_text() == digest(step, steps)


def go(steps: dict[str, Step], args) -> int:
    for number, step in enumerate(steps.values(), 1):
        print(f"[{number}/{len(steps)}] {step.name}: {step.text}", flush=True)
        if not step.always and is_done(step, steps, args):
            print("   finished")
            continue
        for job in step.jobs:
            launcher = [sys.executable, "-m", "ugc_jax.cli"]
            if args.launcher and job[0] in ("sft", "grpo"):
                launcher = shlex.split(args.launcher)
            print("   ugc-jax", shlex.join(job), flush=True)
            if status := run([*launcher, *job]):
                again = "started again, it continues there"
                print(f"paper.sh: {step.name} ended with status {status}; {again}", file=sys.stderr)
                return status
        if step.do:
            step.do()
        stamp(step, args).parent.mkdir(parents=True, exist_ok=True)
        stamp(step, args).write_text(digest(step, steps))
    print(f"page     {args.run / 'report.html'}\nscores   {args.run / 'results'}")
    print(f"model    {args.run / list(args.variant.models)[-1] / 'model'}")
    return 0


def run(words: list[str]) -> int:
    """The exit status of a command. SIGTERM is passed on; Ctrl-C reaches both."""
    process = subprocess.Popen(words)
    before = [
        (one, signal.signal(one, handler))
        for one, handler in (
            (signal.SIGTERM, lambda *_: process.terminate()),
            (signal.SIGINT, lambda *_: None),
        )
    ]
    status = process.wait()
    for one, handler in before:
        signal.signal(one, handler)
    return 128 - status if status < 0 else status


def overview(steps: dict[str, Step], args) -> str:
    """What would be done, how long and on what: one screen."""
    title = list(args.variant.models.values())[-1]
    on = f"{os.cpu_count()} cores" if args.toy else f"{args.count} chips {args.chip}"
    lines = [f"UGC-VideoCaptioner (arXiv 2507.11336) as one run: {title}, on {on}."]
    if args.toy:
        lines.append("A toy: it shows that every step works, not what the paper found.")
    else:
        lines += [
            f"rows       {args.data or 'a clone of ' + ROWS_FROM}",
            f"videos     {args.videos or CLIPS_FROM + ' on the hub, without those of training'}",
            f"model      {args.start}",
        ]
    lines += [f"results    {args.run}", ""]
    lines.append(f"{'step':<23}{'what':<46}{'on':<8}{'hours':>12}  state")
    total = [0.0, 0.0]
    for step in steps.values():
        hours = "minutes" if step.hours is None or args.toy else spread(step.hours)
        if step.hours and not args.toy and step.on != "cores":
            chips = args.count if step.on == "chips" else 1
            total = [sum_ + h * chips for sum_, h in zip(total, step.hours, strict=True)]
        state = "finished" if is_done(step, steps, args) and not step.always else "to do"
        lines.append(f"{step.name:<23}{step.text:<46}{step.on:<8}{hours:>12}  {state}")
    lines.append("")
    if not args.toy:
        share = ", ".join(f"{job} {low:.0%} to {high:.0%}" for job, (low, high) in MFU.items())
        lines += [
            f"In all {spread(total)} chip-hours: an estimate, of the operations by ugc-jax plan",
            f"and assumed shares of the peak ({share}).",
            "Downloads, loading and compiling (minutes for each job) come on top.",
        ]
        if judge_is_given(args):
            judged = sum(questions(args, part) for part in JUDGED)
            lines.append(f"The judge gets {judged:,} questions for each model; its price is extra.")
        else:
            lines += [
                "OPENAI_API_KEY is not set: background, objects and captions are left out, which a",
                "judge scores; voice source, tone and OCR are scored without one.",
            ]
        if args.variant.grpo:
            lines.append(
                "The paper's rewards are not released: GRPO uses ROUGE-L and a length range."
            )
        if lacking := lacking_rows(args):
            lines.append(f"{lacking} is to be given, in the folder --data; without it, --go stops.")
    lines.append("Nothing ran. With --go, the steps to do run; a stopped run continues there.")
    return "\n".join(lines)


def spread(hours: Iterable[float]) -> str:
    slow, fast = hours
    return f"{fast:.1f} to {slow:.1f}" if slow >= 1 else f"{fast:.2f} to {slow:.2f}"


def main(words: list[str]) -> int:
    args = options(words)
    steps = steps_of(args)
    if not args.go:
        print(overview(steps, args))
        return 0
    from ugc_jax.errors import UserError

    try:
        return go(steps, args)
    except UserError as error:
        print(f"paper.sh: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
