"""The last step of quickstart_seeds.sh: a table of all seeds, after SFT and after GRPO."""

import sys
from collections.abc import Iterable
from pathlib import Path
from statistics import fmean

from summary import chance, lines, score

from ugc_jax import files
from ugc_jax.toy import world

COLUMNS = {"sft": "SFT", "grpo": "GRPO"}
SHARES = (*world.GROUPS, "all")


def figures(captions: Path, attributes: dict[str, dict]) -> dict[str, float]:
    """Return the shares of right captions by group and in all, and means of reward and words.

    A clip without a caption counts as an empty caption.
    """
    texts = {Path(row["video"]).name: row.get("caption", "") for row in lines(captions)}
    predicted = [texts.get(clip, "") for clip in attributes]
    scores = score(predicted, list(attributes.values()))
    reward = fmean(map(world.attribute_f1, predicted, attributes.values()))
    words = fmean(len(text.split()) for text in predicted)
    return {name: scores[name] for name in SHARES} | {"reward": reward, "words": words}


def row(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def table(seeds: dict[str, dict[str, dict[str, float]]]) -> str:
    """Seed -> column -> figures, as Markdown: a row a seed, SFT -> GRPO in each cell."""
    heads = ["", *SHARES, "reward", "words"]
    text = [row(heads), row(["---"] * len(heads))]
    for seed, columns in seeds.items():
        sft, grpo = (columns[name] for name in COLUMNS)
        cells = [f"{100 * sft[name]:.1f} → {100 * grpo[name]:.1f}" for name in SHARES]
        cells.append(f"{sft['reward']:.3f} → {grpo['reward']:.3f}")
        text.append(row([seed, *cells, f"{sft['words']:.1f} → {grpo['words']:.1f}"]))
    return "\n".join(text) + "\n"


def main(test: Path, run: Path):
    attributes = {Path(row["videos"][0]).name: row["attributes"] for row in lines(test)}
    seeds = {
        f"seed {folder.name.removeprefix('seed')}": {
            name: figures(folder / f"{name}.jsonl", attributes) for name in COLUMNS
        }
        for folder in sorted(run.glob("seed*"))
        if (folder / "grpo.jsonl").exists()
    }
    files.write_json(run / "summary.json", seeds, indent=2)
    best = chance(list(attributes.values()))
    text = table(seeds)
    files.write_text(run / "table.md", text)
    print(f"{len(attributes)} unseen clips: % right after SFT → after GRPO; reward (F1)\n{text}")
    print("chance: " + ", ".join(f"{name} {100 * best[name]:.1f}" for name in world.GROUPS))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
