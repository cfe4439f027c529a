"""Caption videos: one JSON line a clip, or on a terminal a paragraph.

VIDEO is a file, a folder (every video in it and below), or a pattern in quotes ("clips/*.mp4"). It
may also be one folder that `ugc-jax extract` made, without the videos: each record is asked what
its own conversation asks (its last answer is left out), or what --question says; "video" is then
the record's id.

A line has video, caption, prompt_tokens, new_tokens, finish_reason and seconds; for a clip that
cannot be read it has video and error. With --evidence it also says of each word whether it was
heard, seen, rests on both or on the text alone, or is unsupported; on a terminal these are colours.

With --pieces 60, a clip that is longer is captioned in pieces of 60 seconds: its caption has a
paragraph for each, and its line also has scenes, a list of start, end (seconds) and text. Scenes of
a timed script are its own. If a piece fails, the line has the error and the scenes of the others.
With --format text, srt, vtt or md, OUTPUT is a folder with a file for each clip, beside the lines
in captions.jsonl; without OUTPUT, they are printed.

Without a checkpoint, the published captioner is downloaded from the hub. The clip settings, the
system prompt and the question are by default those that the model was trained with, and for a
published captioner those of its preset.

A further run with the same output skips the clips that have a caption there and tries those with an
error again. Captions of other settings are refused there: OUTPUT.settings.json says how those in
OUTPUT were made.

With --distributed, several processes (hosts) that a script of launch/ starts share the clips, each
with its own devices and a copy of the model. Their captions come together in OUTPUT, which all must
see; one that is killed stops no other, and the next start goes on, with any number of processes.
"""

import dataclasses
import logging
import math
import sys
from collections.abc import Sequence
from pathlib import Path

import jax

from ugc_jax import files
from ugc_jax.compilation import report_use
from ugc_jax.data.records import RecordSource, is_records, with_texts
from ugc_jax.errors import UserError
from ugc_jax.generate.captioner import Captioner
from ugc_jax.generate.defaults import PUBLISHED, Defaults
from ugc_jax.generate.outputs import SUBTITLES, Form, lines_of, open_results
from ugc_jax.generate.results import Totals, record_all, results_settings
from ugc_jax.generate.settings import (
    EngineConfig,
    EvidenceConfig,
    SamplingConfig,
    caption_schema,
    check_pieces,
    piece_seconds,
)
from ugc_jax.generate.shares import Parts, Share, find_share
from ugc_jax.hf.config import load_config
from ugc_jax.hf.hub import resolve_checkpoint
from ugc_jax.hf.trained import weights_digest
from ugc_jax.media.find import find_clips
from ugc_jax.media.presets import ClipSettings
from ugc_jax.models.compute import ComputeConfig
from ugc_jax.sharding import MeshConfig, make_mesh

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CaptionConfig:
    """Settings of caption."""

    checkpoint: str = PUBLISHED  # directory, or hub id such as Qwen/Qwen2.5-Omni-3B
    revision: str | None = None  # branch, tag or commit of a hub id
    # JSON Lines file to write or continue, or a folder for another format; stdout without one
    output: str | None = None
    # json: JSON Lines; text, srt, vtt, md: a document a clip; none: JSON Lines, and on a terminal
    # text
    format: Form | None = None
    # seconds of the pieces in which longer clips are captioned; 0: whole; none: as the preset has
    # it, 60 for timechat, else whole
    pieces: float | None = None
    distributed: bool = False  # one of several processes (hosts) that share the clips
    token_ids: bool = False  # put the generated token ids into the lines
    # first look at the sizes of all clips and compile the programs for them, so that no caption
    # waits for a compilation
    warm: bool = False
    # also write the totals of this run to this file, as JSON; process 0 of 4 (distributed) writes
    # its own to NAME.0-of-4.json
    report: str | None = None
    clip: ClipSettings = ClipSettings()
    sampling: SamplingConfig = SamplingConfig()
    engine: EngineConfig = EngineConfig()
    evidence: EvidenceConfig = EvidenceConfig()
    mesh: MeshConfig = MeshConfig(data=1, fsdp=1, tensor=1)
    compute: ComputeConfig = ComputeConfig()

    def __post_init__(self):
        check_pieces(self.pieces)
        if self.token_ids and self.output is None and self.format not in (None, "json"):
            raise UserError(
                f"token_ids are in JSON Lines, not in format {self.format}; leave the format out, "
                "or name a folder with output, whose captions.jsonl has them"
            )
        if self.distributed and self.output is None:
            raise UserError(
                "distributed needs output: the file in which the captions come together"
            )
        if self.distributed and self.format not in (None, "json"):
            raise UserError(
                f"distributed writes JSON Lines, not format {self.format}; caption first, then run "
                "again with the format and without distributed"
            )


_TEXTS = ("system", "question")  # the settings of a prompt that may replace those of records
SETTINGS = caption_schema(CaptionConfig, evidence="evidence.words")


def main(config: CaptionConfig, videos: list[str]) -> int:
    """Exit status 0, or 1 when no clip has a caption."""
    share = find_share() if config.distributed else None
    source = open_records(videos, config.clip)
    clips = find_clips(videos) if source is None else [entry.id for entry in source.entries]
    mesh = used_mesh(config.mesh)
    directory = resolve_checkpoint(config.checkpoint, config.revision)
    defaults = Defaults.of(config.checkpoint, directory)
    clip, sampling = defaults.apply(config.clip, config.sampling)
    if source is None:
        defaults.report(config.clip, config.sampling)
    else:
        clip = _of_records(source, config.clip, defaults)
    device = jax.local_devices()[0] if mesh is None else mesh.devices.flat[0]
    compute = config.compute.resolve(device, load_config(directory).text.head_dim)
    weights = config.checkpoint, config.revision, weights_digest(directory)
    how = results_settings(*weights, compute, clip, sampling)
    how["evidence"] = dataclasses.asdict(config.evidence)
    pieces = used_pieces(config, clip, source is not None)
    how["pieces"] = pieces if math.isfinite(pieces) else 0
    mine = clips if share is None else share.of(clips)
    parts = parts_beside(lines_of(config.output, config.format), share)
    with open_results(config.output, clips, how, config.format, parts) as results:
        todo = results.missing(mine)
        totals = Totals(skipped=len(mine) - len(todo))
        if todo:
            captioner = Captioner.from_pretrained(
                directory, mesh=mesh, load=False, **dataclasses.asdict(config.compute)
            )
            if source is None:
                rest = sampling, config.engine, config.warm, config.evidence
                stream = captioner.run(todo, clip, *rest, pieces=pieces)
            else:
                missing = set(todo)
                prompts = {
                    number: with_texts(entry.prompt, clip.system, clip.question)
                    for number, entry in enumerate(source.entries)
                    if entry.id in missing
                }
                rest = sampling, config.engine, config.warm, config.evidence
                stream = captioner.run_records(source, prompts, *rest)
            record_all(stream, len(todo), results, totals, token_ids=config.token_ids)
            totals.programs = sum(captioner.engine.programs().values())
            report_use()
    print(totals, file=sys.stderr)
    if config.report is not None:
        path = Path(config.report)
        if share is not None:
            path = path.with_name(f"{path.stem}.{share}{path.suffix}")
        files.write_json(path, totals.record(), "choose another file", indent=2)
    if share is None:
        return 0 if totals.captioned + totals.skipped else 1
    if results.waiting:
        logger.info(
            "%s: %d of %d clips are still the other processes'; if one of them was killed, start "
            "again to go on", config.output, results.waiting, len(clips),
        )  # fmt: skip
        return 0
    logger.info(
        "%s: complete, %d of %d clips have a caption", config.output, results.captions, len(clips)
    )
    return 0 if results.captions else 1


def parts_beside(output: str | None, share: Share | None) -> Parts | None:
    """Return where the processes that share the clips of an output keep their parts."""
    return None if not output else Parts(Path(f"{output}.parts"), share)


def used_pieces(config: CaptionConfig, clip: ClipSettings, of_records: bool) -> float:
    """Return the seconds of pieces; 0 for no scenes, infinite for scenes of whole clips.

    clip: resolved. Raises UserError for scenes of records, which have no length, and with evidence,
    which is of whole clips.
    """
    if of_records:
        if config.pieces or config.format in SUBTITLES:
            name = "pieces" if config.pieces else f"format {config.format}"
            raise UserError(f"{name} needs clips, and these are records; give the clips instead")
        return 0
    seconds = piece_seconds(config.pieces, clip)
    if config.evidence.words and (seconds or config.format in SUBTITLES):
        raise UserError(
            "evidence is of clips that are captioned whole, without scenes; set pieces 0 and no "
            "format srt or vtt"
        )
    if config.evidence.words:
        return 0
    # in every document: the folder may get another format later
    return seconds or (0 if config.format in (None, "json") else math.inf)


def open_records(words: Sequence[str], clip: ClipSettings) -> RecordSource | None:
    """Return the records that the words name, or None if they name clips.

    Raises UserError for records beside something else, and for clip settings that records fix.
    """
    folders = [word for word in words if is_records(word)]
    if not folders:
        return None
    if len(words) > 1:
        raise UserError(f"{folders[0]}: holds records; give one folder of records, or clips")
    fixed = [
        f"clip.{name}"
        for name, value in vars(clip).items()
        if value is not None and name not in _TEXTS
    ]
    if fixed:
        raise UserError(
            f"{folders[0]}: its records were extracted with settings of their own, so "
            f"{', '.join(fixed)} cannot be set; leave them out, or extract the clips again"
        )
    return RecordSource(folders[0])


def _of_records(source: RecordSource, clip: ClipSettings, defaults: Defaults) -> ClipSettings:
    """Return the clip settings of captions of records: system and question None for their own.

    Warns where they differ from those of training.
    """
    used = dataclasses.replace(source.clip, system=clip.system, question=clip.question)
    logger.info("%s: frames and sound as extracted; %s", source.directory, _asked(clip))
    if defaults.trained is not None:
        own = {name: getattr(clip, name) or getattr(defaults.trained.clip, name) for name in _TEXTS}
        if difference := defaults.differences(dataclasses.replace(used, **own)):
            logger.warning("%s", difference)
    return used


def _asked(clip: ClipSettings) -> str:
    replaced = [f"clip.{name}" for name in _TEXTS if getattr(clip, name) is not None]
    return f"{' and '.join(replaced)} replace the records' own" if replaced else "their own prompts"


def used_mesh(
    config: MeshConfig, devices: Sequence[jax.Device] | None = None
) -> jax.sharding.Mesh | None:
    """Return a mesh of as many devices as its sizes take, the first ones; None for one device.

    devices: None: those of this process. Raises UserError as `make_mesh`.
    """
    sizes, devices = dataclasses.asdict(config), devices or jax.local_devices()
    needed = math.prod(size for size in sizes.values() if size is not None)
    if 0 < needed <= len(devices):  # -1 takes all of them
        devices = devices[:needed]
    if len(devices) == 1 and set(sizes.values()) <= {1, -1}:
        return None
    return make_mesh(**sizes, devices=devices)
