"""The parts of select_half.sh that are no jobs: a random half, and the differences of all seeds."""

import random
import sys
from collections import defaultdict
from pathlib import Path
from statistics import fmean

import av
from tqdm import tqdm

from ugc_jax import files
from ugc_jax.evals.intervals import interval
from ugc_jax.evals.results import read_result

REMEDY = "run select_half.sh again"


def repost(source: Path, target: Path):
    """Write a clip again at a lower quality, as platforms do."""
    target.parent.mkdir(parents=True, exist_ok=True)
    new = target.with_suffix(".new.mp4")
    with av.open(str(source)) as given, av.open(str(new), "w") as file:
        seen, heard = given.streams.video[0], given.streams.audio[0]
        picture = file.add_stream("libx264", rate=seen.average_rate, options={"crf": "30"})
        picture.width, picture.height, picture.pix_fmt = seen.width, seen.height, "yuv420p"
        sound = file.add_stream("aac", rate=heard.rate, layout=heard.layout.name)
        for frame in given.decode(seen, heard):
            is_picture = isinstance(frame, av.VideoFrame)
            if is_picture:
                frame.pict_type = av.video.frame.PictureType.NONE
            file.mux((picture if is_picture else sound).encode(frame))
        for stream in (picture, sound):
            file.mux(stream.encode(None))
    new.rename(target)


def make_pool(manifest: Path, pool: Path, share: float):
    """Write the rows of a world, and a share of them once more, as clips that were reposted."""
    rows = [line.value for line in files.read_lines(manifest, REMEDY)]
    again = random.Random(0).sample(rows, round(share * len(rows)))
    for number, row in enumerate(tqdm(again, desc="reposts", unit="clip")):
        target = f"reposts/{number:06}.mp4"
        if not (manifest.parent / target).exists():
            repost(manifest.parent / row["videos"][0], manifest.parent / target)
        again[number] = row | {"videos": [target]}
    files.write_text(pool, files.to_lines(rows + again))


def choose_random(labels: Path, selected: Path, output: Path, seed: int):
    """Write as many random rows as were selected."""
    rows = [line.value for line in files.read_lines(labels, REMEDY)]
    count = sum(1 for _ in files.read_lines(selected, REMEDY))
    files.write_text(output, files.to_lines(random.Random(seed).sample(rows, count)))


def scores(path: Path) -> dict[str, float]:
    """F1 of each clip, in percent; a clip without a caption has 0."""
    return {clip["id"]: clip.get("score", 0.0) for clip in read_result(path)["clips"]["world"]}


def line(label: str, differences: list[float]) -> str:
    low, high = interval(differences)
    return f"{label:<12}{fmean(differences):>+8.2f}   {low:+.2f} to {high:+.2f}"


def compare(run: Path):
    """Print the differences of F1, clip by clip, with their 95 % bootstrap intervals."""
    by_clip = defaultdict(list)
    print("selected half against a random half, F1 of unseen clips in points, 95 % interval")
    for folder in sorted(run.glob("seed*")):
        if not (folder / "random.json").exists():
            continue
        one, other = (scores(folder / f"{name}.json") for name in ("selected", "random"))
        found = {clip: one[clip] - other[clip] for clip in one}
        for clip, difference in found.items():
            by_clip[clip].append(difference)
        means = f"   ({fmean(one.values()):.1f} and {fmean(other.values()):.1f})"
        print(line(folder.name, list(found.values())) + means)
    # Clips are resampled, seeds are not: of three, an interval over seeds would say little.
    print(line("all seeds", [fmean(one) for one in by_clip.values()]))


if __name__ == "__main__":
    part, *words = sys.argv[1:]
    if part == "pool":
        make_pool(*map(Path, words[:2]), float(words[2]))
    elif part == "random":
        choose_random(*map(Path, words[:3]), int(words[3]))
    else:
        compare(Path(words[0]))
