"""The benchmark's tasks: questions about clips, and the answers that are on record.

    qa/final_caption_qa.json   {"question", "valid_count", "samples": [{"video_id", "answer"}]}
    qa/tone.json               the same, and "options" in each sample
    qa/ocr.jsonl               a line a clip: {"video_id", "ocr": [text, ...]}
    world/test.jsonl           a line a clip: {"videos": [path], "attributes": {...}}

The last is a manifest of the synthetic world, a benchmark of its own with one task.
"""

import dataclasses
import json
import logging
import re
from collections.abc import Collection, Sequence
from pathlib import Path, PurePosixPath
from typing import Literal, NamedTuple

from ugc_jax.errors import UserError
from ugc_jax.evals import prompts
from ugc_jax.media.find import VIDEO_SUFFIXES
from ugc_jax.toy import world

logger = logging.getLogger(__name__)

Kind = Literal["options", "ocr", "judged", "world"]

OCR_QUESTION = (
    "Which texts are shown in the video: titles, subtitles, signs, labels? Write each of them once "
    "and word for word, in the order in which they appear. Answer with nothing but JSON of this "
    'form: {"ocr": ["first text", "second text"]}'
)


class Form(NamedTuple):
    """What a task is, before its samples are read.

    file: its released file. count: samples in that; None: it is not released. columns: scores
    beside the score. metric: what the score is, in a line. aliases: other names of the task.
    """

    file: str
    count: int | None
    kind: Kind
    metric: str
    columns: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()


_ACCURACY = "answers that name the right option, in percent"
_OCR = "mean of BLEU-1 and the F1 of ROUGE-1, ROUGE-2 and ROUGE-L, a fraction"
_CHANGES = "answers that tell the same changes as the reference, by the judge, in percent"
_MATCHED = "mean share of the reference's objects that are matched, by the judge, in percent"
_RATING = "mean of the judge's ratings of the columns, 1 to 5, as percent of 5"
_WORLD = "mean F1 of the attributes that a caption states, in percent"
_ROUGE = ("bleu_1", "rouge_1", "rouge_2", "rouge_l")


def _rated(name: str, aliases: tuple[str, ...] = ()) -> Form:
    columns = prompts.FORMS[name].columns
    return Form(f"{name}_qa.json", 999, "judged", _RATING, columns, aliases)


FORMS = {
    "voice_source": Form("voice_source.json", 669, "options", _ACCURACY, aliases=("voice",)),
    "tone": Form("tone.json", 999, "options", _ACCURACY),
    "bgm": Form("BGM.json", 999, "options", _ACCURACY, aliases=("background_music",)),
    "ocr": Form("ocr.jsonl", 826, "ocr", _OCR, _ROUGE),
    "background": Form(
        "back_ground_change_new.json", 311, "judged", _CHANGES, aliases=("background_change",)
    ),
    "objects": Form("object.json", 997, "judged", _MATCHED),
    "audio_caption": _rated("audio_caption"),
    "visual_caption": _rated("visual_caption"),
    "final_caption": _rated("final_caption", aliases=("caption", "captions")),
    "world": Form("test.jsonl", None, "world", _WORLD, (*world.GROUPS, "all_right")),
}
TASKS = tuple(name for name in FORMS if name != "world")  # of the benchmark


class Sample(NamedTuple):
    """id: of the clip. reference: text; of ocr a list of texts; of the world the attributes."""

    id: str
    reference: str | list[str] | dict[str, str]
    options: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Task:
    """A task and its samples. question: what a model is asked about each clip."""

    name: str
    question: str
    samples: tuple[Sample, ...]

    @property
    def ids(self) -> tuple[str, ...]:
        """Of the clips that it asks about."""
        return tuple(sample.id for sample in self.samples)

    @property
    def kind(self) -> Kind:
        """How answers are scored."""
        return FORMS[self.name].kind

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the scores beside the score."""
        return FORMS[self.name].columns

    @property
    def metric(self) -> str:
        """What the score is, in a line."""
        return FORMS[self.name].metric

    @property
    def unit(self) -> Literal["percent", "fraction"]:
        """Of the score and the columns."""
        return "fraction" if self.kind == "ocr" else "percent"


# ---- names ---------------------------------------------------------------------------------------


def named(text: str) -> tuple[str, ...]:
    """The tasks of a comma-separated list, each once; "all" is the whole benchmark.

    Names in any case and with any hyphens, released file names and the usual other names are
    understood. "world" has to be named. Raises UserError for a name of no task.
    """
    names = []
    for word in filter(None, map(str.strip, text.split(","))):
        name = task_of(word)
        if name is None and word.lower() != "all":
            raise UserError(f"task {word!r} is not known; use {', '.join(FORMS)} or all")
        names += TASKS if name is None else [name]
    if not names:
        raise UserError(f"task={text!r} names no task; use {', '.join(FORMS)} or all")
    return tuple(dict.fromkeys(names))


def task_of(word: str) -> str | None:
    """The task that a word or a file's stem names; None if it names none."""
    return _NAMES.get(_bare(word))


def clip_id(path: str) -> str:
    """The id of a clip: its file's name without the folder and without the suffix of a video."""
    name = PurePosixPath(path.replace("\\", "/"))
    return name.stem if name.suffix.lower() in VIDEO_SUFFIXES else name.name


def _bare(word: str) -> str:
    return re.sub(r"[\W_]", "", word).lower()


_NAMES = {
    _bare(word): name
    for name, form in FORMS.items()
    for word in (name, *form.aliases, *([Path(form.file).stem] if form.count else []))
}


# ---- files ---------------------------------------------------------------------------------------


def load(qa: str | Path, names: Sequence[str]) -> dict[str, Task]:
    """The tasks `names` (of FORMS), in their order.

    qa: the folder with their files, or the file of one of them: of the only one, or of any where
      all TASKS are asked for. A file whose name is of no task is of the only one; a world's
      manifest, known by its rows, is loaded for "world" and for all TASKS.
    Of all TASKS those without a file are left out, and a warning tells them. The question about
    options ends with the options, in one line. Answers are given in their options' spelling:
    released ones differ in case. Raises UserError for a file that is missing, cannot be read or has
    another form, naming the first bad sample, and for a file of another task.
    """
    qa = Path(qa)
    if not qa.is_dir():
        return _load_one(qa, names)
    files = {name: qa / FORMS[name].file for name in names}
    missing = [name for name, file in files.items() if not file.exists()]
    if missing and (len(missing) == len(names) or not set(TASKS) <= set(names)):
        absent = ", ".join(FORMS[name].file for name in missing)
        raise UserError(
            f"{qa}: has no {absent}; give the folder of the released qa files, or other tasks"
        )
    if missing:
        logger.warning("%s: has no files of %s; left out", qa, ", ".join(missing))
    return {name: _read(name, file) for name, file in files.items() if name not in missing}


def _load_one(file: Path, names: Sequence[str]) -> dict[str, Task]:
    name, is_all = "world" if _is_world(file) else task_of(file.stem), set(TASKS) <= set(names)
    if name is None and len(names) == 1:
        name = names[0]
    if name is None:
        raise UserError(f"{file}: its name does not tell its task; give task=NAME")
    others = [other for other in names if other != name]
    if others and not is_all:
        raise UserError(
            f"{file}: is of the task {name}, not of {', '.join(others)}; correct task, or give the "
            "folder of the qa files"
        )
    return {name: _read(name, file)}


def _is_world(file: Path) -> bool:
    """Its first row has attributes."""
    first = _text(file).lstrip().partition("\n")[0]
    try:
        row = json.loads(first)
    except (ValueError, RecursionError):
        return False
    return isinstance(row, dict) and "attributes" in row


def _read(name: str, file: Path) -> Task:
    form, text = FORMS[name], _text(file)
    reader = {"options": _options, "ocr": _ocr, "judged": _texts, "world": _world}[form.kind]
    try:
        question, samples = reader(text)
        _check_ids(samples)
    except ValueError as error:  # of the readers below: what is wrong, and where
        raise UserError(f"{file}: {error}; correct it, or give a file of {name}") from None
    if form.count not in (None, len(samples)):
        logger.warning("%s: %d samples, not the released %d", file, len(samples), form.count)
    return Task(name, question, tuple(samples))


def _text(file: Path) -> str:
    try:
        return file.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise UserError(
            f"{file}: cannot be read ({error.strerror}); give the folder of qa files, or one file"
        ) from None
    except UnicodeDecodeError:
        raise UserError(f"{file}: is not UTF-8 text; give a qa file as released") from None


def _texts(text: str) -> tuple[str, list[Sample]]:
    question, rows = _samples(text)
    return question, [Sample(clip_id(row["video_id"]), _string(row, "answer")) for row in rows]


def _options(text: str) -> tuple[str, list[Sample]]:
    question, rows = _samples(text)
    samples = []
    for row in rows:
        options, answer = row.get("options"), _string(row, "answer")
        if not _is_texts(options) or options != rows[0]["options"]:
            raise ValueError(f"sample {row['video_id']}: options are none, or not the first's")
        option = _as_option(answer, options)
        if option is None:
            raise ValueError(f"sample {row['video_id']}: the answer {answer!r} is not an option")
        samples.append(Sample(clip_id(row["video_id"]), option, tuple(options)))
    return f"{question} Options: {', '.join(samples[0].options)}.", samples


def _as_option(answer: str, options: list[str]) -> str | None:
    """The option that an answer spells: by letters and digits, where these tell options apart."""
    spelling = {_bare(option): option for option in options}
    if "" in spelling or len(spelling) < len(options):  # "+" and "-"
        return answer if answer in options else None
    return spelling.get(_bare(answer))


def _ocr(text: str) -> tuple[str, list[Sample]]:
    rows = _lines(text)
    for row in rows:
        _string(row, "video_id")
        if not isinstance(row.get("ocr"), list) or not all(isinstance(t, str) for t in row["ocr"]):
            raise ValueError(f"sample {row['video_id']}: ocr is not a list of texts")
    return OCR_QUESTION, [Sample(clip_id(row["video_id"]), row["ocr"]) for row in rows]


def _world(text: str) -> tuple[str, list[Sample]]:
    samples = []
    for number, row in enumerate(_lines(text), 1):
        videos, attributes = row.get("videos"), row.get("attributes")
        if not _is_texts(videos):
            raise ValueError(f"row {number}: has no videos")
        if not isinstance(attributes, dict) or attributes.keys() != world.VALUES.keys():
            raise ValueError(f"row {number}: its attributes are not {', '.join(world.VALUES)}")
        samples.append(Sample(clip_id(videos[0]), attributes))
    return world.QUESTION, samples


def _samples(text: str) -> tuple[str, list[dict]]:
    """Question and rows of a released JSON file."""
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"is not JSON ({error})") from None
    if not isinstance(content, dict) or not isinstance(content.get("samples"), list):
        raise ValueError('is not of the form {"question": "...", "samples": [...]}')
    rows, told = content["samples"], content.get("valid_count")
    if not rows:
        raise ValueError("has no samples")
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict):
            raise ValueError(f"sample {number}: is not an object")
        _string(row, "video_id", f"sample {number}")
    if told not in (None, len(rows)):
        raise ValueError(f"valid_count is {told}, but it has {len(rows)} samples")
    return _string(content, "question", "the file").strip(), rows


def _lines(text: str) -> list[dict]:
    """Rows of JSON Lines."""
    rows = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            rows.append(json.loads(line))
        except (ValueError, RecursionError) as error:
            raise ValueError(f"line {number} is not JSON ({error})") from None
        if not isinstance(rows[-1], dict):
            raise ValueError(f"line {number} is not an object")
    if not rows:
        raise ValueError("has no samples")
    return rows


def _string(row: dict, key: str, label: str | None = None) -> str:
    value = row.get(key)
    if not isinstance(value, str) or not value.strip():
        label = label or f"sample {row.get('video_id', '')}"
        raise ValueError(f"{label}: {key} is {value!r:.40}, not a text")
    return value


def _is_texts(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(one, str) for one in value)


def _check_ids(samples: Collection[Sample]):
    seen = set()
    for sample in samples:
        if sample.id in seen:
            raise ValueError(f"sample {sample.id}: its id is there twice")
        seen.add(sample.id)
