"""The data card of extracted records: README.md in their folder, as the Hugging Face hub reads it.

It is made of the folder's own files alone, and is no part of any fingerprint. What people write
below its last mark stays when the card is written again.
"""

import contextlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from statistics import median
from urllib.parse import urlsplit

from etils import epath

from ugc_jax import files
from ugc_jax.data import records
from ugc_jax.data.extract import FAILURES
from ugc_jax.data.removed import REMOVED, Removal, read_removals
from ugc_jax.settings import flatten

CARD = "README.md"
BEGIN = "<!-- Written by ugc-jax extract, again whenever the records change. -->"
END = "<!-- Your own text below this line is kept. -->"
# Columns of a manifest that say where a clip is from, and under which licence; the first counts.
SOURCES, LICENSES = ("source", "source_url", "url"), ("license", "licence")

_MOST = 20  # values that a table lists
_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (10**6, "100K<n<1M"))
_DATE = re.compile(r"\d{4}-\d\d-\d\d")
_IDENTIFIER = re.compile(r"[a-z0-9][a-z0-9.+-]*")


def write_card(directory: epath.Path, source: str | None = None, license: str | None = None):
    """Write the card of a complete folder, unless only its date would change.

    source, license: of rows whose manifest has no such column; kept in extraction.json for the next
    time; None: as before. A README.md that is no card of ours stays. Raises UserError for a file of
    the folder that cannot be read or written.
    """
    extraction = files.read_json(directory / records.EXTRACTION, records.EXTRACT_AGAIN)
    known = extraction.get("card") or {}
    given = {name: value for name, value in (("source", source), ("license", license)) if value}
    if given and known | given != known:
        known = known | given
        extraction["card"] = known
        files.write_json(directory / records.EXTRACTION, extraction)
    path, old = directory / CARD, ""
    if path.exists():
        old = files.read_text(path, "remove it, and it is written again", errors="replace")
        if BEGIN not in old:
            return
    text = _card(directory, extraction, known) + old.partition(END)[2].removeprefix("\n")
    if _undated(text) != _undated(old):
        files.write_text(path, text, errors="backslashreplace")


def facts(directory: epath.Path) -> dict:
    """Return number, sources and licences of the records of a folder, for the card of a model.

    {"records": int, "sources": {source: records}, "licenses": {licence: records}}, most first,
    without rows that give none. Raises UserError for a folder that cannot be read.
    """
    extraction = files.read_json(directory / records.EXTRACTION, records.EXTRACT_AGAIN)
    known = extraction.get("card") or {}
    index = directory / records.INDEX
    lines = [line.value for line in files.read_lines(index, records.EXTRACT_AGAIN)]
    counts = {
        "sources": _values(lines, SOURCES, known.get("source")),
        "licenses": _values(lines, LICENSES, known.get("license")),
    }
    most = {
        name: {value: number for value, number in found.most_common(_MOST) if value is not None}
        for name, found in counts.items()
    }
    return {"records": len(lines), **most}


def _card(directory: epath.Path, extraction: dict, known: dict) -> str:
    remedy = records.EXTRACT_AGAIN
    lines = [line.value for line in files.read_lines(directory / records.INDEX, remedy)]
    failures = sum(1 for _ in files.read_lines(directory / FAILURES, remedy))
    shards = files.read_json(directory / records.SHARDS, remedy)["shards"]
    removals = read_removals(directory)
    licenses = _values(lines, LICENSES, known.get("license"))
    sources = _values(lines, SOURCES, known.get("source"))
    version = extraction.get("versions", {}).get("ugc_jax", "an earlier version")
    settings = flatten({name: extraction.get(name, {}) for name in ("clip", "storage")})
    size = sum(shard["bytes"] for shard in shards) / 1e6
    sections = [
        f"# {directory.name}",
        BEGIN,
        f"Frames, log-mel and dialogues of clips, extracted with ugc_jax {version}; card of "
        f"{datetime.now(UTC).date()}. `index.jsonl` has the dialogues, `extraction.json` the "
        "settings, and the records are a TFDS data set in ArrayRecord files.",
        "## Contents",
        _table(("", ""), [
            ("records", f"{len(lines)} in {len(shards)} files, {size:.1f} MB"),
            *_dialogues(lines),
            *_media(lines),
            ("rows that could not be read", f"{failures} (`{FAILURES}`)"),
            ("removals", f"{len(removals)} (`{REMOVED}`)" if removals else "none"),
        ]),
        "## Sources and licences",
        _counts("source", sources),
        _counts("licence", licenses),
        *(["## Removals", _removals(removals)] if removals else []),
        "## Settings",
        _table(("setting", "value"), [
            (f"`{name}`", json.dumps(value, ensure_ascii=False)) for name, value in settings.items()
        ]),
        END,
    ]  # fmt: skip
    return _front_matter(len(lines), licenses) + "\n\n".join(sections) + "\n"


def _front_matter(count: int, licenses: Counter) -> str:
    """Return the metadata that the hub reads, in YAML."""
    size = next((name for limit, name in _SIZES if count < limit), "n>1M")
    names = [name.strip().lower() for name in licenses if name is not None]
    names = [name if _IDENTIFIER.fullmatch(name) else "other" for name in names]
    names = list(dict.fromkeys(names))
    rows = ["---"]
    if names:
        rows += ["license:", *(f"- {json.dumps(name)}" for name in names)]
    rows += ["task_categories:", "- video-text-to-text"]
    rows += ["tags:", "- video", "- audio", "- captions", "size_categories:", f"- {size}", "---"]
    return "\n".join(rows) + "\n\n"


def _dialogues(lines: Sequence[dict]) -> list[tuple[str, str]]:
    kinds = Counter(
        "with an answer"
        if any(turn["role"] == "assistant" for turn in line["messages"])
        else "with a solution"
        if line["solution"] is not None
        else "a question alone"
        for line in lines
    )
    return [(name, _share(number, len(lines))) for name, number in sorted(kinds.items())]


def _media(lines: Sequence[dict]) -> list[tuple[str, str]]:
    """Return the rows on files, sound and picture, and durations."""
    facts = [fact for line in lines for fact in line["media"]]
    kinds = Counter(fact["kind"] for fact in facts)
    rows = [("files", f"{len({fact['path'] for fact in facts})}, used {len(facts)} times")]
    rows += [
        (f"of kind {kind}", _share(number, len(facts))) for kind, number in sorted(kinds.items())
    ]
    for name, key in (("with picture", "frames"), ("with sound", "mel_frames")):
        rows.append((name, _share(sum(bool(fact[key]) for fact in facts), len(facts))))
    pictures = [_shown(fact) for fact in facts if fact["kind"] == "video" and fact["frames"]]
    sounds = [fact["mel_frames"] / 100 for fact in facts if fact["mel_frames"]]  # frames of 10 ms
    for name, times in (("picture, first to last frame", pictures), ("sound", sounds)):
        if times:
            middle, longest = f"median {median(times):.1f} s", f"longest {max(times):.1f} s"
            rows.append((name, f"{sum(times) / 3600:.2f} h; {middle}, {longest}"))
    return rows


def _shown(fact: dict) -> float:
    """Return the seconds between the first and the last frame of a video."""
    instants = fact["instants"]
    return instants[-1] - instants[0] if instants else 0.0


def _values(lines: Iterable[dict], columns: Sequence[str], default: str | None) -> Counter:
    """Count the values of the first of `columns` that a row has; of a URL, its host. None: none."""
    found: Counter = Counter()
    for line in lines:
        values = (line["extra"].get(name) for name in columns)
        value = next((one for one in values if one not in (None, "")), default)
        value = value if value is None or isinstance(value, str) else json.dumps(value)
        found[_host(value) or value] += 1
    return found


def _host(value: str | None) -> str | None:
    """Return the host of a URL, without a user's name and password; None of another value."""
    if not value or re.match(r"\w+://", value) is None:
        return None
    with contextlib.suppress(ValueError):
        return urlsplit(value).hostname
    return None


def _counts(name: str, values: Counter) -> str:
    most = values.most_common()
    most.sort(key=lambda item: (-item[1], str(item[0])))
    rows = [("not given" if value is None else value, str(n)) for value, n in most[:_MOST]]
    if rest := most[_MOST:]:
        rows.append((f"{len(rest)} others", str(sum(number for _, number in rest))))
    return _table((name, "records"), rows)


def _removals(removals: Sequence[Removal]) -> str:
    days = Counter((one.time[:10], one.kind) for one in removals)
    rows = [(day, f"{number} {kind}{'s' * (number > 1)}") for (day, kind), number in days.items()]
    return _table(("removed on", "what"), rows)


def _table(head: tuple[str, str], rows: Iterable[tuple[str, str]]) -> str:
    cells = [[_cell(cell) for cell in row] for row in (head, *rows)]
    lines = [f"| {first} | {second} |" for first, second in cells]
    return "\n".join([lines[0], "|---|---|", *lines[1:]])


def _cell(text: str) -> str:
    """Return a text that is one cell, whatever it holds: a mark of ours would end the card."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


def _share(number: int, of: int) -> str:
    return f"{number} ({number / of:.0%})" if of else "0"


def _undated(text: str) -> str:
    return _DATE.sub("", text.partition(END)[0], count=1) + text.partition(END)[2]
