"""The last step of short_sft.sh: F1, length and repetition of captions before and after GRPO."""

import sys
from pathlib import Path

import numpy as np

from ugc_jax import files
from ugc_jax.rl.rewards.local import distinct_runs
from ugc_jax.toy.world import attribute_f1


def lines(path: Path) -> list[dict]:
    return [line.value for line in files.read_lines(path, "run short_sft.sh again")]


def figures(captions: Path, attributes: dict[str, dict]) -> dict[str, float]:
    """Return means over the clips; a clip without a caption counts as an empty caption."""
    predicted = {Path(row["video"]).name: row.get("caption", "") for row in lines(captions)}
    texts = [predicted.get(clip, "") for clip in attributes]
    f1 = map(attribute_f1, texts, attributes.values())
    return {
        "f1": float(np.mean(list(f1))),
        "words": float(np.mean([len(text.split()) for text in texts])),
        "distinct": float(np.mean([distinct_runs(text, 4) for text in texts])),
    }


def main(test: Path, run: Path):
    attributes = {Path(row["videos"][0]).name: row["attributes"] for row in lines(test)}
    table = {}
    print(f"{len(attributes)} unseen clips: F1, words, share of different runs of 4 words")
    for folder in sorted(run.glob("seed*")):
        if not (folder / "after.jsonl").exists():
            continue
        before, after = (
            figures(folder / f"{name}.jsonl", attributes) for name in ("before", "after")
        )
        table[folder.name] = {"before": before, "after": after}
        columns = "   ".join(
            f"{name} {one['f1']:.1%}, {one['words']:.1f}, {one['distinct']:.3f}"
            for name, one in table[folder.name].items()
        )
        print(f"{folder.name}: {columns}   gain {100 * (after['f1'] - before['f1']):+.1f} points")
    files.write_json(run / "summary.json", table, indent=2)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
