"""The end of quickstart.sh: shows what was learnt and writes all numbers to summary.json."""

import sys
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
    captions = {name: lines(run / f"{name}.jsonl") for name in COLUMNS}
    scores, rewards = {}, {}
    for name, heading in COLUMNS.items():
        texts = {Path(row["video"]).name: row.get("caption", "") for row in captions[name]}
        predicted = [texts.get(clip, "") for clip in attributes]
        scores[heading] = world.score(predicted, list(attributes.values()))
        rewards[heading] = fmean(map(world.attribute_f1, predicted, attributes.values()))
    scores["chance"] = world.chance(list(attributes.values()))
    seconds = dict(line.split() for line in (run / "steps.txt").read_text().splitlines())
    summary = {
        "step_seconds": {name: int(value) for name, value in seconds.items()},
        "accuracy": scores,
        "reward": rewards,
        "caption_runs": {
            name: files.read_json(run / f"{name}.json", "run quickstart.sh again")
            for name in COLUMNS
        },
    }
    files.write_json(run / "summary.json", summary, indent=2)

    print()
    references = {Path(row["videos"][0]).name: row for row in lines(run / "world/test.jsonl")}
    for row in sorted(captions["grpo"], key=lambda row: row["video"])[:3]:
        print(f"{row['video']}\n  model:   {row.get('caption', row.get('error'))}")
        print(f"  written: {references[Path(row['video']).name]['messages'][-1]['content']}\n")
    print(f"Share of {len(attributes)} unseen clips whose caption is right about ...")
    print(world.table(scores))
    print(f"{'reward':<14}" + "".join(f"{reward:>12.3f}" for reward in rewards.values()))
    asked = {Path(clip).resolve() for clip in clips}
    if asked:
        print("\nYour clips, by a model that knows nothing but its world:")
        for row in lines(run / "yours.jsonl"):
            if Path(row["video"]).resolve() in asked:
                print(f"{row['video']}\n  {row.get('caption', row.get('error'))}")
        print("For real captions: --config.checkpoint=Qwen/Qwen2.5-Omni-3B")
    print(f"\nmodel       {run / 'grpo/model'}\ncaptions    {run / 'grpo.jsonl'}")
    print(f"metrics     {run / 'sft'}, {run / 'grpo'} (metrics.jsonl; tensorboard --logdir)")
    print(f"figures     {run / 'summary.json'}, {run / 'results'}")
    print(f"page        {run / 'report.html'}  <- open it in a browser: scores, plots, clips")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
