"""Plots of results as inline SVG, drawn by matplotlib.

Colours and fonts are those of the page: plots are drawn in placeholder colours that become CSS
variables, so that one plot fits the light and the dark theme, and text stays text.
"""

import io
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

SERIES = 6  # number of colours before they repeat
WIDTH = 4.6  # inches of 72 units: a plot is readable without zoom on a phone
MAX_LABEL = 24  # characters of a label

_INK, _MUTED, _LINE, _ACCENT = "#010203", "#010204", "#010205", "#010206"
_THEME = {_INK: "ink", _MUTED: "muted", _LINE: "line", _ACCENT: "accent"}
_THEME |= {f"#0103{number:02x}": f"series-{number + 1}" for number in range(SERIES)}


class Bars(NamedTuple):
    """A row of `score_bars`: score and interval of each result, in 0..100, None if unknown.

    published: scores of the published rows.
    """

    label: str
    scores: Sequence[float | None]
    intervals: Sequence[Sequence[float] | None]
    published: Sequence[float]


def score_bars(rows: Sequence[Bars], label: str) -> str:
    """SVG of a bar for each score, its 95 % interval, and circles at the published scores.

    label: a description for screen readers.
    """
    results = len(rows[0].scores)
    thick = 0.66 / results  # rows are 1 apart: bars, circles, a gap
    figure, axes = _figure(0.45 + len(rows) * (0.24 + 0.16 * results))
    for place, row in enumerate(rows):
        marks = dict(marker="o", markersize=3.4, markeredgewidth=0.8, fillstyle="none", alpha=0.8)
        heights = [place + 0.36] * len(row.published)
        axes.plot(row.published, heights, linestyle="", color=_MUTED, **marks)
        pairs = zip(row.scores, row.intervals, strict=True)
        for number, (score, interval) in enumerate(pairs):
            y = place - 0.4 + (number + 0.5) * thick
            if score is None:
                continue
            axes.barh(y, score, thick * 0.8, color=series(number), alpha=0.8, linewidth=0)
            if interval is not None:
                axes.hlines(y, *interval, color=_INK, linewidth=1.3)
            axes.text(102, y, f"{score:.1f}", va="center", fontsize=8, color=_MUTED)
    axes.set(xlim=(0, 100), ylim=(len(rows) - 0.45, -0.55))
    axes.set_yticks(
        [place - 0.07 for place in range(len(rows))], [_plain(row.label) for row in rows]
    )
    axes.grid(axis="x", color=_LINE, linewidth=0.7)
    axes.tick_params(axis="y", length=0, labelsize=10, labelcolor=_INK)
    axes.spines["bottom"].set_visible(False)
    axes.spines["left"].set_color(_MUTED)
    return _svg(figure, label)


def length_histogram(
    lengths: Sequence[Sequence[int] | None], reference: Sequence[int], label: str
) -> str:
    """SVG histogram of lengths in words: a line for each result, the reference filled.

    lengths: of each result's texts; None or empty if it has none. Lengths above the 99th percentile
    are counted in the last bar.
    """
    import numpy as np

    longest = int(max(np.percentile(v, 99) for v in (*lengths, reference) if v)) + 1
    width = -(-(longest + 1) // 40)  # an integer: bars of 2.5 would count 2 and 3 lengths in turn
    edges = np.arange(0, longest + 1 + width, width)

    def histogram(values: Sequence[int]) -> np.ndarray:
        return np.histogram(np.minimum(values, longest), edges)[0]

    figure, axes = _figure(2.5)
    if reference:
        axes.stairs(histogram(reference), edges, fill=True, color=_LINE)
    for number, values in enumerate(lengths):
        if values:
            axes.stairs(histogram(values), edges, color=series(number), linewidth=1.5)
    axes.set_xlim(0, edges[-1])
    axes.set_xlabel("words", fontsize=9, color=_MUTED)
    axes.set_ylabel("texts", fontsize=9, color=_MUTED)
    axes.spines["left"].set_visible(False)
    axes.grid(axis="y", color=_LINE, linewidth=0.7)
    return _svg(figure, label)


def curves(lines: Mapping[str, tuple[Sequence[int], Sequence[float]]], label: str) -> str:
    """SVG of values by step, a line for each name; few values have marks.

    lines: name -> (steps, values).
    """
    figure, axes = _figure(2.4)
    for number, (name, (steps, values)) in enumerate(lines.items()):
        mark = dict(marker="o", markersize=3) if len(steps) < 30 else {}
        style = "--" if name.startswith("eval_") else "-"
        axes.plot(
            steps, values, style, color=series(number), linewidth=1.4, label=_plain(name), **mark
        )
    axes.set_xlabel("step", fontsize=9, color=_MUTED)
    axes.grid(axis="y", color=_LINE, linewidth=0.7)
    axes.spines["left"].set_visible(False)
    if len(lines) > 1:
        axes.legend(fontsize=8, labelcolor=_INK, frameon=False)
    return _svg(figure, label)


def confusion_matrix(
    answers: Sequence[str], said: Sequence[str], counts: Sequence[Sequence[int]], label: str
) -> str:
    """SVG of counts[answer][said] as a table; the darkness of a cell is its share of the row."""
    import numpy as np
    from matplotlib.patches import Rectangle

    table = np.asarray(counts)
    shares = table / np.maximum(table.sum(axis=1, keepdims=True), 1)
    figure, axes = _figure(0.85 + 0.42 * len(answers))
    for (row, column), share in np.ndenumerate(shares):
        cell = dict(xy=(column - 0.48, row - 0.46), width=0.96, height=0.92, linewidth=0)
        axes.add_patch(Rectangle(**cell, color=_LINE, alpha=0.5))
        axes.add_patch(Rectangle(**cell, color=_ACCENT, alpha=0.65 * float(share)))
        text = dict(ha="center", va="center", fontsize=10, color=_INK)
        axes.text(column, row, str(table[row, column]), **text)
    axes.set(xlim=(-0.5, len(said) - 0.5), ylim=(len(answers) - 0.5, -0.5))
    axes.set_xticks(range(len(said)), [_plain(word).replace(" ", "\n") for word in said])
    axes.set_yticks(range(len(answers)), map(_plain, answers))
    axes.set_xlabel("said", fontsize=9, color=_MUTED)
    axes.set_ylabel("answer", fontsize=9, color=_MUTED)
    axes.xaxis.set_label_position("top")
    axes.tick_params(length=0, labelsize=10, labelcolor=_INK, top=True, labeltop=True)
    axes.tick_params(axis="x", labelbottom=False)
    for spine in axes.spines.values():
        spine.set_visible(False)
    return _svg(figure, label)


def series(number: int) -> str:
    """The placeholder colour of result `number`, which becomes var(--series-...)."""
    return f"#0103{number % SERIES:02x}"


def _plain(text: str) -> str:
    """A shortened text, escaped so that matplotlib finds no formula in it."""
    short = text if len(text) <= MAX_LABEL else f"{text[: MAX_LABEL - 1]}…"
    return short.replace("$", r"\$")


def _figure(height: float):
    """A figure of WIDTH x height inches, and its axes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    axes = figure.subplots()
    axes.patch.set_visible(False)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=9, labelcolor=_MUTED, color=_LINE)
    for name, spine in axes.spines.items():
        spine.set_visible(name in ("left", "bottom"))
        spine.set_color(_LINE)
    return figure, axes


def _svg(figure, label: str) -> str:
    """The figure as an <svg> element of a page."""
    import matplotlib

    file = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": label}):
        figure.savefig(file, format="svg", transparent=True, metadata=nothing)
    return _inline(file.getvalue(), label)


def _inline(svg: str, label: str) -> str:
    """matplotlib's SVG file as an element of a page: labelled, themed, without unused ids."""
    from markupsafe import escape

    view = re.search(r'viewBox="[^"]*"', svg)[0]
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<style.*?</style>", "", svg, flags=re.DOTALL)  # it would apply to the whole page
    used = set(re.findall(r'(?:href="|url\()#([\w.-]+)', svg))
    svg = re.sub(r' id="([\w.-]+)"', lambda found: found[0] if found[1] in used else "", svg)
    for colour, name in _THEME.items():
        svg = svg.replace(f": {colour}", f": var(--{name})")
    svg = re.sub(r"font-family: [^;\"]*", "font-family: inherit", svg)
    link = 'xmlns:xlink="http://www.w3.org/1999/xlink"'
    head = f'<svg {view} role="img" aria-label="{escape(label)}" {link}>'
    return head + svg[svg.index(">") + 1 :].rstrip()
