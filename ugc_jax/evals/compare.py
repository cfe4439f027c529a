"""Is one result better than another, or is it noise? Differences of the same clips' scores.

Two models meet the same easy and hard clips, so the difference clip by clip is far surer than the
difference of two means. Its 95 % interval is a bootstrap over the clips, which holds the judge's
noise, too: each clip was judged on its own.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from ugc_jax.evals.intervals import interval
from ugc_jax.evals.results import VERSION, columns
from ugc_jax.settings import flatten

TIE = 1e-9  # differences of scores below it are rounding
# A percentile bootstrap of fewer clips is too sure: where there is no difference, it calls 13 % of
# sets of 5 clips better or worse, and 7 to 5 % of those of 20 and more; it should be 5 %.
FEWEST = 20


def compare(results: Sequence[dict]) -> dict:
    """The first result against each of the others: {"base": name, "against": [one each]}.

    One holds "name" and "tasks": {task: {"score" and each common column: a `difference`, "only":
    [clips scored in the base alone, in the other alone], "strangers": clips of one id and two
    references, "protocol": [what differs, ...]}} of the tasks that both have; "missing" lists those
    that only one has, "asked" what differs in how the models were asked.
    """
    base, *others = results
    against = [_against(base, other) for other in others]
    return {"version": VERSION, "base": base["name"], "against": against}


def _against(base: dict, other: dict) -> dict:
    common = [task for task in base["tasks"] if task in other["tasks"]]
    ours, theirs = (_asked(result) for result in (base, other))
    return {
        "name": other["name"],
        "asked": _differences(ours, theirs) if ours and theirs else [],
        "tasks": {task: _task(base, other, task) for task in common},
        "missing": sorted(set(base["tasks"]) ^ set(other["tasks"])),
    }


def _task(base: dict, other: dict, task: str) -> dict:
    ours, theirs = (
        {clip["id"]: clip for clip in result["clips"][task] if "score" in clip}
        for result in (base, other)
    )
    common = [one for one in ours if one in theirs]
    both = [one for one in common if same(ours[one], theirs[one])]
    protocol = _protocol(*(result["tasks"][task].get("protocol") or {} for result in (base, other)))
    shared = [c for c in columns(base["tasks"][task]) if c in other["tasks"][task]]
    table = {}
    for column in ("score", *shared):
        # some clips may lack a column
        pairs = [(ours[n], theirs[n]) for n in both if column in ours[n] and column in theirs[n]]
        table[column] = difference([b[column] - a[column] for a, b in pairs])
        if protocol:
            table[column]["verdict"] = "does not compare"
    return table | {
        "unit": base["tasks"][task].get("unit", "percent"),
        "only": [len(ours) - len(common), len(theirs) - len(common)],
        "strangers": len(common) - len(both),
        "protocol": protocol,
    }


def _asked(result: dict) -> dict:
    """How a model was asked, by dotted setting; empty where it is not known."""
    asked = result.get("asked") or {}
    return flatten({name: asked.get(name) or {} for name in ("clip", "sampling")})


def same(clip: dict, other: dict) -> bool:
    """Two clips of one id are the same: what is on record of them is not two things."""
    ours, theirs = clip.get("reference"), other.get("reference")
    return ours is None or theirs is None or ours == theirs


def difference(values: Sequence[float]) -> dict:
    """Facts of the differences of n clips, later minus earlier.

    "difference": their mean; "interval": its 95 % interval; "wins", "ties", "losses": clips;
    "verdict": "better" or "worse" where the interval leaves out 0, else "noise"; "too few" and no
    interval for less than FEWEST clips.
    """
    values = np.asarray(values, np.float64)
    bounds = interval(values) if len(values) >= FEWEST else None
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


def _protocol(ours: Mapping, theirs: Mapping) -> list[str]:
    """Why two scores do not compare; empty if they do. A judge that is not known is no one's."""
    if any(protocol.get("judge", "") is None for protocol in (ours, theirs)):
        return ["it is not known who judged"]
    return _differences(ours, theirs)


def _differences(ours: Mapping, theirs: Mapping) -> list[str]:
    """The settings that differ, with both values."""
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
        if not other["tasks"]:
            lines.append("no task that both have")
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
        if facts["strangers"]:
            count = facts["strangers"]
            remarks.append(f"{task}: left out are {count} ids of two different clips (references)")
    if other["asked"]:
        remarks.append(f"the models saw the clips in different ways: {'; '.join(other['asked'])}")
    if other["missing"]:
        remarks.append(f"tasks that only one of the two has: {', '.join(other['missing'])}")
    return remarks
