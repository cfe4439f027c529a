"""Choose which labelled clips to train on: no near-duplicates, and few that stand for all others.

LABELS is the JSON Lines file that `ugc-jax label` wrote, or any with rows {"videos": [path],
"messages": [...]}. The chosen rows go to the output as they are, the most useful first, so that its
first half is the choice of half as many (without quotas).

Clips are compared by what the vision and the audio encoder of the checkpoint make of them. These
rows are kept on disk: a killed run continues, and another count needs no model. The page shows
what was chosen and why.
"""

import dataclasses
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ugc_jax import files, remote
from ugc_jax.data.manifest import read_manifest
from ugc_jax.data.workers import ReadingConfig
from ugc_jax.errors import UserError
from ugc_jax.evals.tasks import clip_id, is_texts
from ugc_jax.generate.captioner import Captioner
from ugc_jax.generate.defaults import PUBLISHED, Defaults
from ugc_jax.generate.settings import SamplingConfig
from ugc_jax.hf.hub import resolve_checkpoint
from ugc_jax.hf.trained import weights_digest
from ugc_jax.label.embeddings import MODALITIES, EmbeddingFile, embed
from ugc_jax.label.page import Clip, draw, make_page
from ugc_jax.label.select import Quota, Selection, attributes, read_quotas, select
from ugc_jax.media.presets import ClipSettings
from ugc_jax.models.compute import ComputeConfig
from ugc_jax.progress import progress
from ugc_jax.settings import Schema, check_minimum, short_names

logger = logging.getLogger(__name__)

REMEDY = 'give JSON Lines with "videos": [path] in each row'


@dataclasses.dataclass(frozen=True, kw_only=True)
class SelectConfig(ReadingConfig):
    """Settings of select."""

    count: int  # rows to choose
    output: str  # JSON Lines file with the chosen rows
    checkpoint: str = PUBLISHED  # directory, or hub id: the model whose encoders compare clips
    revision: str | None = None  # branch, tag or commit of a hub id
    media: str | None = None  # folder of the rows' paths; none: the folder of LABELS
    # how many of the chosen rows have a value: tone=Negative:20%- at least a fifth, music=yes:-300
    # at most 300, text=no:50 exactly 50, tone=Neutral:10%-30%; fields are voice_source, tone and
    # music (yes, no), and for whether there is something text, objects, sounds and
    # background_change (yes, no)
    quota: tuple[str, ...] = ()
    # similarity from which a clip repeats an earlier one and is left out; above 1: none does
    duplicate: float = 0.95
    page: str | None = None  # HTML page on the choice; none: as the output, but .html
    pictures: int = 100  # clips whose frames the page shows, chosen ones first; about 15 kB each
    # JSON Lines file of what the encoders made of the clips; none: OUTPUT.embeddings.jsonl
    embeddings: str | None = None
    batch_size: int = 8  # clips that are encoded together
    clip: ClipSettings = ClipSettings()
    compute: ComputeConfig = ComputeConfig()

    def __post_init__(self):
        super().__post_init__()
        check_minimum(self, count=1, batch_size=1, pictures=0)
        self.compute.check_no_int8("select, which runs the encoders alone,")
        if not self.duplicate > 0:
            raise UserError(f"duplicate is {self.duplicate:g}; use a similarity above 0")


SETTINGS = Schema(SelectConfig, short=short_names(clip=ClipSettings, compute=ComputeConfig))


def main(config: SelectConfig, words: list[str]) -> int:
    """Exit status 0. Prints a line for each quota, and a count, that could not be filled."""
    if len(words) != 1:
        raise UserError(f"{len(words)} files are given ({' '.join(words)}); give one of labels")
    labels, output = Path(words[0]), Path(config.output)
    page = output.with_suffix(".html") if config.page is None else Path(config.page)
    beside = output.with_name(f"{output.name}.embeddings.jsonl")
    stored = beside if config.embeddings is None else Path(config.embeddings)
    places = [labels.resolve(), output.resolve(), page.resolve(), stored.resolve()]
    if len(set(places)) < len(places):
        raise UserError(f"output: {output} or a file beside it is another one's; choose another")
    quotas = read_quotas(config.quota, config.count)
    rows, clips = _read(labels, config.media, quotas)
    embedded, unreadable, facts = _embedded(config, [clip.path for clip in clips], stored)
    readable = [number for number, clip in enumerate(clips) if clip.path in embedded]
    if not readable:
        raise UserError(f"{labels}: none of its clips can be read; {unreadable[0]}")
    clips = [clips[number] for number in readable]
    arrays = {name: np.stack([embedded[clip.path][name] for clip in clips]) for name in MODALITIES}
    values = [clip.values for clip in clips]
    selection = select(arrays, values, config.count, quotas, config.duplicate)
    chosen = [rows[readable[one.row]] for one in selection.chosen]
    if config.media is None:
        chosen = [_moved(row, labels.parent, output.parent) for row in chosen]
    files.write_text(output, files.to_lines(chosen))
    shown = _shown(clips, selection)[: config.pictures]
    pictures = draw(shown, config) if shown else {}
    facts |= {"Labels": str(labels), "Duplicates from": f"{config.duplicate:g}"}
    text = make_page(clips, selection, quotas, facts, unreadable, pictures)
    files.write_text(page, text, errors="backslashreplace")
    for line in (*unreadable, *selection.short):
        print(line, file=sys.stderr)
    print(
        f"{output}: {len(chosen)} of {len(rows)} rows, {len(selection.duplicates)} near-duplicates "
        f"left out, {len(unreadable)} clips not readable, coverage {selection.coverage:.3f}; {page}"
    )
    return 0


def _read(labels: Path, media: str | None, quotas: Sequence[Quota]) -> tuple[list, list[Clip]]:
    """The rows of a file, and their clips as the page shows them."""
    manifest = read_manifest(labels, ClipSettings(), media)  # what `extract` would refuse
    rows = [line.value for line in files.read_lines(labels, REMEDY)]
    clips = []
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict) or not is_texts(row.get("videos")) or len(row["videos"]) > 1:
            raise UserError(f"{labels}: row {number}: videos is not a list of one path; {REMEDY}")
        label = row.get("label")
        if quotas and not isinstance(label, dict):
            raise UserError(
                f"{labels}: row {number}: has no label, which quotas are about; leave quota out, "
                "or label the clips"
            )
        read = manifest[number - 1]
        if remote.is_url(read.media[0]):
            raise UserError(
                f"{labels}: row {number}: {read.media[0]} is a URL, which select does not read; "
                "download the clips and give their folder as media"
            )
        caption = read.solution or ""
        if read.messages[-1]["role"] == "assistant":
            caption = read.messages[-1]["content"]
        values = {}
        try:
            values = attributes(label) if isinstance(label, dict) else {}
        except ValueError as error:
            # A column of that name may be of something else; only quotas need it.
            if quotas:
                raise UserError(
                    f"{labels}: row {number}: label: {error}, of which no quota can be counted; "
                    "correct it, or leave quota out"
                ) from None
        clips.append(Clip(clip_id(read.media[0]), read.media[0], caption, values))
    return rows, clips


def _embedded(config: SelectConfig, paths: Sequence[str], stored: Path):
    """Return ({path: embedding}, a line for each clip that cannot be read, facts)."""
    directory = resolve_checkpoint(config.checkpoint, config.revision)
    defaults = Defaults.of(config.checkpoint, directory)
    clip, _ = defaults.apply(config.clip, SamplingConfig())
    weights = weights_digest(directory)
    shown = {
        name: value
        for name, value in dataclasses.asdict(clip).items()
        if name not in ("question", "system")  # which encoders do not see
    }
    how = {"weights": weights, "dtype": config.compute.dtype, "clip": shown}
    unreadable = []
    with EmbeddingFile(stored, how) as known:
        missing = [path for path in dict.fromkeys(paths) if known.get(path) is None]
        if missing:
            logger.info("%d of %d clips are to be encoded", len(missing), len(set(paths)))
            defaults.report(config.clip, SamplingConfig())
            captioner = Captioner.from_pretrained(directory, **dataclasses.asdict(config.compute))
            found = embed(captioner, missing, clip, config, config.batch_size)
            for path, one in progress(found, len(missing), "clip", "encoding"):
                if isinstance(one, UserError):
                    unreadable.append(str(one))
                    logger.warning("%s", one)
                else:
                    known.put(path, one)
        embedded = {path: one for path in paths if (one := known.get(path)) is not None}
    facts = {"Checkpoint": f"{config.checkpoint} ({weights})"}
    return embedded, unreadable, facts


def _moved(row: dict, source: Path, target: Path) -> dict:
    """A row whose relative path is of another folder."""
    path = row["videos"][0]
    if os.path.isabs(path) or source.resolve() == target.resolve():
        return row
    return row | {"videos": [os.path.relpath(source / path, target)]}


def _shown(clips: Sequence[Clip], selection: Selection) -> list[str]:
    """The clips whose pictures the page shows, most important first."""
    repeated = [row for pair in selection.duplicates.items() for row in (pair[0], pair[1].row)]
    rows = (*(one.row for one in selection.chosen), *repeated)
    return list(dict.fromkeys(clips[row].path for row in rows))
