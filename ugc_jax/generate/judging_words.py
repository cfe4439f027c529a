"""The captions of a result of `evaluate`, by any model, explained by a checkpoint of ours.

clips with a "prediction" -> `Captioner.explain` -> "evidence" of each clip, shares of a task
"""

import dataclasses
import logging
from collections import Counter
from collections.abc import Collection, Mapping, Sequence

from ugc_jax.errors import UserError
from ugc_jax.generate.evidence import VERDICTS, Explanation
from ugc_jax.generate.settings import EngineConfig, ExplainConfig, SamplingConfig
from ugc_jax.hf.hub import resolve_checkpoint
from ugc_jax.media.find import find_by_id
from ugc_jax.media.presets import ClipSettings
from ugc_jax.models.compute import ComputeConfig

logger = logging.getLogger(__name__)


def find_files(config: ExplainConfig, ids: Collection[str]) -> dict[str, str]:
    """Return the files of clips, by their ids, as far as the folder has them.

    Raises UserError for a checkpoint or a folder that cannot be used, and if the folder has none of
    the clips.
    """
    resolve_checkpoint(config.checkpoint, config.revision)
    videos = find_by_id(config.videos, "explain.videos")
    files = {one: videos[one] for one in ids if one in videos}
    if not files:
        raise UserError(
            f"explain.videos: {config.videos} has none of the {len(ids)} clips whose captions are "
            "to be explained; give their folder"
        )
    return files


def add_evidence(
    result: dict,
    tasks: Sequence[str],
    files: Mapping[str, str],
    config: ExplainConfig,
    clip: ClipSettings = ClipSettings(),  # noqa: B008 (frozen)
    sampling: SamplingConfig = SamplingConfig(),  # noqa: B008
    engine: EngineConfig = EngineConfig(),  # noqa: B008
    compute: ComputeConfig = ComputeConfig(),  # noqa: B008
    questions: Mapping[str, str] | None = None,
):
    """Add "evidence" to the scored captions of a result, and to its caption tasks, in place.

    tasks: whose texts are captions. files: of `find_files`. clip, sampling, questions (by task):
    what the captions were asked with, if they were; the prompt to explain them is the same then.
    A caption is explained once, however many samples it has. A task gets {"n", "missing" (captions
    without a clip), "failed" (with one that cannot be read, ...), "error" (the first of these),
    "model", shares of its captions' content words by verdict}; none if no caption is explained.
    """
    questions = questions or {}
    captions: dict[tuple, list[dict]] = {}  # (task, clip, text) -> its samples
    for name in tasks:
        for one in result["clips"].get(name, []):
            if one.get("prediction") and "failure" not in one:
                key = name, one.get("clip", one["id"]), one["prediction"]
                captions.setdefault(key, []).append(one)
    asked = list(
        dict.fromkeys(
            (files[of], text, questions.get(name)) for name, of, text in captions if of in files
        )
    )
    if not asked:
        logger.warning("no evidence: explain.videos has no clip of a caption that has a score")
        return
    told = dict(zip(asked, _explain(asked, config, clip, sampling, engine, compute), strict=True))
    for one in told.values():
        if one.error is not None:
            logger.warning("no evidence: %s", one.error)
    for task in tasks:
        found, failed, missing = [], [], 0
        for (name, of, text), samples in captions.items():
            if name != task:
                continue
            if of not in files:
                missing += 1
                continue
            one = told[files[of], text, questions.get(name)]
            (found if one.error is None else failed).append(one)
            for sample in samples if one.error is None else ():
                sample["evidence"] = one.record()
        if found:
            result["tasks"][task]["evidence"] = {
                "model": config.checkpoint,
                "n": len(found),
                "missing": missing,
                "failed": len(failed),
                **({"error": failed[0].error} if failed else {}),
                **word_shares(found),
            }


def _explain(
    asked: Sequence[tuple[str, str, str | None]],
    config: ExplainConfig,
    clip: ClipSettings,
    sampling: SamplingConfig,
    engine: EngineConfig,
    compute: ComputeConfig,
) -> list[Explanation]:
    """Explain texts. asked: (file, text, question or None for the checkpoint's own)."""
    from ugc_jax.generate.captioner import Captioner  # imports jax, as nothing else here does

    captioner = Captioner.from_pretrained(
        config.checkpoint, revision=config.revision, **dataclasses.asdict(compute)
    )
    given = {**vars(clip), **vars(engine), "max_new_tokens": sampling.max_new_tokens}
    options = {name: value for name, value in given.items() if value is not None}
    found: dict[int, Explanation] = {}
    # Questions are given for all clips of a call, or for none.
    for has_question in (True, False):
        places = [n for n, one in enumerate(asked) if (one[2] is not None) == has_question]
        if not places:
            continue
        own = {"question": [asked[n][2] for n in places]} if has_question else {}
        files, texts = [asked[n][0] for n in places], [asked[n][1] for n in places]
        found |= zip(places, captioner.explain(files, texts, **options | own), strict=True)
    return [found[n] for n in range(len(asked))]


def word_shares(explanations: Sequence[Explanation]) -> Mapping[str, float]:
    """Return verdict -> its share of the content words of all texts, in percent."""
    counts = Counter(word.verdict for one in explanations for word in one.words if word.content)
    total = max(counts.total(), 1)
    return {verdict: round(100 * counts[verdict] / total, 2) for verdict in VERDICTS}
