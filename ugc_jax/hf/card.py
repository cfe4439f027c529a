"""The model card: README.md beside exported weights, as the Hugging Face hub reads it.

It is made of captioner.json (`Trained.training`), of scores that are passed in, and of the name of
the repository. It names no folder of this machine. What people write below its last mark stays when
it is written again, and a README.md of another origin is left alone.
"""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from ugc_jax import __version__, files
from ugc_jax.hf.trained import Trained, read_trained
from ugc_jax.settings import flatten

CARD = "README.md"
BEGIN = "<!-- Written by ugc_jax, again when the model is exported or pushed. -->"
END = "<!-- Your own text below this line is kept. -->"
_REMEDY = "remove it, and it is written again"
UNKNOWN = "another licence that is not known here"
_KINDS = {"sft": "supervised fine-tuning (SFT)", "grpo": "rewards of its own captions (GRPO)"}
_LICENSE = "license", "license_name", "license_link"  # of a card's metadata


class Scores(NamedTuple):
    """One result of an evaluation.

    title: what was scored on what, by which judge. rows: (task, score, its 95 % interval, number of
    clips, number that failed), as text.
    """

    title: str
    rows: Sequence[tuple[str, str, str, str, str]]


def write_card(
    folder: Path,
    repo: str = "USER/NAME",
    scores: Sequence[Scores] = (),
    license: str | None = None,
    own: str = "",
):
    """Write the card of an exported model or adapter; a README.md that is none of ours stays.

    repo: its name on the hub. license: of the weights, instead of that of their base. own: the
    user's text of a new card. Raises UserError if the file cannot be read or written.
    """
    path = folder / CARD
    if path.exists():
        if not is_ours(folder):
            return
        own = own_text(folder)
    files.write_text(path, card(folder, repo, scores, license) + own)


def is_ours(folder: Path) -> bool:
    """Return whether a folder's README.md is a card that `write_card` wrote."""
    return BEGIN in files.read_text(folder / CARD, _REMEDY, errors="replace")


def own_text(folder: Path) -> str:
    """Return what people wrote below the last mark of a card of ours; "" without one."""
    if not (folder / CARD).exists():
        return ""
    text = files.read_text(folder / CARD, _REMEDY, errors="replace")
    return text.partition(END)[2].removeprefix("\n")


def card(folder: Path, repo: str, scores: Sequence[Scores] = (), license: str | None = None) -> str:
    """Return the text of the card, with an empty place for the user's own."""
    trained = read_trained(folder)
    training = {} if trained is None else trained.training
    base = training.get("base") or {}
    is_adapter = (folder / "adapter_config.json").exists()
    terms = {"license": license} if license else base.get("license") or {}
    sections = [
        f"# {repo.rpartition('/')[2]}",
        BEGIN,
        _about(training, base, is_adapter),
        "## Use",
        _use(repo, base, is_adapter),
        *(["## Training data", _data(training["data"])] if training.get("data") else []),
        *(["## Scores", *map(_scores, scores)] if scores else []),
        *(["## Settings", _settings(trained)] if trained is not None else []),
        "## Licence",
        _licence(base, terms, training.get("data") or []),
        END,
    ]
    return _front_matter(training, base, terms, is_adapter) + "\n\n".join(sections) + "\n"


def read_metadata(folder: Path) -> dict:
    """Return the metadata of a README.md; {} without any, or if it cannot be read."""
    from huggingface_hub import metadata_load

    try:
        return metadata_load(folder / CARD) or {}
    except Exception:  # of a parser, for a file of anyone
        return {}


def license_of(folder: Path) -> dict[str, str]:
    """Return the licence in the metadata of a README.md: fields of the hub; {} if there is none."""
    content = read_metadata(folder)
    return {name: str(content[name]) for name in _LICENSE if content.get(name)}


def _front_matter(training: dict, base: dict, terms: dict, is_adapter: bool) -> str:
    fields = {"library_name": "ugc_jax", "pipeline_tag": "video-text-to-text"}
    if base.get("model"):
        relation = "adapter" if is_adapter else "finetune"
        fields |= {"base_model": base["model"], "base_model_relation": relation}
    tags = ["video", "audio", "captions", "jax", "qwen2_5_omni"]
    tags += [one["kind"] for one in _stages(training)]
    tags += ["lora"] if is_adapter else []
    lines = [f"{name}: {json.dumps(value)}" for name, value in (fields | terms).items()]
    lines += ["tags:", *(f"- {tag}" for tag in dict.fromkeys(tags))]
    return "\n".join(["---", *lines, "---"]) + "\n\n"


def _stages(training: dict) -> list[dict]:
    """Return the trainings that led to these weights, the first one first."""
    return [*training.get("before", []), training] if training else []


def _about(training: dict, base: dict, is_adapter: bool) -> str:
    what = "A LoRA adapter of a captioner" if is_adapter else "A captioner"
    text = f"{what} of short videos from picture and sound"
    if base:
        ways = ", then by ".join(_KINDS.get(one["kind"], one["kind"]) for one in _stages(training))
        text += f": {_linked(base)}, trained by {ways}"
    version = training.get("ugc_jax", __version__)
    return f"{text}. Made with ugc_jax {version}; `captioner.json` has its settings."


def _linked(base: dict) -> str:
    return (
        f"[{base['model']}](https://huggingface.co/{base['model']})"
        if base.get("model")
        else (f"a local checkpoint ({_code(base['name'])})")
    )


def _use(repo: str, base: dict, is_adapter: bool) -> str:
    if not is_adapter:
        lines = [f"ugc-jax caption --checkpoint {repo} clip.mp4"]
    else:
        source = base.get("model") or "BASE"
        lines = [
            f"hf download {repo} --local-dir adapter",
            f"ugc-jax convert --checkpoint {source} --adapter adapter --output merged",
            "ugc-jax caption --checkpoint merged clip.mp4",
        ]
    return "\n".join(["```bash", "pip install ugc_jax", *lines, "```"])


def _data(data: Iterable[dict]) -> str:
    rows = []
    for one in data:
        terms, sources = (_counted(one.get(name) or {}) for name in ("licenses", "sources"))
        rows.append((one["name"], str(one.get("records", "unknown")), sources, terms))
    return _table(("records", "number", "sources", "licences"), rows)


def _counted(values: dict[str, int]) -> str:
    return ", ".join(f"{name} ({count})" for name, count in values.items()) or "not given"


def _scores(scores: Scores) -> str:
    head = "task", "score", "95 % interval", "clips", "failed"
    return f"{_line(scores.title)}\n\n{_table(head, scores.rows)}"


def _settings(trained: Trained) -> str:
    settings = flatten({"clip": vars(trained.clip)}) | trained.training.get("settings", {})
    rows = [
        (_code(name), json.dumps(value, ensure_ascii=False))
        for name, value in settings.items()
        if value is not None
    ]
    return _table(("setting", "value"), rows)


def _licence(base: dict, terms: dict, data: Sequence[dict]) -> str:
    name = terms.get("license_name") or terms.get("license") or UNKNOWN
    link = f" ({terms['license_link']})" if terms.get("license_link") else ""
    origin = f"{_linked(base)}, from which they were trained" if base else ""
    if base and not terms:
        text = f"The weights are under the licence of {origin}"
    else:
        text = f"The weights are under {_line(name)}{_line(link)}"
        text += f", as those of {origin}" if base and terms == base.get("license") else ""
    text += ". ugc_jax itself is under Apache-2.0."
    if any(one.get("licenses") or one.get("sources") for one in data):
        text += " The clips that they were trained on have the licences of the table above."
    return text


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(map(_cell, row))} |" for row in (head, *rows)]
    return "\n".join([lines[0], "|---" * len(head) + "|", *lines[1:]])


def _line(text: str) -> str:
    """Return a text without what would end a line or be one of our marks."""
    return " ".join(text.split()).replace("<", "&lt;") if text.strip() else ""


def _cell(text: str) -> str:
    return _line(text).replace("|", "\\|")


def _code(text: str) -> str:
    return f"`{text.replace('`', '')}`"
