"""Caption videos: one JSON line a clip.

VIDEO is a file, a folder (every video in it and below), or a pattern in quotes ("clips/*.mp4").
A line has video, caption, prompt_tokens, new_tokens, finish_reason and seconds; for a clip that
cannot be read it has video and error.

A further run with the same output skips the clips that have a caption there and tries those with an
error again. Existing captions stay when settings change: choose another output for new ones.
"""

import dataclasses
import sys
from typing import Literal

import jax

from ugc_jax import files
from ugc_jax.generate.captioner import Captioner
from ugc_jax.generate.results import Results, Totals, record_all
from ugc_jax.generate.settings import SamplingConfig
from ugc_jax.media.find import find_clips
from ugc_jax.media.presets import ClipSettings, resolve
from ugc_jax.settings import check_minimum, part
from ugc_jax.sharding import make_mesh


@dataclasses.dataclass(frozen=True, kw_only=True)
class CaptionConfig(ClipSettings, SamplingConfig):
    """Settings of caption."""

    checkpoint: str  # directory, or hub id such as Qwen/Qwen2.5-Omni-3B
    revision: str | None = None  # branch, tag or commit of a hub id
    output: str | None = None  # JSON Lines file to write or continue; stdout without one
    token_ids: bool = False  # put the generated token ids into the lines
    batch_size: int = 8  # clips generated together; more is faster per clip and takes more memory
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"  # auto: float32 on CPU, else bfloat16
    workers: int | None = None  # threads that read clips ahead; one a core, at most 8, without it
    data: int = 1  # devices among which the clips of a batch are split
    tensor: int = 1  # devices among which each layer is split; data * tensor devices are used
    report: str | None = None  # also write the totals of this run to this file, as JSON


CONFIG = CaptionConfig


def main(config: CaptionConfig, videos: list[str]) -> int:
    """Exit status 0, or 1 when no clip has a caption."""
    clip, sampling = resolve(part(ClipSettings, config)), part(SamplingConfig, config)
    clips = find_clips(videos)
    with Results(config.output, clips) as results:
        todo = results.missing(clips)
        totals = Totals(skipped=len(clips) - len(todo))
        if todo:
            captioner = Captioner.from_pretrained(
                config.checkpoint, dtype=config.dtype, mesh=_mesh(config), revision=config.revision
            )
            stream = captioner.stream(todo, clip, sampling, config.batch_size, config.workers)
            record_all(stream, len(todo), results, totals, token_ids=config.token_ids)
            totals.programs = sum(captioner.engine.programs().values())
    print(totals, file=sys.stderr)
    if config.report is not None:
        files.write_json(config.report, totals.record(), "choose another file", indent=2)
    return 0 if totals.captioned + totals.skipped else 1


def _mesh(config: CaptionConfig) -> jax.sharding.Mesh | None:
    check_minimum(config, data=1, tensor=1)
    used = config.data * config.tensor
    return None if used == 1 else make_mesh(config.data, 1, config.tensor, jax.devices()[:used])
