"""One HTML page on a selection: what was chosen and why, what repeats what, what is left out."""

import datetime
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from ugc_jax import __version__
from ugc_jax.data.workers import Pool, ReadingConfig
from ugc_jax.errors import UserError
from ugc_jax.label.select import FIELDS, Near, Quota, Selection
from ugc_jax.progress import progress
from ugc_jax.report.pictures import Picture, draw_clip

_WIDTH, _HEIGHT = 640, 160  # of the plot of the coverage


class Clip(NamedTuple):
    """A row as the page shows it. values: `select.attributes`."""

    name: str
    path: str
    caption: str
    values: Mapping[str, str]


def make_page(
    clips: Sequence[Clip],
    selection: Selection,
    quotas: Sequence[Quota],
    facts: Mapping[str, str],
    unreadable: Sequence[str],
    pictures: Mapping[str, Picture],
) -> str:
    """Return the page, which loads nothing.

    clips: those that were chosen from, as the rows of the selection number them. facts: label ->
    text, of the run. unreadable: a line each. pictures: path -> of `draw`.
    """
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.ChoiceLoader(
            [jinja2.PackageLoader("ugc_jax.label"), jinja2.PackageLoader("ugc_jax.report")]
        ),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    chosen = {one.row for one in selection.chosen}
    now = datetime.datetime.now(datetime.UTC)
    return environment.get_template("select.html").render(
        created=now.strftime("%Y-%m-%d %H:%M UTC"),
        version=__version__,
        facts=facts,
        short=selection.short,
        total=len(clips),
        coverage=selection.coverage,
        curve=_curve([one.gain for one in selection.chosen]),
        width=_WIDTH,
        height=_HEIGHT,
        table=_shares(clips, chosen, quotas),
        chosen=[
            (clips[one.row], one, _named(clips, selection.nearest.get(one.row)))
            for one in selection.chosen
        ],
        duplicates=[
            (clips[row], _named(clips, near)) for row, near in selection.duplicates.items()
        ],
        others=[
            (clips[row], _named(clips, near))
            for row, near in selection.nearest.items()
            if row not in chosen
        ],
        unreadable=unreadable,
        pictures=pictures,
    )


def draw(paths: Sequence[str], reading: ReadingConfig) -> dict[str, Picture]:
    """Return {path: pictures}; a clip that cannot be drawn has none."""
    drawn = {}
    with Pool(draw_clip, reading) as pool:
        outcomes = pool.read(paths, ahead=2 * pool.workers)
        for outcome in progress(outcomes, len(paths), "clip", "pictures"):
            if not isinstance(outcome.value, UserError):
                drawn[outcome.item] = outcome.value
    return drawn


def _named(clips: Sequence[Clip], near: Near | None) -> tuple[Clip, float] | None:
    return near and (clips[near.row], near.similarity)


def _shares(clips: Sequence[Clip], chosen: set[int], quotas: Sequence[Quota]) -> list[dict]:
    """Values of fields with few values: how many labels have them, and how many were chosen."""
    limits = {(quota.field, quota.value.casefold()): quota for quota in quotas}
    rows = []
    for field in FIELDS:
        every = Counter(clip.values[field] for clip in clips if field in clip.values)
        own = Counter(clips[row].values.get(field) for row in chosen)
        for value, count in every.most_common():
            quota = limits.get((field, value.casefold()))
            rows.append(
                {
                    "name": f"{field}={value}",
                    "clips": count,
                    "chosen": own[value],
                    "quota": "" if quota is None else _limits(quota),
                }
            )
    return rows


def _limits(quota: Quota) -> str:
    if quota.low == quota.high:
        return str(quota.low)
    least = f"at least {quota.low}" if quota.low else ""
    most = "" if quota.high is None else f"at most {quota.high}"
    return ", ".join(filter(None, (least, most)))


def _curve(gains: Sequence[float]) -> str:
    """Points of an SVG polyline: the coverage after each choice, from 0 to 1."""
    total, points = 0.0, [(0.0, float(_HEIGHT))]
    for number, gain in enumerate(gains, 1):
        total += gain
        points.append((_WIDTH * number / len(gains), _HEIGHT * (1 - min(total, 1.0))))
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
