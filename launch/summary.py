"""The last step of quickstart.sh: prints the scores and writes all numbers to summary.json."""

import os
import sys
import webbrowser
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from ugc_jax import files
from ugc_jax.toy import world

# File of captions -> heading of its column.
COLUMNS = {
    "before": "before",
    "sft": "SFT",
    "grpo": "GRPO",
    "mute": "no sound",
    "blank": "no picture",
}


def lines(path: Path) -> list[dict]:
    return [line.value for line in files.read_lines(path, "run quickstart.sh again")]


def main(run: Path, clips: list[str]):
    attributes = {
        Path(row["videos"][0]).name: row["attributes"] for row in lines(run / "world/test.jsonl")
    }
    columns = {name: title for name, title in COLUMNS.items() if (run / f"{name}.jsonl").exists()}
    captions = {name: lines(run / f"{name}.jsonl") for name in columns}
    trained = "grpo" if "grpo" in columns else "sft"  # --fast has no GRPO
    scores, rewards = {}, {}
    for name, heading in columns.items():
        texts = {Path(row["video"]).name: row.get("caption", "") for row in captions[name]}
        predicted = [texts.get(clip, "") for clip in attributes]
        scores[heading] = score(predicted, list(attributes.values()))
        rewards[heading] = fmean(map(world.attribute_f1, predicted, attributes.values()))
    scores["chance"] = chance(list(attributes.values()))
    seconds = dict(line.split() for line in (run / "steps.txt").read_text().splitlines())
    summary = {
        "step_seconds": {name: int(value) for name, value in seconds.items()},
        "accuracy": scores,
        "reward": rewards,
        "caption_runs": {
            name: files.read_json(run / f"{name}.json", "run quickstart.sh again")
            for name in columns
        },
    }
    files.write_json(run / "summary.json", summary, indent=2)

    print()
    references = {Path(row["videos"][0]).name: row for row in lines(run / "world/test.jsonl")}
    for row in sorted(captions[trained], key=lambda row: row["video"])[:3]:
        print(f"{row['video']}\n  model:   {row.get('caption', row.get('error'))}")
        print(f"  written: {references[Path(row['video']).name]['messages'][-1]['content']}\n")
    print(f"Share of {len(attributes)} unseen clips whose caption is right about ...")
    print(table(scores))
    print(f"{'reward':<14}" + "".join(f"{reward:>12.3f}" for reward in rewards.values()))
    own = {Path(clip).resolve() for clip in clips}
    if own:
        print("\nYour clips, by a model that was trained on nothing but this world:")
        for row in lines(run / "yours.jsonl"):
            if Path(row["video"]).resolve() in own:
                print(f"{row['video']}\n  {row.get('caption', row.get('error'))}")
    page = run / "report.html"
    print(f"\nmodel       {run / trained / 'model'}\ncaptions    {run / f'{trained}.jsonl'}")
    print(f"metrics     {run / trained} (metrics.jsonl; tensorboard --logdir)")
    print(f"figures     {run / 'summary.json'}, {run / 'results'}")
    print(f"page        {page.resolve().as_uri()}")
    print("            scores, plots, training curves, and clips that play")
    print("\nYour own clip, with real weights (9.4 GB to download; `doctor` says whether it fits):")
    print(f"    {Path(sys.executable).parent / 'ugc-jax'} doctor")
    print(f"    {Path(sys.executable).parent / 'ugc-jax'} caption clip.mp4")
    if sys.stdout.isatty() and (os.environ.get("DISPLAY") or sys.platform == "darwin"):
        webbrowser.open(page.resolve().as_uri())


def score(captions: Sequence[str], attributes: Sequence[dict[str, str]]) -> dict[str, float]:
    """Shares of right captions: by attribute, by group (mean of its attributes), and in all."""
    checks = [world.check(*pair) for pair in zip(captions, attributes, strict=True)]
    shares = {name: fmean(row[name] for row in checks) for name in world.VALUES}
    return _with_groups(shares) | {"all": fmean(all(row.values()) for row in checks)}


def chance(attributes: Sequence[dict[str, str]]) -> dict[str, float]:
    """Scores of the best constant answer: the share of each attribute's most frequent value."""
    counts = {name: Counter(row[name] for row in attributes) for name in world.VALUES}
    return _with_groups({name: max(c.values()) / len(attributes) for name, c in counts.items()})


def _with_groups(shares: dict[str, float]) -> dict[str, float]:
    return shares | {
        group: sum(shares[name] for name in names) / len(names)
        for group, names in world.GROUPS.items()
    }


def table(columns: dict[str, dict[str, float]]) -> str:
    """Heading -> scores, as text: a row a group, its attributes below it, and at the end all."""
    rows = []
    for group, names in world.GROUPS.items():
        rows += [(group, group), *((f"  {name}", name) for name in names if name != group)]
    rows.append(("all right", "all"))
    lines = ["".join([" " * 14, *(f"{heading:>12}" for heading in columns)])]
    for label, name in rows:
        cells = (f"{scores[name]:.1%}" if name in scores else "" for scores in columns.values())
        lines.append("".join([f"{label:<14}", *(f"{cell:>12}" for cell in cells)]).rstrip())
    return "\n".join(lines)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
