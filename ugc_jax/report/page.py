"""Results -> one self-contained HTML page: tables, plots, and a browser of clips.

    results --+-- tables.py, notes.py: numbers and words --+
              +-- plots.py: inline SVG --------------------+-> templates/report.html -> page
              +-- clips of each task ----------------------+
    album (pictures.py) -----------------------------------+

The page loads nothing: it includes styles, script, pictures and data, and its content-security
policy forbids anything else. Texts of models pass through jinja's escaping, or are JSON that the
script displays as text.
"""

import datetime
import math
from collections.abc import Sequence
from statistics import median_low

from ugc_jax import __version__
from ugc_jax.evals.compare import compare_results, is_same_clip
from ugc_jax.evals.intervals import RESAMPLES
from ugc_jax.evals.results import column_names
from ugc_jax.report import notes, plots, tables
from ugc_jax.report.pictures import Album
from ugc_jax.report.runs import Run
from ugc_jax.report.tables import Display, Displays, Members
from ugc_jax.words import count_words


def make_page(
    results: Sequence[dict],
    album: Album | None,
    displays: Displays,
    runs: Sequence[Run] = (),
    folded: Sequence[int] = (),
) -> str:
    """The page of results of `ugc-jax evaluate`; the others are compared with the first.

    displays: of the tasks (tables.DISPLAYS and any others). folded: numbers of results whose texts
    are folded away.
    """
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("ugc_jax.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "allow_nan": False}
    names = unique_names(results)
    benchmarks = dict.fromkeys(tables.benchmark(result, displays) for result in results)
    now = datetime.datetime.now(datetime.UTC)
    return environment.get_template("report.html").render(
        names=names,
        created=now.strftime("%Y-%m-%d %H:%M UTC"),
        version=__version__,
        cards=[notes.card(*pair, displays) for pair in zip(names, results, strict=True)],
        groups=[_group(name, names, results, displays) for name in benchmarks],
        colours=plots.SERIES,
        resamples=RESAMPLES,
        album=None if album is None else album_lines(album),
        runs=runs,
        data={
            "folded": list(folded),
            "runs": [{"name": run.name, "steps": run.steps} for run in runs],
            "results": names,
            "colours": plots.SERIES,
            "main": next(filter(None, (tables.main_task(one, displays) for one in results)), None),
            "tasks": clip_tasks(results, displays),
            "pictures": {} if album is None else _pictures(album),
        },
    )


def unique_names(results: Sequence[dict]) -> list[str]:
    """The names of the results; repeated ones get a number."""
    names: list[str] = []
    for result in results:
        name, number = result["name"], 1
        while name in names:
            number += 1
            name = f"{result['name']} ({number})"
        names.append(name)
    return names


def worst_first(results: Sequence[dict], displays: Displays) -> list[str]:
    """Ids of all clips: first those with a score in `main_task` of the first result, the worst
    first, then the others."""
    task = tables.main_task(results[0], displays)
    clips = results[0]["clips"].get(task, [])
    is_error = "score" in (results[0]["tasks"].get(task, {}).get("lower") or ())
    scored = sorted(
        (clip for clip in clips if "score" in clip),
        key=lambda clip: clip["score"],
        reverse=is_error,
    )
    every = (clip for result in results for task in result["clips"].values() for clip in task)
    return list(dict.fromkeys(clip.get("clip", clip["id"]) for clip in (*scored, *every)))


# ---- tables and plots ----------------------------------------------------------------------------


def _group(name: str, names: Sequence[str], results: Sequence[dict], displays: Displays) -> dict:
    """The part of the page on one benchmark's results."""
    members = [
        (number, names[number], result)
        for number, result in enumerate(results)
        if tables.benchmark(result, displays) == name
    ]
    against = compare_results([result for *_, result in members])["against"]
    return {
        "name": name,
        "members": [(number, label) for number, label, _ in members],
        "table": tables.score_table(members, displays),
        "differences": tables.difference_table(members, against, displays),
        "sentences": notes.comparability(members, against, displays),
        "tasks": notes.task_notes(members, displays),
        "plots": list(_plots(members, len(results), displays)),
    }


def _plots(members: Members, total: int, displays: Displays):
    """Yield {"title", "svg", "text"} of each plot. total: number of results in the page."""
    tasks = tables.all_tasks((result for *_, result in members), displays)
    if tasks:
        yield _scores(members, total, displays)
    for task in tasks:
        title = tables.display(task, displays).title
        if any(_shares(task, result) for *_, result in members):
            yield _attributes(task, title, members, total)
    for task in tasks:
        if plot := _lengths(task, tables.display(task, displays), members, total):
            yield plot
    for number, name, result in members:
        for task, facts in result["tasks"].items():
            if facts.get("confusion"):
                title = f"{tables.display(task, displays).title}: {name}"
                yield _confusion(title, number, facts)


def _by_result(members: Members, total: int, value) -> list:
    """value(result) at the number of each result of this benchmark, None at all others."""
    row = [None] * total
    for number, _, result in members:
        row[number] = value(result)
    return row


def _scores(members: Members, total: int, displays: Displays) -> dict:
    rows = []
    columns = tables.score_columns([result for *_, result in members], displays)
    for column, name in zip(columns, tables.labels(columns, displays), strict=True):
        figures = _by_result(members, total, lambda r, c=column: tables.percent(r, c))
        rows.append(
            plots.Bars(
                name,
                [figure and figure[0] for figure in figures],
                [figure and figure[1] for figure in figures],
                tables.published_values(column),
            )
        )
    text = "Lines are 95 % intervals."
    if any(row.published for row in rows):
        text += " Circles are the published rows of the table."
    label = f"Scores of {', '.join(name for _, name, _ in members)}; the table has the numbers."
    return {"title": "Scores", "svg": plots.score_bars(rows, label), "text": text}


def _shares(task: str, result: dict) -> dict[str, float]:
    """Attribute -> percent of the task's captions that state it right; empty if unknown."""
    return result["tasks"].get(task, {}).get("attributes") or {}


def _attributes(task: str, title: str, members: Members, total: int) -> dict:
    shares = _by_result(members, total, lambda result: _shares(task, result))
    names = dict.fromkeys(name for share in shares for name in share or {})
    rows = [
        plots.Bars(name, [(share or {}).get(name) for share in shares], [None] * total, [])
        for name in names
    ]
    svg = plots.score_bars(rows, "Share of captions that state each attribute right, in percent.")
    text = "Percent of the captions that state it right."
    return {"title": f"Attributes of the {title.lower()}", "svg": svg, "text": text}


def _lengths(task: str, how: Display, members: Members, total: int) -> dict | None:
    def words(result: dict, key: str) -> list[int]:
        return [count_words(clip[key]) for clip in result["clips"].get(task, []) if key in clip]

    if not how.lengths:
        return None
    lengths = _by_result(members, total, lambda result: words(result, "prediction"))
    if not any(lengths):
        return None
    reference = []
    if how.lengths == "both":
        reference = max((words(result, "reference") for *_, result in members), key=len)
    medians = [f"{name} {median_low(lengths[n])}" for n, name, _ in members if lengths[n]]
    medians += [f"reference {median_low(reference)} (filled)"] if reference else []
    title = f"Length of texts: {how.title}"
    svg = plots.length_histogram(lengths, reference, f"{title}, in words.")
    text = f"Median words: {', '.join(medians)}. The longest 1 % are in the last bar."
    return {"title": title, "svg": svg, "text": text}


def _confusion(title: str, number: int, facts: dict) -> dict:
    table = facts["confusion"]
    label = f"{title}. Right answers in rows, given answers in columns."
    recall = (facts.get("recall") or {}).items()
    shares = ", ".join(f"{one} {share:.1f} %" for one, share in recall if share is not None)
    return {
        "title": title,
        "number": number,
        "svg": plots.confusion_matrix(table["answers"], table["said"], table["counts"], label),
        "text": f"Right of each answer: {shares}.",
    }


# ---- clips ---------------------------------------------------------------------------------------


def clip_tasks(results: Sequence[dict], displays: Displays) -> list[dict]:
    """The clips of each task with their outcome in each result, as the page's script reads them.

    A task: {"name", "title", "digits", "score": its title, "columns": [[key, title]], "lower":
    those of which less is better, "results": numbers, "clips"}. A clip: {"id", "video" where it is
    another id, "reference", "of": [`_outcome` or None for each result]}.
    """
    return [_clip_task(name, results, displays) for name in tables.all_tasks(results, displays)]


def _clip_task(name: str, results: Sequence[dict], displays: Displays) -> dict:
    having = [number for number, result in enumerate(results) if name in result["tasks"]]
    facts = [results[number]["tasks"][name] for number in having]
    keys = list(dict.fromkeys(column for fact in facts for column in column_names(fact)))
    clips: dict[str, list[dict]] = {}
    for number in having:
        for clip in results[number]["clips"][name]:
            rows = clips.setdefault(clip["id"], [])
            # different clips of one id, such as those of two worlds, are listed apart
            row = next((row for row in rows if is_same_clip(row, clip)), None)
            if row is None:
                row = {"id": clip["id"], "of": [None] * len(results)}
                row |= {"video": clip["clip"]} if "clip" in clip else {}
                rows.append(row)
            if clip.get("reference") is not None:
                row["reference"] = clip["reference"]
            row["of"][number] = _outcome(clip, keys)
    score = tables.field_title(tables.Column(name, "score"), displays)
    return {
        "name": name,
        "title": tables.display(name, displays).title,
        "digits": 3 if facts[0].get("unit") == "fraction" else 1,
        "score": score if keys else "score",
        "columns": [[key, tables.column_title(key)] for key in keys],
        "lower": facts[0].get("lower") or [],
        "results": having,
        "clips": [row for rows in clips.values() for row in rows],
    }


def _outcome(clip: dict, keys: Sequence[str]) -> dict:
    """The fields of a clip that the page displays."""
    kept = ("prediction", "failure", "said", "answer", "note", "wrong", "evidence")
    numbers = {key: _number(clip.get(key)) for key in ("score", *keys)}
    return {key: value for key, value in numbers.items() if value is not None} | {
        key: clip[key] for key in kept if clip.get(key) is not None
    }


def _number(value: object) -> float | None:
    """A finite number, rounded; None for anything else."""
    is_number = isinstance(value, int | float) and math.isfinite(value)
    return round(value, 4) if is_number else None


def _pictures(album: Album) -> dict[str, dict]:
    return {
        name: picture._asdict()
        | {key: round(getattr(picture, key), 2) for key in ("seconds", "seen", "heard")}
        for name, picture in album.pictures.items()
    }


def album_lines(album: Album) -> list[str]:
    """Lines on the number of clips with pictures, and on those without."""
    lines = [f"{len(album.pictures)} clips have pictures"]
    if album.left_out:
        lines[0] += f"; {len(album.left_out)} more were left out (--pictures N takes more)"
    if album.linked:
        lines.append(
            f"{len(album.linked)} copies did not fit (play_mb): the page plays the files themselves"
        )
    if album.missing:
        lines.append(f"{len(album.missing)} have no file in the folder, {album.missing[0]} first")
    if album.unreadable:
        lines.append(f"{len(album.unreadable)} cannot be read: {'; '.join(album.unreadable[:10])}")
    return lines
