"""The captions of a result of `evaluate`, by any model, explained by a checkpoint of ours.

clips with a "prediction" -> `Captioner.explain` -> "evidence" of each clip, shares of a task
"""

import dataclasses
import logging
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from ugc_jax.errors import UserError
from ugc_jax.generate.captioner import Captioner
from ugc_jax.generate.evidence import VERDICTS, Explanation
from ugc_jax.generate.settings import EngineConfig, ExplainConfig
from ugc_jax.media.find import find_clips
from ugc_jax.models.compute import ComputeConfig

logger = logging.getLogger(__name__)

TASKS = ("final_caption", "visual_caption", "audio_caption", "world")  # whose texts are captions


def add_evidence(
    result: dict,
    config: ExplainConfig,
    engine: EngineConfig = EngineConfig(),  # noqa: B008 (frozen)
    compute: ComputeConfig = ComputeConfig(),  # noqa: B008
):
    """Add "evidence" to the scored captions of a result, and to its caption tasks, in place.

    A task gets {"n", "missing", "model", shares of its captions' content words by verdict}. Raises
    UserError if no clip of the result is in the folder.
    """
    if not Path(config.videos).is_dir():
        raise UserError(
            f"explain.videos: {config.videos} is not a folder; give the folder of the clips"
        )
    files = {Path(video).stem: video for video in find_clips([config.videos])}
    todo = [
        (name, clip)
        for name in TASKS
        for clip in result["clips"].get(name, [])
        if clip.get("prediction") and "failure" not in clip
    ]
    found = [(name, clip) for name, clip in todo if clip["id"] in files]
    if not found:
        raise UserError(f"explain.videos: {config.videos} has none of the clips; give their folder")
    captioner = Captioner.from_pretrained(
        config.checkpoint, revision=config.revision, **dataclasses.asdict(compute)
    )
    told = captioner.explain(
        [files[clip["id"]] for _, clip in found],
        [clip["prediction"] for _, clip in found],
        **{name: value for name, value in vars(engine).items() if value is not None},
    )
    by_task: dict[str, list[Explanation]] = {}
    for (name, clip), one in zip(found, told, strict=True):
        if one.error is not None:
            logger.warning("no evidence: %s", one.error)
            continue
        clip["evidence"] = one.record()
        by_task.setdefault(name, []).append(one)
    for name, explanations in by_task.items():
        missing = sum(other == name for other, _ in todo) - len(explanations)
        result["tasks"][name]["evidence"] = {
            "model": config.checkpoint,
            "n": len(explanations),
            "missing": missing,
            **word_shares(explanations),
        }


def word_shares(explanations: list[Explanation]) -> Mapping[str, float]:
    """Return verdict -> its share of the content words of all texts, in percent."""
    counts = Counter(word.verdict for one in explanations for word in one.words if word.content)
    total = max(counts.total(), 1)
    return {verdict: round(100 * counts[verdict] / total, 2) for verdict in VERDICTS}
