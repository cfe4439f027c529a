"""Send a trained model or adapter to the Hugging Face hub, with its model card.

RUN is the output of sft or grpo, an exported model, or an adapter. Needs a token with write access
(hf auth login, or HF_TOKEN). A new repository is private; say --private=false for a public one. The
card (README.md) is written again with the name of the repository and with the results of `evaluate`
that --scores names, or that lie beside the run (RUN/*.json, RUN/results/*.json) and are newer than
the weights. What is on the hub already is not sent again: repeat a push that was interrupted.
"""

import dataclasses
import datetime
import logging
from pathlib import Path
from typing import Literal

from ugc_jax.errors import UserError
from ugc_jax.evals.results import read_result
from ugc_jax.evals.summary import score_rows
from ugc_jax.hf import push as hub
from ugc_jax.hf.card import CARD, Scores, card, is_ours, write_card
from ugc_jax.settings import Schema

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PushConfig:
    """Settings of push."""

    repo: str  # its name on the hub: USER/NAME
    which: Literal["model", "adapter"] = "model"  # of a run
    private: bool = True  # a new repository; one that exists stays as it is
    revision: str | None = None  # branch, which must exist (default: main)
    scores: tuple[str, ...] = ()  # results of evaluate for the card (default: those beside the run)
    # of the weights, for the card: an identifier of the hub such as apache-2.0 (default: that of
    # the base model, where it is known)
    license: str | None = None
    message: str = "Upload by ugc-jax push"  # of the commit
    dry_run: bool = False  # list the files and their sizes; send and write nothing


SETTINGS = Schema(PushConfig)


def main(config: PushConfig, runs: list[str]) -> int:
    """Exit status 0. Raises UserError for a folder, scores or a repository that cannot be used."""
    if len(runs) != 1:
        raise UserError(f"{len(runs)} folders; push one at a time")
    hub.check_repo(config.repo)
    folder = hub.find_export(runs[0], config.which)
    hub.check_complete(folder)
    scores = [_scores(result) for result in _results(config, Path(runs[0]), folder)]
    text = card(folder, config.repo, scores, config.license)
    if not config.dry_run:
        write_card(folder, config.repo, scores, config.license)
    items = hub.uploads(folder)
    if config.dry_run and not (folder / CARD).exists():
        items.append(hub.Upload(CARD, text.encode()))
    if (folder / CARD).exists() and not is_ours(folder):
        logger.warning("%s: was not written by ugc_jax; it is sent as it is", folder / CARD)
    elif "\nlicense: " not in text.partition("\n---\n")[0]:  # of its metadata
        logger.warning("the card names no licence: that of the base is not known; see --license")
    for item in items:
        print(f"{item.size / 1e6:12.3f} MB  {item.name}")
    kind = "private, if new" if config.private else "public, if new"
    total = sum(item.size for item in items) / 1e6
    print(f"{total:12.3f} MB  {len(items)} files to {config.repo} ({kind})")
    if not config.dry_run:
        args = config.repo, config.private, config.revision, config.message
        print(hub.push(items, *args))
    return 0


def _results(config: PushConfig, run: Path, folder: Path) -> list[dict]:
    """The results of evaluate: those that are named, or those beside the run, if they are newer."""
    if config.scores:
        return [read_result(path) for path in config.scores]
    place = run.parent if folder == run and run.name in (hub.MODEL, hub.ADAPTER) else run
    since = max(path.stat().st_mtime for path in folder.glob("*.safetensors"))
    found = []
    for path in sorted([*place.glob("*.json"), *place.glob("results/*.json")]):
        try:
            result = read_result(path)
            made = datetime.datetime.fromisoformat(str(result.get("created")))
        except (UserError, ValueError):  # another file of the run
            continue
        if made.timestamp() + 1 < since:  # of other weights; it counts whole seconds
            logger.warning("%s: is older than the weights, so the card leaves it out", path)
        else:
            found.append(result)
    return found


def _scores(result: dict) -> Scores:
    judge = (result.get("judge") or {}).get("model")
    title = f"{result.get('benchmark') or 'UGC-VideoCap'}, {str(result.get('created'))[:10]}"
    title += f", judged by {judge}" if judge else ""
    return Scores(title, score_rows(result))
