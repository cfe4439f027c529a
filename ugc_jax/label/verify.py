"""What a caption must hold before it counts.

    alone      complete, in the language, of the length, without repetition, no refusal
    passes     the caption of both says nothing against the passes of sound and picture
    second     nor against a second caption, of another sample or another teacher
    evidence   sound and picture support its words, by a checkpoint of ours (support.py)

Passes and second are checked by rules (statements.py), or by an LLM through the judge's client,
which gets the texts, not the clip. An error that all passes share is not found by either.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from ugc_jax.data.annotation import Both, Picture, Sound, Stage
from ugc_jax.evals.texts import is_error, is_refused_task, missing
from ugc_jax.judge.client import Judge
from ugc_jax.judge.messages import fenced
from ugc_jax.label import statements
from ugc_jax.label.settings import VerifyConfig
from ugc_jax.label.statements import Contradiction
from ugc_jax.label.support import Support
from ugc_jax.rl.rewards.local import distinct_runs, is_complete
from ugc_jax.words import count_words, words

_RUN = 4  # words, of which repetition is counted
_FEWEST = 6  # words of a text whose language can be told
_LISTED = 4  # contradictions in a reason
_UNSUPPORTED = 12  # words in a reason


class Fault(NamedTuple):
    """Why an answer does not count.

    stage: of the answer: "sound", "picture", "both", "second". witness: the answer that says
    otherwise, of which it is not known whether it is the wrong one; "" for none. check: the name of
    the check.
    """

    stage: str
    check: str
    detail: str
    witness: str = ""

    def __str__(self) -> str:
        return f"{self.check}: {self.detail}"


class Answers(NamedTuple):
    """The answers about one clip, and the second caption; None for what was not asked.

    earlier: the first answers of the stages that were asked again.
    """

    sound: Sound | None
    picture: Picture | None
    both: Both
    second: Both | None = None
    earlier: Mapping[str, Stage] = {}

    def before(self, stage: str) -> "Answers | None":
        """Return these with the first answer of a stage; None if it was not asked again."""
        if stage not in self.earlier:
            return None
        return self._replace(**{stage: self.earlier[stage]})


class Verdict(NamedTuple):
    """faults: none if the caption counts. checks: what was measured, for the row."""

    faults: list[Fault]
    checks: dict


def check_alone(answers: Answers, config: VerifyConfig) -> Verdict:
    """Check each answer by itself; the drafts need only be no refusal."""
    faults: list[Fault] = []
    for stage in ("sound", "picture", "second"):
        answer = getattr(answers, stage)
        if answer is not None and (found := _refusal(answer.caption)) is not None:
            faults.append(Fault(stage, "refusal", found))
    caption = answers.both.caption
    count, share = count_words(caption), round(distinct_runs(caption, _RUN), 3)
    language = language_of(caption)

    def require(holds: bool, check: str, detail: str):
        if not holds:
            faults.append(Fault("both", check, detail))

    refusal = _refusal(caption)
    require(refusal is None, "refusal", str(refusal))
    require(is_complete(caption), "complete", "the caption does not end with a whole sentence")
    least, most = config.min_words, config.max_words
    detail = f"the caption has {count} words; it must have {least} to {most}"
    require(least <= count <= most, "length", detail)
    detail = f"the caption repeats itself ({share:g} of its runs of {_RUN} words differ)"
    require(share >= config.distinct, "repetition", detail)
    if config.language is not None and language is not None:
        detail = f"the caption is in the language {language}, not {config.language}"
        require(language == config.language, "language", detail)
    return Verdict(faults, {"words": count, "distinct": share, "language": language})


def check_by_rules(answers: Answers, config: VerifyConfig) -> Verdict:
    """Check the answers against each other by rules."""
    witnesses = [one for one in ("sound", "picture") if config.contradictions]
    witnesses = [one for one in (*witnesses, "second") if getattr(answers, one) is not None]
    faults = []
    for witness in witnesses:
        found = against(witness, answers)
        if (first := answers.before(witness)) is not None:
            # Two answers against one: what only one of the witness's says is its own mistake.
            topics = {one.topic for one in against(witness, first)}
            found = [one for one in found if one.topic in topics]
        if found:
            faults.append(_contradiction(witness, [one.said for one in found]))
    checks: dict = {"contradictions": "rules" if config.contradictions else "not checked"}
    if answers.second is not None:
        checks["second"] = "rules"
    return Verdict(faults, checks)


def check_support(found: Support, config: VerifyConfig) -> Verdict:
    """Check how much of a caption sound and picture support."""
    checks = {"unsupported": found.unsupported}
    if found.unsupported <= config.unsupported:
        return Verdict([], checks)
    words = list(dict.fromkeys(found.words))
    listed = ", ".join(words[:_UNSUPPORTED]) + (", ..." if len(words) > _UNSUPPORTED else "")
    share, most = (f"{100 * value:.0f} %" for value in (found.unsupported, config.unsupported))
    detail = (
        f"neither sound nor picture supports {share} of the caption's words ({listed}); at most "
        f"{most} may be so"
    )
    return Verdict([Fault("both", "evidence", detail)], checks)


def against(witness: str, answers: Answers) -> list[Contradiction]:
    """Return what the caption says against the pass "sound" or "picture", or the second caption."""
    sound, picture, caption = answers.sound, answers.picture, answers.both.caption
    drafts = " ".join(filter(None, [_heard(sound), _seen(picture)]))
    if witness == "sound":
        found = statements.contradictions(_heard(sound), caption)
        return found + statements.music_contradictions(sound.music, _heard(sound), caption)
    if witness == "picture":
        found = statements.contradictions(_seen(picture), caption)
        states = bool(picture.background_change), statements.background(caption)
        if states == (True, "stays") and statements.BACKGROUND not in [one.topic for one in found]:
            said = "the background turns / stays"
            found.append(Contradiction(statements.BACKGROUND, said))
        return found + statements.text_contradictions(picture.text, caption, drafts)
    other = answers.second.caption
    things = set(statements.NOUNS)
    things |= {word for draft in _things(answers) for word in words(draft)[-1:]}
    found = statements.contradictions(other, caption)
    found += statements.text_differences(other, caption)
    return found + statements.order_differences(other, caption, things)


def _things(answers: Answers) -> list[str]:
    found = [thing.name for thing in answers.picture.objects] if answers.picture else []
    return found + ([event.what for event in answers.sound.sounds] if answers.sound else [])


def _contradiction(witness: str, found: Sequence[str]) -> Fault:
    names = {"sound": "the sound alone", "picture": "the picture alone"}
    detail = "; ".join(found[:_LISTED])
    name = names.get(witness, "a second caption")
    return Fault("both", "contradiction", f"{name} / the caption: {detail}", witness)


def _heard(sound: Sound | None) -> str:
    if sound is None:
        return ""
    return " ".join([*(f"{event.what}." for event in sound.sounds), sound.caption])


def _seen(picture: Picture | None) -> str:
    if picture is None:
        return ""
    things = (f"{thing.color} {thing.name}." for thing in picture.objects if thing.color)
    texts = (f'The text "{text}".' for text in picture.text)
    return " ".join([*things, *texts, picture.background_change, picture.caption])


def _refusal(text: str) -> str | None:
    if not text.strip():
        return "the caption is empty"
    if is_error(text) or missing(text):
        return f"the caption is the message of a program: {text[:60]!r}"
    return f"the caption is a refusal: {text[:60]!r}" if is_refused_task(text) else None


def language_of(text: str) -> str | None:
    """Return the language of a text as ISO 639-1; None for one too short to tell."""
    if count_words(text) < _FEWEST:
        return None
    import py3langid

    return str(py3langid.classify(text)[0])


# ---- by an LLM -----------------------------------------------------------------------------------

_CONTRADICTED = """\
A short video was described three times: from its sound alone, from its picture alone, and as a
whole. List where the description of the whole says the opposite of one of the others, or something
that cannot be true together with it: another colour, number, word on the screen, sound, voice,
order. What only one of them mentions is no contradiction, and neither is another wording.

{sound}

{picture}

{whole}

Answer with {{"sound": [...], "picture": [...]}}: lists of short statements, [] for none."""

_AGREED = """\
Two captions of the same short video. Split the first into short statements that can be checked one
by one: at most {most}, weightiest first. Say of each whether the second caption has it too ("same",
in any wording), says something that cannot be true together with it ("contradicted"), or does not
tell ("absent").

{first}

{second}

Answer with {{"statements": [{{"text": "...", "verdict": "same"}}, ...]}}."""
_MOST_STATEMENTS = 20


async def check_by_judge(answers: Answers, config: VerifyConfig, judge: Judge) -> Verdict:
    """Check the answers against each other by an LLM. Raises JudgeError without its answer."""
    faults, checks = [], {}
    if config.contradictions:
        checks["contradictions"] = judge.config.model
        found = await _contradicted(answers, judge)
        for stage, said in found.items():
            first = answers.before(stage)
            # Two answers against one, as by rules.
            if said and (first is None or (await _contradicted(first, judge))[stage]):
                faults.append(_contradiction(stage, said))
    if answers.second is not None:
        share, said = await _agreed(answers, judge)
        checks |= {"second": judge.config.model, "agreement": share}
        if not said and share < config.agreement:
            said = [f"only {share:g} of its statements are in the second caption"]
        first = answers.before("second")
        if said and first is not None:
            earlier, contradicted = await _agreed(first, judge)
            said = said if contradicted or earlier < config.agreement else []
        if said:
            faults.append(_contradiction("second", said))
    return Verdict(faults, checks)


async def _contradicted(answers: Answers, judge: Judge) -> dict[str, list[str]]:
    texts = {
        "sound": fenced("sound", _heard(answers.sound) or "The video has no sound."),
        "picture": fenced("picture", _seen(answers.picture) or "The video has no picture."),
        "whole": fenced("whole", answers.both.caption),
    }
    return await judge.ask(_CONTRADICTED.format(**texts), _read_contradictions)


async def _agreed(answers: Answers, judge: Judge) -> tuple[float, list[str]]:
    texts = {"first": fenced("first", answers.both.caption), "most": _MOST_STATEMENTS}
    texts["second"] = fenced("second", answers.second.caption)
    return await judge.ask(_AGREED.format(**texts), _read_agreement)


def _read_contradictions(answer: dict) -> dict[str, list[str]]:
    found = {}
    for stage in ("sound", "picture"):
        said = answer[stage]
        if not isinstance(said, list) or not all(isinstance(one, str) for one in said):
            raise ValueError(f"{stage} is not a list of statements")
        found[stage] = [one.strip() for one in said if one.strip()]
    return found


def _read_agreement(answer: dict) -> tuple[float, list[str]]:
    """Return (share of statements that are the same, those that are contradicted)."""
    said = answer["statements"]
    if not isinstance(said, list) or not said:
        raise ValueError("statements is not a list of statements")
    for one in said:
        if not isinstance(one, dict) or not isinstance(one.get("text"), str):
            raise ValueError("a statement has no text")
        if one.get("verdict") not in ("same", "contradicted", "absent"):
            raise ValueError(f"the verdict {one.get('verdict')!r:.40} is none of the three")
    verdicts = [one["verdict"] for one in said]
    share = round(verdicts.count("same") / len(said), 3)
    return share, [one["text"] for one in said if one["verdict"] == "contradicted"]
