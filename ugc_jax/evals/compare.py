"""Comparison of results: paired differences of the scores of the same clips.

Both models have the same easy and hard clips, so the mean of the differences clip by clip has a far
smaller error than the difference of two means. Its 95 % interval is a bootstrap over the clips,
which includes the noise of the judge, as each clip was judged on its own.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from ugc_jax.evals.intervals import interval, mean
from ugc_jax.evals.results import VERSION, column_names
from ugc_jax.evals.summary import EVIDENCE_TITLE, evidence_figures, groups, weights
from ugc_jax.settings import flatten

TIE = 1e-9  # smaller differences of scores are rounding errors
# Intervals of a percentile bootstrap are too narrow for few clips: with no true difference, 13 % of
# 5-clip sets are called better or worse, and 5 to 7 % of sets of 20 or more; the nominal rate is
# 5 %.
MIN_CLIPS = 20


def distinguished(results: Sequence[dict], places: Sequence[str]) -> list[dict]:
    """Return the results, those of equal names with the place that each is from in its name."""
    names = [result["name"] for result in results]
    return [
        result | {"name": f"{name} ({place})"} if names.count(name) > 1 else result
        for result, name, place in zip(results, names, places, strict=True)
    ]


def compare_results(results: Sequence[dict]) -> dict:
    """The first result against each of the others: {"version", "base": name, "against": [dicts]}.

    Each dict has "name" and "tasks": {task: {"score" and each common column: a `difference`,
    "only": [clips scored in the base alone, in the other alone], "failures": [kinds and counts of
    the base, of the other], "strangers": clips of one id and two references, "protocol":
    [differences]}} of the tasks that both have; "missing" lists tasks that only one has, "asked"
    differences in how the models were asked. A task whose captions have evidence in both has
    "unsupported", a `difference` in percent of the content words, and "evidence", [facts of the
    base, of the other].
    """
    base, *others = results
    against = [_compare_two(base, other) for other in others]
    return {"version": VERSION, "base": base["name"], "against": against}


def _compare_two(base: dict, other: dict) -> dict:
    common = [task for task in base["tasks"] if task in other["tasks"]]
    settings = [_asked(result) for result in (base, other)]
    return {
        "name": other["name"],
        "asked": _differences(*settings) if all(settings) else [],
        "tasks": {task: _compare_task(base, other, task) for task in common},
        "missing": sorted(set(base["tasks"]) ^ set(other["tasks"])),
    }


def _compare_task(base: dict, other: dict, task: str) -> dict:
    base_clips, other_clips = (
        {clip["id"]: clip for clip in result["clips"][task] if "score" in clip}
        for result in (base, other)
    )
    common = [one for one in base_clips if one in other_clips]
    both = [one for one in common if is_same_clip(base_clips[one], other_clips[one])]
    protocol = _protocol(*(result["tasks"][task].get("protocol") or {} for result in (base, other)))
    shared = [name for name in column_names(base["tasks"][task]) if name in other["tasks"][task]]
    table, lower = {}, base["tasks"][task].get("lower") or ()
    for column in ("score", *shared):
        # a clip may have no value in a column
        pairs = [
            (base_clips[n], other_clips[n])
            for n in both
            if column in base_clips[n] and column in other_clips[n]
        ]
        firsts = [first for first, _ in pairs]
        table[column] = difference(
            [b[column] - a[column] for a, b in pairs],
            weights(firsts),
            groups(firsts),
            is_lower_better=column in lower,
        )
        if protocol:
            table[column]["verdict"] = "does not compare"
    told = [result["tasks"][task].get("evidence") for result in (base, other)]
    if all(told):
        pairs = [(base_clips[n].get("evidence"), other_clips[n].get("evidence")) for n in both]
        table["unsupported"] = difference(
            [100 * (_unsupported(b) - _unsupported(a)) for a, b in pairs if a and b],
            is_lower_better=True,
        )
        if told[0]["model"] != told[1]["model"]:
            table["unsupported"]["verdict"] = "does not compare"
        table["evidence"] = told
    return table | {
        "unit": base["tasks"][task].get("unit", "percent"),
        "only": [len(base_clips) - len(common), len(other_clips) - len(common)],
        "failures": [result["tasks"][task].get("failures") or {} for result in (base, other)],
        "strangers": len(common) - len(both),
        "protocol": protocol,
    }


def _unsupported(evidence: dict) -> float:
    """The share of a caption's content words that nothing supports."""
    return evidence["shares"].get("unsupported", 0.0)


def _asked(result: dict) -> dict:
    """Dotted setting -> value: how a model was asked; empty if unknown."""
    asked = result.get("asked") or {}
    return flatten({name: asked.get(name) or {} for name in ("clip", "sampling")})


def is_same_clip(clip: dict, other: dict) -> bool:
    """True unless two clips of one id have different references."""
    first, second = clip.get("reference"), other.get("reference")
    return first is None or second is None or first == second


def difference(
    values: Sequence[float],
    weights: Sequence[float] | None = None,
    groups: Sequence[str] | None = None,
    is_lower_better: bool = False,
) -> dict:
    """Statistics of n differences, one a clip: the other result minus the base.

    weights, groups: as of `intervals.interval`. is_lower_better: of the scores, as of errors.

    "difference": their mean; "interval": its 95 % interval; "n", "wins", "ties", "losses": numbers
    of differences; "verdict": "better" or "worse" if the interval excludes 0, else "noise"; "too
    few" and no interval for less than MIN_CLIPS clips.
    """
    values = np.asarray(values, np.float64)
    clips = len(values) if groups is None else len(set(groups))
    bounds = interval(values, weights, groups) if clips >= MIN_CLIPS else None
    verdict = "too few"
    if bounds is not None:
        verdict = "better" if bounds[0] > 0 else "worse" if bounds[1] < 0 else "noise"
    wins, losses = int(np.sum(values > TIE)), int(np.sum(values < -TIE))
    if is_lower_better:
        wins, losses = losses, wins
        verdict = {"better": "worse", "worse": "better"}.get(verdict, verdict)
    return {
        "difference": mean(values, weights),
        "interval": None if bounds is None else list(bounds),
        "n": len(values),
        "wins": wins,
        "ties": len(values) - wins - losses,
        "losses": losses,
        "verdict": verdict,
    }


def _protocol(first: Mapping, second: Mapping) -> list[str]:
    """Why two scores do not compare; empty if they do. An unknown judge compares with none."""
    if any(protocol.get("judge", "") is None for protocol in (first, second)):
        return ["the judge is unknown"]
    return _differences(first, second)


def _differences(first: Mapping, second: Mapping) -> list[str]:
    """The settings that differ, with both values."""
    return [
        f"{name}: {first.get(name)} and {second.get(name)}"
        for name in sorted(first.keys() | second.keys())
        if first.get(name) != second.get(name)
    ]


def comparison_table(comparison: dict) -> str:
    """A comparison as text for a terminal."""
    lines = []
    for other in comparison["against"]:
        lines += [f"{other['name']} against {comparison['base']}, clip by clip", ""]
        lines.append(
            f"{'':<18}{'difference':>10}  {'95 % interval':<18}"
            f"{'clips':>6}{'wins':>6}{'ties':>6}{'losses':>7}  verdict"
        )
        if not other["tasks"]:
            lines.append("no common task")
        for task, facts in other["tasks"].items():
            for column, fact in facts.items():
                if isinstance(fact, dict):
                    label = task if column == "score" else f"  {column}"
                    is_fraction = facts["unit"] == "fraction" and column != "unsupported"
                    lines.append(_line(label, fact, 3 if is_fraction else 2))
        lines += [f"  ({text})" for text in _remarks(comparison["base"], other)]
        lines.append("")
    return "\n".join(lines).rstrip()


def _line(label: str, fact: dict, digits: int) -> str:
    mean, bounds = "-", "-"
    if fact["difference"] is not None:
        mean = f"{fact['difference']:+.{digits}f}"
    if fact["interval"] is not None:
        bounds = "{:+.{digits}f} to {:+.{digits}f}".format(*fact["interval"], digits=digits)
    counts = f"{fact['n']:>6}{fact['wins']:>6}{fact['ties']:>6}{fact['losses']:>7}"
    return f"{label:<18}{mean:>10}  {bounds:<18}{counts}  {fact['verdict']}"


def _remarks(base: str, other: dict) -> list[str]:
    remarks = []
    for task, facts in other["tasks"].items():
        for name, kinds in zip((base, other["name"]), facts["failures"], strict=True):
            if kinds:
                listed = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
                remarks.append(f"{task}: failed in {name}: {listed}")
        if told := facts.get("evidence"):
            figures = [
                f"{evidence_figures({'evidence': one})} in {name}, by {one['model']}"
                for name, one in zip((base, other["name"]), told, strict=True)
            ]
            remarks.append(f"{task}: words {EVIDENCE_TITLE}, %: {'; '.join(figures)}")
        if facts["protocol"]:
            remarks.append(f"{task} does not compare: {'; '.join(facts['protocol'])}")
        if any(facts["only"]):
            one, two = facts["only"]
            remarks.append(
                f"{task}: {one} and {two} clips that only one result has scored are left out"
            )
        if facts["strangers"]:
            count = facts["strangers"]
            remarks.append(f"{task}: {count} ids of two different clips (references) are left out")
    if other["asked"]:
        remarks.append(
            f"the models saw the clips with different settings: {'; '.join(other['asked'])}"
        )
    if other["missing"]:
        remarks.append(f"tasks of only one result: {', '.join(other['missing'])}")
    return remarks
