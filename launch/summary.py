"""The end of quickstart.sh: shows the captions and writes every figure to summary.json."""

import json
import sys
from pathlib import Path


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def main(run: Path, clips: list[str]):
    asked = {Path(clip).resolve() for clip in clips}
    rows = lines(run / "captions.jsonl")
    captions = [row for row in rows if Path(row["video"]).resolve() in asked]
    seconds = dict(line.split() for line in (run / "steps.txt").read_text().splitlines())
    summary = {
        "step_seconds": {name: int(value) for name, value in seconds.items()},
        "inspect": lines(run / "inspect.jsonl"),
        "captions": captions,
        "caption_run": json.loads((run / "report.json").read_text()),
    }
    text = json.dumps(summary, indent=2, ensure_ascii=False)
    (run / "summary.json").write_text(text + "\n", encoding="utf-8")
    print()
    for row in captions:
        print(f"{row['video']}:\n  {row.get('caption', row.get('error'))}\n")
    print("The checkpoint is tiny and random, so the captions are nonsense: this shows that every")
    print("part works, not what a trained model says. For that, caption with")
    print("--config.checkpoint=Qwen/Qwen2.5-Omni-3B.\n")
    print(f"checkpoint  {run / 'checkpoint'}")
    print(f"captions    {run / 'captions.jsonl'}")
    print(f"figures     {run / 'summary.json'}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
