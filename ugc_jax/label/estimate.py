"""What a labelling run will take, before its first question: clips, requests, tokens, cost."""

import dataclasses
from collections.abc import Sequence

from ugc_jax.data.workers import Pool
from ugc_jax.errors import UserError
from ugc_jax.label import material
from ugc_jax.label.asking import tokens_of
from ugc_jax.label.journal import Journal
from ugc_jax.label.run import Places, Plan, check_places
from ugc_jax.progress import duration, progress

# Letters of the drafts in a question about both, as a guess.
_DRAFTS = 3000


@dataclasses.dataclass
class Estimate:
    """unreadable: one line a clip. copies: clips with the bytes of another. seconds: of all clips.

    requests: still to send; answered: that have their answer. tokens_sound: of tokens_in.
    """

    clips: int = 0
    copies: int = 0
    seconds: float = 0.0
    requests: int = 0
    answered: int = 0
    tokens_in: float = 0.0
    tokens_sound: float = 0.0
    tokens_out: float = 0.0
    cost: float = 0.0
    spent: float = 0.0
    unreadable: list[str] = dataclasses.field(default_factory=list)

    def __str__(self) -> str:
        copies = f", {self.copies} copies of others" if self.copies else ""
        rows = [
            ("clips", f"{self.clips} ({len(self.unreadable)} cannot be read{copies})"),
            ("length", duration(self.seconds)),
            ("requests", f"{self.requests} ({self.answered} more have their answer)"),
            (
                "tokens",
                f"{self.tokens_in:,.0f} in, of them {self.tokens_sound:,.0f} of sound; "
                f"{self.tokens_out:,.0f} out",
            ),
            ("cost", f"{self.cost:.2f} more, {self.spent:.2f} so far"),
        ]
        lines = [f"{name:<10}{value}" for name, value in rows]
        return "\n".join([*lines, "What is asked again, after faults or verification, adds to it."])


def estimate(plan: Plan, places: Places, clips: Sequence[str]) -> Estimate:
    """Read the lengths of all clips; sends nothing. Raises UserError for files of another run."""
    found, seen = Estimate(len(clips)), set()
    stages: set[tuple[str, str, int, str]] = set()
    check_places(places, plan)
    if places.journal.exists():
        with Journal(places.journal) as journal:
            stages, found.spent = journal.stages, journal.spent
    with Pool(material.measure, plan.reading) as pool:
        read = pool.read(list(clips), ahead=2 * pool.workers)
        for outcome in progress(read, len(clips), "clip", "measuring"):
            if isinstance(outcome.value, UserError):
                found.unreadable.append(str(outcome.value))
                continue
            length = outcome.value
            if length.digest in seen:
                found.copies += 1
                continue
            seen.add(length.digest)
            found.seconds += max(length.sound, length.picture)
            _add(found, plan, length, stages)
    return found


def _add(found: Estimate, plan: Plan, length: material.Length, stages: set[tuple]):
    """Add the passes of one clip. stages: those that have an answer, as in the journal."""
    texts = {stage: len(plan.prompts.question(stage)) for stage in ("sound", "picture", "both")}
    texts["both"] += _DRAFTS
    passes = [("both", 0, plan.teacher)]
    passes += [("sound", 0, plan.teacher)] if length.sound else []
    passes += [("picture", 0, plan.teacher)] if length.picture else []
    if plan.verify.compare_with != "none":
        sample = int(plan.verify.compare_with == "sample")
        passes.append(("both", sample, plan.second or plan.teacher))
    for stage, sample, teacher in passes:
        if (length.digest, stage, sample, teacher.name) in stages:
            found.answered += 1
            continue
        tokens = tokens_of(teacher, stage, length.sound, length.picture, texts[stage])
        found.requests += 1
        found.tokens_in += tokens[0]
        found.tokens_sound += tokens[1]
        found.tokens_out += tokens[2]
        found.cost += teacher.cost(*tokens)
