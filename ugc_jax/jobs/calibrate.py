"""Tell how much the judge matters: several judges' scores of the same captions.

RESULT is a file that `ugc-jax evaluate` wrote: a model scored by a judge. Results of the same
captions have the same name (evaluate --name). For each pair of judges: the order in which they put
the models (Kendall's tau), how far they agree on single captions, and the bias of one against the
other, of each model and column, all with 95 % intervals over the clips.
"""

import dataclasses

from ugc_jax.errors import UserError
from ugc_jax.evals.calibrate import Source, calibrate, calibration_table
from ugc_jax.evals.results import check_result_path, read_result, write_result
from ugc_jax.settings import Schema


@dataclasses.dataclass(frozen=True, kw_only=True)
class CalibrateConfig:
    """Settings of calibrate."""

    output: str | None = None  # also write the figures to this file, as JSON
    # names of the judges, one a RESULT in their order, separated by commas; none: the models that
    # the results name, with temperature and prompt where these differ
    judges: tuple[str, ...] = ()


SETTINGS = Schema(CalibrateConfig)


def main(config: CalibrateConfig, files: list[str]) -> int:
    """Exit status 0. Raises UserError for files that are no results, or have no two judges."""
    if len(files) < 2:
        raise UserError(f"{files[0]}: is one result; name those of two or more judges")
    if config.judges and len(config.judges) != len(files):
        raise UserError(
            f"judges: {len(config.judges)} names for {len(files)} results; give one for each"
        )
    if config.output is not None:
        check_result_path(config.output, files)
    names = config.judges or (None,) * len(files)
    found = calibrate(
        [Source(file, read_result(file), name) for file, name in zip(files, names, strict=True)]
    )
    print(calibration_table(found))
    if config.output is not None:
        write_result(config.output, found)
    return 0
