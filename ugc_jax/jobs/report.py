"""Make one HTML page of results of `evaluate`: tables, plots, and a browser of clips.

RESULT is a file that `ugc-jax evaluate` wrote; the others are compared with the first. The page is
a single file that needs no network. With videos=DIR it shows frames and sound of the clips, which
are found by their ids: a clip's id is its file's name without suffix.
"""

import dataclasses
import sys
from pathlib import Path

from ugc_jax import files
from ugc_jax.errors import UserError
from ugc_jax.evals.results import ANOTHER, read_result
from ugc_jax.report.page import album_lines, make_page, worst_first
from ugc_jax.report.pictures import make_album
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

    def __post_init__(self):
        if self.pictures < 0:
            raise UserError(f"pictures is {self.pictures}; give 0 or more")


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
        album = make_album(config.videos, ids, config.pictures)
        for line in album_lines(album):
            print(line, file=sys.stderr)
    page = make_page(results, album, displays)
    files.write_text(output, page, ANOTHER, errors="backslashreplace")
    megabytes = output.stat().st_size / 1e6
    print(f"{output}: {len(ids)} clips of {len(results)} results, {megabytes:.1f} MB")
    return 0
