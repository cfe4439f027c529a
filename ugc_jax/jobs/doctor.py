"""Look at this machine: does all work that captioning needs, what fits, what to type next.

Devices, versions, memory, decoders, the compilation cache, disk, access to the hub and the optional
parts have a line each; a faulty one has its remedy. What fits is estimated (within some 12 %) for
one row a device at a time; `ugc-jax plan` asks a compiler. Exit status 1 if something that
captioning needs is broken; being offline, or short of memory for the 3B, is not.
"""

import dataclasses

from ugc_jax import doctor, files
from ugc_jax.settings import Schema, check_minimum

_MARKS = {doctor.OK: "ok", doctor.NOTE: "note", doctor.BROKEN: "BROKEN"}
_WORKS = "caption", "sft lora", "sft", "grpo lora", "grpo"


@dataclasses.dataclass(frozen=True)
class DoctorConfig:
    """Settings of doctor."""

    json: bool = False  # the report as JSON
    timeout: float = 60.0  # seconds that the devices may take to answer
    hub_timeout: float = 5.0  # seconds that the hub may take to answer

    def __post_init__(self):
        check_minimum(self, timeout=1, hub_timeout=0.1)


SETTINGS = Schema(DoctorConfig)


def main(config: DoctorConfig, args: list[str]) -> int:
    """Exit status 0, or 1 if something that captioning needs is broken."""
    report = doctor.examine(config.timeout, config.hub_timeout)
    if config.json:
        findings = [finding._asdict() for finding in report.findings]
        print(files.to_json({"ok": report.ok, **report._asdict(), "findings": findings}))
    else:
        print(table(report))
    return 0 if report.ok else 1


def table(report: doctor.Report) -> str:
    """Return the report as text."""
    lines = []
    for part, state, text, remedy in report.findings:
        lines.append(f"{_MARKS[state]:<7}{part:<13}{text}{f'; {remedy}' if remedy else ''}")
    if report.fits:
        has = report.fits[0]["has"] / doctor.GIB
        lines += ["", f"GiB that each device needs (estimates), of {has:.1f} that are free:"]
        lines.append(" " * 7 + "".join(f"{work:>17}" for work in _WORKS))
        for size in dict.fromkeys(fit["size"] for fit in report.fits):
            cells = {fit["work"]: fit for fit in report.fits if fit["size"] == size}
            row = (f"{_cell(cells[work]):>17}" for work in _WORKS)
            lines.append(f"  {size.upper():<5}{''.join(row)}")
    lines += ["", "next:", *(f"  {line}" for line in report.next)]
    return "\n".join(lines)


def _cell(fit: dict) -> str:
    verdict = "" if fit["verdict"] == "fits" else f" ({fit['verdict']})"
    return f"{fit['needs'] / doctor.GIB:.1f}{verdict}"
