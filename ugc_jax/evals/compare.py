"""Is one result better than another, or is it noise? Differences of the same clips' scores.

Two models meet the same easy and hard clips, so the difference clip by clip is far surer than the
difference of two means. Its 95 % interval is a bootstrap over the clips, which holds the judge's
noise, too: each clip was judged on its own.
"""

from collections.abc import Sequence

import numpy as np

from ugc_jax.evals.intervals import interval
from ugc_jax.evals.results import columns

TIE = 1e-9  # differences of scores below it are rounding


def compare(results: Sequence[dict]) -> dict:
    """The first result against each of the others: {"base": name, "against": [one each]}.

    One holds "name" and "tasks": {task: {"score" and each common column: a `difference`, "only":
    [clips scored in the base alone, in the other alone], "protocol": [what differs, ...]}} of the
    tasks that both have; "missing" lists those that only one has.
    """
    base, *others = results
    return {"base": base["name"], "against": [_against(base, other) for other in others]}


def _against(base: dict, other: dict) -> dict:
    common = [task for task in base["tasks"] if task in other["tasks"]]
    return {
        "name": other["name"],
        "tasks": {task: _task(base, other, task) for task in common},
        "missing": sorted(set(base["tasks"]) ^ set(other["tasks"])),
    }


def _task(base: dict, other: dict, task: str) -> dict:
    ours, theirs = (
        {clip["id"]: clip for clip in result["clips"][task] if "score" in clip}
        for result in (base, other)
    )
    both = [name for name in ours if name in theirs]
    shared = [c for c in columns(base["tasks"][task]) if c in other["tasks"][task]]
    unit = base["tasks"][task].get("unit", "percent")
    table = {}
    for column in ("score", *shared):
        # a column may be told of some clips only
        pairs = [(ours[n], theirs[n]) for n in both if column in ours[n] and column in theirs[n]]
        table[column] = difference([b[column] - a[column] for a, b in pairs])
    return table | {
        "unit": unit,
        "only": [len(ours) - len(both), len(theirs) - len(both)],
        "protocol": _protocol(base["tasks"][task], other["tasks"][task]),
    }


def difference(values: Sequence[float]) -> dict:
    """Facts of the differences of n clips, later minus earlier.

    "difference": their mean; "interval": its 95 % interval, None for fewer than 2 clips; "wins",
    "ties", "losses": clips; "verdict": "better" or "worse" where the interval leaves out 0, else
    "noise"; "too few" without an interval.
    """
    values = np.asarray(values, np.float64)
    bounds = interval(values) if len(values) > 1 else None
    verdict = "too few"
    if bounds is not None:
        verdict = "better" if bounds[0] > 0 else "worse" if bounds[1] < 0 else "noise"
    wins, losses = int(np.sum(values > TIE)), int(np.sum(values < -TIE))
    return {
        "difference": float(values.mean()) if len(values) else None,
        "interval": None if bounds is None else list(bounds),
        "n": len(values),
        "wins": wins,
        "ties": len(values) - wins - losses,
        "losses": losses,
        "verdict": verdict,
    }


def _protocol(base: dict, other: dict) -> list[str]:
    """How the two scores were made in different ways; empty if they compare."""
    ours, theirs = base.get("protocol") or {}, other.get("protocol") or {}
    return [
        f"{name}: {ours.get(name)} and {theirs.get(name)}"
        for name in sorted(ours.keys() | theirs.keys())
        if ours.get(name) != theirs.get(name)
    ]


def table(comparison: dict) -> str:
    """A comparison as text for a terminal."""
    lines = []
    for other in comparison["against"]:
        lines += [f"{other['name']} against {comparison['base']}, clip by clip", ""]
        lines.append(
            f"{'':<18}{'difference':>10}  {'95 % interval':<18}"
            f"{'clips':>6}{'wins':>6}{'ties':>6}{'losses':>7}  verdict"
        )
        for task, facts in other["tasks"].items():
            for column, fact in facts.items():
                if isinstance(fact, dict):
                    label = task if column == "score" else f"  {column}"
                    lines.append(_line(label, fact, 3 if facts["unit"] == "fraction" else 2))
        lines += [f"  ({text})" for text in _remarks(other)]
        lines.append("")
    return "\n".join(lines).rstrip()


def _line(label: str, fact: dict, digits: int) -> str:
    shown, bounds = "-", "-"
    if fact["difference"] is not None:
        shown = f"{fact['difference']:+.{digits}f}"
    if fact["interval"] is not None:
        bounds = "{:+.{digits}f} to {:+.{digits}f}".format(*fact["interval"], digits=digits)
    counts = f"{fact['n']:>6}{fact['wins']:>6}{fact['ties']:>6}{fact['losses']:>7}"
    return f"{label:<18}{shown:>10}  {bounds:<18}{counts}  {fact['verdict']}"


def _remarks(other: dict) -> list[str]:
    remarks = []
    for task, facts in other["tasks"].items():
        if facts["protocol"]:
            remarks.append(f"{task} does not compare: {'; '.join(facts['protocol'])}")
        if any(facts["only"]):
            one, two = facts["only"]
            remarks.append(f"{task}: left out are {one} and {two} clips that only one has scored")
    if other["missing"]:
        remarks.append(f"tasks that only one of the two has: {', '.join(other['missing'])}")
    return remarks
