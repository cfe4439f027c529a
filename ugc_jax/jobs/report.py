"""Make one HTML page of results of `evaluate`: tables, plots, and a browser of clips.

RESULT is a file that `ugc-jax evaluate` wrote; the others are compared with the first. The page is
a single file that needs no network. With videos=DIR it shows frames and sound of the clips and
plays them from the second that is clicked; they are found by their ids: a clip's id is its file's
name without suffix. With runs=DIR it has the curves of training runs, and the completions of GRPO
with their rewards.
"""

import dataclasses
import sys
from pathlib import Path

from ugc_jax import files
from ugc_jax.errors import UserError
from ugc_jax.evals.results import ANOTHER, read_result
from ugc_jax.report.page import album_lines, make_page, unique_names, worst_first
from ugc_jax.report.pictures import Play, Playing, make_album
from ugc_jax.report.runs import read_run
from ugc_jax.report.tables import DISPLAYS
from ugc_jax.settings import Schema
from ugc_jax.toy import task as world


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """Settings of report."""

    output: str  # HTML file to write
    videos: str | None = None  # folder with the clips, to show frames and sound of them
    # most clips with pictures, the worst by the first result first; each adds about 25 kB
    pictures: int = 200
    # what plays the clips: link, to the files, which must stay where they are; embed, small copies
    # in the page; none
    play: Play = "link"
    play_mb: float = 50.0  # most MB of copies in the page; clips beyond are linked
    runs: str | None = None  # folders of sft or grpo runs, with commas between: curves, completions
    # names of results, with commas between, whose texts are folded away, such as before training
    fold: str | None = None

    def __post_init__(self):
        for name in ("pictures", "play_mb"):
            if getattr(self, name) < 0:
                raise UserError(f"{name} is {getattr(self, name):g}; give 0 or more")


SETTINGS = Schema(ReportConfig)


def main(config: ReportConfig, words: list[str]) -> int:
    """Exit status 0. Raises UserError for files that are not results, and folders without clips."""
    output = Path(config.output)
    if output.resolve() in {Path(word).resolve() for word in words}:
        raise UserError(f"output: {output} is one of the results; choose another file")
    results = [read_result(word) for word in words]
    displays = DISPLAYS | world.DISPLAYS
    ids, album = worst_first(results, displays), None
    if config.videos is not None:
        playing = Playing(config.play, output, config.play_mb * 1e6)
        album = make_album(config.videos, ids, config.pictures, playing)
        for line in album_lines(album):
            print(line, file=sys.stderr)
    runs = [read_run(folder) for folder in _words(config.runs)]
    folded = _folded(_words(config.fold), unique_names(results))
    page = make_page(results, album, displays, runs, folded)
    files.write_text(output, page, ANOTHER, errors="backslashreplace")
    megabytes = output.stat().st_size / 1e6
    print(f"{output}: {len(ids)} clips of {len(results)} results, {megabytes:.1f} MB")
    return 0


def _words(text: str | None) -> list[str]:
    return [word.strip() for word in (text or "").split(",") if word.strip()]


def _folded(words: list[str], names: list[str]) -> list[int]:
    """The numbers of the results that are folded away. Raises UserError for other names."""
    for word in words:
        if word not in names:
            raise UserError(f"fold: no result is called {word!r}; use some of {', '.join(names)}")
    return [names.index(word) for word in words]
