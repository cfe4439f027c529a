"""The sentences of a page: comparability, scoring of the tasks, origin of the results."""

from collections.abc import Sequence

from ugc_jax.evals.predictions import FAULTS
from ugc_jax.evals.results import column_names
from ugc_jax.evals.summary import as_worst
from ugc_jax.report import published
from ugc_jax.report.tables import Displays, Members, all_tasks, column_title, display


def comparability(members: Members, against: Sequence[dict], displays: Displays) -> list[str]:
    """Sentences on which rows of the table compare with each other and with published ones.

    against: of `compare_results` of the members.
    """
    for task, how in displays.items():
        if how.compares and all(task in result["tasks"] for *_, result in members):
            return [how.compares, *_between(members, against, displays)]
    lines = ["Only rows with the same judge, temperature, prompt and frames compare."]
    for task in published.PROTOCOLS:
        lines += _with_the_paper(task, display(task, displays).title, members)
    normalisations = {
        result["tasks"]["ocr"].get("protocol", {}).get("normalisation")
        for *_, result in members
        if "ocr" in result["tasks"]
    }
    if normalisations:
        kinds = _and([f"“{kind}”" for kind in sorted(map(str, normalisations))])
        published_as = " and those of ".join(
            f"{_and([row.model for row in published.ROWS if row.normalisation == kind])} "
            f"with “{kind}” normalisation"
            for kind in ("raw", "cleaned")
        )
        lines.append(
            f"OCR is scored here with {kinds} texts. The released predictions reproduce the "
            f"published OCR scores of {published_as}."
        )
    return lines + _between(members, against, displays)


def _with_the_paper(task: str, title: str, members: Members) -> list[str]:
    """Sentences on which results of a judged task compare with the paper's rows."""
    equal, different = [], []
    for _, name, result in members:
        if task not in result["tasks"]:
            continue
        facts = result["tasks"][task]
        differences = published.differences(task, facts.get("protocol") or {})
        if differences:
            different.append(f"{name} ({', '.join(differences)})")
        else:
            equal.append(f"{name}{_frames(result)}")
    lines = []
    if equal:
        lines.append(
            f"{title}: {_and(equal)} were, as far as is known, scored as the paper's rows "
            "were, by the same judge at the same temperature with the same prompt. They compare "
            "with the rows whose models were given the same frames, and with no row of another "
            "paper."
        )
    if different:
        lines.append(
            f"{title}: no published score compares with that of {_and(different)}; nor does an "
            "average that includes it."
        )
    return lines


def _frames(result: dict) -> str:
    """The frames that a model was given, if `evaluate` asked it and this is known."""
    clip = (result.get("asked") or {}).get("clip") or {}
    counted = {"frames": "{} frames", "fps": "{:g} frames a second"}
    given = [form.format(clip[key]) for key, form in counted.items() if clip.get(key) is not None]
    return f" (given {given[0]})" if given else ""


def _between(members: Members, against: Sequence[dict], displays: Displays) -> list[str]:
    """Sentences on results that do not compare with each other, and why.

    Their protocols differ, or their clips, or the settings of the clips.
    """
    lines = []
    for task in all_tasks((result for *_, result in members), displays):
        by_protocol: dict[str, list[str]] = {}
        for _, name, result in members:
            if task in result["tasks"]:
                protocol = result["tasks"][task].get("protocol") or {}
                text = ", ".join(f"{key} {value}" for key, value in sorted(protocol.items()))
                if None in protocol.values():
                    text = f"not known how {name} was judged"
                by_protocol.setdefault(text or "nothing noted", []).append(name)
        if len(by_protocol) > 1:
            parts = [f"{_and(names)} ({text})" for text, names in by_protocol.items()]
            title = display(task, displays).title
            lines.append(f"{title}: {_and(parts)} do not compare with each other.")
    (_, first, _), *others = members
    for (_, name, _), facts in zip(others, against, strict=True):
        if facts["asked"]:
            ways = "; ".join(facts["asked"])
            lines.append(f"{first} and {name} saw the clips with different settings ({ways}).")
        for task, compared in facts["tasks"].items():
            if count := compared["strangers"]:
                title = display(task, displays).title
                lines.append(
                    f"{title}: {count} ids of {first} and {name} are two different clips, by "
                    "their references; they are listed apart and are not in the differences."
                )
    return lines


def _and(words: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(words[:-1]), words[-1]]))


def task_notes(members: Members, displays: Displays) -> list[dict]:
    """For each task its metric, and for each result `_facts`: {"title", "summary", "flags",
    "metric", "rows": [(number, name, facts)]}."""
    notes = []
    for task in all_tasks((result for *_, result in members), displays):
        having = [member for member in members if task in member[2]["tasks"]]
        rows = [(number, name, _facts(result["tasks"][task])) for number, name, result in having]
        failed = sum(facts["failed"] for *_, facts in rows)
        summary = f"{', '.join(str(facts['n']) for *_, facts in rows)} clips scored"
        flags = (flag for *_, result in having for flag in result["tasks"][task].get("flags") or [])
        notes.append(
            {
                "title": display(task, displays).title,
                "summary": f"{summary}, {failed} failed" if failed else summary,
                "flags": list(dict.fromkeys(flags)),
                "metric": having[0][2]["tasks"][task].get("metric", ""),
                "rows": rows,
            }
        )
    return notes


def _facts(task: dict) -> dict:
    """n, failures, protocol, further lines and warnings on a task of a result."""
    reasons = ", ".join(f"{count} {kind}" for kind, count in (task.get("failures") or {}).items())
    digits = 3 if task.get("unit") == "fraction" else 2
    lines = list(task.get("notes") or [])
    if task["failed"] and task.get("floor") is not None:
        counted = as_worst(task).replace("they", "failures")
        lines.append(f"the score would be {task['floor']:.{digits}f} {counted}")
    if task.get("noise") is not None:
        lines.append(f"judge noise: standard deviation of the score {task['noise']:.{digits}f}")
    others = {name: task[name] for name in column_names(task) if task[name] is not None}
    if digits == 3 and others:
        lines.append(", ".join(f"{column_title(n)} {value:.3f}" for n, value in others.items()))
    warnings = list(task.get("flags") or [])
    majority = task.get("majority")
    if majority and task["score"] is not None and task["score"] < majority["score"]:
        warnings.append(
            f"below {majority['score']:.1f}, the score of always answering {majority['answer']}"
        )
    return {
        "n": task["n"],
        "failed": task["failed"],
        "reasons": reasons,
        "protocol": ", ".join(f"{k} {v}" for k, v in (task.get("protocol") or {}).items()),
        "lines": lines,
        "warnings": warnings,
    }


def card(name: str, result: dict, displays: Displays) -> dict:
    """The origin of a result: {"name", "facts": [(label, text)], "faults", "listed"}."""
    created = str(result.get("created", "")).replace("T", " ").replace("Z", " UTC")
    facts = [("evaluated", f"{created}, ugc_jax {result.get('ugc_jax', '?')}")]
    sources = result.get("sources") or {}
    facts += [(label, str(path)) for label, path in sources.items() if path]
    if asked := result.get("asked"):
        facts += [
            ("clips as", _settings(asked["clip"])),
            ("answers as", _settings(asked["sampling"])),
        ]
    if judge := result.get("judge"):
        facts.append(("judge", _judge(judge)))
        if usage := judge.get("usage"):
            facts.append(("questions", _usage(usage)))
    unscored = result.get("unscored") or {}
    facts += [
        (f"no {display(task, displays).title.lower()} score", why) for task, why in unscored.items()
    ]
    faults = result.get("faults") or {}
    kinds = {kind: faults.get(kind, 0) for kind in FAULTS}
    counts = [f"{count} {kind}" for kind, count in kinds.items() if count]
    skipped = f"faulty rows of the prediction files: {', '.join(counts)}" if counts else ""
    listed = faults.get("listed") or []
    return {"name": name, "facts": facts, "faults": skipped, "listed": listed}


def _settings(settings: dict) -> str:
    return ", ".join(f"{key} {value}" for key, value in settings.items() if value is not None)


def _judge(judge: dict) -> str:
    facts = [str(judge.get("model"))]
    if judge.get("temperature") is not None:
        facts.append(f"temperature {judge['temperature']:g}")
    facts.append(f"prompt {judge.get('prompt')}")
    if (judge.get("repeats") or 1) > 1:
        facts.append(f"{judge['repeats']} times")
    return ", ".join(facts)


def _usage(usage: dict) -> str:
    facts = [
        f"{usage.get('answered', 0)} answered by the judge",
        f"{usage.get('cached', 0)} cached",
    ]
    facts += [f"{usage['failed']} failed"] if usage.get("failed") else []
    if usage.get("tokens_in"):
        tokens = f"{usage['tokens_in']:,} tokens in, {usage.get('tokens_out', 0):,} out"
        facts.append(f"in all {tokens}, those of cached answers included")
    facts += [f"cost {usage['cost']:.2f}"] if usage.get("cost") else []
    return ", ".join(facts)
