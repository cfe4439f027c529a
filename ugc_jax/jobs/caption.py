"""Caption videos: one JSON line a clip.

VIDEO is a file, a folder (every video in it and below), or a pattern in quotes ("clips/*.mp4"). A line holds video,
caption, prompt_tokens, new_tokens, finish_reason and seconds; that of a clip that cannot be read holds video and error.

Run again with the same output, it skips the clips that have a caption there and tries those with an error again. A
caption is not made anew when settings change: choose another output for that.
"""

import dataclasses
import json
import logging
import sys
import time
from pathlib import Path
from typing import Literal

import jax
from tqdm import tqdm

from ugc_jax.data.find import find_clips
from ugc_jax.data.presets import ClipSettings, resolve
from ugc_jax.generate.captioner import Captioner
from ugc_jax.generate.results import Results
from ugc_jax.generate.sampling import SamplingConfig
from ugc_jax.settings import part
from ugc_jax.sharding import make_mesh

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CaptionConfig(ClipSettings, SamplingConfig):
    """Settings of caption."""

    checkpoint: str  # directory, or hub id such as Qwen/Qwen2.5-Omni-3B
    output: str | None = None  # JSON Lines file to write or go on with; stdout without one
    token_ids: bool = False  # put the generated token ids into the lines
    batch_size: int = 8  # clips generated together; more is faster per clip and takes more memory
    dtype: Literal["auto", "float32", "bfloat16"] = (
        "auto"  # auto: bfloat16 on TPU and GPU, float32 on CPU
    )
    workers: int | None = None  # threads that read clips ahead; one a core, at most 8, without it
    data: int = 1  # devices that share out the clips of a batch
    tensor: int = (
        1  # devices that share out each layer of the model; data * tensor devices are used
    )
    report: str | None = None  # also write the totals of this run to this file, as JSON


CONFIG = CaptionConfig


def main(config: CaptionConfig, videos: list[str]) -> int:
    """Exit status 0, or 1 when not one clip has a caption."""
    begun = time.perf_counter()
    clip, sampling = resolve(part(ClipSettings, config)), part(SamplingConfig, config)
    clips = find_clips(videos)
    with Results(config.output, clips) as results:
        todo = results.missing(clips)
        totals = {
            "captioned": 0,
            "skipped": len(clips) - len(todo),
            "failed": 0,
            "new_tokens": 0,
            "programs": 0,
        }
        if todo:
            captioner = Captioner.from_pretrained(
                config.checkpoint, dtype=config.dtype, mesh=_mesh(config)
            )
            stream = captioner.stream(todo, clip, sampling, config.batch_size, config.workers)
            with tqdm(total=len(todo), unit="clip", desc="captioning", disable=None) as bar:
                for caption in stream:
                    results.write(caption.record(config.token_ids))
                    if caption.error is not None:
                        logger.warning("%s", caption.error)
                    totals["captioned" if caption.error is None else "failed"] += 1
                    totals["new_tokens"] += caption.new_tokens
                    bar.update()
                    bar.set_postfix_str(
                        f"{totals['new_tokens'] / (time.perf_counter() - begun):.1f} tokens/s"
                    )
            totals["programs"] = sum(captioner.engine.programs().values())
    _report(totals, time.perf_counter() - begun, config)
    return 0 if totals["captioned"] + totals["skipped"] else 1


def _mesh(config: CaptionConfig) -> jax.sharding.Mesh | None:
    used = config.data * config.tensor
    return None if used == 1 else make_mesh(config.data, 1, config.tensor, jax.devices()[:used])


def _report(totals: dict, seconds: float, config: CaptionConfig):
    totals |= {
        "seconds": round(seconds, 2),
        "clips_per_second": round(totals["captioned"] / seconds, 3),
        "tokens_per_second": round(totals["new_tokens"] / seconds, 1),
    }
    print(
        "captioned {captioned}, skipped {skipped}, failed {failed}; compiled {programs} programs; {new_tokens} tokens "
        "in {seconds} s ({clips_per_second} clips/s, {tokens_per_second} tokens/s)".format(
            **totals
        ),
        file=sys.stderr,
    )
    if config.report is not None:
        Path(config.report).write_text(json.dumps(totals, indent=2) + "\n")
