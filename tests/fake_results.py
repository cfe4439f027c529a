"""Results as `ugc-jax evaluate` writes them, small and with known scores."""

from collections.abc import Sequence

from ugc_jax.report import tables
from ugc_jax.toy import task

DISPLAYS = tables.DISPLAYS | task.DISPLAYS
# A model may say anything: what ends a script, runs in a page, or breaks a JSON string.
NASTY = (
    "</script><script>document.title = 'broken'</script><!-- <img src=x "
    "onerror=\"document.title = 'broken'\"> “quoted” 'single' & \u2028\u2029 ${1} {{ 2 }} \\u003c"
)
PAPER = {"judge": "gpt-4o-2024-08-06", "temperature": 1.0, "prompt": "released"}


def result(name: str, benchmark: str = "UGC-VideoCap", **facts) -> dict:
    """A result without tasks."""
    return {
        "version": 1,
        "name": name,
        "benchmark": benchmark,
        "created": "2026-11-23T07:30:00Z",
        "ugc_jax": "0.1.0",
        "sources": {"qa": "qa", "predictions": "said.jsonl", "scores": None, "checkpoint": None},
        "judge": None,
        "average": None,
        "tasks": {},
        "unscored": {},
        "faults": {"duplicate": 0, "unknown": 0, "broken": 0, "listed": []},
        "clips": {},
    } | facts


def captions(
    name: str, ratings: Sequence[Sequence[int] | None], protocol: dict = PAPER, **facts
) -> dict:
    """A result of the caption task. ratings: (visual, audio, details) of each clip, None: failed.

    Clip i is called clip-i; its reference has i + 1 words and its caption twice as many.
    """
    clips = []
    for number, rating in enumerate(ratings):
        clip = {"id": f"clip-{number}", "reference": " ".join(["word"] * (number + 1))}
        if rating is None:
            clip |= {"failure": "missing"}
        else:
            visual, audio, details = (20.0 * value for value in rating)
            clip |= {"prediction": " ".join([name.split()[0].lower(), "said"] * (number + 1))}
            clip |= {"visual": visual, "audio": audio, "details": details}
            clip |= {"score": (visual + audio + details) / 3}
        clips.append(clip)
    made = result(name, **facts)
    add(made, "final_caption", clips, columns=("visual", "audio", "details"), protocol=protocol)
    return made


def options(made: dict, task: str, answers: Sequence[str], said: Sequence[str | None]) -> dict:
    """Add a task of the options Yes and No to a result; None: failed."""
    clips = []
    for number, (answer, word) in enumerate(zip(answers, said, strict=True)):
        clip = {"id": f"clip-{number}", "reference": answer, "answer": answer}
        if word is None:
            clip |= {"failure": "empty", "prediction": ""}
        else:
            clip |= {"prediction": f"{word}.", "said": word, "score": 100.0 * (word == answer)}
        clips.append(clip)
    names, told = ["Yes", "No"], [clip for clip in clips if "said" in clip]
    counts = [
        [sum((clip["answer"], clip["said"]) == (a, s) for clip in told) for s in [*names, "other"]]
        for a in names
    ]
    most = max(names, key=answers.count)
    facts = add(made, task, clips)
    facts["majority"] = {"answer": most, "score": 100 * answers.count(most) / len(answers)}
    facts["recall"] = {
        a: 100 * row[i] / sum(row) if sum(row) else None
        for i, (a, row) in enumerate(zip(names, counts, strict=True))
    }
    facts["confusion"] = {"answers": names, "said": [*names, "other"], "counts": counts}
    return made


def world(name: str, wrong: Sequence[Sequence[str]]) -> dict:
    """A result of the synthetic world. wrong: attributes that each caption states wrong."""
    clips = [
        {
            "id": f"{number:06d}",
            "reference": "shape: circle, colour: red",
            "prediction": "A red circle.",
            "score": 100.0 - 10 * len(names),
            "visual": 100.0 - 20 * len(names),
            "all_right": 100.0 * (not names),
            "wrong": list(names),
            "note": f"wrong: {', '.join(names)}" if names else "all right",
        }
        for number, names in enumerate(wrong)
    ]
    made = result(name, benchmark="world")
    facts = add(made, "world", clips, columns=("visual", "all_right"), protocol={"judge": "rules"})
    told = [name for clip in clips for name in clip["wrong"]]
    facts["attributes"] = {
        name: 100 - 100 * told.count(name) / len(clips) for name in ("shape", "text")
    }
    return made


def add(
    made: dict,
    task: str,
    clips: list[dict],
    columns: Sequence[str] = (),
    protocol: dict | None = None,
    **facts,
) -> dict:
    """Add a task to a result; returns its facts. Intervals are the score's, plus and minus 1."""
    scored = [clip for clip in clips if "score" in clip]
    means = {
        key: sum(clip[key] for clip in scored) / len(scored) if scored else None
        for key in ("score", *columns)
    }
    bounds = {key: None if m is None else [m - 1, m + 1] for key, m in means.items()}
    failures = [clip["failure"] for clip in clips if "score" not in clip]
    made["clips"][task] = clips
    made["tasks"][task] = means | {
        "unit": "percent",
        "n": len(scored),
        "failed": len(failures),
        "failures": {kind: failures.count(kind) for kind in failures},
        "floor": means["score"] and means["score"] * len(scored) / len(clips),
        "interval": bounds.pop("score"),
        "intervals": bounds,
        "noise": None,
        "metric": f"the metric of {task}",
        "protocol": protocol or {},
        "flags": [],
        "notes": [],
    }
    made["tasks"][task] |= facts
    return made["tasks"][task]
