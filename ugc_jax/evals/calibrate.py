"""How much a judge matters: several judges' scores of the same captions.

    results (a model and a judge each) -> for each task and pair of judges:
        the order of the models      Kendall's tau-b of their mean scores
        the scores of a caption      tau-b over the clips, share of equal scores, mean distance
        the better of two captions   share on which both judges prefer the same one
        the bias                     mean difference, over all and of each model

All are over the clips that both judges have scored for all models that they share, each with a 95 %
interval: a percentile bootstrap over these clips.
"""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from ugc_jax.errors import UserError
from ugc_jax.evals.compare import MIN_CLIPS, TIE, is_same_clip
from ugc_jax.evals.results import VERSION, column_names

RESAMPLES = 1000
RESAMPLES_OF_CLIPS = 200  # of the tau over clips, which is sorted anew each time


class Source(NamedTuple):
    """A result. place: its file. judge: its name; None: what the result's protocols tell."""

    place: str
    result: dict
    judge: str | None = None


class _Pair(NamedTuple):
    """Scores of two judges. first, second: f64[models, clips]. weights, groups: of the clips."""

    first: np.ndarray
    second: np.ndarray
    weights: np.ndarray
    groups: np.ndarray


def calibrate(sources: Sequence[Source]) -> dict:
    """{"version", "tasks": {task: facts}} of the tasks that two judges have scored for a model.

    Facts: {"judges", "models", "unit", "pairs": [see `_compare`]}. Results of the same captions
    have the same name. Raises UserError for two results of one model by one judge, and if no task
    has two judges.
    """
    names = list(dict.fromkeys(name for one in sources for name in one.result["tasks"]))
    tasks = {}
    for name in names:
        cells = _cells(name, [one for one in sources if name in one.result["tasks"]])
        judges = list(dict.fromkeys(judge for _, judge in cells))
        pairs = [_compare(name, cells, *pair) for pair in itertools.combinations(judges, 2)]
        pairs = [pair for pair in pairs if pair is not None]
        if pairs:
            facts = next(iter(cells.values())).result["tasks"][name]
            tasks[name] = {
                "judges": judges,
                "models": list(dict.fromkeys(model for model, _ in cells)),
                "unit": facts.get("unit", "percent"),
                "pairs": pairs,
            }
    if not tasks:
        raise UserError(
            "no task has captions of one model that two judges have scored; evaluate the same "
            "captions with another judge, under the same name (evaluate --name)"
        )
    return {"version": VERSION, "tasks": tasks}


def _cells(task: str, sources: Sequence[Source]) -> dict[tuple[str, str], Source]:
    """(model, judge) -> the result."""
    cells: dict[tuple[str, str], Source] = {}
    for source, judge in zip(sources, _judges(task, sources), strict=True):
        key = source.result["name"], judge
        if key in cells:
            raise UserError(
                f"{source.place}: has the scores of {key[0]} by {judge} for {task}, as "
                f"{cells[key].place} has; leave one out, or name the judges (--judges)"
            )
        cells[key] = source
    return cells


def _judges(task: str, sources: Sequence[Source]) -> list[str]:
    """The judge of each result: its model, with temperature and prompt where these differ."""
    protocols = [one.result["tasks"][task].get("protocol") or {} for one in sources]
    full = [", ".join(f"{k} {v}" for k, v in protocol.items()) for protocol in protocols]
    by_model: dict[object, set[str]] = {}
    for protocol, text in zip(protocols, full, strict=True):
        by_model.setdefault(protocol.get("judge"), set()).add(text)
    names = []
    for source, protocol, text in zip(sources, protocols, full, strict=True):
        model = protocol.get("judge")
        known = str(model) if len(by_model[model]) == 1 else text
        names.append(source.judge or ("unknown" if model is None else known))
    return names


def _compare(
    task: str, cells: Mapping[tuple[str, str], Source], first: str, second: str
) -> dict | None:
    """Two judges; None without a model that both have scored.

    {"judges": [first, second], "models", "clips", "left_out": clips that not all have scored,
    "strangers": clips of one id with other captions or references, "means": {model: [of both]},
    "order", "clip", "equal", "distance", "preference", "bias": figures, "columns": {column: its
    bias}, "by_model": {model: its bias}}. A figure is {"value", "interval"}, None where it is not
    defined; the bias is the second judge's score minus the first's.
    """
    models = [model for model, judge in cells if judge == first and (model, second) in cells]
    if not models:
        return None
    scored, strangers = [], 0
    for model in models:
        a, b = (
            {clip["id"]: clip for clip in cells[model, judge].result["clips"][task]}
            for judge in (first, second)
        )
        both = [one for one in a if one in b and "score" in a[one] and "score" in b[one]]
        same = {one: (a[one], b[one]) for one in both if _is_same(a[one], b[one])}
        strangers += len(both) - len(same)
        scored.append(same)
    ids = [one for one in scored[0] if all(one in same for same in scored)]
    left_out = len(set().union(*scored)) - len(ids)
    clips = [scored[0][one][0] for one in ids]
    _, groups = np.unique([clip.get("clip", clip["id"]) for clip in clips], return_inverse=True)
    weights = np.array([clip.get("weight", 1) for clip in clips], np.float64)

    def scores(column: str, having: Sequence[int]) -> _Pair:
        first, second = (
            np.array([[same[ids[n]][side][column] for n in having] for same in scored], np.float64)
            for side in (0, 1)
        )
        return _Pair(first, second, weights[having], groups[having])

    pair = scores("score", np.arange(len(ids)))
    facts = {
        "judges": [first, second],
        "models": models,
        "clips": len(ids),
        "left_out": left_out,
        "strangers": strangers,
        "means": {},
        "columns": {},
        "by_model": {},
    }
    if not ids:
        return facts | dict.fromkeys(("order", "clip", "equal", "distance", "preference", "bias"))
    draws = _draws(pair)
    means = [one @ pair.weights / pair.weights.sum() for one in (pair.first, pair.second)]
    facts["means"] = {m: [float(x[n]) for x in means] for n, m in enumerate(models)}
    for n, model in enumerate(models):
        facts["by_model"][model] = _mean((pair.second - pair.first)[n : n + 1], pair, draws)
    columns = column_names(cells[models[0], first].result["tasks"][task])
    for column in columns:
        having = [
            n
            for n, one in enumerate(ids)
            if all(column in clip for same in scored for clip in same[one])
        ]
        if having:
            part = scores(column, having)
            drawn = draws if len(having) == len(ids) else _draws(part)
            facts["columns"][column] = _mean(part.second - part.first, part, drawn)
    distance = np.abs(pair.second - pair.first)
    return facts | {
        "order": _order(pair, draws),
        "clip": _clip_tau(pair, draws),
        "equal": _mean(100.0 * (distance < TIE), pair, draws),
        "distance": _mean(distance, pair, draws),
        "preference": _preference(pair, draws),
        "bias": _mean(pair.second - pair.first, pair, draws),
    }


def _is_same(clip: dict, other: dict) -> bool:
    """Whether two judges have scored one caption, as far as the results have it."""
    texts = clip.get("prediction"), other.get("prediction")
    return is_same_clip(clip, other) and (None in texts or texts[0] == texts[1])


def _draws(pair: _Pair) -> np.ndarray | None:
    """How often each clip is drawn in each resample, f64[resamples, clips]; whole groups.

    None for less than MIN_CLIPS groups: then there are no intervals.
    """
    count = len(np.unique(pair.groups))
    if count < MIN_CLIPS:
        return None
    _, groups = np.unique(pair.groups, return_inverse=True)
    drawn = np.random.default_rng(0).integers(0, count, (RESAMPLES, count))
    cells = (drawn + count * np.arange(RESAMPLES)[:, None]).ravel()
    counts = np.bincount(cells, minlength=RESAMPLES * count).reshape(RESAMPLES, count)
    return counts.astype(np.float64)[:, groups]  # as the scores: else products are slow


def _figure(value: float | None, resampled: Iterable[float] | None) -> dict | None:
    """{"value", "interval"}; None for a value that is not defined."""
    if value is None or not np.isfinite(value):
        return None
    bounds = None
    if resampled is not None:
        found = np.asarray(resampled)
        found = found[np.isfinite(found)]
        bounds = [float(x) for x in np.percentile(found, (2.5, 97.5))] if len(found) else None
    return {"value": float(value), "interval": bounds}


def _mean(values: np.ndarray, pair: _Pair, draws: np.ndarray | None) -> dict | None:
    """The weighted mean of f[models, clips]."""
    means, resampled = values.mean(axis=0), None
    if draws is not None:
        resampled = draws @ (means * pair.weights) / (draws @ pair.weights)
    return _figure(means @ pair.weights / pair.weights.sum(), resampled)


def _order(pair: _Pair, draws: np.ndarray | None) -> dict | None:
    """Kendall's tau-b of the models' means; None for one model, or if all means are equal."""
    if len(pair.first) < 2:
        return None
    drawn = pair.weights[None]  # first the clips as they are
    if draws is not None:
        drawn = np.vstack([drawn, draws * pair.weights])
    means = [drawn @ one.T / drawn.sum(1, keepdims=True) for one in (pair.first, pair.second)]
    taus = tau_b(*means)
    return _figure(taus[0], None if draws is None else taus[1:])


def tau_b(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Kendall's tau-b of the rows of f[n, models]; NaN where all of x or of y are equal."""
    high, low = np.triu_indices(x.shape[1], 1)
    signs = []
    for one in (x, y):
        gaps = one[:, high] - one[:, low]
        signs.append(np.sign(np.where(np.abs(gaps) < TIE, 0, gaps)))
    ties = np.sqrt(np.abs(signs[0]).sum(1) * np.abs(signs[1]).sum(1))
    agreed = (signs[0] * signs[1]).sum(1)
    return np.divide(agreed, ties, out=np.full(len(x), np.nan), where=ties > 0)


def _clip_tau(pair: _Pair, draws: np.ndarray | None) -> dict | None:
    """Tau-b of the scores of a model's captions, the mean over the models for which it exists."""
    from scipy.stats import kendalltau

    if pair.first.shape[1] < 2:
        return None
    rows = list(zip(pair.first, pair.second, strict=True))

    def tau(chosen) -> float:
        taus = [kendalltau(x[chosen], y[chosen]).statistic for x, y in rows]
        taus = [one for one in taus if np.isfinite(one)]
        return float(np.mean(taus)) if taus else np.nan

    resampled = None
    if draws is not None:
        every = np.arange(pair.first.shape[1])
        counts = draws[:RESAMPLES_OF_CLIPS].astype(int)
        resampled = [tau(np.repeat(every, drawn)) for drawn in counts]
    return _figure(tau(slice(None)), resampled)


def _preference(pair: _Pair, draws: np.ndarray | None) -> dict | None:
    """Of the captions of two models of a clip, the percent where the judges prefer the same one.

    Only cases in which both judges prefer one count; "n" is their number. None without any.
    """
    high, low = np.triu_indices(len(pair.first), 1)
    signs = []
    for one in (pair.first, pair.second):
        gaps = one[high] - one[low]
        signs.append(np.sign(np.where(np.abs(gaps) < TIE, 0, gaps)))
    products = signs[0] * signs[1]
    agreed, decided = (products > 0).sum(0), (products != 0).sum(0)  # of each clip
    if not decided.sum():
        return None
    resampled = None
    if draws is not None:
        with np.errstate(invalid="ignore"):
            resampled = 100 * (draws @ agreed) / (draws @ decided)
    return _figure(100 * agreed.sum() / decided.sum(), resampled) | {"n": int(decided.sum())}


def calibration_table(calibration: dict) -> str:
    """A calibration as text for a terminal."""
    lines = []
    for name, task in calibration["tasks"].items():
        digits = 3 if task["unit"] == "fraction" else 2
        for pair in task["pairs"]:
            lines += [*_pair_lines(name, pair, digits), ""]
    return "\n".join(lines).rstrip()


def _pair_lines(task: str, pair: dict, digits: int) -> list[str]:
    first, second = pair["judges"]
    lines = [f"{task}: {second} (B) against {first} (A), {pair['clips']} clips of each model", ""]
    lines.append(f"{'':<28}{'A':>9}{'B':>9}{'B - A':>9}  95 % interval")
    for model in pair["means"]:
        a, b = pair["means"][model]
        bias = pair["by_model"][model]
        lines.append(f"  {model:<26.26}{a:>9.{digits}f}{b:>9.{digits}f}{_text(bias, digits, '+')}")
    for label, figure in (("all models", pair["bias"]), *pair["columns"].items()):
        lines.append(f"  {label:<26.26}{'':>18}{_text(figure, digits, '+')}")
    preferred = pair["preference"]
    cases = f" of {preferred['n']}" if preferred else ""
    for label, figure, unit in (
        ("order of the models", pair["order"], "Kendall's tau-b"),
        ("scores of a caption", pair["clip"], "Kendall's tau-b over the clips"),
        ("", pair["equal"], "percent of equal scores"),
        ("", pair["distance"], "mean distance"),
        ("better of two captions", preferred, f"percent, the same for both{cases}"),
    ):
        lines.append(f"  {label:<26}{'':>18}{_text(figure, 2)}  {unit}")
    if pair["left_out"]:
        lines.append(f"  ({pair['left_out']} clips that not all results have scored are left out)")
    if pair["strangers"]:
        lines.append(f"  ({pair['strangers']} ids with other captions or references are left out)")
    return lines


def _text(figure: dict | None, digits: int, sign: str = "") -> str:
    """A figure and its interval, of fixed widths."""
    if figure is None:
        return f"{'-':>9}  {'-':<17}"
    span = "-"
    if figure["interval"] is not None:
        span = " to ".join(f"{bound:{sign}.{digits}f}" for bound in figure["interval"])
    return f"{figure['value']:>{sign}9.{digits}f}  {span:<17}"
