"""Compare results of evaluate clip by clip: the first one with each of the others.

A difference whose 95 % interval contains 0 is called noise. Scores of different protocols (another
judge, temperature, prompt or normalisation) are listed as not comparable.
"""

import dataclasses

from ugc_jax.errors import UserError
from ugc_jax.evals.compare import compare_results, comparison_table, distinguished
from ugc_jax.evals.results import check_result_path, read_result, write_result
from ugc_jax.settings import Schema


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompareConfig:
    """Settings of compare."""

    output: str | None = None  # also write the comparison to this file, as JSON


SETTINGS = Schema(CompareConfig)


def main(config: CompareConfig, files: list[str]) -> int:
    """Exit status 0, or 1 when no two results have a task in common."""
    if len(files) < 2:
        raise UserError(f"{files[0]}: nothing to compare it with; name two or more results")
    if config.output is not None:
        check_result_path(config.output, files)
    results = [read_result(file) for file in files]
    comparison = compare_results(distinguished(results, files))
    print(comparison_table(comparison))
    if config.output is not None:
        write_result(config.output, comparison)
    return 0 if any(other["tasks"] for other in comparison["against"]) else 1
